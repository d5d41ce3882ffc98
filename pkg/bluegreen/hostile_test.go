package bluegreen_test

import (
	"errors"
	"strings"
	"testing"

	"plenum/pkg/bluegreen"
)

// setDefault is a setting of the database, for sessions that begin afterwards: of the migration's, not of the test's.
func (y *yard) setDefault(setting string) {
	y.Helper()
	y.exec("do $$ begin execute format('alter database %I set " + setting + "', current_database()); end $$")
	super := y.pool
	y.pool = y.connect("")
	y.m = y.migration(func(string) {})
	y.pool = super
}

// A row that is committed while the swap waits for its locks must not be missed by the snapshot that a role's default would have.
func TestIsolationOfTheRole(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"repeatable read", "serializable"} {
		y := newYard(t, plain)
		y.init("orders")
		y.sync()
		writer := y.pool
		y.setDefault("default_transaction_isolation = ''" + level + "''")
		y.pool = y.connect("")
		y.m = y.migration(at("logs short", func() {
			if _, err := writer.Exec(y.ctx, "insert into orders (id, at) values (999, now())"); err != nil {
				t.Error(err)
			}
		}))
		y.swap(bluegreen.Green)
		y.is("1", "select count(*) from orders where id = 999")
		y.sync()
		y.alike("orders", "orders_old")
	}
}

// A value is the same wherever it is read, however a role has it written.
func TestTextsOfTheRole(t *testing.T) {
	t.Parallel()
	y := newYard(t, `create table orders (id float8 primary key, at timestamptz not null, state text);
		insert into orders select i + 0.1 + 0.2, '2026-11-05 12:00+00' from generate_series(0, 20) i`)
	y.setDefault("datestyle = ''SQL, DMY''")
	y.setDefault("extra_float_digits = 0")
	y.init("orders")
	y.exec("alter table orders_new add constraint odd check (state <> 'odd')")
	y.exec("insert into orders values (0.1::float8 + 0.7 + 0.1, '2026-11-06 12:00+00', 'odd')")
	y.sync()
	y.is("20 1", "select (select count(*) from orders_new where id > 1) || ' ' || (select count(*) from bluegreen_stuck)")
	y.exec("alter table orders_new drop constraint odd")
	y.setDefault("datestyle = ''SQL, MDY''")
	y.swap(bluegreen.Green)
	y.alike("orders", "orders_old")
	y.is("22", "select count(*) from orders")
}

// Triggers and columns may be called like what plpgsql has.
func TestKeyCalledFound(t *testing.T) {
	t.Parallel()
	y := newYard(t, `create table finds (tg_op bigserial primary key, found timestamptz not null default now());
		insert into finds (found) select now() - i * interval '1 hour' from generate_series(0, 20) i`)
	if _, err := y.m.Init(y.ctx, bluegreen.InitOptions{Tables: []string{"finds"}, Key: "found", ID: "tg_op"}); err != nil {
		t.Fatal(err)
	}
	y.there("finds", "finds_old", "finds_new", "insert into finds default values; update finds set found = found + interval '1 day' where tg_op = 5; delete from finds where tg_op = (select min(tg_op) from finds)")
}

// A trigger that somebody makes on both sides sees a row once.
func TestTriggerMadeOnBothSides(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"create function f() returns trigger language plpgsql as 'begin new.state = new.state || ''!''; return new; end'")
	y.init("orders")
	y.sync()
	for _, table := range []string{"orders", "orders_new"} {
		y.exec("create trigger f before insert on " + table + " for each row execute function f()")
	}
	y.exec("insert into orders (id, at) values (1000, now())")
	y.sync()
	y.m = y.migration(at("locks wanted", func() { // too late for what comes before the locks
		y.exec("alter table orders_new enable trigger f; insert into orders (id, at) values (1001, now())")
	}))
	y.swap(bluegreen.Green)
	y.exec("insert into orders (id, at) values (1002, now())")
	y.is("new! new! new!", "select string_agg(state, ' ' order by id) from orders where id >= 1000")
	y.sync()
	y.alike("orders", "orders_old")
}

// A constraint of blue that is deferred is looked at before the tables are altered.
func TestDeferredForeignKey(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`create table customer (id int primary key); insert into customer values (1);
		alter table orders add customer int default 1 references customer deferrable initially deferred;
		create function f() returns trigger language plpgsql as 'begin return new; end';
		create trigger f before insert on orders for each row execute function f()`)
	y.acceptAll("orders")
	y.sync()
	y.swap(bluegreen.Green)
	y.m = y.migration(at("logs short", func() { y.exec("insert into orders (at) values (now())") }))
	y.swap(bluegreen.Blue)
	y.alike("orders", "orders_new")
}

// acceptAll is init with all that it finds accepted.
func (y *yard) acceptAll(tables ...string) {
	y.Helper()
	found := names(y.init(tables...).Findings)
	if len(found) == 0 {
		y.Error("nothing is found")
	}
	if _, err := y.m.Init(y.ctx, bluegreen.InitOptions{Tables: tables, Key: "at", ID: "id", Accept: found}); err != nil {
		y.Fatal(err)
	}
}

// Rows that are taken over when their day is made are no new ones to the application's triggers.
func TestRowsTakenOverFireNoTrigger(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`insert into orders (id, at) values (900, now() + interval '9 days');
		create function f() returns trigger language plpgsql as 'begin new.state := new.state || ''!''; return new; end';
		create trigger f before insert on orders for each row execute function f()`)
	y.acceptAll("orders")
	y.sync()
	y.swap(bluegreen.Green)
	y.exec(`do $$ declare d date := (select (high at time zone 'UTC')::date from bluegreen_pair); begin for n in 0..3 loop
		execute format('create table orders_late_%s partition of orders for values from (%L) to (%L)', n, (d + n) || ' 00:00+00', (d + n + 1) || ' 00:00+00'); end loop; end $$`)
	y.sync()
	y.is("new", "select state from orders where id = 900")
	y.swap(bluegreen.Blue)
	y.alike("orders", "orders_new")
}

// Who deletes what the passive side refers to waits for no vacuum.
func TestPassiveSideHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`create table customer (id int primary key); insert into customer select generate_series(1, 100);
		alter table orders add customer int default 1 references customer; create index on orders (customer)`)
	y.acceptAll("orders")
	y.sync()
	y.swap(bluegreen.Green)
	y.besideVacuum(y.m, bluegreen.Blue, func() {
		y.exec("set lock_timeout = '1ms'; delete from customer where id = 7; reset lock_timeout")
	})
}

// A table is of one migration, wherever the migration's own tables are.
func TestMigrationOfAnotherSchema(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"create schema other")
	y.init("orders")
	m, err := bluegreen.New(bluegreen.Config{Pool: y.pool, Schema: "other"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Init(y.ctx, bluegreen.InitOptions{Tables: []string{"public.orders"}, Key: "at", ID: "id"})
	y.refusedAs("init", `under way in schema "public"`, err)
}

// Another command is waited for, and named when it does not end.
func TestAnotherCommandIsNamed(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	other, err := y.connect("").Acquire(y.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Release()
	if _, err := other.Exec(y.ctx, "set application_name = 'colleague'; select pg_advisory_lock(hashtextextended('plenum bluegreen public', 0))"); err != nil {
		t.Fatal(err)
	}
	err = y.m.Abort(y.ctx)
	y.refusedAs("abort", "(colleague)", err)
	if !errors.Is(err, bluegreen.ErrBusy) {
		t.Errorf("%v is not ErrBusy", err)
	}
}

// What is set against an application's slow statements does not end a copy.
func TestStatementTimeoutOfTheRole(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`create function slow(text) returns text immutable language plpgsql as 'begin perform pg_sleep(0.005); return $1; end';
		create index on orders (slow(state))`)
	y.setDefault("statement_timeout = ''1s''")
	y.init("orders")
	y.sync()
	y.alike("orders", "orders_new")
}

// A column may be called like what a query of ours calls something.
func TestVerifyLooksAtAllColumns(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"alter table orders add t int default 1, add b int default 2, add g int default 3, add l int default 4, add s int default 5, add x int default 6, add day int, add row text, add side text")
	for _, name := range strings.Fields("i k a p o r d c n seq key entry alike rewritten fixed taken finding plenum_old plenum_new") {
		y.exec("alter table orders add " + name + " int default 7")
	}
	y.init("orders")
	y.sync()
	y.exec("begin; set local plenum_bluegreen.applying = 'on'; update orders_new set state = 'wrong' where id = 3; commit")
	if list := y.verify(); len(list) != 1 || len(list[0].Rows) != 2 || list[0].Rows[1].ID != "3" {
		t.Errorf("differences %v", list)
	}
	y.exec("update orders set state = state where id = 3")
	y.swap(bluegreen.Green)
	y.exec("update orders set t = null, b = null, g = null, l = null, s = null, x = null where id = 4")
	y.swap(bluegreen.Blue)
	y.exec("update orders set i = 8, k = 9 where id < 50; update orders set at = at + interval '1 day' where id = 60; delete from orders where id = 61")
	y.sync()
	y.alike("orders", "orders_new")
	y.is("7", "select count(*) from orders_new where i = 8 and id > 42")
}

func (y *yard) refusedAs(what, word string, err error) {
	y.Helper()
	if err == nil || !strings.Contains(err.Error(), word) {
		y.Errorf("%s: %v, want %q", what, err, word)
	}
}

// Somebody drops the passive side: the commands say so, and the one that ends the migration does.
func TestPassiveSideIsDropped(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	before := y.text("select " + catalogSQL)
	y.init("orders")
	y.sync()
	y.exec("drop table orders_new; create table orders_new ()")
	if s, err := y.m.Status(y.ctx); err != nil || len(s.Blocked) != 1 || !strings.Contains(s.Blocked[0], "abort ends") {
		t.Errorf("status: blocked %q, %v", s.Blocked, err)
	}
	_, err := y.m.Verify(y.ctx)
	y.refusedAs("verify", "abort ends", err)
	_, err = y.m.Init(y.ctx, bluegreen.InitOptions{Tables: []string{"orders"}, Key: "at", ID: "id"})
	y.refusedAs("init", "abort ends", err)
	y.refusedAs("sync", "abort ends", y.m.Sync(y.ctx, bluegreen.SyncOptions{}))
	if err := y.m.Abort(y.ctx); err != nil {
		t.Errorf("abort: %v", err)
	}
	y.exec("drop table orders_new") // it was not the migration's to drop
	y.is(before, "select "+catalogSQL)
	y.init("orders")
	y.sync()
	y.swap(bluegreen.Green)
	y.exec("drop table orders_old; insert into orders (id, at) values (1000, now())")
	_, err = y.m.Swap(y.ctx, bluegreen.Blue, bluegreen.SwapOptions{SkipVerify: true})
	y.refusedAs("rollback", "finish ends", err)
	if err := y.m.Finish(y.ctx, true); err != nil {
		t.Errorf("finish: %v", err)
	}
	y.exec("insert into orders (id, at) values (1001, now())")
}

// Another table that has got the name is not taken for the one of the migration: rows of the passive side would be lost.
func TestActiveSideIsReplaced(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.exec("update orders set processed = true; alter table orders rename to orders_x; create table orders (like orders_x)")
	y.refusedAs("sync", "rename it back", y.m.Sync(y.ctx, bluegreen.SyncOptions{}))
	y.is("240", "select count(*) from orders_new")
	y.exec("drop table orders; alter table orders_x rename to orders")
	y.sync()
	y.alike("orders", "orders_new")
}

// A table that is published only after init: the new one has no replica identity, and the application's updates would fail.
func TestPublicationAfterInit(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.exec("create publication p for table orders with (publish = 'insert', publish_via_partition_root)")
	y.swap(bluegreen.Green)
	y.swap(bluegreen.Blue)
	y.exec("alter publication p set (publish = 'insert, update')")
	_, err := y.m.Swap(y.ctx, bluegreen.Green, bluegreen.SwapOptions{})
	y.refusedAs("swap", "do $$", err)
	_, do, _ := strings.Cut(err.Error(), "refused, which has no replica identity: ")
	y.exec(do)
	y.round()
	y.swap(bluegreen.Green)
	y.exec("update orders set processed = true")
	y.exec("delete from orders where id < 5")
}

// Names that the other side needs are refused by init with what to do, and not by PostgreSQL at each swap.
func TestNamesThatTheOtherSideNeeds(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 60)
	for says, sql := range map[string]string{
		`"orders_at_old" is there already in schema "public", and the other side of "orders_at"`: "create index orders_at_old on orders (at, state)",
		`"orders_at_new" is there already`:  "create table orders_at_new ()",
		"rename one":                        "create index " + long + "_a on orders (state); create index " + long + "_b on orders (state)",
		`other side of "orders_number_seq"`: "alter table orders add number int generated always as identity; create sequence orders_number_seq_old",
	} {
		newYard(t, plain+sql).refuses("orders", says)
	}
}

// A row that leaves the scope after the findings were looked at, just before the locks, is not left behind in the old table.
func TestRowLeavesTheScopeDuringTheSwap(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"alter table orders alter at drop not null")
	y.init("orders")
	y.sync()
	for finding, sql := range map[string]string{
		"null-key": "update orders set at = null where id = 5", "infinite-key": "update orders set at = 'infinity' where id = 6",
		"old-rows": "insert into orders (at) values (now() - interval '400 days')", "future-rows": "insert into orders (at) values (now() + interval '400 days')",
	} {
		y.m = y.migration(at("logs short", func() { y.exec(sql) }))
		_, err := y.m.Swap(y.ctx, bluegreen.Green, bluegreen.SwapOptions{SkipVerify: true})
		y.refusedAs("swap", "accept "+finding+":public.orders", err)
		y.is("r", "select relkind from pg_class where relname = 'orders'")
		_, err = y.m.Init(y.ctx, bluegreen.InitOptions{Tables: []string{"orders"}, Key: "at", ID: "id", Accept: []string{finding + ":public.orders"}})
		if err != nil {
			t.Fatal(err)
		}
	}
	y.m = y.migration(at("logs short", func() { y.exec("update orders set at = null where id = 7") }))
	y.swap(bluegreen.Green)
	y.is("0 3", "select (select count(*) from orders where id in (5, 6, 7)) || ' ' || (select count(*) from orders_old where id in (5, 6, 7))")
}

// Somebody gives the new table a DEFAULT partition: its rows are not doubled in the old one, which keeps those that are of no day, and
// a rollback does not leave them behind unnoticed.
func TestDefaultPartition(t *testing.T) {
	t.Parallel()
	y := newYard(t, `create table orders (id bigint not null, at timestamptz, state text); create index on orders (id);
		insert into orders (id, at) select i, now() - i * interval '1 hour' from generate_series(1, 50) i`)
	y.init("orders")
	y.sync()
	y.swap(bluegreen.Green)
	y.exec("create table orders_rest partition of orders default; insert into orders (id, at) values (1000, null), (1001, now() + interval '1 year'), (1002, now())")
	for range 2 {
		y.sync()
		y.exec("update orders set state = state || 'x' where id >= 1000")
	}
	y.sync()
	y.is("1", "select count(*) from orders_old where id >= 1000")
	y.refusedAs("rollback", "orders_rest", func() error {
		_, err := y.m.Swap(y.ctx, bluegreen.Blue, bluegreen.SwapOptions{})
		return err
	}())
	y.exec("alter table orders detach partition orders_rest")
	y.swap(bluegreen.Blue)
	y.alike("orders", "orders_new")
}

// What still hangs on the old table is named, and the migration goes on as it was.
func TestFinishNamesWhatIsInTheWay(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.exec("create function early() returns bigint begin atomic select count(*) from orders_new; end")
	y.refusedAs("abort", "function early() depends on table orders_new", y.m.Abort(y.ctx))
	y.exec("drop function early")
	y.swap(bluegreen.Green)
	y.exec("create view late as select * from orders_old")
	y.refusedAs("finish", "view late depends on table orders_old", y.m.Finish(y.ctx, true))
	if err := y.m.Finish(y.ctx, false); err != nil {
		t.Error(err)
	}
}
