// Package devtest gives tests real servers: one PostgreSQL for each test
// binary, with a database of its own for each test, and a Mosquitto for each
// test that asks for one. Nothing survives the test binary, however it ends.
package devtest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plenum/internal/devenv"
)

// hangLimit is when a wait has failed; nothing takes a tenth of it.
const hangLimit = time.Minute

// shared is the test binary's server. A test has no other place to keep what
// outlives it.
var shared struct {
	mu       sync.Mutex
	server   *devenv.Postgres
	err      error // of the start: it is not tried again
	database atomic.Int64
}

// Main runs the tests, stops the shared server, calls after, and exits.
// TestMain calls it; without that the server ends with the process but leaves
// its directory.
func Main(m *testing.M, after ...func() error) {
	code := m.Run()
	for _, f := range append([]func() error{stopShared}, after...) {
		if err := f(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

func stopShared() error {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil {
		return nil
	}
	return shared.server.Stop()
}

// Postgres is the server that all tests of the binary share, started by the
// first that asks. It does not fsync, and takes 200 connections. A test that
// crashes or restarts a server starts its own.
func Postgres(tb testing.TB) *devenv.Postgres {
	tb.Helper()
	server, err := start()
	if err != nil {
		tb.Fatal(err)
	}
	return server
}

func start() (*devenv.Postgres, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = devenv.StartPostgres(context.Background(), Config())
	}
	return shared.server, shared.err
}

// Config is how the shared server is run, for tests that start their own.
func Config() devenv.PostgresConfig {
	return devenv.PostgresConfig{
		BinDir: devenv.PostgresBinDir(os.Getenv),
		Settings: map[string]string{
			"shared_buffers":            "64MB",
			"max_connections":           "200",
			"max_prepared_transactions": "8",     // off by default
			"wal_keep_size":             "256MB", // a standby begins with what was written before it
		},
	}
}

// Standby is a server for one test that follows the shared one by streaming
// replication. It has every test's databases.
func Standby(tb testing.TB) *devenv.Postgres {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hangLimit)
	defer cancel()
	server, err := devenv.StartStandby(ctx, Postgres(tb), Config())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := server.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return server
}

// Database is the superuser's URL of a fresh, empty database on the shared
// server. It is dropped when the test ends, along with the sessions in it.
func Database(tb testing.TB) string {
	tb.Helper()
	url, drop, err := OpenDatabase()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := drop(); err != nil {
			tb.Error(err)
		}
	})
	return url
}

// OpenDatabase is Database for an example, which has no testing.TB: the caller
// calls drop.
func OpenDatabase() (url string, drop func() error, err error) {
	server, err := start()
	if err != nil {
		return "", nil, err
	}
	name := fmt.Sprintf("test_%d", shared.database.Add(1))
	ctx, cancel := context.WithTimeout(context.Background(), hangLimit)
	defer cancel()
	if err := server.CreateDatabase(ctx, name, ""); err != nil {
		return "", nil, err
	}
	return server.URL(name), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), hangLimit)
		defer cancel()
		return server.DropDatabase(ctx, name)
	}, nil
}

// Mosquitto is a broker for one test, with further lines of mosquitto.conf. It
// keeps its directory until the test has ended, so that Stop and Restart keep
// sessions.
func Mosquitto(tb testing.TB, lines ...string) *devenv.Mosquitto {
	tb.Helper()
	broker, err := devenv.StartMosquitto(context.Background(), devenv.MosquittoConfig{
		Dir:   tb.TempDir(),
		Lines: lines,
		Log:   tb.Output(),
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := broker.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return broker
}

// PgBouncer is a pooler in the given mode before the shared server, for one test, with further lines of pgbouncer.ini.
func PgBouncer(tb testing.TB, mode string, lines ...string) *devenv.PgBouncer {
	tb.Helper()
	pooler, err := devenv.StartPgBouncer(context.Background(), devenv.PgBouncerConfig{
		Server: Postgres(tb), Mode: mode, Lines: lines, Log: tb.Output(),
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := pooler.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return pooler
}

// Eventually calls check until it returns nil; after a minute it ends the test
// with the last error. Call it from the test's goroutine.
func Eventually(tb testing.TB, check func() error) {
	tb.Helper()
	limit := time.NewTimer(hangLimit)
	defer limit.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-limit.C:
			tb.Fatalf("still after %v: %v", hangLimit, err)
		}
	}
}
