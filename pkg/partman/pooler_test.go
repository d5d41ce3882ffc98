package partman_test

import (
	"context"
	"errors"
	"net/url"
	"path"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// through is a pool of connections to the house's database through a pooler.
func (h *house) through(mode string, lines ...string) *pgxpool.Pool {
	h.t.Helper()
	own, err := url.Parse(h.url)
	if err != nil {
		h.t.Fatal(err)
	}
	cfg, err := pgxpool.ParseConfig(devtest.PgBouncer(h.t, mode, lines...).URL(path.Base(own.Path)))
	if err != nil {
		h.t.Fatal(err)
	}
	return h.poolOf(cfg)
}

// TestTransactionPoolerIsRefused whichever session it hands out next, before anything is locked or done; a pooler in session
// mode is as good as none.
func TestTransactionPoolerIsRefused(t *testing.T) {
	t.Parallel()
	for name, lines := range map[string][]string{
		"last used first": nil, "in turn": {"server_round_robin = 1", "min_pool_size = 3"}, "one session": {"default_pool_size = 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, nil, live(), archive())
			h.oldDay(8, 10)
			cfg := h.cfg
			cfg.Pool = h.through("transaction", lines...)
			m, _ := h.manager(cfg)
			if err := partman.CheckSession(h.ctx, cfg.Pool); !errors.Is(err, partman.ErrPooler) {
				t.Errorf("the check says %v", err)
			}
			for range 3 { // a later round is refused as the first one is
				for _, loop := range []partman.Loop{partman.CreateLoop, partman.RetireLoop, partman.HealthLoop} {
					if r, err := m.RunOnce(h.ctx, loop); !errors.Is(err, partman.ErrPooler) || len(r.Done) != 0 {
						t.Errorf("%s round did %s: %v", loop, kinds(r), err)
					}
				}
			}
			if n := h.advisory(); n != 0 {
				t.Errorf("%d advisory locks stay behind", n)
			}
			if got := kinds(h.once(partman.CreateLoop)); got != created(10) {
				t.Errorf("without the pooler: %s", got)
			}
		})
	}
	t.Run("session mode", func(t *testing.T) {
		t.Parallel()
		h := newHouse(t, nil, live(), archive())
		h.oldDay(8, 10)
		cfg := h.cfg
		cfg.Pool = h.through("session")
		m, _ := h.manager(cfg)
		if err := partman.CheckSession(h.ctx, cfg.Pool); err != nil {
			t.Error(err)
		}
		for _, loop := range []partman.Loop{partman.CreateLoop, partman.RetireLoop, partman.HealthLoop} {
			if r, err := m.RunOnce(h.ctx, loop); err != nil || len(r.Done) == 0 {
				t.Errorf("%s round did %s: %v", loop, kinds(r), err)
			}
		}
		h.clean()
	})
}

// thief takes the session that a pooler would hand out next, once, in the moment before a certain statement is sent, when the
// lock has been asked for.
type thief struct {
	before string
	steal  func()
	once   sync.Once
	locked atomic.Bool
}

func (t *thief) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if contains(q.SQL, "pg_try_advisory_lock") {
		t.locked.Store(true)
	}
	if q.SQL == t.before && t.locked.Load() || len(t.before) > len("begin") && contains(q.SQL, t.before) {
		t.once.Do(t.steal)
	}
	return ctx
}

func (t *thief) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestPoolerChangesSessionsLater: it showed nothing when the manager began. An action is never done by a session that has not
// the lock, and from then on nothing is locked any more.
func TestPoolerChangesSessionsLater(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]string{
		"between lock and look": "locktype = 'advisory'", "between lock and action": "begin",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := kept(t)
			if before == "begin" { // else there is nothing to do, and it is found all the same
				h.exec("drop index " + h.partition() + "_identity; alter table " + h.partition() + " reset (fillfactor)")
			}
			cfg := h.through("transaction").Config()
			cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // what is prepared would fail for another reason
			other := h.poolOf(cfg.Copy())
			cfg.ConnConfig.Tracer = &thief{before: before, steal: func() {
				tx, err := other.Begin(h.ctx)
				if err == nil {
					_, err = tx.Exec(h.ctx, "select 1")
				}
				if err != nil {
					t.Error(err)
					return
				}
				t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
			}}
			mine := h.cfg
			mine.Pool = h.poolOf(cfg)
			m, _ := h.manager(mine)
			m.AssumeDirect()
			r, err := m.RunOnce(h.ctx, partman.HealthLoop)
			if !errors.Is(err, partman.ErrPooler) {
				t.Errorf("the round did %s: %v", kinds(r), err)
			}
			left := h.advisory()
			for range 3 {
				if _, err := m.RunOnce(h.ctx, partman.CreateLoop); !errors.Is(err, partman.ErrPooler) {
					t.Errorf("the next round: %v", err)
				}
			}
			if n := h.advisory(); n > left {
				t.Errorf("%d advisory locks after the next rounds, %d before", n, left)
			}
		})
	}
}

func (h *house) advisory() int64 {
	h.t.Helper()
	return h.number("select count(*) from pg_locks where locktype = 'advisory' and database = " +
		"(select oid from pg_database where datname = current_database())")
}
