package program

import (
	"net/url"
	"strings"
	"testing"

	"go.uber.org/zap"

	"plenum/internal/devenv/devtest"
)

// A transaction pooler under database.owner_url ends ingest and plenumctl with exit code 2, before anything is made; one in
// session mode does not.
func TestTransactionPoolerIsRefused(t *testing.T) {
	t.Parallel()
	for mode, code := range map[string]int{"transaction": ExitUsage, "session": ExitDone} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			direct := devtest.Database(t)
			u, err := url.Parse(direct)
			if err != nil {
				t.Fatal(err)
			}
			owner := devtest.PgBouncer(t, mode).URL(strings.TrimPrefix(u.Path, "/"))
			s, err := source{args: []string{"--database.url", direct, "--database.owner_url", owner, "--mqtt.brokers", "tcp://127.0.0.1:1"}}.load(t)
			if err != nil {
				t.Fatal(err)
			}
			a, err := NewApp(t.Context(), "test", s, zap.NewNop())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(a.Close)
			if code == ExitDone {
				_, _, err = MigrateUp(t.Context(), a)
			} else {
				err = Ingest(t.Context(), a)
			}
			if got := ExitCode(err); got != code {
				t.Fatalf("ingest exits %d: %v", got, err)
			}
			if code == ExitDone {
				return
			}
			if _, _, err := Partitions(t.Context(), a); ExitCode(err) != code {
				t.Errorf("plenumctl: %v", err)
			}
			for _, part := range []string{"database.owner_url", "transaction pooler", "connect to PostgreSQL itself"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is missing in: %v", part, err)
				}
			}
			var made bool
			if err := a.pool.QueryRow(t.Context(), "select to_regclass('telemetry') is not null").Scan(&made); err != nil || made {
				t.Errorf("the table was made: %t, %v", made, err)
			}
		})
	}
}
