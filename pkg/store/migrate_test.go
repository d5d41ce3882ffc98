package store_test

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
)

func TestMigrateConcurrentlyAndAgain(t *testing.T) {
	t.Parallel()
	h := emptyHouse(t)
	h.roles()
	before, err := store.ReadSchema(h.ctx, h.pool)
	if err != nil || before.Database != 0 || before.Err() == nil {
		t.Fatalf("empty database: %+v, %v", before, err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 2 {
				if s, err := store.Migrate(h.ctx, h.pool); err != nil || s.Database != s.Binary {
					t.Errorf("%+v, %v", s, err)
				}
			}
		})
	}
	wg.Wait()
	want(h, "horizons", value[int](h, "select count(*) from feed_horizon"), 1)
	want(h, "applied migrations", value[int64](h, "select count(*) from plenum_migration where version_id > 0"), before.Binary)
}

func TestSchemaVersions(t *testing.T) {
	t.Parallel()
	h := emptyHouse(t)
	s, err := store.Migrate(h.ctx, h.pool)
	if err != nil {
		t.Fatal(err)
	}
	h.exec("insert into plenum_migration (version_id, is_applied) values ($1, true)", s.Binary+7)
	newer, err := store.Migrate(h.ctx, h.pool)
	if err != nil || newer.Database != s.Binary+7 || newer.Err() != nil {
		t.Fatalf("newer and compatible: %+v, %v", newer, err)
	}
	h.exec("update schema_compatibility set oldest = $1", s.Binary+5)
	_, err = store.Migrate(h.ctx, h.pool)
	if setup := (*store.SetupError)(nil); !errors.As(err, &setup) {
		t.Fatalf("newer and incompatible: got %v, want a SetupError", err)
	}
	wantParts(h, err.Error(), fmt.Sprintf("version %d", s.Binary+7), fmt.Sprintf("version %d", s.Binary+5), fmt.Sprintf("knows %d", s.Binary))
	older := store.Schema{Database: 3, Binary: 4, Oldest: 1}.Err()
	if setup := (*store.SetupError)(nil); older == nil || errors.As(older, &setup) {
		t.Fatalf("older: got %v, want an error that waiting may mend", older)
	}
}

func TestTwoSchemasOfOneDatabase(t *testing.T) {
	t.Parallel()
	h := emptyHouse(t)
	h.exec(`create schema "Other one"`)
	other, err := store.Open(h.ctx, store.Config{URL: h.url, Schema: "Other one", Program: "store-test"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, pool := range []*pgxpool.Pool{h.pool, other} {
		if s, err := store.Migrate(h.ctx, pool); err != nil || s.Database != s.Binary {
			t.Fatalf("%+v, %v", s, err)
		}
	}
	want(h, "tables named telemetry", value[int](h, "select count(*) from pg_class where relname = 'telemetry'"), 2)
}

func TestCheckServer(t *testing.T) {
	t.Parallel()
	h := emptyHouse(t)
	h.roles()
	if err := store.CheckServer(h.ctx, h.pool, "public"); err != nil {
		t.Fatal(err)
	}
	wantSetup(h, store.CheckServer(h.ctx, h.pool, "gone"), `schema "gone" does not exist`, `create schema "gone"`)
	h.exec("create schema closed")
	wantSetup(h, store.CheckServer(h.ctx, h.as("plenum_sync"), "closed"), `grant usage on schema "closed" to "plenum_sync"`)
	wrong := h.open(devtest.Postgres(t).URLFor("plenum_sync", "wrong", h.database()))
	wantSetup(h, store.CheckServer(h.ctx, wrong, "public"), "database.url", "28P01")
	nowhere := h.open(devtest.Postgres(t).URL("no_such_database"))
	wantSetup(h, store.CheckServer(h.ctx, nowhere, "public"), "no_such_database", "3D000")
}

// Each role does its work, and nothing that the other may.
func TestRolesMayDoTheirWorkOnly(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.roles()
	if _, err := store.Migrate(h.ctx, h.pool); err != nil {
		t.Fatal(err)
	}
	ingest, sync := h.as("plenum_ingest"), h.as("plenum_sync")
	for pool, rights := range map[*pgxpool.Pool][]store.Right{ingest: store.IngestRights(), sync: store.SyncRights()} {
		if err := store.CheckRights(h.ctx, pool, rights); err != nil {
			t.Fatal(err)
		}
		if s, err := store.ReadSchema(h.ctx, pool); err != nil || s.Err() != nil {
			t.Fatal(s, err)
		}
	}
	w := store.NewWriter(ingest, "test", nil)
	h.write(w, readings("d", 0, 3)...)
	h.write(w, readings("d", 2, 2)...)
	h.insertRows(h.today, 4, 2)
	if _, err := store.Reconcile(h.ctx, sync, h.today, h.day(1)); err != nil {
		t.Fatal(err)
	}
	want(h, "marked rows", h.markAll(store.NewMarker(sync)).Rows, 6)
	h.checkConsumers(sync)

	denied := map[*pgxpool.Pool][]string{
		ingest: {
			"update telemetry set processed = true", "delete from telemetry", "truncate telemetry", "update telemetry_batch set processed_at = now()",
			"delete from telemetry_batch", "select nextval('telemetry_feed_position_seq')", "create table mine ()", "delete from telemetry_quarantine",
		},
		sync: {
			"update telemetry set payload = '{}'", "update telemetry set last_modified = now()", "delete from telemetry", "insert into telemetry_quarantine (code) values ('x')",
			"insert into telemetry (recorded_at, device_id, kind, payload) values (now(), 'd', 'k', '{}')", "update telemetry_batch set row_count = 1",
			"delete from telemetry_batch", "update feed_horizon set position = 0", "create table mine ()", "drop table telemetry",
		},
	}
	for pool, statements := range denied {
		for _, q := range statements {
			_, err := pool.Exec(h.ctx, q)
			var pg *pgconn.PgError
			if !errors.As(err, &pg) || pg.Code != "42501" {
				t.Errorf("%s: %s: got %v, want insufficient_privilege", pool.Config().ConnConfig.User, q, err)
			}
		}
	}
}

func TestCheckRightsNamesTheGrant(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.roles()
	if _, err := store.Migrate(h.ctx, h.pool); err != nil {
		t.Fatal(err)
	}
	h.exec("revoke insert on telemetry from plenum_ingest; revoke usage on sequence telemetry_id_seq from plenum_ingest; revoke update (processed) on telemetry from plenum_sync")
	err := store.CheckRights(h.ctx, h.as("plenum_ingest"), store.IngestRights())
	wantSetup(h, err, `grant insert on telemetry to "plenum_ingest";`, `grant usage on sequence telemetry_id_seq to "plenum_ingest";`)
	if strings.Contains(err.Error(), "telemetry_batch") {
		t.Errorf("%q asks for what is there", err)
	}
	err = store.CheckRights(h.ctx, h.as("plenum_sync"), store.SyncRights())
	wantSetup(h, err, `grant update (processed) on telemetry to "plenum_sync";`)

	_, grants, _ := strings.Cut(err.Error(), "as the owner run: ")
	h.exec(grants)
	if err := store.CheckRights(h.ctx, h.as("plenum_sync"), store.SyncRights()); err != nil {
		t.Errorf("after %s: %v", grants, err)
	}
}

func TestCheckOwner(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.roles()
	if err := store.CheckOwner(h.ctx, h.pool, "public"); err != nil {
		t.Fatal(err)
	}
	wantSetup(h, store.CheckOwner(h.ctx, h.as("plenum_sync"), "public"), `grant create on schema "public" to "plenum_sync"`)
	wantSetup(h, store.CheckOwner(h.ctx, h.as("plenum_owner"), "public"), "does not own table telemetry", "postgres")
}

// roles runs deploy's script as an operator does.
func (h *house) roles() {
	h.Helper()
	out, err := exec.CommandContext(h.ctx, "psql", "-X", "-q", "-d", h.url, "-f", "../../deploy/postgresql/roles.sql",
		"-v", "owner_password=secret", "-v", "ingest_password=secret", "-v", "sync_password=secret").CombinedOutput()
	if err != nil {
		h.Fatalf("psql: %v\n%s", err, out)
	}
}

func (h *house) database() string {
	h.Helper()
	cfg, err := pgx.ParseConfig(h.url)
	if err != nil {
		h.Fatal(err)
	}
	return cfg.Database
}

func (h *house) as(role string) *pgxpool.Pool {
	h.Helper()
	return h.open(devtest.Postgres(h).URLFor(role, "secret", h.database()))
}

func wantSetup(h *house, err error, parts ...string) {
	h.Helper()
	var setup *store.SetupError
	if !errors.As(err, &setup) {
		h.Fatalf("got %v, want a SetupError", err)
	}
	wantParts(h, err.Error(), parts...)
}
