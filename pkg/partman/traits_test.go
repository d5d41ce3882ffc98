package partman_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// TestTraits makes a table with everything that a table can have, and looks for each on the leaf that is made of it.
func TestTraits(t *testing.T) {
	t.Parallel()
	word := randomWord()
	reader, clerk, preset, owner := "reader_"+word, "clerk "+word, "preset_"+word, "owner_"+word
	admin := func(sql string) {
		cfg, err := pgx.ParseConfig(devtest.Postgres(t).URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.RuntimeParams["allow_in_place_tablespaces"] = "on"
		conn, err := pgx.ConnectConfig(context.Background(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(context.Background()) }()
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, name := range []string{reader, clerk, preset, owner} {
		admin(fmt.Sprintf("create role %q", name))
		t.Cleanup(func() { admin(fmt.Sprintf("drop role %q", name)) }) // when the database is gone
	}
	space := "space_" + word
	admin("create tablespace " + space + " location ''")
	t.Cleanup(func() { admin("drop tablespace " + space) })
	p := partman.Policy{
		Schema: "shop", Table: "Orders", Key: "Placed At", Step: partman.Day,
		Storage: map[string]string{"fillfactor": "70"}, Indexes: []partman.Index{{Name: "no", Unique: true, Columns: []string{"no"}}},
	}
	h := newHouse(t, nil, p)
	h.exec(fmt.Sprintf(`
		create schema shop;
		grant usage, create on schema shop to %[4]q;
		create table shop.customer (id bigint primary key);
		alter default privileges in schema shop grant select, delete on tables to %[3]q;
		create table shop."Orders" (
			no bigint not null, "Placed At" timestamptz not null, customer bigint not null default 7 references shop.customer,
			note text collate "C", total numeric generated always as (no * 2) stored,
			constraint positive check (no > 0), unique ("Placed At", no)
		) partition by range ("Placed At") tablespace %[5]s;
		revoke all on shop."Orders" from %[3]q;
		comment on column shop."Orders".note is 'a note';
		alter table shop."Orders" alter no set statistics 321, alter customer set (n_distinct = -0.25), alter note set storage external;
		create statistics shop.together on no, customer from shop."Orders";
		grant select on shop."Orders" to %[1]q, public;
		grant insert on shop."Orders" to %[2]q with grant option;
		grant update (note, no), select (no) on shop."Orders" to %[2]q;
		alter table shop."Orders" enable row level security;
		alter table shop."Orders" force row level security;
		create policy mine on shop."Orders" using (true);
		alter table shop."Orders" replica identity using index "Orders_Placed At_no_key";
		create function shop.touch() returns trigger language plpgsql as 'begin return new; end';
		create trigger touched before insert on shop."Orders" for each row execute function shop.touch();
		create trigger untouched before insert on shop."Orders" for each row execute function shop.touch();
		alter table shop."Orders" disable trigger untouched;
		create publication pub_%[6]s for table shop."Orders";
		alter table shop."Orders" owner to %[4]q`, reader, clerk, preset, owner, space, word))
	h.once(partman.CreateLoop)
	leaf := fmt.Sprintf(`'shop."Orders_p%s"'::regclass`, h.today.Format("20060102"))
	for name, query := range map[string]string{
		"owner":      "select count(*) from pg_class where oid = %s and pg_get_userbyid(relowner) = '" + owner + "'",
		"tablespace": "select count(*) from pg_class c join pg_tablespace s on s.oid = c.reltablespace where c.oid = %s and spcname = '" + space + "'",
		"reader":     "select has_table_privilege('" + reader + "', %s, 'select')::int",
		"everybody":  "select count(*) from pg_class, aclexplode(relacl) x where oid = %s and x.grantee = 0 and privilege_type = 'SELECT'",
		"grant option": "select (has_table_privilege('" + clerk + "', %s, 'insert with grant option') and not has_table_privilege('" +
			clerk + "', " + leaf + ", 'update'))::int",
		"column grants": "select (has_column_privilege('" + clerk + "', %s, 'note', 'update') and has_column_privilege('" + clerk +
			"', " + leaf + ", 'no', 'update') and not has_column_privilege('" + clerk + "', " + leaf + ", 'customer', 'update'))::int",
		"default privileges": "select (count(*) = 0)::int from pg_class, aclexplode(relacl) x where oid = %s and x.grantee = '" + preset + "'::regrole",
		"row security":       "select count(*) from pg_class where oid = %s and relrowsecurity and relforcerowsecurity",
		"replica identity":   "select count(*) from pg_class c join pg_index x on x.indrelid = c.oid where c.oid = %s and relreplident = 'i' and indisreplident and indnatts = 2",
		"statistics target":  "select count(*) from pg_attribute where attrelid = %s and attname = 'no' and attstattarget = 321",
		"planner settings":   "select count(*) from pg_attribute where attrelid = %s and attname = 'customer' and attoptions = '{n_distinct=-0.25}'",
		"storage parameters": "select count(*) from pg_class where oid = %s and 'fillfactor=70' = any (reloptions)",
		"comment":            "select count(*) from pg_description where objoid = %s and description = 'a note'",
		"column storage":     "select count(*) from pg_attribute where attrelid = %s and attname = 'note' and attstorage = 'e' and attcollation = '\"C\"'::regcollation",
		"check":              "select count(*) from pg_constraint where conrelid = %s and conname = 'positive' and convalidated",
		"foreign key":        "select count(*) from pg_constraint where conrelid = %s and contype = 'f' and conparentid <> 0",
		"statistics object":  "select count(*) from pg_statistic_ext where stxrelid = %s",
		"trigger":            "select count(*) from pg_trigger where tgrelid = %s and tgname = 'touched' and tgparentid <> 0 and tgenabled = 'O'",
		"disabled trigger":   "select count(*) from pg_trigger where tgrelid = %s and tgname = 'untouched' and tgparentid <> 0 and tgenabled = 'D'",
		"publication":        "select count(*) from pg_publication_tables where format('%%I.%%I', schemaname, tablename)::regclass = %s",
		"policy's index":     "select count(*) from pg_index x where indrelid = %s and indisunique and indnatts = 1",
		"generated column":   "select count(*) from pg_attribute where attrelid = %s and attname = 'total' and attgenerated = 's'",
	} {
		if h.number(fmt.Sprintf(query, leaf)) != 1 {
			t.Errorf("the leaf lacks: %s", name)
		}
	}
	found, err := h.m.Check(h.ctx)
	if err != nil || len(found) > 0 {
		t.Errorf("findings %+v, %v", found, err)
	}
}

// TestReplicaIdentity: full and nothing, which are no index.
func TestReplicaIdentity(t *testing.T) {
	t.Parallel()
	for word, letter := range map[string]string{"full": "f", "nothing": "n", "default": "d"} {
		h := newHouse(t, nil, live())
		h.exec("alter table telemetry replica identity " + word)
		h.once(partman.CreateLoop)
		if n := h.number("select count(*) from pg_class where relname ~ '^telemetry_p[0-9]+$' and relreplident::text = $1", letter); n != 3 {
			t.Errorf("%d leaves of 3 have replica identity %s", n, word)
		}
	}
}

// TestForeignKeyLock: the plan names the lock that ATTACH takes on a table that foreign keys refer to, and it is that one.
func TestForeignKeyLock(t *testing.T) {
	t.Parallel()
	p := live()
	p.Indexes, p.Premake = nil, 0
	h := newHouse(t, nil, p)
	h.exec("create table device (id text primary key); insert into device values ('d'); " +
		"alter table telemetry add foreign key (device_id) references device")
	plan, err := h.m.Plan(h.ctx, "telemetry")
	if err != nil {
		t.Fatal(err)
	}
	if !contains(plan.String(), "SHARE ROW EXCLUSIVE on public.device") {
		t.Errorf("the plan does not name the lock on device:\n%s", plan)
	}
	tx := h.begin("attach", "select 1")
	for _, s := range plan.Actions[0].Statements {
		if s.SQL == "" {
			continue
		}
		if _, err := tx.Exec(h.ctx, s.SQL); err != nil {
			t.Fatal(err)
		}
	}
	const strongest = "select count(*) from pg_locks where relation = $1::regclass and mode = $2 and granted"
	if h.number(strongest, "device", "ShareRowExclusiveLock") != 1 || h.number(strongest, "device", "AccessExclusiveLock") != 0 {
		t.Error("ATTACH takes another lock on the referenced table")
	}
	if h.number(strongest, "telemetry", "AccessExclusiveLock")+h.number(strongest, "telemetry", "ShareRowExclusiveLock") != 0 {
		t.Error("ATTACH takes a lock on the table that stops writers")
	}
	h.rollback(tx)
}

// TestGuardUnderRowSecurity: where row security would hide a day's rows from the guard, it fails, and does not find the day
// empty and let it go.
func TestGuardUnderRowSecurity(t *testing.T) {
	t.Parallel()
	p := orders()
	p.Retention, p.Expired = 1, partman.ExpiredDrop
	h := newHouse(t, nil, p)
	h.exec(ordersTable + `alter table "Shop"."Orders" enable row level security, force row level security`)
	owner := h.role("owner")
	h.exec(fmt.Sprintf(`alter schema "Shop" owner to %[1]q; alter table "Shop"."Orders" owner to %[1]q; grant select, update on partition_policy to %[1]q`, owner))
	now := h.today.AddDate(0, 0, -9)
	cfg := h.cfg
	cfg.Pool = h.connectAs(owner)
	cfg.Now = func(time.Time) time.Time { return now }
	cfg.Guard = func(ctx context.Context, tx pgx.Tx, r partman.Retiring) error {
		var rows int
		err := tx.QueryRow(ctx, "select count(*) from "+pgx.Identifier{r.PartitionSchema, r.Partition}.Sanitize()).Scan(&rows)
		if err == nil && rows > 0 {
			err = &partman.Blocked{Reason: "rows"}
		}
		return err
	}
	m, _ := h.manager(cfg)
	if _, err := m.RunOnce(h.ctx, partman.CreateLoop); err != nil {
		t.Fatal(err)
	}
	h.exec(`insert into "Shop"."Orders" values (1, $1)`, now)
	now = h.today
	for _, step := range []struct{ sql, want string }{
		{fmt.Sprintf("alter role %q nobypassrls", owner), "row-level security"},
		{fmt.Sprintf("alter role %q bypassrls", owner), ""},
	} {
		h.exec(step.sql)
		r, err := m.RunOnce(h.ctx, partman.RetireLoop)
		if step.want != "" && (err == nil || !contains(err.Error(), step.want)) || step.want == "" && (err != nil || len(r.Refused) != 1) {
			t.Errorf("%s: refused %d, %v; want %q", step.sql, len(r.Refused), err, step.want)
		}
		if n := h.number(`select count(*) from "Shop"."Orders"`); n != 1 {
			t.Errorf("%s: the row has gone", step.sql)
		}
	}
}
