package deploy_test

import (
	"context"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
)

func connect(t *testing.T, target string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// The file is the server's whole configuration here, as it is in compose.yaml.
func TestPostgresConfiguration(t *testing.T) {
	t.Parallel()
	conf, err := os.ReadFile("postgresql/plenum.conf")
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir, into which the server's user cannot look.
	dir, err := os.MkdirTemp("", "plenum-deploy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	file := filepath.Join(dir, "plenum.conf")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(file, conf, 0o644)); err != nil {
		t.Fatal(err)
	}
	server, err := devenv.StartPostgres(t.Context(), devenv.PostgresConfig{
		BinDir:   devenv.PostgresBinDir(os.Getenv),
		Fsync:    true, // else the server is told to ignore the file's own
		Settings: map[string]string{"config_file": file},
		Log:      t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	lines := regexp.MustCompile(`(?m)^[a-z_]+ *=`).FindAllString(string(conf), -1)
	var settings, refused int
	var durable bool
	const q = `select count(*), count(*) filter (where error is not null or not applied),
		current_setting('synchronous_commit') = 'on' and current_setting('fsync') = 'on' and current_setting('full_page_writes') = 'on'
		from pg_file_settings`
	if err := connect(t, server.URL("postgres")).QueryRow(t.Context(), q).Scan(&settings, &refused, &durable); err != nil {
		t.Fatal(err)
	}
	if settings != len(lines) || settings == 0 || refused != 0 || !durable {
		t.Errorf("the file has %d settings, the server read %d and refused %d; durable: %t", len(lines), settings, refused, durable)
	}
}

// role is target's URL for another user.
func role(t *testing.T, target, name, password string) string {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(name, password)
	return u.String()
}

func migrate(t *testing.T, target, schema string) {
	t.Helper()
	pool, err := store.Open(t.Context(), store.Config{URL: target, Schema: schema, Program: "deploy-test"})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := store.Migrate(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
}

// The roles belong to the server, so this is one test, of its steps in their order.
func TestRoles(t *testing.T) {
	t.Parallel()
	public, other := devtest.Database(t), devtest.Database(t)
	const schema = `Plenum "data"`
	psql := func(target string, env []string, variables ...string) {
		t.Helper()
		args := []string{"--no-psqlrc", "--quiet", "-d", target, "-f", "postgresql/roles.sql"}
		for _, v := range variables {
			args = append(args, "-v", v)
		}
		run(t, env, "psql", args...)
	}

	psql(public, nil) // without passwords
	if _, err := pgx.Connect(t.Context(), role(t, public, "plenum_owner", "")); err == nil {
		t.Error("a role without a password is let in")
	}
	psql(public, []string{"PLENUM_OWNER_PASSWORD=o'1", "PLENUM_INGEST_PASSWORD=i1", "PLENUM_SYNC_PASSWORD=s1"})
	migrate(t, role(t, public, "plenum_owner", "o'1"), "public")

	// Again, after the migration, for another database and schema; only one password changes.
	otherName := other[strings.LastIndex(other, "/")+1:]
	otherName, _, _ = strings.Cut(otherName, "?")
	psql(public, []string{"PLENUM_SYNC_PASSWORD=no"}, "database="+otherName, "schema="+schema, "sync_password=s2")
	migrate(t, role(t, other, "plenum_owner", "o'1"), schema)
	if _, err := pgx.Connect(t.Context(), role(t, public, "plenum_sync", "s1")); err == nil {
		t.Error("the old password is let in")
	}

	owner := connect(t, role(t, public, "plenum_owner", "o'1"))
	ingest := connect(t, role(t, public, "plenum_ingest", "i1"))
	syncing := connect(t, role(t, public, "plenum_sync", "s2"))
	if _, err := connect(t, public).Exec(t.Context(), "create role erp login password 'e1' in role plenum_feed"); err != nil {
		t.Fatal(err)
	}
	erp := connect(t, role(t, public, "erp", "e1"))
	for _, test := range []struct {
		conn      *pgx.Conn
		statement string
		allowed   bool
	}{
		{owner, "create table extra ()", true},
		{owner, "drop table extra", true},
		{ingest, "select nextval('telemetry_id_seq')", true},
		{ingest, "select from telemetry where false", true},
		{ingest, "insert into telemetry_batch select * from telemetry_batch where false", true},
		{ingest, "insert into telemetry_quarantine select * from telemetry_quarantine where false", true},
		{ingest, "update telemetry set processed = true where false", false},
		{ingest, "delete from telemetry where false", false},
		{ingest, "truncate telemetry", false},
		{ingest, "update telemetry_batch set processed_at = now() where false", false},
		{ingest, "create table extra ()", false},
		{syncing, "update telemetry set processed = true where false", true},
		{syncing, "update telemetry_batch set processed_at = now() where false", true},
		{syncing, "delete from feed_consumer where false", true},
		{syncing, "update telemetry set payload = '{}' where false", false},
		{syncing, "update telemetry_batch set row_count = 1 where false", false},
		{syncing, "insert into telemetry select * from telemetry where false", false},
		{syncing, "delete from telemetry where false", false},
		{syncing, "delete from telemetry_batch where false", false},
		{syncing, "create table extra ()", false},
		{syncing, "select telemetry_feed(0, 1)", false},
		{ingest, "select telemetry_feed_commit('a', 0)", false},
		{erp, "select telemetry_feed(0, 1)", true},
		{erp, "select telemetry_feed_commit('a', 0)", true},
		{erp, "select from telemetry_batch where false", false},
		{erp, "select from telemetry_all where false", false},
		{erp, "update feed_consumer set position = 0 where false", false},
		{erp, "create table extra ()", false},
	} {
		_, err := test.conn.Exec(t.Context(), test.statement)
		var refused *pgconn.PgError
		switch {
		case err == nil && !test.allowed:
			t.Errorf("%s may %s", test.conn.Config().User, test.statement)
		case err != nil && (test.allowed || !errors.As(err, &refused) || refused.Code != pgInsufficientPrivilege):
			t.Errorf("%s: %s: %v", test.conn.Config().User, test.statement, err)
		}
	}
	seesQueries(t, owner, ingest, syncing)
	rolesAtOnce(t, public, other)
}

// rolesAtOnce sets passwords from two databases of a server at once: PostgreSQL refuses the later of two concurrent
// changes of a role.
func rolesAtOnce(t *testing.T, databases ...string) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			cmd := exec.Command("psql", "--no-psqlrc", "--quiet", "-d", databases[i%len(databases)], "-f", "postgresql/roles.sql",
				"-v", "owner_password=o2", "-v", "ingest_password=i2", "-v", "sync_password=s2")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("psql: %v\n%s", err, out)
			}
		})
	}
	wg.Wait()
}

const pgInsufficientPrivilege = "42501"

// seesQueries checks who is shown what another role's session is doing.
func seesQueries(t *testing.T, owner, ingest, syncing *pgx.Conn) {
	t.Helper()
	const q = "select query from pg_stat_activity where pid = $1"
	for conn, want := range map[*pgx.Conn]bool{owner: true, syncing: false} {
		var query string
		if err := conn.QueryRow(t.Context(), q, ingest.PgConn().PID()).Scan(&query); err != nil {
			t.Fatal(err)
		}
		if shown := query != "<insufficient privilege>"; shown != want {
			t.Errorf("%s sees %q of another role's session", conn.Config().User, query)
		}
	}
}
