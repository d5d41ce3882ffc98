package devtest_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"plenum/internal/devenv/devtest"
)

func TestMain(m *testing.M) { devtest.Main(m) }

func TestDatabaseIsFreshAndDropped(t *testing.T) {
	t.Parallel()
	var dropped string
	var open *pgx.Conn
	t.Run("user", func(t *testing.T) {
		dropped = devtest.Database(t)
		if other := devtest.Database(t); other == dropped {
			t.Errorf("two databases at %s", other)
		}
		var err error
		if open, err = pgx.Connect(t.Context(), dropped); err != nil {
			t.Fatal(err)
		}
		if _, err := open.Exec(t.Context(), "create table mine ()"); err != nil {
			t.Error(err)
		}
	})
	if _, err := open.Exec(t.Context(), "select 1"); err == nil {
		t.Error("the session outlived its database")
	}
	if err := open.Close(context.Background()); err != nil {
		t.Error(err)
	}
	_, err := pgx.Connect(t.Context(), dropped)
	var missing *pgconn.PgError
	if !errors.As(err, &missing) || missing.Code != "3D000" {
		t.Errorf("connect to a dropped database: %v, want 3D000", err)
	}
}

func TestServersAreShared(t *testing.T) {
	t.Parallel()
	if first, second := devtest.Postgres(t), devtest.Postgres(t); first != second {
		t.Error("two servers in one test binary")
	}
	if first, second := devtest.Mosquitto(t), devtest.Mosquitto(t); first.URL() == second.URL() {
		t.Errorf("two brokers at %s", first.URL())
	}
}

func TestEventuallyWaits(t *testing.T) {
	t.Parallel()
	calls := 0
	devtest.Eventually(t, func() error {
		if calls++; calls < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if calls != 3 {
		t.Errorf("called %d times, want 3", calls)
	}
}
