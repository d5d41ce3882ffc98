package endtoend

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv"
)

// clock moves the clock of a PostgreSQL server, also of the sessions that it has. It stays behind the real one: while a
// session waits, libfaketime shows its signal handlers the real time (epoll_wait), and a timer, of the deadlock detector for
// instance, that is due by a clock ahead of the real one is put off until that has come so far.
type clock struct {
	t    *testing.T
	path string
}

// newClock returns a clock that begins at a time, and the environment of the server that follows it.
func newClock(t *testing.T, at time.Time) (*clock, []string) {
	t.Helper()
	library, err := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if err != nil || len(library) == 0 {
		t.Fatal("libfaketime is needed to move PostgreSQL's clock: sh tools/install.sh libfaketime")
	}
	dir, err := os.MkdirTemp("", "plenum-clock-") // not t.TempDir, which only its user may pass
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := &clock{t, filepath.Join(dir, "offset")}
	c.set(at)
	return c, []string{
		"LD_PRELOAD=" + library[0], "FAKETIME_TIMESTAMP_FILE=" + c.path, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1",
	}
}

// set moves the clock to a time, from which it goes on. The file is replaced as a whole: a server reads it at every look at
// the clock.
func (c *clock) set(at time.Time) {
	c.t.Helper()
	behind := time.Since(at)
	if behind < 0 {
		c.t.Fatalf("the clock cannot be ahead of the real one, %s", behind)
	}
	next := c.path + ".next"
	if err := os.WriteFile(next, fmt.Appendf(nil, "-%.6f\n", behind.Seconds()), 0o644); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(next, c.path); err != nil {
		c.t.Fatal(err)
	}
}

// newSystemWithClock is a system whose PostgreSQL follows a clock, which is at the noon before a midnight four days ago.
func newSystemWithClock(t *testing.T) (s *system, c *clock, midnight time.Time) {
	t.Helper()
	midnight = time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -4)
	c, env := newClock(t, midnight.Add(-12*time.Hour))
	return newSystemApart(t, func(config *devenv.PostgresConfig) { config.Env = env }), c, midnight
}

// TestClock moves the clock under an old session and a new one, and waits for a timer of the old one.
func TestClock(t *testing.T) {
	t.Parallel()
	s, c, midnight := newSystemWithClock(t)
	old, err := pgx.Connect(t.Context(), s.postgres.URL(s.database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = old.Close(context.Background()) })
	for _, at := range []time.Time{midnight, midnight.Add(50 * time.Hour), midnight.Add(time.Hour)} {
		c.set(at)
		for name, query := range map[string]func(...any) error{
			"old": old.QueryRow(t.Context(), "select now(), clock_timestamp()").Scan,
			"new": func(into ...any) error { return s.query("select now(), clock_timestamp()", nil, into...) },
		} {
			var now, moment time.Time
			if err := query(&now, &moment); err != nil {
				t.Fatal(err)
			}
			for _, got := range []time.Time{now, moment} {
				if off := got.Sub(at); off < 0 || off > 30*time.Second {
					t.Errorf("the %s session's clock is off by %s", name, off)
				}
			}
		}
	}
	release := s.hold("select pg_advisory_xact_lock(1)")
	defer release()
	if _, err := old.Exec(t.Context(), "set deadlock_timeout = '100ms'; set lock_timeout = '200ms'; select pg_advisory_lock(1)"); err == nil || !strings.Contains(err.Error(), "55P03") {
		t.Errorf("a lock's timeout ends with %v, want SQLSTATE 55P03", err)
	}
}

// TestMidnight has two publishers send the same readings again and again, one with seq and one without and others that begin
// on the way, while the database's clock crosses midnight; and a retained one is sent again by the broker days later.
func TestMidnight(t *testing.T) {
	t.Parallel()
	s, c, midnight := newSystemWithClock(t)
	env := []string{"PLENUM_INGEST_WRITERS=4", "PLENUM_INGEST_BATCH_ROWS=20", "PLENUM_INGEST_LINGER=2ms"}
	ingest := s.ingest(env...).awaitReady()
	now := midnight.Add(-time.Minute) // of the devices
	reading := func(device, seq string) devenv.Message {
		return devenv.Message{Topic: "telemetry/" + device, Payload: fmt.Appendf(nil, `{"ts":%d%s,"metrics":{"pressure_bar":7.5}}`, now.UnixMilli(), seq)}
	}
	retained := reading("retained", "")
	retained.Retain = true
	if err := devenv.Publish(t.Context(), s.broker.URL(), retained); err != nil {
		t.Fatal(err)
	}
	s.awaitRows(1)

	const lead = 2 * time.Second
	n, steps := sized(1000, 10_000), sized(20, 200)
	begin := time.Now()
	c.set(midnight.Add(-lead))
	for step := range steps {
		// The database's clock is midnight less the lead at the first step, and as much past it at the last.
		due := begin.Add(time.Duration(step) * 2 * lead / time.Duration(steps))
		await(t, "time of the step", after(time.Until(due)))
		var messages []devenv.Message
		for range n / steps {
			messages = append(messages, reading("with", `,"seq":7`), reading("without", ""), reading(fmt.Sprint("from-", step), ""))
		}
		s.publishTwice(messages)
	}
	var first, last time.Time
	ends := []devenv.Message{reading("end", `,"seq":1`)}
	s.publishTwice(ends)
	rows := 4 + steps
	s.awaitRows(rows)
	if err := s.query("select min(last_modified), max(last_modified) from telemetry where device_id <> 'retained'", nil, &first, &last); err != nil {
		t.Fatal(err)
	}
	if !first.Before(midnight) || last.Before(midnight) {
		t.Fatalf("rows from %s to %s: midnight %s was not crossed", first, last, midnight)
	}
	if code := ingest.terminate(); code != 0 { // what it has received is stored then, and the ends came last
		t.Fatalf("ingest exits %d", code)
	}
	s.eachOnce(rows)

	c.set(midnight.AddDate(0, 0, 3))
	_, broker := s.proxies()
	ingest = s.ingest(append(env, s.through(nil, broker)...)...).awaitReady()
	awaitMore(t, "retained message", &broker.publishes, 0)
	s.balanced(ingest)
	s.eachOnce(rows)
	figure(t, "midnight: each of the same readings sent %d times by two publishers while the database's clock crosses midnight, "+
		"with and without seq, and %d that begin on the way: one row each, none in quarantine; a retained one, sent again three days later: one row", 2*n, steps)
}

// publishTwice sends the messages over two connections at once.
func (s *system) publishTwice(messages []devenv.Message) {
	s.t.Helper()
	var both sync.WaitGroup
	var errs [2]error
	for i := range errs {
		both.Go(func() { errs[i] = devenv.Publish(s.t.Context(), s.broker.URL(), messages...) })
	}
	both.Wait()
	for _, err := range errs {
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// eachOnce finds one row for each of n identities, of which the devices are different, and nothing in quarantine.
func (s *system) eachOnce(n int) {
	s.t.Helper()
	type device struct {
		ID   string
		Rows int
		Days []time.Time
	}
	found := list[device](s, `select device_id, count(*)::int, array_agg(last_modified order by last_modified) from telemetry group by device_id`)
	for _, d := range found {
		if d.Rows != 1 {
			s.t.Errorf("the reading of %q is stored %d times, at %v", d.ID, d.Rows, d.Days)
		}
	}
	if len(found) != n {
		s.t.Errorf("%d readings are stored of %d", len(found), n)
	}
	s.unquarantined()
}

// after is closed when the time has passed.
func after(d time.Duration) <-chan struct{} {
	c := make(chan struct{})
	time.AfterFunc(d, func() { close(c) })
	return c
}
