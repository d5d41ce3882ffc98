package partman_test

import (
	"context"
	"errors"
	"net/url"
	"path"
	"testing"

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
			if n := h.number("select count(*) from pg_locks where locktype = 'advisory' and database = " +
				"(select oid from pg_database where datname = current_database())"); n != 0 {
				t.Errorf("%d advisory locks stay behind", n)
			}
			if got := kinds(h.once(partman.CreateLoop)); got != "[create create create]" {
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

// TestPoolerChangesSessionsLater: it showed nothing when the manager began. The action is not done by a session that has not
// the lock, be it changed before the lock is looked for or before the action.
func TestPoolerChangesSessionsLater(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	h.once(partman.CreateLoop)
	pool := h.through("transaction", "max_client_conn = 20")
	cfg := h.cfg
	var m *partman.Manager
	cfg.Pool = pool
	m, _ = h.manager(cfg)
	partman.Examined(m)
	for range 5 {
		h.exec("drop table telemetry_p" + h.today.AddDate(0, 0, 1).Format("20060102"))
		for _, statements := range []int{2, 3, 4, 5, 6, 7} {
			ctx, cancel := context.WithCancel(h.ctx)
			stop := partman.ChangeSession(m, pool, statements)
			r, err := m.RunOnce(ctx, partman.CreateLoop)
			stop()
			cancel()
			if err == nil && len(r.Done) > 0 {
				t.Fatalf("changed after %d statements, the round did %s", statements, kinds(r))
			}
		}
		h.once(partman.CreateLoop)
	}
}
