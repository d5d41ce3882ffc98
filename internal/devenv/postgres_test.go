package devenv_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

func TestMain(m *testing.M) { devtest.Main(m) }

// postgres starts a server of the test's own, stopped when the test ends.
func postgres(t *testing.T, config devenv.PostgresConfig) *devenv.Postgres {
	t.Helper()
	server, err := devenv.StartPostgres(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// query returns the one value that the statement yields.
func query[T any](t *testing.T, target, statement string) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var value T
	if err := conn.QueryRow(t.Context(), statement).Scan(&value); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return value
}

func execute(t *testing.T, target, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestPostgresKeepsItsData(t *testing.T) {
	t.Parallel()
	config := devtest.Config()
	config.Dir = filepath.Join(t.TempDir(), "made", "on", "demand")
	config.Fsync = true
	first := postgres(t, config)
	target := first.URL("postgres")
	if got := query[string](t, target, "show fsync"); got != "on" {
		t.Errorf("fsync is %s, want on", got)
	}
	if !first.Running() {
		t.Error("a server that answers does not count as running")
	}
	execute(t, target, "create table kept (n int)")
	execute(t, target, "insert into kept values (1)")
	if err := first.Crash(); err != nil {
		t.Fatal(err)
	}
	if first.Running() {
		t.Error("a crashed server counts as running")
	}
	if _, err := pgx.Connect(t.Context(), target); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connect to a crashed server: %v, want connection refused", err)
	}
	if err := first.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, target, "insert into kept values (2)")
	if err := first.Restart(t.Context()); err != nil {
		t.Fatalf("restart of a running server: %v", err)
	}
	if first.URL("postgres") != target {
		t.Errorf("the URL became %s, was %s", first.URL("postgres"), target)
	}
	for range 2 {
		if err := first.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	second := postgres(t, config)
	if got := query[int](t, second.URL("postgres"), "select sum(n)::int from kept"); got != 3 {
		t.Errorf("sum of the kept rows is %d, want 3", got)
	}
}

func TestPostgresRefusesADirectory(t *testing.T) {
	t.Parallel()
	running := devtest.Config()
	running.Dir = filepath.Join(t.TempDir(), "running")
	postgres(t, running)
	if err := os.Remove(running.Dir + ".lock"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, want string
		dir        string
		files      map[string]string
	}{
		{name: "foreign files", files: map[string]string{"notes.txt": "mine"}, want: "neither empty nor a PostgreSQL data directory"},
		{name: "other version", files: map[string]string{"PG_VERSION": "9.6\n"}, want: "is of PostgreSQL 9.6"},
		// Nobody holds the lock, as after a kill of the program that started the server.
		{name: "server still there", dir: running.Dir, want: "process "},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			// A server that should be leaving is given up on only after a while.
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			config := devtest.Config()
			if config.Dir = test.dir; config.Dir == "" {
				config.Dir = t.TempDir()
			}
			for name, text := range test.files {
				if err := os.WriteFile(filepath.Join(config.Dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			server, err := devenv.StartPostgres(ctx, config)
			if err == nil {
				t.Fatal(errors.Join(errors.New("it started"), server.Stop()))
			}
			if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), config.Dir) {
				t.Errorf("got %v, want %q and the directory", err, test.want)
			}
		})
	}
}

func TestPostgresThatCannotStart(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	config := devtest.Config()
	config.Port = listener.Addr().(*net.TCPAddr).Port
	if _, err := devenv.StartPostgres(t.Context(), config); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("port in use: %v, want EADDRINUSE", err)
	}
	config = devtest.Config()
	config.Settings = map[string]string{"work_mem": "plenty"}
	_, err = devenv.StartPostgres(t.Context(), config)
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "work_mem"`) {
		t.Errorf("bad setting: %v, want the server's own words", err)
	}
	config = devtest.Config()
	config.BinDir = t.TempDir()
	_, err = devenv.StartPostgres(t.Context(), config)
	if err == nil || !strings.Contains(err.Error(), config.BinDir) {
		t.Errorf("no programs: %v, want the directory", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := devenv.StartPostgres(ctx, devtest.Config()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v, want context.Canceled", err)
	}
}

func TestPostgresTemporaryDirectoryGoes(t *testing.T) {
	t.Parallel()
	server := postgres(t, devtest.Config())
	pid := query[string](t, server.URL("postgres"), "select split_part(pg_read_file('postmaster.pid'), E'\\n', 1)")
	dir, err := os.Readlink(filepath.Join("/proc", pid, "cwd"))
	if err != nil {
		t.Fatal(err)
	}
	port := portOf(t, server.URL("postgres"))
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err == nil || !strings.Contains(err.Error(), "removed by Stop") {
		t.Errorf("restart without data: %v", err)
	}
	if conn, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
		conn.Close()
		t.Error("something still listens")
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s after Stop: %v, want it gone", filepath.Dir(dir), err)
	}
}

func portOf(t *testing.T, target string) string {
	t.Helper()
	parsed, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	if port, err := strconv.Atoi(parsed.Port()); err != nil || port >= 32768 {
		t.Errorf("port of %s: %d, %v; want one below the kernel's own", target, port, err)
	}
	return parsed.Port()
}

func TestPostgresRoles(t *testing.T) {
	t.Parallel()
	server := devtest.Postgres(t)
	const role = "devenv role" // with a space: the URL must escape it
	execute(t, server.URL("postgres"), `create role "devenv role" login password 'p@ss/word'`)
	t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), server.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if _, err := conn.Exec(context.Background(), `drop role "devenv role"`); err != nil {
			t.Error(err)
		}
	})
	if got := query[string](t, server.URLFor(role, "p@ss/word", "postgres"), "select current_user::text"); got != role {
		t.Errorf("connected as %q, want %q", got, role)
	}
	_, err := pgx.Connect(t.Context(), server.URLFor("postgres", "guess", "postgres"))
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "28P01" {
		t.Errorf("wrong password of the superuser: %v, want 28P01", err)
	}
}

func TestPostgresTemplate(t *testing.T) {
	t.Parallel()
	server := devtest.Postgres(t)
	for _, step := range []struct{ name, template string }{{"devenv model", ""}, {"devenv copy", "devenv model"}} {
		if err := server.CreateDatabase(t.Context(), step.name, step.template); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := server.DropDatabase(context.Background(), step.name); err != nil {
				t.Error(err)
			}
		})
		if step.template == "" {
			execute(t, server.URL(step.name), "create table inherited ()")
		}
	}
	if got := query[int](t, server.URL("devenv copy"), "select count(*)::int from inherited"); got != 0 {
		t.Errorf("count is %d, want 0", got)
	}
	if err := server.CreateDatabase(t.Context(), "devenv copy", ""); err == nil || !strings.Contains(err.Error(), "42P04") {
		t.Errorf("created twice: %v, want 42P04", err)
	}
}
