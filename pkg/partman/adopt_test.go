package partman_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"plenum/pkg/partman"
)

// adopt proposes a policy for the table of orders, and returns the misfits as text, those that block marked.
func (h *house) adopt(change func(*partman.Policy)) (partman.Adoption, string) {
	h.t.Helper()
	a, err := partman.Adopt(h.ctx, h.pool, "Shop", "Orders", change)
	if err != nil {
		h.t.Fatal(err)
	}
	var b strings.Builder
	for _, m := range a.Misfits {
		fmt.Fprintf(&b, "%t %s: %s; %s\n", m.Blocks, m.Partition, m.What, m.Do)
	}
	return a, b.String()
}

// does runs the statement that the misfit with these words says to run.
func (h *house) does(a partman.Adoption, words string) {
	h.t.Helper()
	for _, m := range a.Misfits {
		if contains(m.What, words) {
			_, sql, _ := strings.Cut(m.Do, ": ")
			h.exec(sql)
			return
		}
	}
	h.t.Fatalf("no misfit says %q: %+v", words, a.Misfits)
}

func (h *house) partitions() int64 {
	h.t.Helper()
	return h.number(`select count(*) from pg_inherits where inhparent = '"Shop"."Orders"'::regclass`)
}

// TestAdoptFromPgPartman takes a table over from pg_partman: what it says to do is done, and then pg_partman lets go of
// the table and the manager keeps what pg_partman kept, no day more and none less.
func TestAdoptFromPgPartman(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	if h.number("select count(*) from pg_available_extensions where name = 'pg_partman'") == 0 {
		t.Fatal("the server has no pg_partman, which make test installs; for one under PLENUM_PG_BIN leave the test out: -skip PgPartman")
	}
	h.exec("create schema partman; create extension pg_partman schema partman;" + ordersTable +
		`create table "Shop".template (id bigint, at timestamptz, note text) with (fillfactor = 80);
		 create unique index on "Shop".template (id); create index on "Shop".template (lower(note));`)
	h.pool = h.connect("utc", map[string]string{"timezone": "UTC"})
	h.exec(`select partman.create_parent('Shop.Orders', 'at', 'native', 'daily', p_premake => 3, p_template_table => 'Shop.template',
		p_start_partition => (now() - interval '14 days')::text)`)
	h.exec("update partman.part_config set retention = '10 days', retention_keep_table = false")
	h.exec("select partman.run_maintenance('Shop.Orders')")
	// What the template has since is for new partitions, and for those of before as well.
	h.exec(`create index on "Shop".template (note); alter table "Shop".template set (fillfactor = 85)`)
	kept := h.number(`select count(*) from pg_inherits i join pg_class c on c.oid = i.inhrelid where inhparent = '"Shop"."Orders"'::regclass
		and c.relname between 'Orders_p' and 'Orders_p' || to_char(now(), 'YYYY_MM_DD')`)
	there := h.partitions()

	a, told := h.adopt(nil)
	want := partman.Policy{
		Schema: "Shop", Table: "Orders", Key: "at", Step: partman.Day, Premake: 3, Retention: int(kept), Expired: partman.ExpiredDrop,
		Indexes: []partman.Index{{Name: "i_id", Unique: true, Columns: []string{"id"}}, {Name: "i_note", Columns: []string{"note"}}},
		Storage: map[string]string{"fillfactor": "85"},
	}
	compareValue(t, want, a.Policy)
	for _, part := range []string{
		"true : pg_partman keeps it still", "false Orders_default: the DEFAULT partition, which is empty", "USING btree (lower(note)), which no policy can say",
	} {
		if !contains(told, part) {
			t.Errorf("%q is missing in:\n%s", part, told)
		}
	}
	if strings.Count(told, "lower(note)") != 1 {
		t.Errorf("told twice:\n%s", told)
	}
	if !a.Blocked() || a.Source != `part_config of pg_partman in schema "partman"` || h.number("select count(*) from partition_policy") != 0 {
		t.Errorf("blocked %t, from %s", a.Blocked(), a.Source)
	}
	h.does(a, "pg_partman keeps it still")
	h.does(a, "DEFAULT partition")
	if a, told = h.adopt(nil); a.Blocked() || contains(told, "DEFAULT") {
		t.Errorf("still told:\n%s", told)
	}
	compareValue(t, want, a.Policy)
	if _, err := partman.Register(h.ctx, h.pool, "public", a.Policy); err != nil {
		t.Fatal(err)
	}
	h.exec("select partman.run_maintenance()")
	if got := kinds(h.once(partman.CreateLoop)) + kinds(h.once(partman.RetireLoop)); got != "[][]" || h.partitions() != there-1 {
		t.Errorf("on the day of the adoption %s, and %d partitions; want nothing done and %d", got, h.partitions(), there-1)
	}
	h.once(partman.HealthLoop)
	h.cfg.Now = func(now time.Time) time.Time { return now.AddDate(0, 0, 1) }
	h.m, h.registry = h.manager(h.cfg)
	if got := kinds(h.once(partman.CreateLoop)) + kinds(h.once(partman.RetireLoop)); got != "[create][detach]" {
		t.Errorf("on the next day %s", got)
	}
	h.clean()
	if n := h.number("select count(*) from pg_indexes where schemaname = 'Shop' and indexname ~ '^Orders_p[0-9]{8}_i_id$'"); n == 0 {
		t.Error("the new partition lacks the template's index")
	}
	h.does(a, "pg_partman knows it still")
	if a, told = h.adopt(nil); contains(told, "pg_partman") || a.Source != "the partitions" {
		t.Errorf("pg_partman is still told of:\n%s", told)
	}
}

// TestAdoptWhatPgPartmanKeeps: it detaches and keeps by default, or moves to a schema. Nothing is dropped in its place.
func TestAdoptWhatPgPartmanKeeps(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	// The columns that releases 4 and 5 have in common.
	h.exec(ordersTable + `create schema pm; create table pm.part_config (parent_table text, control text, partition_interval text, premake int default 4, retention text,
		retention_schema text, retention_keep_table boolean default true, template_table text, automatic_maintenance text default 'off');
		insert into pm.part_config values ('Shop.Orders', 'at', '01:00:00', 500, '2 months')`)
	a, told := h.adopt(nil)
	if a.Policy.Retention != 0 || a.Policy.Step != partman.Hour || a.Policy.Premake != 366 || !contains(told, "detaches what is older than 2 months") {
		t.Errorf("policy %+v, told:\n%s", a.Policy, told)
	}
	h.exec("update pm.part_config set retention_keep_table = false, retention_schema = 'Old', partition_interval = '1 day'")
	if a, told = h.adopt(nil); a.Policy.Retention != 0 || !contains(told, `moves what is older than 2 months to schema "Old"`) {
		t.Errorf("policy %+v, told:\n%s", a.Policy, told)
	}
	h.exec("update pm.part_config set retention_schema = null")
	if a, _ = h.adopt(nil); a.Policy.Retention != 63 || a.Policy.Expired != partman.ExpiredDrop {
		t.Errorf("two months are at most 62 days and the day of now: %+v", a.Policy)
	}
	h.exec("update pm.part_config set partition_interval = '1 week'")
	if a, told = h.adopt(nil); !a.Blocked() || !contains(told, "neither of days nor of hours") {
		t.Errorf("weeks are let pass:\n%s", told)
	}
	if a, told = h.adopt(func(p *partman.Policy) { p.Step = partman.Day }); a.Blocked() {
		t.Errorf("weeks with a step are refused:\n%s", told)
	}
}

// TestAdoptMadeByHand reads what there is to read of partitions that a person made, and keeps them from then on.
func TestAdoptMadeByHand(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.exec(ordersTable + `create schema attic; create index on "Shop"."Orders" (at)`)
	made := func(name string, day int, bounds string) {
		from := h.today.AddDate(0, 0, day)
		h.exec(fmt.Sprintf(`create table %[1]s partition of "Shop"."Orders" for values from ('%[2]s %[4]s') to ('%[3]s %[4]s') with (fillfactor = 60);
			create unique index on %[1]s (id)`, name, from.Format(time.DateOnly), from.AddDate(0, 0, 1).Format(time.DateOnly), bounds))
	}
	made(`attic."the day before"`, -2, "00:00+00")
	made(`"Shop".berlin`, -9, "00:00+01")
	made(`"Shop"."Orders_p29991231"`, 0, "00:00+00")
	made(`"Shop".tomorrow`, 1, "00:00+00")
	made(`"Shop".later`, 2, "00:00+00")
	h.exec(fmt.Sprintf(`create table "Shop".nested partition of "Shop"."Orders" for values from ('%s') to ('%s') partition by range (id)`,
		h.today.AddDate(0, 0, -20).Format(time.DateOnly), h.today.AddDate(0, 0, -10).Format(time.DateOnly)))
	h.exec(`create index lately on "Shop".later (note)`)
	h.exec(`create table "Shop".rest partition of "Shop"."Orders" default; insert into "Shop"."Orders" values (1, '2001-01-01'), (2, now())`)

	a, told := h.adopt(nil)
	want := partman.Policy{
		Schema: "Shop", Table: "Orders", Key: "at", Step: partman.Day, Premake: 2,
		Indexes: []partman.Index{{Name: "i_id", Unique: true, Columns: []string{"id"}}}, Storage: map[string]string{"fillfactor": "60"},
	}
	compareValue(t, want, a.Policy)
	for _, part := range []string{"false rest: the DEFAULT partition holds rows", "false berlin: [", `false nested: relkind "p"`} {
		if !contains(told, part) {
			t.Errorf("%q is missing in:\n%s", part, told)
		}
	}
	if a.Blocked() {
		t.Errorf("it is blocked:\n%s", told)
	}
	// With rows of the day after the last partition in it, that day cannot be made.
	h.exec(`insert into "Shop"."Orders" values (3, now() + interval '3 days')`)
	if a, told = h.adopt(nil); !a.Blocked() || !contains(told, "true rest: the DEFAULT partition holds rows of now or later") {
		t.Errorf("told:\n%s", told)
	}
	h.does(a, "DEFAULT partition")
	a, told = h.adopt(func(p *partman.Policy) { p.Retention, p.Expired = 2, partman.ExpiredDrop })
	if a.Blocked() || contains(told, "DEFAULT") {
		t.Errorf("told:\n%s", told)
	}
	if _, err := partman.Register(h.ctx, h.pool, "public", a.Policy); err != nil {
		t.Fatal(err)
	}
	if got := kinds(h.once(partman.CreateLoop)) + kinds(h.once(partman.RetireLoop)); got != "[create][detach detach]" {
		t.Errorf("the first rounds did %s", got)
	}
	if n := h.number(`select count(*) from pg_inherits where inhparent = '"Shop"."Orders"'::regclass and inhrelid = any (array['"Shop".nested', '"Shop"."Orders_p29991231"',
		'"Shop".tomorrow', '"Shop".later']::regclass[])`); n != 4 || h.partitions() != 5 {
		t.Errorf("%d of the 4 that stay beside yesterday, of %d", n, h.partitions())
	}
}

// TestAdoptRefuses: what no policy could keep is an error with every fault.
func TestAdoptRefuses(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.exec(`create schema "Shop"; create table "Shop"."Orders" (a int, b text) partition by list (b)`)
	for table, want := range map[string]string{"Orders": "is partitioned by list", "orders": "there is Shop.Orders"} {
		if _, err := partman.Adopt(h.ctx, h.pool, "Shop", table, nil); err == nil || !contains(err.Error(), want) {
			t.Errorf("%s: %q is missing in: %v", table, want, err)
		}
	}
	h.exec(`drop table "Shop"."Orders"; create table "Shop"."Orders" (at timestamp) partition by range (at)`)
	a, told := h.adopt(func(p *partman.Policy) { p.Step, p.Premake = partman.Day, 1000 })
	if !a.Blocked() || !contains(told, `"timestamp without time zone"`) || !contains(told, "premake 1000") {
		t.Errorf("told:\n%s", told)
	}
}
