package partman_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/pkg/partman"
)

func orders() partman.Policy {
	return partman.Policy{Schema: "Shop", Table: "Orders", Key: "at", Step: partman.Day, Premake: 2}
}

const ordersTable = `create schema "Shop"; create table "Shop"."Orders" (id bigint, at timestamptz not null, note text) partition by range (at);`

// role makes a role that may log in, and is dropped with all that it owns at the end of the test.
func (h *house) role(role string) (name string) {
	h.t.Helper()
	name = role + "_" + randomWord()
	h.exec(fmt.Sprintf("create role %q login password 'p'", name))
	h.t.Cleanup(func() {
		for _, sql := range []string{"drop owned by %q cascade", "drop role %q"} {
			if _, err := h.pool.Exec(background, fmt.Sprintf(sql, name)); err != nil {
				h.t.Error(err)
			}
		}
	})
	return name
}

// connectAs opens the database as that role.
func (h *house) connectAs(role string) *pgxpool.Pool {
	h.t.Helper()
	cfg, err := pgxpool.ParseConfig(h.url)
	if err != nil {
		h.t.Fatal(err)
	}
	cfg.ConnConfig.User, cfg.ConnConfig.Password = role, "p"
	return h.poolOf(cfg)
}

// TestExamine: each table that cannot be kept is refused with all of its faults.
func TestExamine(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.exec(ordersTable)
	if err := partman.Examine(h.ctx, h.pool, orders()); err != nil {
		t.Errorf("a good table: %v", err)
	}
	if n := h.number("select count(*) from pg_class where relname like '%trial%'"); n != 0 {
		t.Errorf("%d tables and indexes of the trial stay", n)
	}
	for name, c := range map[string]struct {
		sql    string
		change func(*partman.Policy)
		want   []string
	}{
		"not there": {"", func(p *partman.Policy) { p.Table = "ORDERS" }, []string{`table "Shop.ORDERS" is not there; there is Shop.Orders`}},
		"plain":     {`create table "Shop".x (at timestamptz)`, nil, []string{`is not partitioned (relkind "r")`}},
		"list and integer": {`create table "Shop".x (at int) partition by list (at)`, nil, []string{
			"is partitioned by list: by range is needed", `has a key "at" of type "integer"`,
		}},
		"hash":            {`create table "Shop".x (at timestamptz) partition by hash (at)`, nil, []string{"is partitioned by hash"}},
		"no zone":         {`create table "Shop".x (at timestamp) partition by range (at)`, nil, []string{`of type "timestamp without time zone": "timestamp with time zone" or "date" is needed`}},
		"two columns":     {`create table "Shop".x (at timestamptz, id int) partition by range (at, id)`, nil, []string{`by 2 columns, ["at" "id"]`}},
		"an expression":   {`create table "Shop".x (at date) partition by range ((at + 1))`, nil, []string{"by an expression"}},
		"another column":  {`create table "Shop".x (id date) partition by range (id)`, nil, []string{`by column "id", not by "at"`}},
		"hours of a date": {`create table "Shop".x (at date) partition by range (at)`, func(p *partman.Policy) { p.Step = partman.Hour }, []string{"is a date"}},
		"a partition": {
			`create table "Shop".y (at timestamptz) partition by range (at); create table "Shop".x partition of "Shop".y for values from ('2026-01-01') to ('2027-01-01') partition by range (at)`,
			nil,
			[]string{"is itself a partition"},
		},
		"policy and table": {`create table "Shop".x (at timestamptz)`, func(p *partman.Policy) { p.Premake = 1000 }, []string{"premake 1000", "is not partitioned"}},
		"no such column": {
			`create table "Shop".x (at timestamptz) partition by range (at)`,
			func(p *partman.Policy) { p.Indexes = []partman.Index{{Name: "i", Columns: []string{"nothing"}}} },
			[]string{`index "i" of the policy`, `"nothing" does not exist`},
		},
		"no such parameter": {
			`create table "Shop".x (at timestamptz) partition by range (at)`,
			func(p *partman.Policy) { p.Storage = map[string]string{"fill_factor": "9"} },
			[]string{"storage parameters of the policy", `"fill_factor"`},
		},
		"archive": {
			`create table "Shop".x (at timestamptz, a int, b int, c text) partition by range (at);
			 create table "Shop".y (at timestamptz not null, a bigint, c text, d int, constraint positive check (a > 0)) partition by range (at)`,
			func(p *partman.Policy) {
				p.Retention, p.Expired, p.ArchiveTable = 3, partman.ExpiredArchive, "y"
			},
			[]string{
				"column a is bigint in the archive and integer in the table", "column b is missing in the archive", "column d is only in the archive",
				"column at is not null only in the archive", "constraint positive of the archive",
			},
		},
		"archive that is none": {
			`create table "Shop".x (at timestamptz) partition by range (at); create table "Shop".y (at date) partition by list (at)`,
			func(p *partman.Policy) {
				p.Retention, p.Expired, p.ArchiveTable = 3, partman.ExpiredArchive, "y"
			},
			[]string{`table "Shop.y" is partitioned by list`, `has a key of type "date"`, "column at is date in the archive"},
		},
	} {
		p := orders()
		p.Table = "x"
		if c.change != nil {
			c.change(&p)
		}
		h.exec(`drop table if exists "Shop".x, "Shop".y cascade;` + c.sql)
		err := partman.Examine(h.ctx, h.pool, p)
		for _, want := range c.want {
			if err == nil || !contains(err.Error(), want) {
				t.Errorf("%s: %q is missing in: %v", name, want, err)
			}
		}
		if err != nil && len(strings.Split(err.Error(), "\n")) > len(c.want) {
			t.Errorf("%s: more faults than %d: %v", name, len(c.want), err)
		}
	}
}

// TestExamineRights: each right that is missing is named with its GRANT, and with exactly these the table is kept.
func TestExamineRights(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.exec(ordersTable)
	owner, user := h.role("owner"), h.role("keeper")
	h.exec(fmt.Sprintf(`alter table "Shop"."Orders" owner to %q`, owner))
	cfg := h.cfg
	cfg.Pool = h.connectAs(user)
	err := partman.Examine(h.ctx, cfg.Pool, orders())
	if err == nil {
		t.Fatal("a role without rights is let pass")
	}
	for _, want := range []string{
		fmt.Sprintf("grant %q to %q;", owner, user), fmt.Sprintf(`grant usage, create on schema "Shop" to %q;`, user),
		fmt.Sprintf(`grant usage, create on schema "Shop" to %q;`, owner),
	} {
		if !contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
		h.exec(want)
	}
	if err := partman.Examine(h.ctx, cfg.Pool, orders()); err != nil {
		t.Errorf("with the rights that were named: %v", err)
	}
	h.exec(fmt.Sprintf("grant create on schema public to %q", user))
	if _, err := partman.Register(h.ctx, h.pool, "public", orders()); err != nil {
		t.Fatal(err)
	}
	h.exec(fmt.Sprintf("grant select on partition_policy to %q", user))
	m, _ := h.manager(cfg)
	if r, err := m.RunOnce(h.ctx, partman.CreateLoop); err != nil || kinds(r) != "[create create create]" {
		t.Errorf("the role with those rights does %s: %v", kinds(r), err)
	}
	if n := h.number(`select count(*) from pg_tables where tablename ~ '^Orders_p' and tableowner = $1`, owner); n != 3 {
		t.Errorf("%d partitions belong to the owner, want 3", n)
	}
}

func TestUnregister(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, orders())
	h.exec(ordersTable)
	h.once(partman.CreateLoop)
	for _, want := range []bool{true, false} {
		previous, err := partman.Unregister(h.ctx, h.pool, "public", "Shop", "Orders")
		if err != nil || (previous != nil) != want {
			t.Errorf("previous %+v, %v", previous, err)
		}
		if want && (previous == nil || !previous.Equal(orders())) {
			t.Errorf("the policy was %+v", previous)
		}
	}
	h.once(partman.RetireLoop)
	if n := h.number(`select count(*) from pg_inherits where inhparent = '"Shop"."Orders"'::regclass`); n != 3 {
		t.Errorf("%d partitions, want the 3 that there were", n)
	}
	if list, err := h.m.List(h.ctx); err != nil || len(list) != 0 {
		t.Errorf("still listed: %+v, %v", list, err)
	}
}

func TestDifferences(t *testing.T) {
	t.Parallel()
	if got := live().Differences(live()); len(got) != 0 {
		t.Errorf("a policy differs from itself: %q", got)
	}
	now := dropping()
	now.Step, now.Premake, now.Retention, now.Indexes, now.Storage = partman.Hour, 5, 9, nil, map[string]string{"fillfactor": "90"}
	compareValue(t, []string{
		"step: hour, was day", "premake: 5, was 2", "retention: 9, was 8", "expired: drop, was archive", "archive table: none, was telemetry_archive",
		`indexes: none, was create unique index "identity" on each leaf using btree ("device_id", "kind", "recorded_at", "seq") nulls not distinct`,
		"storage: fillfactor = '90', was autovacuum_vacuum_scale_factor = '0.1', fillfactor = '50'",
	}, now.Differences(live()))
}
