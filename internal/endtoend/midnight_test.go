package endtoend

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv"
)

// clock moves the clock of a PostgreSQL server, also of the sessions that it has.
type clock struct {
	t    *testing.T
	path string
}

// newClock returns a clock at the real time, and the environment of the server that follows it.
func newClock(t *testing.T) (*clock, []string) {
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
	c.ahead(0)
	return c, []string{
		"LD_PRELOAD=" + library[0], "FAKETIME_TIMESTAMP_FILE=" + c.path, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1",
	}
}

// ahead sets the clock ahead of the real one. The file is replaced as a whole: a server reads it at every look at the clock.
func (c *clock) ahead(d time.Duration) {
	c.t.Helper()
	next := c.path + ".next"
	if err := os.WriteFile(next, fmt.Appendf(nil, "+%.6f\n", d.Seconds()), 0o644); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(next, c.path); err != nil {
		c.t.Fatal(err)
	}
}

// newSystemWithClock is a system whose PostgreSQL follows a clock.
func newSystemWithClock(t *testing.T) (*system, *clock) {
	t.Helper()
	c, env := newClock(t)
	return newSystemApart(t, func(config *devenv.PostgresConfig) { config.Env = env }), c
}

// TestClock moves the clock under an old session and a new one.
func TestClock(t *testing.T) {
	t.Parallel()
	s, c := newSystemWithClock(t)
	old, err := pgx.Connect(t.Context(), s.postgres.URL(s.database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = old.Close(context.Background()) })
	for _, d := range []time.Duration{0, 50 * time.Hour, time.Hour} {
		c.ahead(d)
		for name, query := range map[string]func(...any) error{
			"old": old.QueryRow(t.Context(), "select now(), clock_timestamp()").Scan,
			"new": func(into ...any) error { return s.query("select now(), clock_timestamp()", nil, into...) },
		} {
			var now, moment time.Time
			if err := query(&now, &moment); err != nil {
				t.Fatal(err)
			}
			for _, at := range []time.Time{now, moment} {
				if off := at.Sub(time.Now().Add(d)); math.Abs(off.Seconds()) > 30 {
					t.Errorf("the %s session's clock is off by %s", name, off)
				}
			}
		}
	}
}

// TestMidnight has two publishers send the same readings again and again, one with seq and one without and others that begin
// on the way, while the database's clock crosses midnight; and a retained one is sent again by the broker days later.
func TestMidnight(t *testing.T) {
	t.Parallel()
	s, c := newSystemWithClock(t)
	env := []string{"PLENUM_INGEST_WRITERS=4", "PLENUM_INGEST_BATCH_ROWS=20", "PLENUM_INGEST_LINGER=2ms"}
	ingest := s.ingest(env...).awaitReady()
	now := time.Now()
	midnight := now.UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)
	reading := func(kind, seq string) string {
		return fmt.Sprintf(`{"ts":%d,"kind":%q%s,"metrics":{"pressure_bar":7.5}}`, now.UnixMilli(), kind, seq)
	}
	message := func(payload string) devenv.Message {
		return devenv.Message{Topic: "telemetry/d", Payload: []byte(payload)}
	}
	retained := message(reading("retained", ""))
	retained.Retain = true
	if err := devenv.Publish(t.Context(), s.broker.URL(), retained); err != nil {
		t.Fatal(err)
	}
	s.awaitRows(1)
	// No session lives through the jump of the clock, and none is to wait for PostgreSQL's timers: while a backend waits it has the
	// real time of libfaketime, and takes no deadlock for due. So all batches have the readings in one order, which makes none.
	if code := ingest.terminate(); code != 0 {
		t.Fatalf("ingest exits %d", code)
	}

	const lead = 2 * time.Second
	n, steps := sized(1000, 10_000), sized(20, 200)
	offset := time.Until(midnight.Add(-lead - 6*time.Second)) // to start ingest in
	c.ahead(offset)
	ingest = s.ingest(env...).awaitReady()
	for step := range steps {
		// The database's clock is midnight less the lead at the first step, and as much past it at the last.
		due := midnight.Add(-lead).Add(time.Duration(step) * 2 * lead / time.Duration(steps)).Add(-offset)
		await(t, "time of the step", after(time.Until(due)))
		var messages []devenv.Message
		for range n / steps {
			messages = append(messages, message("["+reading("with", `,"seq":7`)+","+reading("without", "")+","+reading(fmt.Sprint("from-", step), "")+"]"))
		}
		s.publishTwice(messages)
	}
	var first, last time.Time
	ends := []devenv.Message{message(reading("end", `,"seq":1`))}
	s.publishTwice(ends)
	rows := 4 + steps
	s.awaitRows(rows)
	if err := s.query("select min(last_modified), max(last_modified) from telemetry where kind <> 'retained'", nil, &first, &last); err != nil {
		t.Fatal(err)
	}
	if !first.Before(midnight) || last.Before(midnight) {
		t.Fatalf("rows from %s to %s: midnight %s was not crossed", first, last, midnight)
	}
	if code := ingest.terminate(); code != 0 { // what it has received is stored then, and the ends came last
		t.Fatalf("ingest exits %d", code)
	}
	s.eachOnce(rows)

	c.ahead(offset + 3*24*time.Hour)
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

// eachOnce finds one row for each of n identities, of which the kinds are different, and nothing in quarantine.
func (s *system) eachOnce(n int) {
	s.t.Helper()
	type kind struct {
		Name string
		Rows int
		Days []time.Time
	}
	found := list[kind](s, `select kind, count(*)::int, array_agg(last_modified order by last_modified) from telemetry group by kind`)
	for _, k := range found {
		if k.Rows != 1 {
			s.t.Errorf("the reading of %q is stored %d times, at %v", k.Name, k.Rows, k.Days)
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
