package endtoend

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
)

// oldDay attaches a partition of the day n days ago to telemetry, as a run of that day would have, and returns that day.
func (s *system) oldDay(n int) (day, partition string) {
	s.t.Helper()
	from := time.Now().UTC().AddDate(0, 0, -n)
	day, partition = from.Format(time.DateOnly), "telemetry_p"+from.Format("20060102")
	s.exec(fmt.Sprintf(`set role plenum_owner; create table %[1]s (like telemetry including all);
		alter table telemetry attach partition %[1]s for values from ('%[2]s 00:00+00') to ('%[3]s 00:00+00')`,
		partition, day, from.AddDate(0, 0, 1).Format(time.DateOnly)))
	return day, partition
}

// TestToolHolds walks an operator through holding a day and letting it go.
func TestToolHolds(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	expect(0, "version 3, was 0", "migrate", "up")
	day, partition := s.oldDay(9)
	expect(2, "one UTC day as 2026-11-14", "partitions", "hold")
	expect(2, `"2026-11-14 2026-11-15": one UTC day`, "partitions", "hold", "2026-11-14", "2026-11-15")
	expect(2, `"14.11.2026": one UTC day`, "partitions", "release", "14.11.2026")
	expect(2, `"nowhere" has no partition policy`, "partitions", "hold", day, "--table", "nowhere")
	expect(0, "telemetry  held  "+partition, "partitions", "hold", day, "--table", "telemetry", "--reason", "case 17")
	expect(0, "no partition has that day now", "partitions", "hold", "2031-01-01T05", "--table", "telemetry_archive")

	list := expect(0, "HELD", "partitions", "list", "--table", "telemetry")
	for line := range strings.Lines(list) {
		if held := strings.Contains(line, "case 17") && strings.Contains(line, "by "); held != strings.Contains(line, partition) {
			t.Errorf("held: %t, in the line %s", held, line)
		}
	}
	var listed []struct {
		Partition string
		Held      *struct{ By, Reason string }
	}
	if err := json.Unmarshal([]byte(expect(0, "[", "partitions", "list", "--table", "telemetry", "--output", "json")), &listed); err != nil {
		t.Fatal(err)
	}
	for _, l := range listed {
		if (l.Held != nil) != (l.Partition == partition) || l.Held != nil && (l.Held.Reason != "case 17" || l.Held.By == "") {
			t.Errorf("%s is held: %+v", l.Partition, l.Held)
		}
	}
	expect(0, "done", "partitions", "apply")
	expect(3, "cannot go: held by ", "partitions", "check")
	if n := s.count("pg_inherits where inhparent = 'telemetry'::regclass and inhrelid = '" + partition + "'::regclass"); n != 1 {
		t.Error("the held day has left the table")
	}
	expect(1, "nothing holds "+day, "partitions", "release", day, "--table", "telemetry_archive")
	expect(0, `"released": 1`, "partitions", "release", day, "--output", "json")
	expect(3, "more than one round may take, max_retire_bytes 1", "partitions", "check", "--partition.max_retire_bytes", "1")
	expect(0, partition+"  done", "partitions", "apply", "--table", "telemetry")
	expect(0, "nothing found", "partitions", "check")
}

// TestToolAcceptsTheClock after a time without a run.
func TestToolAcceptsTheClock(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	expect(0, "version 3, was 0", "migrate", "up")
	expect(0, "done", "partitions", "apply")
	_, partition := s.oldDay(9)
	s.exec("update partition_policy set last_run = now() - interval '30 days'")
	if out := expect(0, "done", "partitions", "apply", "--table", "telemetry"); strings.Contains(out, "archive  ") {
		t.Errorf("a day goes by a clock in doubt:\n%s", out)
	}
	expect(3, "plenumctl partitions apply --accept-clock", "partitions", "check")
	expect(0, partition+"  done", "partitions", "apply", "--accept-clock")
	expect(0, "nothing found", "partitions", "check")
}

// TestShorterRetention: ingest starts with it, says once that it waits, and readiness warns until a person confirms it.
func TestShorterRetention(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	s.ingest().awaitReady().terminate()
	_, partition := s.oldDay(6)
	const shorter = "PLENUM_PARTITION_RETENTION_DAYS=4"
	const waits, command = "shorter retention waits for confirmation", "plenumctl partitions apply --confirm-retention --table telemetry"
	for start := range 2 {
		ingest := s.ingest(shorter).awaitReady()
		devtest.Eventually(t, func() error { return ingest.ready(200, command) })
		if code := ingest.terminate(); code != 0 {
			t.Errorf("ingest exits %d", code)
		}
		if told := strings.Count(ingest.text(), waits); told != 1-start {
			t.Errorf("start %d tells %d times that it waits:\n%s", start, told, ingest.text())
		}
		if changed := strings.Count(ingest.text(), "partition policy changed"); changed != 1-start {
			t.Errorf("start %d tells %d times of a changed policy", start, changed)
		}
	}
	if n := s.count("pg_inherits where inhparent = 'telemetry'::regclass and inhrelid = '" + partition + "'::regclass"); n != 1 {
		t.Error("the day has left the table by a retention that nobody confirmed")
	}
	expect(3, command, "partitions", "check")
	expect(2, "--table is needed", "partitions", "apply", "--confirm-retention")
	expect(1, "no retention of this table waits", "partitions", "apply", "--confirm-retention", "--table", "telemetry_archive")
	expect(0, partition+"  done", "partitions", "apply", "--confirm-retention", "--table", "telemetry")
	expect(0, "nothing found", "partitions", "check", "--table", "telemetry")
}

// shop is a table of somebody else, which belongs to a role of theirs.
func (s *system) shop() {
	s.t.Helper()
	s.exec(`create schema "Shop"; create table "Shop"."Or.ders" (id bigint, at timestamptz not null) partition by range (at);
		create table "Shop".plain (at timestamptz); alter schema "Shop" owner to plenum_owner; alter table "Shop"."Or.ders" owner to plenum_owner;
		alter table "Shop".plain owner to plenum_owner`)
}

// TestToolRegister keeps a table with capitals and a dot in its name, in a database without Plenum's own tables.
func TestToolRegister(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.shop()
	expect := s.expect()
	const table = `Shop."Or.ders"`
	expect(2, "--table: is needed", "partitions", "register")
	expect(2, "has 3 parts", "partitions", "register", "--table", "Shop.Or.ders")
	expect(1, "migrate up", "partitions", "list")
	out := expect(2, "is not partitioned", "partitions", "register", "--table", "Shop.plain", "--key", "at", "--premake", "1000", "--expired", "burn")
	if _, _, errs := s.ctl("partitions", "register", "--table", "Shop.plain", "--key", "at", "--premake", "1000", "--expired", "burn"); !strings.Contains(errs, "premake 1000") ||
		!strings.Contains(errs, `expired "burn"`) {
		t.Errorf("not all faults at once:\n%s%s", out, errs)
	}
	expect(2, "neither unique nor", "partitions", "register", "--table", table, "--index", "i:id:uniq")
	expect(2, "KEY=VALUE", "partitions", "register", "--table", table, "--storage", "x")
	expect(0, "Shop.\"Or.ders\" is registered:\n  key: at\n  step: hour\n  premake: 4\n  retention: 0\n  grace: 24h0m0s\n",
		"partitions", "register", "--table", table, "--key", "at", "--step", "hour", "--index", "id:id:unique", "--storage", "fillfactor=70")
	expect(0, "like that already", "partitions", "register", "--table", table)
	expect(0, "  retention: 48, was 0\n  expired: drop, was none\n", "partitions", "register", "--table", table, "--retention", "48", "--expired", "drop")
	expect(3, `--confirm-retention --table 'Shop."Or.ders"'`, "partitions", "check")
	expect(0, "is in force once you say so", "partitions", "register", "--table", table)
	expect(0, "done", "partitions", "apply", "--confirm-retention", "--table", table)
	s.exec(fmt.Sprintf(`drop table "Shop".%q`, "Or.ders_p"+time.Now().UTC().Add(3*time.Hour).Format("20060102_15")))
	expect(3, `Shop."Or.ders"  premake`, "partitions", "check")
	expect(2, `these have: Shop."Or.ders"`, "partitions", "plan", "--table", "Or")
	expect(0, "done", "partitions", "apply", "--table", table)
	expect(0, "nothing found", "partitions", "check", "--table", `"Shop"."Or.ders"`)
	hour := time.Now().UTC().Truncate(time.Hour).Add(2 * time.Hour).Format("2006-01-02T15:04Z")
	if list := expect(0, hour, "partitions", "list", "--table", table); strings.Count(list, "\n") != 6 || !strings.Contains(list, "future") {
		t.Errorf("listed:\n%s", list)
	}
	expect(0, "  indexes: none, was create unique index", "partitions", "register", "--table", table, "--index", "")

	expect(0, "version 3, was 0", "migrate", "up")
	expect(0, "telemetry  ", "partitions", "list")
	expect(2, "is Plenum's own", "partitions", "register", "--table", "telemetry", "--retention", "3")
	expect(2, "is Plenum's own", "partitions", "unregister", "--table", "telemetry")
	expect(0, "kept no longer", "partitions", "unregister", "--table", table)
	expect(2, "has no partition policy", "partitions", "unregister", "--table", table)
	expect(2, "has no partition policy", "partitions", "check", "--table", table)
	if n := s.count(`pg_inherits where inhparent = '"Shop"."Or.ders"'::regclass`); n != 5 {
		t.Errorf("%d partitions stay, want 5", n)
	}
}

// TestToolAdopt shows what would be, changes nothing by that, and keeps the table with --apply.
func TestToolAdopt(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.shop()
	expect := s.expect()
	day := time.Now().UTC().AddDate(0, 0, 1).Format(time.DateOnly)
	s.exec(fmt.Sprintf(`create table "Shop".tomorrow partition of "Shop"."Or.ders" for values from ('%[1]s 00:00+00') to ('%[1]s 24:00+00');
		create table "Shop".rest partition of "Shop"."Or.ders" default; insert into "Shop"."Or.ders" values (1, now());
		alter table "Shop".tomorrow owner to plenum_owner; alter table "Shop".rest owner to plenum_owner`, day))
	adopt := []string{"partitions", "adopt", "--table", `Shop."Or.ders"`}
	expect(3, "in the way: rest: the DEFAULT partition holds rows", append(adopt, "--apply")...)
	expect(1, "migrate up", "partitions", "list") // no policy, nor Plenum's tables
	s.exec(`alter table "Shop"."Or.ders" detach partition "Shop".rest`)
	out := expect(0, "Nothing is changed: --apply registers the table.", adopt...)
	for _, line := range []string{"by the partitions:", "  step: day\n", "  premake: 1\n", "  retention: 0\n"} {
		if !strings.Contains(out, line) {
			t.Errorf("%q is missing in:\n%s", line, out)
		}
	}
	var adoption struct {
		Policy struct{ Step, Expired string }
		Source string
	}
	if err := json.Unmarshal([]byte(expect(0, "{", append(adopt, "--output", "json", "--retention", "3", "--expired", "drop")...)), &adoption); err != nil ||
		adoption.Policy.Step != "day" || adoption.Policy.Expired != "drop" {
		t.Errorf("as JSON %+v, %v", adoption, err)
	}
	expect(0, "It is registered.", append(adopt, "--apply")...)
	expect(2, "is registered already", adopt...)
	expect(0, "done", "partitions", "apply")
	expect(0, "nothing found", "partitions", "check")
	s.exec(`insert into "Shop"."Or.ders" select * from "Shop".rest`)
}

// TestToolAppliesWhatWasRead: a plan that was printed is done as it was printed, or not at all.
func TestToolAppliesWhatWasRead(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	expect(0, "version", "migrate", "up")
	file := filepath.Join(t.TempDir(), "plan.json")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	expect(2, "--plan: open", "partitions", "apply", "--plan", file)
	write("{}")
	expect(2, "is not what partitions plan", "partitions", "apply", "--plan", file)
	plan := expect(0, "[", "partitions", "plan", "--output", "json", "--table", "telemetry")
	write(strings.ReplaceAll(plan, "fillfactor", "fillfactory"))
	expect(1, "the catalog has changed since the plan was made: make and read a new one", "partitions", "apply", "--plan", file)
	write(plan)
	expect(0, "done", "partitions", "apply", "--plan", file)
	expect(1, "the catalog has changed", "partitions", "apply", "--plan", file)
	if n := s.count(`pg_inherits where inhparent = 'telemetry_batch'::regclass`); n != 1 {
		t.Errorf("%d partitions of another table than the plan's, want the one of migrate up", n)
	}
	if n := s.count(`pg_inherits where inhparent = 'telemetry'::regclass`); n != 5 {
		t.Errorf("%d partitions of telemetry, want 5", n)
	}
}

// partitionsRun starts the partition manager without ingest.
func (s *system) partitionsRun() *process {
	return s.startCommand(exec.Command(filepath.Join(bin, "plenumctl"), "partitions", "run"), "PLENUM_DATABASE_OWNER_URL="+s.role("owner"))
}

// TestToolRun: two managers without ingest keep a table, each thing done once; each ends cleanly.
func TestToolRun(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.shop()
	expect := s.expect()
	expect(0, "is registered", "partitions", "register", "--table", `Shop."Or.ders"`, "--key", "at", "--premake", "2")
	expect(0, "done", "partitions", "apply")
	s.exec(fmt.Sprintf(`drop table "Shop".%q`, "Or.ders_p"+time.Now().UTC().AddDate(0, 0, 2).Format("20060102")))
	s.exec(`create index on only "Shop"."Or.ders" (id); create table "Shop".second (at date) partition by range (at);
		create table "Shop".rest partition of "Shop".second default; alter table "Shop".second owner to plenum_owner; alter table "Shop".rest owner to plenum_owner`)
	expect(0, "is registered", "partitions", "register", "--table", "Shop.second", "--key", "at", "--premake", "-1")
	first, second := s.partitionsRun().awaitReady(), s.partitionsRun().awaitReady()
	did := func(action string) int {
		return strings.Count(first.text()+second.text(), fmt.Sprintf(`"action":%q`, action))
	}
	devtest.Eventually(t, func() error {
		if code, out, _ := s.ctl("partitions", "check", "--table", `Shop."Or.ders"`); code != 0 {
			return errors.New(out)
		}
		if made, indexed := did("create"), did("index"); made != 1 || indexed != 2 { // a round is logged when it has ended
			return fmt.Errorf("the two made %d partitions and %d indexes, want 1 and 2", made, indexed)
		}
		return nil
	})
	ready := ""
	for _, p := range []*process{first, second} {
		if code, _, _ := p.get("/livez"); code != http.StatusOK {
			t.Errorf("/livez answers %d", code)
		}
		if code, body, _ := p.get("/metrics"); code != http.StatusOK || !strings.Contains(body, "plenum_build_info") {
			t.Errorf("/metrics answers %d:\n%s", code, body)
		}
		code, body, _ := p.get("/readyz")
		if code != http.StatusOK {
			t.Errorf("/readyz answers %d:\n%s", code, body)
		}
		ready += body
		if code := p.terminate(); code != 0 {
			t.Errorf("it exits %d at SIGTERM", code)
		}
	}
	// Of a table that was the other's turn, one has not seen anything yet.
	if !strings.Contains(ready, "Shop.second: rest") {
		t.Errorf("no readiness says a word of the DEFAULT partition:\n%s", ready)
	}
}

// TestToolBesideATableThatIsGone: a registered table that was dropped keeps no command from doing what it can for the others,
// and the error says how to end it.
func TestToolBesideATableThatIsGone(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.exec(`create schema "it's mine" authorization plenum_owner; create table "it's mine".visits (at timestamptz not null) partition by range (at);
		alter table "it's mine".visits owner to plenum_owner`)
	expect := s.expect()
	expect(0, "version", "migrate", "up")
	expect(0, `--table 'it'\''s mine.visits'`, "partitions", "register", "--table", "it's mine.visits", "--key", "at")
	s.exec(`drop table "it's mine".visits`)
	day, partition := s.oldDay(9)
	expect(0, "held  "+partition, "partitions", "hold", day)
	expect(0, "released", "partitions", "release", day)
	if code, out, _ := s.ctl("partitions", "apply"); code != 1 || !strings.Contains(out, "telemetry") || !strings.Contains(out, "create") {
		t.Errorf("partitions apply exits %d:\n%s", code, out)
	}
	for _, command := range []string{"list", "check", "plan"} {
		if code, _, errs := s.ctl("partitions", command); code != 1 || !strings.Contains(errs, `plenumctl partitions unregister --table 'it'\''s mine.visits'`) {
			t.Errorf("partitions %s exits %d: %s", command, code, errs)
		}
	}
	expect(0, "telemetry_p", "partitions", "list", "--table", "telemetry")
	expect(0, "kept no longer", "partitions", "unregister", "--table", "it's mine.visits")
	expect(0, "telemetry_p", "partitions", "list")
}
