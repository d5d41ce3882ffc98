package endtoend

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
)

// fed is a system whose feed has batches of these sizes, one position each; ingest and syncjob have ended.
func fed(t *testing.T, sizes ...int) *system {
	t.Helper()
	s := newSystem(t)
	if code, out, errs := s.ctl("migrate", "up"); code != 0 {
		t.Fatal(out, errs)
	}
	for _, n := range sizes {
		s.addBatch(n)
	}
	return s
}

// addBatch adds a processed batch of n rows.
func (s *system) addBatch(n int) {
	s.t.Helper()
	s.exec(`with drawn as materialized (select nextval('telemetry_id_seq') as first), stored as (
			insert into telemetry (id, recorded_at, seq, processed, device_id, kind, payload)
			select first + i - 1, now(), first + i - 1, true, 'pump-7', 'fault', '{"bar": 7.90}' from drawn, generate_series(1, $1::int) i)
		insert into telemetry_batch (first_id, last_id, row_count, day, source, processed_at, feed_position)
		select first, first + $1::int - 1, $1::int, (now() at time zone 'UTC')::date, 'test', clock_timestamp(), nextval('telemetry_feed_position_seq') from drawn`, n)
}

func (s *system) stands(name string, want int64) {
	s.t.Helper()
	var at int64
	if err := s.query("select position from feed_consumer where name = $1", []any{name}, &at); err != nil || at != want {
		s.t.Errorf("consumer %s stands at %d, want %d: %v", name, at, want, err)
	}
}

// TestToolFeed is a person's look at the feed, and a hand on its consumers.
func TestToolFeed(t *testing.T) {
	t.Parallel()
	s := fed(t, 3, 2, 4)
	expect := s.expect()
	expect(0, "feed from 0 to 3\nno consumers\n", "feed", "list")

	read := func(wantRows int, wantStderr string, args ...string) string {
		t.Helper()
		code, out, errs := s.ctl(append([]string{"feed", "read"}, args...)...)
		if code != 0 || strings.Count(out, "\n") != wantRows || errs != wantStderr {
			t.Errorf("feed read %s exits %d with %d rows, want %d, and says %q, want %q", strings.Join(args, " "), code, strings.Count(out, "\n"), wantRows, errs, wantStderr)
		}
		return out
	}
	out := read(9, "position 3\n", "erp")
	var row feedRow
	if err := json.Unmarshal([]byte(strings.SplitN(out, "\n", 2)[0]), &row); err != nil || row.DeviceID != "pump-7" || string(row.Payload) != `{"bar": 7.90}` {
		t.Errorf("row %+v: %v", row, err)
	}
	read(3, "position 1\n", "erp", "--limit", "1")
	s.stands("erp", 0) // nothing was committed
	read(3, "position 1, committed\n", "erp", "--limit", "1", "--commit")
	s.stands("erp", 1)
	read(6, "position 3\n", "--wait", "1m", "erp")
	read(0, "position 3\n", "late", "--from", "latest", "--wait", "10ms")
	expect(2, "limit 0 is not from 1", "feed", "read", "erp", "--limit", "0")
	expect(2, "yesterday", "feed", "read", "erp", "--from", "yesterday")
	expect(2, "one NAME is needed", "feed", "read")
	expect(2, "one NAME is needed", "feed", "read", "a", "b")
	expect(2, `consumer name "a/b"`, "feed", "read", "a/b")

	expect(0, "erp stands at 0\n", "feed", "seek", "erp", "0")
	s.stands("erp", 0)
	expect(0, "erp stands at 3\n", "feed", "seek", "erp", time.Now().Add(time.Hour).Format(time.RFC3339))
	expect(0, "erp stands at 0\n", "feed", "seek", "erp", "2020-01-01T00:00:00Z")
	expect(1, "position 4 is past the feed's head 3", "feed", "seek", "erp", "4")
	expect(2, `there is no consumer "nobody"; plenumctl feed list has`, "feed", "seek", "nobody", "1")
	expect(2, `"-1" is neither a position`, "feed", "seek", "--", "erp", "-1")
	expect(2, `"noon" is neither a position`, "feed", "seek", "erp", "noon")
	expect(2, "NAME and a POSITION", "feed", "seek", "erp")
	s.exec("update feed_horizon set position = 1")
	expect(1, "the oldest position to read from is 1", "feed", "seek", "erp", "0")
	expect(1, "the oldest position to read from is 1", "feed", "read", "erp")
	expect(0, "rows behind it have been dropped", "feed", "list")

	s.exec(`insert into feed_consumer (name, position, required, target, delivering, attempts, failing_since, detail)
		values ('hook', 1, true, 'webhook', 2, 4, now() - interval '1 hour', E'status 500\nno')`)
	list := expect(0, "NAME", "feed", "list")
	if want := "hook  1         2               "; !strings.Contains(list, want) || !strings.Contains(list, `nobody pushes; failing since `) || !strings.Contains(list, `4 refused: status 500\nno`) {
		t.Errorf("no %q in\n%s", want, list)
	}
	var listed struct {
		Horizon, Head int64
		Consumers     []struct {
			Name     string
			Required bool
			Target   *string
			Batches  int64 `json:"lag_batches"`
		}
	}
	if err := json.Unmarshal([]byte(expect(0, "{", "feed", "list", "--output", "json")), &listed); err != nil {
		t.Fatal(err)
	}
	if hook := listed.Consumers[1]; listed.Horizon != 1 || listed.Head != 3 || len(listed.Consumers) != 3 || hook.Name != "hook" || !hook.Required || *hook.Target != "webhook" || hook.Batches != 2 {
		t.Errorf("%+v", listed)
	}
	expect(2, "--output", "feed", "list", "--output", "xml")
	read(6, "position 3\n", "hook")
	expect(2, `syncjob pushes to consumer "hook" (webhook)`, "feed", "read", "hook", "--commit")
	s.stands("hook", 1)

	out = expect(3, "feed: hook: no process pushes to its webhook; start a syncjob that has it in push; or", "doctor", "--sample", "0")
	if want := "feed: erp: it stands at 0, and rows up to 1 have been dropped; to go on without them: plenumctl feed seek erp 1\n"; !strings.Contains(out, want) {
		t.Errorf("no %q in\n%s", want, out)
	}
	expect(0, "erp is removed", "feed", "remove", "erp")
	expect(2, `there is no consumer "erp"`, "feed", "remove", "erp")
	expect(2, "one NAME is needed", "feed", "remove")
}

// TestToolFeedFollows reads on until it is stopped; what it has committed is what it has written.
func TestToolFeedFollows(t *testing.T) {
	t.Parallel()
	s := fed(t, 3, 2)
	for _, commit := range []bool{false, true} {
		name := fmt.Sprint("follower-", commit)
		cmd := exec.Command(filepath.Join(bin, "plenumctl"), "feed", "read", name, "--follow", "--limit", "1", fmt.Sprintf("--commit=%t", commit))
		cmd.Env = []string{"PLENUM_DATABASE_OWNER_URL=" + s.role("owner")}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var errs strings.Builder
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		rows := bufio.NewScanner(out)
		for n := range 5 {
			if !rows.Scan() {
				t.Fatalf("the rows end after %d: %s", n, errs.String())
			}
		}
		s.addBatch(1)
		if !rows.Scan() || !strings.Contains(rows.Text(), "pump-7") {
			t.Fatalf("no row of the batch that was added: %s", errs.String())
		}
		var head int64
		if err := s.query("select max(feed_position) from telemetry_batch", nil, &head); err != nil {
			t.Fatal(err)
		}
		if commit {
			devtest.Eventually(t, func() error {
				var at int64
				if err := s.query("select position from feed_consumer where name = $1", []any{name}, &at); err != nil || at != head {
					return fmt.Errorf("at %d, want %d: %v", at, head, err)
				}
				return nil
			})
		} else {
			s.stands(name, 0)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(out); err != nil || len(rest) > 0 {
			t.Errorf("%d bytes more: %v", len(rest), err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("a follower that is stopped: %v\n%s", err, errs.String())
		}
		if commit != strings.Contains(errs.String(), "position 1, committed\n") {
			t.Errorf("standard error:\n%s", errs.String())
		}
		s.exec("delete from telemetry_batch where row_count = 1") // so that both begin alike
	}
}
