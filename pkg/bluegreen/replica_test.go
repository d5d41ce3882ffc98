package bluegreen_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
	"plenum/pkg/bluegreen"
)

// The copy waits for a standby that stands still, and says so; then it goes on.
func TestCopyWaitsForStandbys(t *testing.T) {
	t.Parallel()
	primary, err := devenv.StartPostgres(t.Context(), devtest.Config()) // the others' tables would leave a standby of the shared one behind
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := primary.Stop(); err != nil {
			t.Error(err)
		}
	})
	follower, err := devenv.StartStandby(t.Context(), primary, devtest.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := follower.Stop(); err != nil {
			t.Error(err)
		}
	})
	y := newYardAt(t, primary.URL("postgres"), many+"create role warden login password 'warden'; grant all on schema public to warden; alter table orders owner to warden")
	y.init("orders")
	standby, err := pgx.Connect(y.ctx, follower.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer standby.Close(y.ctx)
	if _, err := standby.Exec(y.ctx, "select pg_wal_replay_pause()"); err != nil {
		t.Fatal(err)
	}
	devtest.Eventually(t, func() error {
		var state string
		err := standby.QueryRow(y.ctx, "select pg_get_wal_replay_pause_state()").Scan(&state)
		if err == nil && state != "paused" {
			err = errors.New(state)
		}
		return err
	})
	devtest.Eventually(t, func() error {
		y.exec("update orders set processed = true where id = 1") // without anything to replay there is no lag
		if lag := y.text("select max(replay_lag) > '200 ms' from pg_stat_replication"); lag != "true" {
			return errors.New("the standby does not lag: " + lag)
		}
		return nil
	})
	y.small(func(string) {})
	var waited string
	o := bluegreen.SyncOptions{MaxReplicaLag: 100 * time.Millisecond, Progress: func(p bluegreen.Progress) {
		if p.Waiting == "" || waited != "" {
			return
		}
		waited = p.Waiting
		if p.Copied {
			t.Error("the copy did not wait")
		}
		if _, err := standby.Exec(y.ctx, "select pg_wal_replay_resume()"); err != nil {
			t.Error(err)
		}
	}}
	if err := y.m.Sync(y.ctx, o); err != nil || !strings.Contains(waited, "behind") {
		t.Errorf("waited for %q: %v", waited, err)
	}
	y.alike("orders", "orders_new")
	if err := y.m.Abort(y.ctx); err != nil {
		t.Fatal(err)
	}
	y.pool = y.connect("warden")
	y.m = y.migration(func(string) {})
	y.init("orders")
	if err := y.m.Sync(y.ctx, o); err == nil || !strings.Contains(err.Error(), "grant pg_read_all_stats") {
		t.Errorf("sync of a role that cannot see the standbys: %v", err)
	}
}
