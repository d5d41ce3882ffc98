package devenv_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

// wantInUse checks that err names the directory, and this program as its holder.
func wantInUse(t *testing.T, err error, dir string) {
	t.Helper()
	var inUse *devenv.InUseError
	if !errors.As(err, &inUse) {
		t.Fatalf("got %v, want an InUseError", err)
	}
	if want := (devenv.InUseError{Dir: dir, Holder: strconv.Itoa(os.Getpid())}); *inUse != want {
		t.Errorf("got %+v, want %+v", *inUse, want)
	}
}

// TestPostgresStartedTwiceAtOnce: on a directory that is not there yet, one of
// the two makes it and the other one says so.
func TestPostgresStartedTwiceAtOnce(t *testing.T) {
	t.Parallel()
	config := devtest.Config()
	config.Dir = filepath.Join(t.TempDir(), "fresh", "postgres")
	type start struct {
		server *devenv.Postgres
		err    error
	}
	starts := make(chan start)
	for range 2 {
		go func() {
			server, err := devenv.StartPostgres(t.Context(), config)
			starts <- start{server, err}
		}()
	}
	first, second := <-starts, <-starts
	if first.server == nil {
		first, second = second, first
	}
	if first.err != nil {
		t.Fatalf("neither started: %v; %v", first.err, second.err)
	}
	t.Cleanup(func() {
		if err := first.server.Stop(); err != nil {
			t.Error(err)
		}
	})
	if second.server != nil {
		t.Fatal(errors.Join(errors.New("both started"), second.server.Stop()))
	}
	var inUse *devenv.InUseError
	if !errors.As(second.err, &inUse) || inUse.Dir != config.Dir {
		t.Errorf("the second: %v, want an InUseError of %s", second.err, config.Dir)
	}
	query[int](t, first.server.URL("postgres"), "select 1")
}

// TestPostgresHoldsItsDirectory: from Start to Stop, over Crash and Restart;
// what failed to start holds nothing.
func TestPostgresHoldsItsDirectory(t *testing.T) {
	t.Parallel()
	config := devtest.Config()
	config.Dir = filepath.Join(t.TempDir(), "postgres")
	bad := config
	bad.Settings = map[string]string{"work_mem": "plenty"}
	if _, err := devenv.StartPostgres(t.Context(), bad); err == nil {
		t.Fatal("it started with a bad setting")
	}
	first := postgres(t, config)
	refused := func(when string) {
		t.Helper()
		t.Log(when)
		_, err := devenv.StartPostgres(t.Context(), config)
		wantInUse(t, err, config.Dir)
	}
	refused("running")
	if err := first.Crash(); err != nil {
		t.Fatal(err)
	}
	refused("crashed")
	if err := first.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused("restarted")
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	second := postgres(t, config)
	wantInUse(t, first.Restart(t.Context()), config.Dir)
	if err := second.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := first.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused("restarted after Stop")
}

func TestMosquittoHoldsItsDirectory(t *testing.T) {
	t.Parallel()
	config := devenv.MosquittoConfig{Dir: filepath.Join(t.TempDir(), "fresh", "mosquitto")}
	start := func() *devenv.Mosquitto {
		t.Helper()
		broker, err := devenv.StartMosquitto(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := broker.Stop(); err != nil {
				t.Error(err)
			}
		})
		return broker
	}
	first := start()
	for _, change := range []func() error{
		func() error { return nil },
		first.Crash,
		func() error { return first.Restart(t.Context()) },
		func() error { return errors.Join(first.Stop(), first.Restart(t.Context())) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		_, err := devenv.StartMosquitto(t.Context(), config)
		wantInUse(t, err, config.Dir)
	}
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	start()
	wantInUse(t, first.Restart(t.Context()), config.Dir)
}
