package program

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"go.uber.org/zap"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
)

// Readiness fails from the first moment until each daemon of the process has begun and added its own checks.
func TestReadinessFromTheStart(t *testing.T) {
	t.Parallel()
	s, err := source{args: []string{"--database.url", "postgres://127.0.0.1:1/none"}}.load(t)
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewApp(t.Context(), "test", s, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	failing := func(want bool, when string) {
		t.Helper()
		if got := a.Health.Failing(t.Context()); got != want {
			t.Errorf("%s: failing %v: %v", when, got, a.Health.Findings(t.Context()))
		}
	}
	failing(true, "before any daemon has begun")
	ingest := a.begin("ingest")
	syncjob := a.begin("syncjob")
	failing(true, "while both begin")
	ingest()
	failing(true, "while one begins")
	syncjob()
	failing(false, "when both have begun")
}

// Consumers that wait, here for a transaction that holds their row, have no connection that marking needs.
func TestConsumersLeaveMarkingItsConnections(t *testing.T) {
	t.Parallel()
	s, err := source{args: []string{"--database.url", devtest.Database(t)}}.load(t)
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewApp(t.Context(), "test", s, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	if _, err := store.Migrate(t.Context(), a.owner); err != nil {
		t.Fatal(err)
	}
	tx, err := a.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := a.owner.Exec(t.Context(), "insert into feed_consumer (name, position) values ('a', 0)"); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "update feed_consumer set updated_at = now()"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	for range 100 {
		waiting.Go(func() { _ = a.feed.Commit(ctx, "a", 0) })
	}
	devtest.Eventually(t, func() error {
		var n int
		const q = `select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`
		if err := a.owner.QueryRow(t.Context(), q).Scan(&n); err != nil || n < 8 {
			return fmt.Errorf("%d commits wait: %w", n, err)
		}
		return nil
	})
	if n := a.pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("the feed holds %d of marking's %d connections", n, a.pool.Stat().MaxConns())
	}
}
