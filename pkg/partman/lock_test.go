package partman_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// TestBlockerIsNamed: an analytic transaction holds the table; the archive gives up after its tries and says who was in
// the way; rows land meanwhile, days are created meanwhile, and once the transaction has ended the day moves.
func TestBlockerIsNamed(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *partman.Config) { c.Tries = 3 }, live(), archive())
	h.oldDay(8, 10)
	analyst := h.begin("analyst", "select count(*) from telemetry")
	if got := kinds(h.once(partman.CreateLoop)); got != created(10) {
		t.Errorf("beside a reader the create round did %s", got)
	}
	_, err := h.m.RunOnce(h.ctx, partman.RetireLoop)
	var lock *partman.LockError
	if !errors.As(err, &lock) {
		t.Fatalf("retire round: %v", err)
	}
	if lock.Tries != 3 || len(lock.Blockers) != 1 {
		t.Fatalf("%d tries, blockers %+v", lock.Tries, lock.Blockers)
	}
	b := lock.Blockers[0]
	if pid := analyst.Conn().PgConn().PID(); b.PID != int32(pid) || b.Application != "analyst" || b.State != "idle in transaction" ||
		b.QueryAge <= 0 || b.Mode != "AccessShareLock" {
		t.Errorf("blocker %+v, want pid %d", b, pid)
	}
	for _, part := range []string{"analyst", "idle in transaction", "AccessShareLock on public.telemetry", "no lock after 3 tries"} {
		if !contains(err.Error(), part) {
			t.Errorf("%q is missing in: %v", part, err)
		}
	}
	if n := h.metric("plenum_partition_retire_blocked", "reason=lock", "table=telemetry"); n != 1 {
		t.Errorf("%v blocked in the metric, want 1", n)
	}
	h.exec("insert into telemetry default values")
	h.rollback(analyst)
	if got := kinds(h.once(partman.RetireLoop)); got != "[archive]" {
		t.Errorf("after the reader has gone: %s", got)
	}
}

// TestRetryGetsTheLock: the same, but the transaction ends while the manager is still trying.
func TestRetryGetsTheLock(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *partman.Config) { c.Tries = 10_000 }, live(), archive())
	name := h.oldDay(8, 10)
	for _, held := range []string{
		"lock table telemetry in row exclusive mode", "lock table telemetry_archive in access share mode",
		"lock table " + name + " in row exclusive mode",
	} {
		holder := h.begin("holder", held)
		done := make(chan string)
		go func() {
			r, err := h.m.RunOnce(h.ctx, partman.RetireLoop)
			if err != nil {
				t.Error(err)
			}
			done <- kinds(r)
		}()
		devtest.Eventually(t, func() error {
			if h.number("select count(*) from pg_locks where not granted and locktype = 'relation' and database = "+
				"(select oid from pg_database where datname = current_database())") == 0 {
				return errors.New("nobody waits for a lock")
			}
			return nil
		})
		h.rollback(holder)
		if got := <-done; got != "[archive]" {
			t.Errorf("held up by %q, the round did %s", held, got)
		}
		h.exec("alter table telemetry_archive detach partition " + name + "; drop table " + name)
		h.oldDay(8, 10)
	}
}

// TestCreateWaitsBriefly: a session that holds the parent against ATTACH makes creation give up and name it.
func TestCreateWaitsBriefly(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *partman.Config) { c.Tries = 2 }, live(), archive())
	holder := h.begin("holder", "lock table telemetry in share update exclusive mode")
	err := h.m.EnsureNow(h.ctx, "telemetry")
	var lock *partman.LockError
	if !errors.As(err, &lock) || len(lock.Blockers) != 1 || lock.Blockers[0].Application != "holder" {
		t.Fatalf("error %v", err)
	}
	if n := h.number("select count(*) from pg_class where relname like 'telemetry_p%'"); n != 0 {
		t.Errorf("%d relations of the failed tries are left", n)
	}
	h.rollback(holder)
	if err := h.m.EnsureNow(h.ctx, "telemetry"); err != nil {
		t.Error(err)
	}
}

// TestOneManagerActs: while one is in a loop, another skips that loop quietly and does the others'.
func TestOneManagerActs(t *testing.T) {
	t.Parallel()
	inGuard, goOn := make(chan struct{}), make(chan struct{})
	h := newHouse(t, func(c *partman.Config) {
		c.Guard = func(context.Context, pgx.Tx, partman.Retiring) error {
			inGuard <- struct{}{}
			<-goOn
			return nil
		}
	}, live(), archive())
	h.oldDay(8, 10)
	other, _ := h.manager(h.cfg)
	var wg sync.WaitGroup
	wg.Go(func() {
		if r, err := h.m.RunOnce(h.ctx, partman.RetireLoop); err != nil || kinds(r) != "[archive]" {
			t.Errorf("the first did %s: %v", kinds(r), err)
		}
	})
	<-inGuard
	if r, err := other.RunOnce(h.ctx, partman.RetireLoop); err != nil || !r.Skipped || len(r.Done) != 0 {
		t.Errorf("the second was not kept out: %+v, %v", r, err)
	}
	if st := other.Status(); len(st) != 2 || st[1].Schema == "" || st[0].At.IsZero() || st[0].Partitions == 0 {
		t.Errorf("the second has seen %+v", st)
	}
	plan, err := other.Plan(h.ctx, "telemetry")
	if err != nil {
		t.Fatal(err)
	}
	for n, a := range plan.Actions {
		if a.Kind == partman.Move {
			plan.Actions = plan.Actions[n:]
			break
		}
	}
	if _, err := other.Apply(h.ctx, plan); !errors.Is(err, partman.ErrBusy) {
		t.Errorf("apply beside a busy loop: %v", err)
	}
	if r, err := other.RunOnce(h.ctx, partman.CreateLoop); err != nil || kinds(r) != created(10) {
		t.Errorf("the second created %s: %v", kinds(r), err)
	}
	close(goOn)
	wg.Wait()
	if r, err := other.RunOnce(h.ctx, partman.RetireLoop); err != nil || r.Skipped {
		t.Errorf("the lock is still held: %+v, %v", r, err)
	}
}

// TestRun: the loops do their first round at once, and end with their context.
func TestRun(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	h.oldDay(8, 10)
	ctx, cancel := context.WithCancel(h.ctx)
	ended := make(chan error)
	go func() { ended <- h.m.Run(ctx) }()
	devtest.Eventually(t, func() error {
		if h.number("select count(*) from telemetry_archive") != 10 {
			return errors.New("the old day has not moved")
		}
		if _, err := h.pool.Exec(h.ctx, "insert into telemetry default values"); err != nil {
			return err
		}
		// Today's and two ahead; seven more where the create loop came before the old day had moved, and filled the gap to it.
		if n := h.number("select count(*) from pg_inherits where inhparent = 'telemetry'::regclass"); len(h.m.Status()) != 2 || n != 3 && n != 10 {
			return errors.New("not all is done")
		}
		return nil
	})
	// A day that vanishes comes back with the premade ones, long before the loop's next turn.
	h.exec("drop table " + h.partition())
	h.exec("drop table telemetry_p" + h.today.AddDate(0, 0, 1).Format("20060102"))
	if err := h.m.EnsureNow(h.ctx, "telemetry"); err != nil {
		t.Error(err)
	}
	h.exec("insert into telemetry default values")
	devtest.Eventually(t, func() error {
		_, err := h.pool.Exec(h.ctx, "insert into telemetry (last_modified) values (now() + interval '1 day')")
		return err
	})
	// A table whose policy goes is forgotten.
	h.exec("delete from partition_policy where table_name = 'telemetry_archive'")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	h.once(partman.CreateLoop)
	if st := h.m.Status(); len(st) != 1 || st[0].Table != "telemetry" || len(st[0].Faults) != 0 {
		t.Errorf("status %+v, want telemetry's without faults", st)
	}
}

// TestLookWaitsForNobody: whoever has a partition to themselves, as VACUUM FULL does, holds up neither a plan nor the next day.
func TestLookWaitsForNobody(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	h.once(partman.CreateLoop)
	h.exec("drop table telemetry_p" + h.today.AddDate(0, 0, 2).Format("20060102"))
	h.begin("vacuum", "lock table "+h.partition()+" in access exclusive mode")
	ctx, cancel := context.WithTimeout(h.ctx, hang/2)
	defer cancel()
	if r, err := h.m.RunOnce(ctx, partman.CreateLoop); err != nil || kinds(r) != created(1) {
		t.Errorf("beside the session the create loop did %s: %v", kinds(r), err)
	}
}
