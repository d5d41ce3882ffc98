package bluegreen_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"plenum/pkg/bluegreen"
)

// batch is the statement of the night: fifty ids, and no index for them.
var batch = "update orders set processed = true where id = any('{" + strings.Trim(strings.Repeat("7,", 50), ",") + "}');"

// plans explains a workload, or the one that is remembered.
func (y *yard) plans(workload string) []bluegreen.PlanFinding {
	y.Helper()
	var file []byte
	if workload != "" {
		file = []byte(workload)
	}
	list, err := y.m.Plans(y.ctx, file)
	if err != nil {
		y.Fatalf("plans: %v", err)
	}
	return list
}

// tells checks that the only finding has the words, and whether it is fatal; none where there are no words.
func (y *yard) tells(list []bluegreen.PlanFinding, fatal bool, words ...string) {
	y.Helper()
	if len(words) == 0 && len(list) == 0 {
		return
	}
	if len(words) == 0 || len(list) != 1 || list[0].Fatal != fatal {
		y.Errorf("findings %+v, want one, fatal %v: %q", list, fatal, words)
		return
	}
	for _, w := range words {
		if !strings.Contains(list[0].String(), w) {
			y.Errorf("finding %q, want %q in it", list[0], w)
		}
	}
}

// The night: green has no index on the id. Nobody swaps before it has.
func TestSwapIsRefusedWhereGreenLacksAnIndex(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.tells(y.plans("-- the sync job's batch\n"+batch), false)
	y.exec(`drop index orders_pkey_new`)
	list := y.plans("") // remembered
	if len(list) != 2 {
		t.Fatalf("findings %+v, want two: of the leaves and of the statement", list)
	}
	y.tells(list[:1], true, "no valid index on the id", `create index on "public"."orders_new" ("id")`)
	y.tells(list[1:], true, "update orders set processed", "orders_pkey", "orders_new_p2", "has no index on id", "more partitions", `create index on "public"."orders_new" (id)`)
	_, err := y.m.Swap(y.ctx, bluegreen.Green, bluegreen.SwapOptions{})
	var refused *bluegreen.PlanError
	if !errors.As(err, &refused) || len(refused.Findings) != 2 || !strings.Contains(err.Error(), "update orders set processed") {
		t.Errorf("swap: %v", err)
	}
	y.is("r", "select relkind from pg_class where relname = 'orders'")
	y.exec(list[1].Do)
	y.tells(y.plans(""), false)
	y.swap(bluegreen.Green)
	y.swap(bluegreen.Blue)
	if err := y.m.Abort(y.ctx); err != nil {
		t.Error(err)
	}
	y.is("null", "select to_regclass('bluegreen_workload')")
}

// A rollback looks at no plan: it is the way out of the night.
func TestRollbackLooksAtNoPlan(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.plans(batch)
	y.swap(bluegreen.Green)
	y.exec("drop index orders_pkey")
	if list := y.plans(""); len(list) == 0 || !list[0].Fatal {
		t.Errorf("findings %+v", list)
	}
	y.swap(bluegreen.Blue)
}

// One leaf is enough: its index is invalid, as a build leaves it that failed.
func TestPlansOfOneLeaf(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	leaf := y.text("select min(i.inhrelid::regclass::text) from pg_inherits i where i.inhparent = 'orders_new'::regclass")
	y.exec("update pg_index i set indisvalid = false from pg_attribute a where a.attrelid = i.indrelid and a.attnum = i.indkey[0] and attname = 'id' and indrelid = $1::text::regclass", leaf)
	list := y.plans(batch)
	if len(list) != 2 || !slices.Equal(list[1].Leaves, []string{leaf}) {
		t.Fatalf("findings %+v, want two of leaf %s", list, leaf)
	}
	y.tells(list[1:], true, "is invalid", "reindex index concurrently")
	y.exec(list[1].Do)
	y.tells(y.plans(""), false)
}

// A statement with the night's filter of 8 days goes by another index on green: that one reads all of them.
func TestPlansWithAnotherIndex(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.exec("drop index orders_pkey_new")
	list := y.plans("select from orders where id = 7 and at > now() - interval '8 days'")
	y.tells(list[1:], true, "has no index on id")
}

// What each kind of statement on one table tells, while green lacks what it was made to lack.
func TestPlansOfStatements(t *testing.T) {
	t.Parallel()
	const more = plain + `
		alter table orders add tags jsonb;
		create index on orders using gin (tags); create index on orders (lower(state)); create index on orders (state) where not processed;
		create table other (id bigint, at timestamptz)`
	y := newYard(t, more)
	y.init("orders")
	y.sync()
	y.exec("create view seen as select * from orders")
	for _, c := range []struct {
		name, lacks, sql string
		fatal            bool
		words            []string
	}{
		{"as it is", "", "select * from orders where id = 1", false, nil},
		{"in its schema", "", "update public.orders set state = 'x' where public.orders.id = 1 returning orders.id", false, nil},
		{"in capitals", "", "DELETE FROM Orders O WHERE O.ID = 1", false, nil},
		{"an insert", "", "insert into orders (at) values (now())", false, nil},
		{"a row identifier", "", "delete from orders where ctid = any (array (select ctid from public.orders where id < 5 limit 10))", false, nil},
		{"a merge", "", "merge into orders using other on orders.id = other.id when matched then update set state = 'x'", false, nil},
		{"a merge with an alias", "", "merge into public.orders as o using other on o.id = other.id when not matched then do nothing", false, nil},
		{"read whole", "", "select count(*) from orders where state = 'x'", false, []string{"read whole"}},
		{"on conflict", "", "insert into orders (id, at) values (1, now()) on conflict (id) do nothing", true, []string{"cannot be explained with the new table", "ON CONFLICT"}},
		{"ONLY", "", "update only public.orders set state = 'x' where id = 1", true, []string{"ONLY"}},
		{"another table", "", "select from other where id = 1", false, []string{"no table of the migration"}},
		{"a view", "", "select from seen where id = 1", false, []string{"through a view"}},
		{"GIN", "tags", `select from orders where tags @> '{"a": 1}'`, true, []string{"has no index on tags", "using gin (tags)"}},
		{"an expression", "lower", "select from orders where lower(state) = 'x'", true, []string{"has no index on lower(state)", "(lower(state))"}},
		{"a partial index", "NOT processed", "select from orders where not processed and state = 'x'", true, []string{"has no index on state", "WHERE (NOT processed)"}},
		{"the key", "(at)", "select from orders where at > now() - interval '1 hour'", true, []string{"has no index on at", `create index on "public"."orders_new" (at)`}},
		{"a join", "(id)", "select from other o join orders on orders.id = o.id", true, []string{"has no index on id"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := *y
			y.T = t
			if c.lacks != "" {
				name := y.text("select indexname from pg_indexes where tablename = 'orders_new' and indexdef like '%' || $1 || '%' order by 1 limit 1", c.lacks)
				sql := y.text("select replace(indexdef, ' ON ONLY ', ' ON ') from pg_indexes where indexname = $1", name)
				y.exec(fmt.Sprintf("drop index %q", name))
				defer y.exec(sql)
			}
			list := slices.DeleteFunc(y.plans(c.sql), func(f bluegreen.PlanFinding) bool { return f.Statement == "" })
			y.tells(list, c.fatal, c.words...)
		})
	}
}

// A walk along an index is a path too: the latest rows of a large table.
func TestPlansOfAWalk(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"insert into orders (at) select now() - i * interval '1 second' from generate_series(1, 20000) i; analyze orders")
	y.init("orders")
	y.sync()
	const latest = "select * from orders order by at desc limit 10"
	y.tells(y.plans(latest), false)
	y.exec("drop index orders_at_new")
	y.tells(y.plans(""), true, "has no index on at")
}

func TestPlansOfQuotedNames(t *testing.T) {
	t.Parallel()
	y := newYard(t, `
		create schema "My ""Schema"; create schema archive;
		create table "My ""Schema"."Order.Lines" ("The ID" bigint primary key, "At'" timestamptz not null);
		create table archive."Order.Lines" ("The ID" bigint primary key, "At'" timestamptz not null);
		insert into "My ""Schema"."Order.Lines" select i, now() from generate_series(1, 5) i`)
	_, err := y.m.Init(y.ctx, bluegreen.InitOptions{Tables: []string{`"My ""Schema"."Order.Lines"`, `archive."Order.Lines"`}, Key: "At'", ID: "The ID"})
	if err != nil {
		t.Fatal(err)
	}
	y.sync()
	const (
		plainly = `select from "Order.Lines" where "The ID" = 1;`
		fully   = `delete from "My ""Schema" /* ; */ . "Order.Lines" where "Order.Lines"."The ID" = any ('{1,2}');`
		archive = `select from archive."Order.Lines" as "Order.Lines" where "Order.Lines"."The ID" = 1;`
		both    = `select from archive."Order.Lines" a join "Order.Lines" b using ("The ID") where a."The ID" = 1;`
	)
	list := y.plans(plainly + fully + archive)
	y.tells(list, true, "it names both") // an alias that is the other's name cannot be told from it
	y.tells(y.plans(plainly+fully), false)
	y.tells(y.plans(both), true, "it names both")
	y.exec(`drop index "My ""Schema"."Order.Lines_pkey_new"`)
	list = y.plans(plainly + fully + strings.ReplaceAll(archive, ` as "Order.Lines" where "Order.Lines"`, ` as a where a`))
	if len(list) != 3 {
		t.Fatalf("findings %+v, want three", list)
	}
	y.tells(list[1:2], true, "select from", `create index on "My ""Schema"."Order.Lines_new" ("The ID")`)
	y.tells(list[2:], true, "delete from")
}

// After the swap it is blue that is passive, and both are explained as before.
func TestPlansAfterTheSwap(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.swap(bluegreen.Green)
	y.tells(y.plans(batch+"delete from public.orders where id = 3"), false)
	y.exec("create index spare on orders (id)") // else the drain's
	y.exec("drop index orders_pkey; alter index spare rename to orders_pkey")
	y.tells(y.plans(""), false)
	y.exec("drop index orders_pkey")
	if list := y.plans(""); len(list) != 3 {
		t.Errorf("findings %+v, want three", list)
	}
	_, err := y.m.Plans(y.ctx, []byte("insert into orders (id, at) values (1, now()) on conflict (id) do nothing"))
	if err == nil || !strings.Contains(err.Error(), "ON CONFLICT") {
		t.Errorf("a statement that the active side refuses: %v", err)
	}
}

// Nothing of a workload is run, and one that cannot be explained leaves the one before.
func TestHostileWorkload(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`
		create table done (n int); create sequence counter;
		create function act(n bigint) returns bigint language plpgsql volatile as 'begin insert into done values (n); return n; end';
		create function pure(n bigint) returns bigint language plpgsql immutable as 'begin return nextval(''counter''); end';
		create function slow() returns bigint language plpgsql immutable as 'begin perform pg_sleep(1e6); return 1; end'`)
	y.init("orders")
	y.sync()
	y.plans(batch)
	for _, c := range []struct{ file, says string }{
		{"drop table orders", "line 1"},
		{"select 1;\n\ndrop table orders;", "line 3"},
		{"explain analyze delete from orders", "syntax error"},
		{"analyze orders", "syntax error"},
		{"vacuum orders; commit; begin", `line 1, "begin"`},
		{"create table x as select * from orders", "syntax error"},
		{"execute p", "syntax error"},
		{"select from orders where id = pure(1)", "read-only"},
		{"select from orders where id = slow()", "timeout"},
		{"select from orders where id = $1", "line 1: parameter $1 has no value"},
		{"select from orders;\nselect from orders where id = :id", "line 2: variable :id has no value"},
		{"select from orders where state = :'state'", "variable"},
		{"\\set id 1\nselect 1", "commands of psql"},
		{"select 'never ends", "line 1: what begins here does not end"},
		{"/* /* */ select 1", "does not end"},
		{"select $a$ x $b$", "does not end"},
		{`select "x`, "does not end"},
		{"", "no statement"},
		{" ; -- nothing\n;", "no statement"},
		{"select 1\x00", "UTF-8"},
		{"select '\xff'", "UTF-8"},
		{strings.Repeat("s;", 1<<19), "more than 500"},
		{"select 1 from nowhere", "nowhere"},
	} {
		if _, err := y.m.Plans(y.ctx, []byte(c.file)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%.60q: %v, want %q", c.file, err, c.says)
		}
	}
	if _, err := y.m.Plans(y.ctx, bytes.Repeat([]byte("select from orders;"), 10<<20/19)); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("10 MB: %v", err)
	}
	y.tells(y.plans("\ufeffselect pg_sleep(1e9), act(1), nextval('counter'), e'\\';' from orders where id = 1; update orders set state = 'run; $1 :x' where id = act(2) or id = 1;"+
		" select $q$ ; drop table orders; $q$, '{1,2,3}'::int[], (array[1,2])[1:id] from orders where id = 1"), false, "read whole")
	y.is("0", "select count(*) from done")
	y.is("false", "select is_called from counter")
	y.is("240 new", "select count(*) || ' ' || min(state) from orders")
	y.is("3", "select count(*) from bluegreen_workload")
	y.is("0", "select count(*) from pg_class where relpersistence = 't'")
}

// A remembered statement that fits no more stops the swap, instead of being left out.
func TestRememberedStatementThatFitsNoMore(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"create table other (id bigint primary key)")
	y.init("orders")
	y.sync()
	y.plans("select from orders join other using (id) where id = 1")
	y.exec("drop table other")
	y.tells(y.plans(""), true, "cannot be explained", "other", "--workload")
}

func TestPlansNeedARight(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`create role planner login password 'planner'; grant all on schema public to planner; alter table orders owner to planner`)
	y.exec("do $$ begin execute format('revoke temporary on database %I from public', current_database()); end $$")
	y.pool = y.connect("planner")
	y.m = y.migration(func(string) {})
	y.init("orders")
	y.sync()
	if _, err := y.m.Plans(y.ctx, []byte(batch)); err == nil || !strings.Contains(err.Error(), "grant temporary on database") {
		t.Errorf("plans without the right: %v", err)
	}
}

// A lock in the way is nobody's fault: nothing is told of the statement, and what was remembered stays.
func TestPlansBehindALock(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.plans(batch)
	tx, err := y.pool.Begin(y.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(y.ctx, "lock table orders in access exclusive mode"); err != nil {
		t.Fatal(err)
	}
	if _, err := y.m.Plans(y.ctx, []byte("select from orders")); err == nil || !strings.Contains(err.Error(), "lock timeout") || strings.Contains(err.Error(), "not taken") {
		t.Errorf("plans: %v", err)
	}
	if err := tx.Rollback(y.ctx); err != nil {
		t.Fatal(err)
	}
	y.is("1", "select count(*) from bluegreen_workload where statement like 'update%'")
}
