package partman_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

// proving is set where the sizes that are claimed are asked for, and not those of the suite.
func proving() bool { return os.Getenv("PLENUM_PROVE") != "" }

// bound notes of each statement of a manager's pool whether it runs under a lock_timeout of at most 50 ms, and how long after
// a lock that was not had the next try begins.
type bound struct {
	mu      sync.Mutex
	now     map[uint32]bool
	all     map[uint32]map[string]bool // by pid and text
	refused map[uint32]time.Time       // when the session was refused a lock
	gaps    []time.Duration
}

func newBound() *bound {
	return &bound{now: map[uint32]bool{}, all: map[uint32]map[string]bool{}, refused: map[uint32]time.Time{}}
}

var shortTimeout = regexp.MustCompile(`^set local lock_timeout = '([1-9]|[1-4][0-9]|50)ms'`)

// shown is a statement as pg_stat_activity shows it.
func shown(sql string) string { return sql[:min(len(sql), 500)] }

func (b *bound) TraceQueryStart(ctx context.Context, conn *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	pid := conn.PgConn().PID()
	switch {
	case shortTimeout.MatchString(q.SQL):
		b.now[pid] = true
		if at, was := b.refused[pid]; was {
			b.gaps = append(b.gaps, time.Since(at))
			delete(b.refused, pid)
		}
	case contains(q.SQL, "begin") || contains(q.SQL, "set lock_timeout = 0"):
		b.now[pid] = false
	case contains(q.SQL, "pg_advisory_unlock"):
		b.now[pid] = false
		delete(b.refused, pid) // the action is given up
	}
	if b.all[pid] == nil {
		b.all[pid] = map[string]bool{}
	}
	b.all[pid][shown(q.SQL)] = b.now[pid]
	return ctx
}

func (b *bound) TraceQueryEnd(_ context.Context, conn *pgx.Conn, q pgx.TraceQueryEndData) {
	if sqlState(q.Err) == "55P03" {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.refused[conn.PgConn().PID()] = time.Now()
	}
}

func (b *bound) is(pid uint32, sql string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all[pid][shown(sql)]
}

// takesLocks matches the statements that may make a writer wait; another in its place has followed on them meanwhile.
var takesLocks = regexp.MustCompile(`^(create|drop|alter|reindex|lock|analyze|comment) `)

// writers insert all the time; a sampler looks who waits for whom.
type writers struct {
	h      *house
	bound  *bound
	stop   context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	took   []time.Duration
	behind int // looks at a writer that waited behind a statement of partman's that was bound
}

func (h *house) startWriters(b *bound, each time.Duration, rows int) *writers {
	ctx, stop := context.WithCancel(h.ctx)
	w := &writers{h: h, bound: b, stop: stop}
	pool := h.connect("writer", nil)
	for n := range 4 {
		w.wg.Go(func() {
			tick := time.NewTicker(each)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				begun := time.Now()
				_, err := pool.Exec(h.ctx, "insert into telemetry (device_id, seq) select $1, $2::bigint * $3 + i from generate_series(1, $3) i",
					fmt.Sprint(n), i, rows)
				if err != nil {
					h.t.Errorf("insert: %v", err)
					return
				}
				w.mu.Lock()
				w.took = append(w.took, time.Since(begun))
				w.mu.Unlock()
			}
		})
	}
	w.wg.Go(func() {
		for ctx.Err() == nil {
			w.sample()
		}
	})
	h.t.Cleanup(w.end)
	return w
}

const sampleSQL = `
select b.pid, b.application_name, b.query from pg_stat_activity w
 cross join unnest(pg_blocking_pids(w.pid)) u (pid) join pg_stat_activity b on b.pid = u.pid
 where w.application_name = 'writer' and w.datname = current_database() and w.wait_event_type = 'Lock'`

// sample fails the test where a writer waits for anything but a statement of partman's that is bound.
func (w *writers) sample() {
	rows, err := w.h.pool.Query(w.h.ctx, sampleSQL)
	if err != nil {
		w.h.t.Error(err)
		return
	}
	var pid uint32
	var application, query string
	_, err = pgx.ForEachRow(rows, []any{&pid, &application, &query}, func() error {
		switch {
		case application == "writer": // in the queue before it, or at the same page
		case application != "partman":
			w.h.t.Errorf("a writer waits for %q: %s", application, query)
		case w.bound.is(pid, query):
			w.mu.Lock()
			w.behind++
			w.mu.Unlock()
		case takesLocks.MatchString(query):
			w.h.t.Errorf("a writer waits for a statement that no lock_timeout of 50 ms bounds: %s", query)
		}
		return nil
	})
	if err != nil {
		w.h.t.Error(err)
	}
}

func (w *writers) end() {
	w.stop()
	w.wg.Wait()
}

func (w *writers) waited() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.behind
}

// figures are the insert's latencies.
func (w *writers) figures() string {
	slices.Sort(w.took)
	at := func(q float64) time.Duration {
		return w.took[min(len(w.took)-1, int(q*float64(len(w.took))))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("%d inserts: p50 %s, p99 %s, max %s; seen waiting behind a bound try %d times", len(w.took), at(0.5), at(0.99), at(1), w.behind)
}

// TestNoWriterWaits: writers insert all the time, and an analytic transaction holds the table and its snapshot, while days are
// created, archived, detached and dropped, and an index is built. Whenever a writer is seen waiting, it is behind a statement
// whose lock_timeout bounds it; and the tries of an action are a second and more apart.
func TestNoWriterWaits(t *testing.T) {
	t.Parallel()
	soon := dropping()
	soon.Grace = time.Microsecond
	for name, c := range map[string]struct {
		policies []partman.Policy
		want     []partman.Kind
	}{
		"archive": {[]partman.Policy{live(), archive()}, []partman.Kind{partman.Create, partman.Reindex, partman.Move}},
		"drop":    {[]partman.Policy{soon}, []partman.Kind{partman.Create, partman.Reindex, partman.Detach, partman.Drop}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, nil, c.policies...)
			h.oldDay(8, 1000)
			h.oldDay(9, 1000)
			if err := h.m.EnsureNow(h.ctx, "telemetry"); err != nil {
				t.Fatal(err)
			}
			h.exec("drop index " + h.partition() + "_identity")
			b := newBound()
			cfg := h.connect("partman", nil).Config()
			cfg.ConnConfig.Tracer = b
			mine := h.cfg
			mine.Pool, mine.Pause, mine.LockTimeout, mine.Tries = h.poolOf(cfg), 0, 0, 2 // the pause and the timeout of every day
			m, _ := h.manager(mine)

			each, rows, hold := 20*time.Millisecond, 1, time.Duration(0)
			if proving() {
				each, rows, hold = 40*time.Millisecond, 50, time.Minute // 5,000 rows/s
			}
			w := h.startWriters(b, each, rows)
			analyst := h.begin("analyst", "set transaction isolation level repeatable read; "+
				"select count(*) from telemetry where last_modified >= '"+h.today.Format(time.RFC3339)+"'")
			begun := time.Now()
			var done []partman.Action
			round := func(loop partman.Loop) error {
				r, err := m.RunOnce(h.ctx, loop)
				done = append(done, r.Done...)
				return err
			}
			if err := round(partman.CreateLoop); err != nil {
				t.Errorf("create round beside the analyst: %v", err)
			}
			repaired := h.inBackground(m, partman.HealthLoop)
			for w.waited() == 0 || time.Since(begun) < hold {
				if err := round(partman.RetireLoop); !errors.As(err, new(*partman.LockError)) {
					t.Fatalf("retire round beside the analyst: %v", err)
				}
			}
			h.rollback(analyst)
			for range 6 {
				if err := round(partman.RetireLoop); err != nil && !errors.As(err, new(*partman.LockError)) {
					t.Fatal(err)
				}
			}
			r, err := repaired()
			if err != nil {
				t.Error(err)
			}
			done = append(done, r.Done...)
			w.end()
			for _, kind := range c.want {
				if !slices.ContainsFunc(done, func(a partman.Action) bool { return a.Kind == kind }) {
					t.Errorf("no action of kind %q was done", kind)
				}
			}
			if len(b.gaps) == 0 {
				t.Error("no action was tried twice")
			}
			for _, gap := range b.gaps {
				if gap < time.Second {
					t.Errorf("a try %s after the one before", gap)
				}
			}
			t.Logf("proof: %d rows inserted every %s beside a snapshot held for %s, while days are created and indexes repaired, and %s is tried until it succeeds: %s",
				rows, each, hold, name, w.figures())
		})
	}
}
