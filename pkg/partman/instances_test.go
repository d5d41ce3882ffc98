package partman_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// done sums the actions that a manager says it has done, by kind.
func (h *house) actions(kind partman.Kind, result string) (sum float64) {
	for _, table := range []string{"telemetry", "telemetry_archive"} {
		sum += max(0, h.metric("plenum_partition_actions_total", "action="+string(kind), "result="+result, "table="+table))
	}
	return sum
}

// TestTwoInstances keep one database for days, each with rounds as fast as they come: never are both in one loop, and each
// day is created, moved, detached and dropped once by one of them.
func TestTwoInstances(t *testing.T) {
	t.Parallel()
	var passed atomic.Int64 // days since the beginning
	var inGuard atomic.Int32
	gone := archive()
	gone.Retention, gone.Grace = 10, time.Hour
	h := newHouse(t, func(c *partman.Config) {
		c.CreateEvery, c.RetireEvery, c.HealthEvery, c.LookEvery = time.Millisecond, time.Millisecond, time.Millisecond, time.Millisecond
		c.Now = func(now time.Time) time.Time { return now.AddDate(0, 0, int(passed.Load())) }
		c.Guard = func(context.Context, pgx.Tx, partman.Retiring) error {
			if inGuard.Add(1) != 1 {
				t.Error("both are retiring")
			}
			inGuard.Add(-1)
			return nil
		}
	}, live(), gone)
	other := *h
	other.m, other.registry = h.manager(h.cfg)
	ctx, cancel := context.WithCancel(h.ctx)
	var running sync.WaitGroup
	for _, m := range []*partman.Manager{h.m, other.m} {
		running.Go(func() {
			if err := m.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	settled := func() error {
		h.both() // never two of one loop
		plans := 0
		for _, table := range []string{"telemetry", "telemetry_archive"} {
			plan, err := h.m.Plan(h.ctx, table)
			if err != nil {
				return err
			}
			plans += undone(plan)
		}
		if plans > 0 {
			return fmt.Errorf("%d actions are planned still", plans)
		}
		return h.ranOn(int(passed.Load()))
	}
	const days = 12
	for range days {
		devtest.Eventually(t, settled)
		passed.Add(1)
	}
	devtest.Eventually(t, settled)
	cancel()
	running.Wait()
	// Every table that there was began with a creation, and each that has left the table was moved once.
	made := h.number("select count(*) from pg_inherits where inhparent in ('telemetry'::regclass, 'telemetry_archive'::regclass)") +
		h.number("select count(*) from pg_description where description like 'partman detached%'")
	dropped := int64(h.actions(partman.Drop, "done") + other.actions(partman.Drop, "done"))
	moved := h.number("select count(*) from pg_inherits where inhparent = 'telemetry_archive'::regclass")
	detached := h.number("select count(*) from pg_description where description like 'partman detached%'")
	for kind, want := range map[partman.Kind]int64{partman.Create: made + dropped, partman.Move: moved + detached + dropped, partman.Detach: detached + dropped} {
		if n := int64(h.actions(kind, "done") + other.actions(kind, "done")); n != want || n == 0 {
			t.Errorf("%d actions of kind %q by both, want %d", n, kind, want)
		}
		if n := h.actions(kind, "failed") + other.actions(kind, "failed"); n != 0 {
			t.Errorf("%v actions of kind %q failed", n, kind)
		}
	}
	if dropped == 0 {
		t.Error("nothing was dropped")
	}
	t.Logf("created %v and %v, archived %v and %v", h.actions(partman.Create, "done"), other.actions(partman.Create, "done"),
		h.actions(partman.Move, "done"), other.actions(partman.Move, "done"))
}

// undone counts the plan's actions, but for statistics: by a clock that is days ahead they are always old.
func undone(plan partman.Plan) (n int) {
	for _, a := range plan.Actions {
		if a.Kind != partman.Analyze {
			n++
		}
	}
	return n
}

// both fails where two sessions hold the lock of one loop.
func (h *house) both() {
	if n := h.number("select count(*) from (select objid from pg_locks where locktype = 'advisory' and granted and objsubid = 1 " +
		"and database = (select oid from pg_database where datname = current_database()) group by classid, objid having count(*) > 1) twice"); n != 0 {
		h.t.Errorf("%d loops have two instances in them", n)
	}
}

// TestFailover: PostgreSQL is stopped at once, again and again, while the manager runs and days pass; when it is back, all
// is done, and each row is there once.
func TestFailover(t *testing.T) {
	t.Parallel()
	server, err := devenv.StartPostgres(t.Context(), devtest.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := server.CreateDatabase(t.Context(), "failover", ""); err != nil {
		t.Fatal(err)
	}
	var passed atomic.Int64
	h := newHouseAt(t, server.URL("failover"), func(c *partman.Config) {
		c.CreateEvery, c.RetireEvery, c.HealthEvery, c.LookEvery = time.Millisecond, time.Millisecond, time.Millisecond, time.Millisecond
		c.Log = nil // it says a lot of a server that is away
		c.Now = func(now time.Time) time.Time { return now.AddDate(0, 0, int(passed.Load())) }
	}, live(), archive())
	for n := 1; n <= 8; n++ {
		h.oldDay(n, 10)
	}
	ctx, cancel := context.WithCancel(h.ctx)
	ended := make(chan error)
	go func() { ended <- h.m.Run(ctx) }()
	for range 5 {
		passed.Add(1)
		before := h.metric("plenum_partition_actions_total", "action=create", "result=done", "table=telemetry")
		devtest.Eventually(t, func() error { // in the midst of the day's work
			if h.metric("plenum_partition_actions_total", "action=create", "result=done", "table=telemetry") == before && rand.N(50) != 0 {
				return errors.New("nothing is done")
			}
			return nil
		})
		if err := server.Crash(); err != nil {
			t.Fatal(err)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	devtest.Eventually(t, func() error {
		plan, err := h.m.Plan(h.ctx, "telemetry")
		if err == nil && undone(plan) > 0 {
			err = fmt.Errorf("%d actions are planned still", undone(plan))
		}
		return err
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if rows := h.number("select count(*) from telemetry_all"); rows != 80 {
		t.Errorf("%d rows, want 80", rows)
	}
}
