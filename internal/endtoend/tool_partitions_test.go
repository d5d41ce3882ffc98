package endtoend

import (
	"encoding/json"
	"fmt"
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
	expect(0, "version 2, was 0", "migrate", "up")
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
	expect(0, "version 2, was 0", "migrate", "up")
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
