package partman_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"plenum/pkg/partman"
)

func TestInstallIsIdempotent(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := partman.Install(h.ctx, h.pool, "public"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// What a release before had is brought up to date.
	h.exec("create schema older; create table older.partition_policy (table_schema text, table_name text, primary key (table_schema, table_name))")
	if err := partman.Install(h.ctx, h.pool, "older"); err != nil {
		t.Fatal(err)
	}
	want := live()
	want.Grace = 90 * time.Minute
	if _, err := partman.Register(h.ctx, h.pool, "older", want); err != nil {
		t.Fatal(err)
	}
	got, err := partman.Policies(h.ctx, h.pool, "older")
	if err != nil {
		t.Fatal(err)
	}
	compareValue(t, []partman.Policy{want}, got)
	if _, err := partman.Register(h.ctx, h.pool, "older", partman.Policy{Schema: "public", Table: "t"}); err == nil {
		t.Error("a policy that is not valid was registered")
	}
}

// TestCreate: the partitions exist, rows land, nothing is found wrong, and a second round has nothing to do.
func TestCreate(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	if got := kinds(h.once(partman.CreateLoop)); got != "[create create create]" {
		t.Fatalf("first round: %s", got)
	}
	h.exec("insert into telemetry (last_modified) select now() + make_interval(days => i) from generate_series(0, 2) i")
	h.clean()
	if got := kinds(h.once(partman.CreateLoop)); got != "[]" {
		t.Errorf("second round: %s", got)
	}
	// id, brin and identity: no more, and those of the parent attached.
	if n := h.number("select count(*) from pg_indexes where tablename like 'telemetry_p%'"); n != 9 {
		t.Errorf("%d indexes on 3 leaves, want 9", n)
	}
	if n := h.number("select count(*) from pg_inherits i join pg_class c on c.oid = i.inhrelid where c.relkind = 'i'"); n != 6 {
		t.Errorf("%d attached indexes on 3 leaves, want 6", n)
	}
	if n := h.number("select count(*) from pg_class where relname like 'telemetry_p________' and reloptions @> array['fillfactor=50']"); n != 3 {
		t.Errorf("%d leaves have their storage parameters, want 3", n)
	}
	if runway := h.metric("plenum_partition_runway_seconds", "table=telemetry"); runway < 2*86400 || runway > 3*86400 {
		t.Errorf("runway %v s, want two to three days", runway)
	}
	if n := h.metric("plenum_partitions", "table=telemetry"); n != 3 {
		t.Errorf("%v partitions in the metric, want 3", n)
	}
	if n := h.metric("plenum_partition_actions_total", "action=create", "result=done", "table=telemetry"); n != 3 {
		t.Errorf("%v actions in the metric, want 3", n)
	}
}

// TestCreateInOtherTimeZones: whatever zones session and database have, bounds are UTC days, and are read as such.
func TestCreateInOtherTimeZones(t *testing.T) {
	t.Parallel()
	for _, zone := range []string{"Asia/Kolkata", "America/New_York"} {
		t.Run(zone, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, nil, live(), archive())
			var name string
			if err := h.pool.QueryRow(h.ctx, "select current_database()").Scan(&name); err != nil {
				t.Fatal(err)
			}
			h.exec("alter database " + name + " set timezone = '" + zone + "'; alter database " + name + " set datestyle = 'SQL, DMY'")
			h.cfg.Pool = h.connect("zoned", map[string]string{"timezone": zone})
			h.m, h.registry = h.manager(h.cfg)
			h.once(partman.CreateLoop)
			h.clean()
			list, err := h.m.List(h.ctx)
			if err != nil {
				t.Fatal(err)
			}
			states := ""
			for n, l := range list {
				if want := h.today.AddDate(0, 0, n); !l.From.Equal(want) || !l.To.Equal(want.AddDate(0, 0, 1)) || l.Bytes == 0 {
					t.Errorf("partition %+v, want the day of %s", l, want)
				}
				states += string(l.State) + " "
			}
			if states != "current future future " {
				t.Errorf("states %s", states)
			}
			if n := h.number("select count(*) from pg_constraint where conname = 'partman_bounds'"); n != 0 {
				t.Errorf("%d helper constraints", n)
			}
		})
	}
}

func TestDateKey(t *testing.T) {
	t.Parallel()
	p := partman.Policy{Schema: "public", Table: "ledger", Key: "day", Step: partman.Day, Premake: 1, Retention: 3, Expired: partman.ExpiredDrop}
	h := newHouse(t, nil, p)
	h.exec("create table ledger (batch_id bigint generated always as identity, day date not null, primary key (day, batch_id)) partition by range (day)")
	h.once(partman.CreateLoop)
	h.exec("insert into ledger (day) values ((now() at time zone 'UTC')::date), ((now() at time zone 'UTC')::date + 1)")
	h.clean()
}

// TestRefusedTables: what cannot be kept is an error that says why, and costs the other tables nothing.
func TestRefusedTables(t *testing.T) {
	t.Parallel()
	plain := partman.Policy{Schema: "public", Table: "a_plain", Key: "at", Step: partman.Day}
	naive := partman.Policy{Schema: "public", Table: "b_naive", Key: "at", Step: partman.Day}
	missing := partman.Policy{Schema: "public", Table: "c_missing", Key: "at", Step: partman.Day}
	h := newHouse(t, nil, plain, naive, missing, live())
	h.exec("create table a_plain (at timestamptz); create table b_naive (at timestamp) partition by range (at)")
	r, err := h.m.RunOnce(h.ctx, partman.CreateLoop)
	for _, want := range []string{`"public.a_plain" is not partitioned by range`, `is "timestamp without time zone"`, `"public.c_missing" is not there`} {
		if err == nil || !contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	if got := kinds(r); got != "[create create create]" {
		t.Errorf("the good table got %s", got)
	}
}

// TestNameTaken: a table that only is named like today's partition does not keep today from having one.
func TestNameTaken(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	name := "telemetry_p" + h.today.Format("20060102")
	h.exec("create table " + name + " (i int); create type " + name + "_2 as enum ()")
	h.once(partman.CreateLoop)
	h.exec("insert into telemetry default values")
	if n := h.number("select count(*) from " + name + "_3"); n != 1 {
		t.Errorf("%d rows in the partition with the next free name, want 1", n)
	}
	if found := h.find(partman.Stray); len(found) != 1 || found[0].Partition != name {
		t.Errorf("findings %+v, want the stray %s", found, name)
	}
}

// TestEnsureNow: many callers at once, in two managers, all get their partition, and it is created once.
func TestEnsureNow(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	other, _ := h.manager(h.cfg)
	if _, err := h.pool.Exec(h.ctx, "insert into telemetry default values"); err == nil {
		t.Fatal("a row landed without a partition")
	}
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			m, name := h.m, "telemetry"
			if n%2 == 1 {
				m, name = other, "public.telemetry"
			}
			if err := m.EnsureNow(h.ctx, name); err != nil {
				t.Error(err)
			}
			if _, err := h.pool.Exec(h.ctx, "insert into telemetry (seq) values ($1)", n); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := h.number("select count(*) from telemetry"); n != 16 {
		t.Errorf("%d rows, want 16", n)
	}
	if err := h.m.EnsureNow(h.ctx, "nothing"); !errors.Is(err, partman.ErrUnknownTable) {
		t.Errorf("an unknown table: %v", err)
	}
}

// TestOwner: partitions belong to the owner of their parent, if we may act for it.
func TestOwner(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live())
	role := "owner_" + h.today.Format("150405") + "_" + randomWord()
	h.exec("create role " + role)
	t.Cleanup(func() { _, _ = h.pool.Exec(context.Background(), "drop role if exists "+role) })
	h.exec("alter table telemetry owner to " + role)
	h.once(partman.CreateLoop)
	if n := h.number("select count(*) from pg_tables where tablename like 'telemetry_p%' and tableowner = $1", role); n != 3 {
		t.Errorf("%d partitions belong to %s, want 3", n, role)
	}
	h.exec("reassign owned by " + role + " to current_user")
	h.exec("drop role " + role)
}

// TestApply: a plan is applied as it was printed, and not at all once the catalog has moved on.
func TestApply(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	plan, err := h.m.Plan(h.ctx, "telemetry")
	if err != nil {
		t.Fatal(err)
	}
	plan.Actions = plan.Actions[:1]
	r, err := h.m.Apply(h.ctx, plan)
	if err != nil || kinds(r) != "[create]" {
		t.Fatalf("apply did %s: %v", kinds(r), err)
	}
	if n := h.number("select count(*) from pg_inherits where inhparent = 'telemetry'::regclass"); n != 1 {
		t.Errorf("%d partitions, want the one of the plan", n)
	}
	if _, err := h.m.Apply(h.ctx, plan); !errors.Is(err, partman.ErrChanged) {
		t.Errorf("applied again: %v", err)
	}
}
