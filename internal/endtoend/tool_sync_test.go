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

// stored has ingest and syncjob store and mark n messages, and returns when all are processed.
func (s *system) stored(n int) {
	s.t.Helper()
	lines := make([]string, n)
	for i := range lines {
		lines[i] = fmt.Sprintf(`{"ts": 1732300000123, "seq": %d, "metrics": {}}`, i)
	}
	s.publish("telemetry/pump-7", lines)
	devtest.Eventually(s.t, func() error {
		if got := s.count("telemetry where processed"); got != n {
			return fmt.Errorf("%d of %d rows are processed", got, n)
		}
		return nil
	})
}

// TestToolSyncExplain runs the live statement and an operator's on rows that both daemons have handled, beside them at work, also one
// that is killed in the middle: nothing is left of any.
func TestToolSyncExplain(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	expect(0, "version", "migrate", "up")
	expect(1, "there is no row to try it on", "sync", "explain")
	s.ingest().awaitReady()
	s.syncjob().awaitReady()
	s.stored(200)
	const versions = "(select md5(string_agg(format('%s %s %s', id, xmin, processed), ',' order by id)) from telemetry)"
	var before, after string
	if err := s.query("select "+versions, nil, &before); err != nil {
		t.Fatal(err)
	}
	out := expect(0, "live: a statement a day, with the day's bounds", "sync", "explain")
	for _, part := range []string{
		"50 rows of 1 day", "already processed, so that marking is not disturbed", "50 of 50 rows matched", "by id within 1 day", "by id alone",
		"→ every row is matched, in 1 partition", "A rollback does not undo: ", "dead versions of rows", "took from sequences",
	} {
		if !strings.Contains(out, part) {
			t.Errorf("%q is missing in:\n%s", part, out)
		}
	}
	var all struct {
		Rows   int
		Trials []struct {
			SQL               string
			Matched, Expected int
			Verdict           []string
			Partitions        []struct {
				Relation, Scan string
				Hit            int `json:"buffers_hit"`
			}
		}
		NotUndone []string `json:"not_undone"`
	}
	if err := json.Unmarshal([]byte(expect(0, "{", "sync", "explain", "--rows", "7", "--output", "json")), &all); err != nil {
		t.Fatal(err)
	}
	if all.Rows != 7 || len(all.Trials) != 5 || len(all.NotUndone) != 3 || all.Trials[0].Matched != 7 || all.Trials[0].Partitions[0].Hit == 0 {
		t.Errorf("%+v", all)
	}

	file := filepath.Join(t.TempDir(), "slow.sql")
	write := func(sql string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(sql), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("delete from telemetry where id = any($1)")
	expect(0, "50 of 50 rows matched", "sync", "explain", "--sql", file)
	write("update telemetry set processed = false; commit")
	expect(2, "more than one statement", "sync", "explain", "--sql", file)
	write("\ufeffselect from telemetry\r\nwhere id = any($1);\r\n-- as an editor on Windows leaves it\r\n")
	expect(0, "50 of 50 rows matched", "sync", "explain", "--sql", file)
	write("select '\xff'")
	expect(2, "is not UTF-8 text", "sync", "explain", "--sql", file)
	write("  ")
	expect(2, "is empty", "sync", "explain", "--sql", file)
	expect(2, "no such file", "sync", "explain", "--sql", file+"x")
	expect(2, "--rows: 0", "sync", "explain", "--rows", "0")

	write("update telemetry set processed = false where id = any($1) and pg_sleep(0.1) is not null")
	cmd := exec.Command(filepath.Join(bin, "plenumctl"), "sync", "explain", "--sql", file)
	cmd.Env = []string{"PLENUM_DATABASE_URL=" + s.role("owner")}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running := func() (n int) {
		return s.count("pg_stat_activity where application_name like 'plenumctl%' and query like '%pg_sleep(0.1)%' and query like '%analyze%' and state = 'active' and datname = current_database()")
	}
	devtest.Eventually(t, func() error {
		if running() == 0 {
			return fmt.Errorf("the statement does not run")
		}
		return nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	devtest.Eventually(t, func() error {
		if n := running(); n > 0 {
			return fmt.Errorf("%d statements go on after the tool was killed", n)
		}
		return nil
	})
	if err := s.query("select "+versions, nil, &after); err != nil || after != before {
		t.Errorf("rows are not as they were: %v", err)
	}

	as := func(role string, code int, want string) {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, "plenumctl"), "sync", "explain")
		cmd.Env = []string{"PLENUM_DATABASE_URL=" + s.role(role)}
		if got, out, errs := output(t, cmd); got != code || !strings.Contains(out+errs, want) {
			t.Errorf("as %s it exits %d, want %d and %q:\n%s%s", role, got, code, want, out, errs)
		}
	}
	as("sync", 0, "every row is matched")
	as("ingest", 2, `grant update (processed) on telemetry to "plenum_ingest"`)
}

// TestToolSyncResolve deletes a row under syncjob's hands: the batch is set aside, shown, found by the doctor, and settled.
func TestToolSyncResolve(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	expect(0, "version", "migrate", "up")
	expect(0, "0 batches pending; 0 set aside\n", "sync", "status")
	s.ingest().awaitReady()
	s.publish("telemetry/pump-7", []string{`{"ts": 1732300000123, "seq": 1, "metrics": {}}`, `{"ts": 1732300000123, "seq": 2, "metrics": {}}`})
	devtest.Eventually(t, func() error {
		if n := s.count("telemetry"); n != 2 {
			return fmt.Errorf("%d rows are stored", n)
		}
		return nil
	})
	s.exec("insert into telemetry select (select min(first_id) from telemetry_batch), last_modified, recorded_at, 3, false, device_id, kind, payload from telemetry where seq = 1")
	var batch int
	if err := s.query("select min(batch_id) from telemetry_batch", nil, &batch); err != nil {
		t.Fatal(err)
	}
	expect(0, "batches pending, the oldest since", "sync", "status")
	syncjob := s.syncjob().awaitReady()
	devtest.Eventually(t, func() error {
		if n := s.count("telemetry_batch where set_aside_at is not null"); n != 1 {
			return fmt.Errorf("%d batches are set aside", n)
		}
		return nil
	})
	number := fmt.Sprint(batch)
	expect(0, "1 set aside", "sync", "status")
	var status struct {
		SetAside []struct {
			Batch   int `json:"batch_id"`
			Counted int `json:"rows_counted"`
			Found   int `json:"rows_found"`
		} `json:"set_aside"`
	}
	if err := json.Unmarshal([]byte(expect(0, "{", "sync", "status", "--output", "json")), &status); err != nil {
		t.Fatal(err)
	}
	if l := status.SetAside; len(l) != 1 || l[0].Batch != batch || l[0].Found != l[0].Counted+1 {
		t.Errorf("%+v", status)
	}
	expect(3, "plenumctl sync resolve "+number+" --dry-run", "doctor", "--sample", "0")
	expect(2, "one BATCH is needed", "sync", "resolve")
	expect(2, "one BATCH is needed", "sync", "resolve", "x")
	expect(2, "the ledger has no such batch", "sync", "resolve", "471100")
	expect(0, "1 rows would be given ids and a line of their own\n", "sync", "resolve", number, "--dry-run")
	expect(0, "the line is pending again", "sync", "resolve", number)
	devtest.Eventually(t, func() error {
		if n := s.count("telemetry where processed"); n != 3 {
			return fmt.Errorf("%d rows are processed", n)
		}
		return nil
	})
	_, body, _ := syncjob.get("/api/v1/feed/x?from=earliest")
	if n := strings.Count(body, "\n"); n != 3 {
		t.Errorf("%d rows are handed on:\n%s", n, body)
	}
	expect(0, "line and rows agree: nothing to do", "sync", "resolve", number)
	expect(0, `"changed": false`, "sync", "resolve", number, "--output", "json")
	expect(0, "0 batches pending; 0 set aside\n", "sync", "status")
	expect(0, "no session waited for a lock in 2 looks over 500ms\nnothing found", "doctor", "--sample", "500ms")
	expect(2, "--sample", "doctor", "--sample", "-1s")
}

// TestPlanWarning takes the index on id from a day while an old snapshot keeps it from being built again: readiness names day and
// column with 200, the metric counts, the doctor finds it, and all ends soon after the repair.
func TestPlanWarning(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	ingest := s.ingest().awaitReady()
	today := "telemetry_p" + time.Now().UTC().Format("20060102")
	ready := func() (string, error) {
		code, body, _, err := get(ingest.url("/readyz"))
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("readiness is %d: %s", code, body)
		}
		return body, err
	}
	devtest.Eventually(t, func() error {
		if ingest.metric(`plenum_partition_runway_seconds{table="telemetry"}`) < 4*24*3600-1 {
			return errors.New("not all days are there")
		}
		return nil
	})
	release := s.hold("set local application_name = 'analyst'; set transaction isolation level repeatable read; select count(*) from partition_policy")
	s.exec("update pg_index set indisvalid = false where indexrelid = '" + today + "_id_idx'::regclass")
	devtest.Eventually(t, func() error {
		body, err := ready()
		named := strings.Contains(body, "mark: sequential scan of "+today+": no index on id") || // while partman drops and builds it
			strings.Contains(body, "mark: sequential scan of "+today+": the index "+today+"_id_idx")
		if err == nil && (!named || !strings.Contains(body, "feed_rows: ")) {
			err = fmt.Errorf("readiness does not name it: %s", body)
		}
		return err
	})
	if n := ingest.metric(`plenum_plan_findings{statement="mark"}`); n != 1 {
		t.Errorf("the metric is %v", n)
	}
	locked := s.hold("set local application_name = 'fool'; lock table only telemetry")
	code, out, errs := s.ctl("doctor", "--sample", "100ms")
	if code != 3 || !strings.Contains(out, "plans: cannot look: ") || errs != "" {
		t.Errorf("beside a lock on the table the doctor exits %d:\n%s%s", code, out, errs)
	}
	locked()
	code, out, _ = s.ctl("doctor", "--sample", "0")
	if code != 3 || !strings.Contains(out, "plans: sequential scan of "+today) || !strings.Contains(out, "in the statements mark, feed_rows") {
		t.Errorf("doctor exits %d:\n%s", code, out)
	}
	release()
	devtest.Eventually(t, func() error {
		body, err := ready()
		if err == nil && strings.Contains(body, `"plans"`) {
			err = fmt.Errorf("the warning stays: %s", body)
		}
		return err
	})
	devtest.Eventually(t, func() error { // the log comes through a pipe
		for _, message := range []string{"no index serves a statement that runs all day", "the statement is served by an index again"} {
			if n := strings.Count(ingest.text(), message); n < 2 {
				return fmt.Errorf("%q is logged %d times:\n%s", message, n, ingest.text())
			}
		}
		return nil
	})
	if code := ingest.terminate(); code != 0 {
		t.Errorf("ingest exits %d", code)
	}
}
