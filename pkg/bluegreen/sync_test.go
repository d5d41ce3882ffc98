package bluegreen_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/bluegreen"
)

func (y *yard) sync() {
	y.Helper()
	if err := y.m.Sync(y.ctx, bluegreen.SyncOptions{}); err != nil {
		y.Fatalf("sync: %v", err)
	}
}

func (y *yard) swap(to bluegreen.Side) bluegreen.Swapped {
	y.Helper()
	s, err := y.m.Swap(y.ctx, to, bluegreen.SwapOptions{})
	if err != nil {
		y.Fatalf("swap to %s: %v", to, err)
	}
	return s
}

func (y *yard) verify() []bluegreen.Difference {
	y.Helper()
	list, err := y.m.Verify(y.ctx)
	if err != nil {
		y.Fatalf("verify: %v", err)
	}
	return list
}

// small works in steps of one page and few entries, so that each step is one of many.
func (y *yard) small(step func(string)) {
	y.Helper()
	m, err := bluegreen.New(bluegreen.Config{Pool: y.pool, Schema: "public", CopyPages: 1, Batch: 7, Tail: 5, Step: step})
	if err != nil {
		y.Fatal(err)
	}
	y.m = m
}

const apart = `(select count(*) from ((table %[1]s except all table %[2]s) union all (table %[2]s except all table %[1]s)) x)`

// alike expects all rows of one table in the other.
func (y *yard) alike(a, b string) {
	y.Helper()
	y.is("0", strings.NewReplacer("%[1]s", a, "%[2]s", b).Replace("select "+apart))
}

// many is more than a page of rows.
const many = plain + `
insert into orders (at, state) select date_trunc('day', now(), 'UTC') - i * interval '1 minute', repeat('x', 100) from generate_series(0, 999) i;`

// at runs do once, when a step of that name comes.
func at(name string, do func()) func(string) {
	done := false
	return func(point string) {
		if point == name && !done {
			done = true
			do()
		}
	}
}

func TestSyncCopiesAndDrains(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ blue, leaf string }{
		"no key":                   {},
		"key":                      {blue: "create unique index on orders (id, at)"},
		"deferrable key":           {blue: "alter table orders add unique (id, at) deferrable"},
		"key of leaves":            {leaf: "create unique index on %s (id)"},
		"deferrable key of leaves": {leaf: "alter table %s add unique (id, at) deferrable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			y := newYard(t, many+c.blue)
			y.init("orders")
			if c.leaf != "" {
				y.exec("do $$ declare leaf regclass; begin for leaf in select inhrelid from pg_inherits where inhparent = 'orders_new'::regclass loop " +
					"execute format('" + c.leaf + "', leaf); end loop; end $$")
			}
			y.copiesAndDrains()
		})
	}
}

func (y *yard) copiesAndDrains() {
	var last bluegreen.Progress
	write := at("copied a batch", func() {
		y.exec("update orders set state = 'changed' where id % 7 = 0") // moves to later pages
		y.exec("delete from orders where id % 11 = 0")
		y.exec("update orders set id = id + 10000, at = at - interval '1 hour' where id % 13 = 0 and id > 100")
		y.exec("insert into orders (at) select now() from generate_series(1, 50)")
	})
	y.small(func(point string) {
		if point == "page skipped" {
			y.Error("rows that were copied already are in the copy's way")
		}
		write(point)
	})
	if err := y.m.Sync(y.ctx, bluegreen.SyncOptions{Progress: func(p bluegreen.Progress) { last = p }}); err != nil {
		y.Fatal(err)
	}
	if !last.Copied || last.Rows < 900 || last.Table != "public.orders" {
		y.Errorf("progress %+v", last)
	}
	y.m = y.migration(func(string) {})
	y.sync()
	y.sync() // what was left in the log because it was short
	if list := y.verify(); len(list) > 0 {
		y.Errorf("differences %v", list)
	}
	y.is("0", "select count(*) from bluegreen_log_1")
	y.alike("orders", "orders_new")
}

// A copy that was cut short goes on; a page that is copied twice would be there twice, as green has no key.
func TestCopyGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	y := newYard(t, many)
	y.init("orders")
	ctx, cancel := cancelable(y)
	batches := 0
	y.small(func(point string) {
		if point == "copied a batch" {
			if batches++; batches == 3 {
				cancel()
			}
		}
	})
	if err := y.m.Sync(ctx, bluegreen.SyncOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("sync that was cut short: %v", err)
	}
	y.is("true", "select copy_rows > 0 and not copied from bluegreen_pair")
	y.sync()
	y.alike("orders", "orders_new")
}

// Rows that no partition takes stay in blue, whichever side is active: without a key, with one of no day that is kept, or not yet made.
func TestRowsOutOfScopeStay(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`
alter table orders alter at drop not null;
insert into orders (id, at) values (1001, null), (1002, 'infinity'), (1003, now() + interval '1 year'), (1004, now() - interval '100 days'), (1005, '-infinity')`)
	r, err := y.m.Init(y.ctx, bluegreen.InitOptions{
		Tables: []string{"orders"}, Key: "at", ID: "id", Retention: 30,
		Accept: []string{"null-key:public.orders", "infinite-key:public.orders", "future-rows:public.orders", "old-rows:public.orders"},
	})
	if err != nil {
		t.Fatalf("%v %+v", err, r)
	}
	y.round()
	y.sync()
	y.exec("update orders set processed = true") // drained with the others
	y.sync()
	y.swap(bluegreen.Green)
	y.is("240", "select count(*) from orders")
	y.exec("update orders set state = 'green'")
	y.exec("insert into orders (id, at) values (2000, now())")
	y.swap(bluegreen.Blue)
	y.is("1001 1002 1003 1004 1005", "select string_agg(id::text, ' ' order by id) from orders where state = 'new' and id < 2000")
	y.is("241", "select count(*) from orders where state = 'green' or id = 2000")
	if list := y.verify(); len(list) > 0 {
		t.Errorf("differences %v", list)
	}
}

// A partition that does not follow on the others is green's as well: what it has given to blue it can take back.
func TestPartitionApart(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.swap(bluegreen.Green)
	y.exec("set timezone = 'UTC'; create table apart partition of orders for values from ('2101-01-01') to ('2101-01-02')")
	y.exec("insert into orders (id, at) values (9000, '2101-01-01 12:00Z'), (9001, '2101-01-01 12:00Z')")
	y.sync()
	y.exec("update orders set state = 'more' where id = 9000")
	y.exec("delete from orders where id = 9001")
	y.swap(bluegreen.Blue)
	y.is("9000 more", "select string_agg(id || ' ' || state, ', ') from orders where id >= 9000")
}

// A row of blue alone whose day is made while green is active.
func TestFutureRowWhenItsDayIsMade(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"insert into orders (id, at) select 1003, date_trunc('day', now(), 'UTC') + interval '8 days 1 hour'")
	if _, err := y.m.Init(y.ctx, bluegreen.InitOptions{Tables: []string{"orders"}, Key: "at", ID: "id", Accept: []string{"future-rows:public.orders"}}); err != nil {
		t.Fatal(err)
	}
	y.round()
	y.sync()
	y.swap(bluegreen.Green)
	y.exec("do $$ begin execute format('create table day partition of orders for values from (%L) to (%L)', date_trunc('day', now(), 'UTC') + interval '8 days', date_trunc('day', now(), 'UTC') + interval '9 days'); end $$")
	if err := y.m.EnsureCapture(y.ctx); err != nil { // as who makes days may call it
		t.Fatal(err)
	}
	y.sync()
	y.is("1", "select count(*) from orders where id = 1003") // which is green
	y.swap(bluegreen.Blue)
	y.is("1", "select count(*) from orders where id = 1003")
}

func TestCopyIsHeldBack(t *testing.T) {
	t.Parallel()
	y := newYard(t, many)
	y.init("orders")
	y.small(func(string) {})
	var last bluegreen.Progress
	o := bluegreen.SyncOptions{RowsPerSecond: 4000, Progress: func(p bluegreen.Progress) { last = p }}
	if err := y.m.Sync(y.ctx, o); err != nil || !last.Copied || last.PerSecond > 4000 || last.PerSecond <= 0 {
		t.Errorf("%v, %+v", err, last)
	}
}

func TestRewrittenTableIsCopiedAgain(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"vacuum full": "vacuum full orders",
		"truncate":    "truncate orders; insert into orders (id, at) values (5, now())",
		"cluster":     "delete from orders where id < 500; cluster orders using orders_at",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			y := newYard(t, many)
			y.init("orders")
			again := 0
			y.small(func() func(string) {
				n := 0
				return func(point string) {
					if n++; point == "copied a batch" && n < 20 && n > 5 {
						n = 20
						for _, s := range strings.Split(sql, ";") {
							y.exec(s)
						}
					}
					if point == "copy begun again" {
						again++
					}
				}
			}())
			y.sync()
			y.sync()
			if again == 0 {
				t.Error("the copy went on")
			}
			y.m = y.migration(func(string) {})
			y.swap(bluegreen.Green)
			y.alike("orders", "orders_old")
		})
	}
}

func TestTruncateAfterTheSwapReachesBlue(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.swap(bluegreen.Green)
	y.exec("truncate orders")
	y.exec("insert into orders (id, at) values (7, now())")
	y.swap(bluegreen.Blue)
	y.is("7", "select string_agg(id::text, ',') from orders")
}

// A rollback compares both sides, too, and can do without.
func TestRollbackVerifies(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.swap(bluegreen.Green)
	y.exec("begin; set local plenum_bluegreen.applying = 'on'; delete from orders_old where id = 3; commit")
	_, err := y.m.Swap(y.ctx, bluegreen.Blue, bluegreen.SwapOptions{})
	var differs *bluegreen.DifferentError
	if !errors.As(err, &differs) || len(differs.Differences) != 1 || !strings.Contains(err.Error(), "--no-verify") {
		t.Errorf("rollback: %v", err)
	}
	if _, err := y.m.Swap(y.ctx, bluegreen.Blue, bluegreen.SwapOptions{SkipVerify: true}); err != nil {
		t.Error(err)
	}
}

func TestVerifyNamesWhatDiffers(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.exec("begin; set local plenum_bluegreen.applying = 'on'; update orders_new set state = 'wrong' where id = 3; delete from orders_new where id = 100; commit")
	list := y.verify()
	if len(list) != 2 || len(list[1].Rows) != 2 || list[1].Rows[0].ID != "3" || list[0].Blue != list[0].Green+1 || list[0].Rows[0].Side != bluegreen.Blue {
		t.Errorf("differences %v", list)
	}
	if _, err := y.m.Swap(y.ctx, bluegreen.Green, bluegreen.SwapOptions{}); err == nil || !strings.Contains(err.Error(), "wrong") {
		t.Errorf("swap: %v", err)
	}
	y.exec("update orders set processed = true where id = 3") // in the log: it may differ
	if list = y.verify(); len(list) != 1 || list[0].Rows[0].ID != "100" {
		t.Errorf("differences %v", list)
	}
	// What has entries on both sides is made what the active one has, wherever its rows are.
	y.exec("begin; set local plenum_bluegreen.applying = 'on'; update orders_new set at = at - interval '1 day' where id = 50; delete from orders where id = 60; commit")
	for _, table := range []string{"orders", "orders_new"} {
		y.exec("update " + table + " set at = at where id in (3, 50, 60, 100)")
	}
	y.sync()
	y.alike("orders", "orders_new")
	y.is("0", "select count(*) from orders_new where id = 60")
}

// Rows of a partition that came after the copy are too few for autovacuum.
func TestPartitionsThatCameLaterAreAnalyzed(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.exec(`do $$ declare high timestamptz := (select high from bluegreen_pair); begin
		execute format('create table orders_new_next partition of orders_new for values from (%L) to (%L)', high, high + interval '1 day');
		insert into orders (at) values (high); end $$`)
	y.sync()
	y.is("1", "select count(*) from orders_new_next")
	y.sync()
	y.is("1", "select reltuples::integer from pg_class where relname = 'orders_new_next'")
}

func TestSyncFollowsAndLetsASwapIn(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	ctx, cancel := cancelable(y)
	done := make(chan error, 1)
	cfg, err := pgxpool.ParseConfig(y.url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.RuntimeParams["application_name"] = "follower"
	cfg.MaxConns = 3
	pool, err := pgxpool.NewWithConfig(y.ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	m, err := bluegreen.New(bluegreen.Config{Pool: pool, Schema: "public"})
	if err != nil {
		t.Fatal(err)
	}
	go func() { done <- m.Sync(ctx, bluegreen.SyncOptions{Follow: true}) }()
	for _, to := range []bluegreen.Side{bluegreen.Green, bluegreen.Blue, bluegreen.Green} {
		y.exec("insert into orders (id, at) select 1 + max(id), now() from orders")
		y.swap(to)
	}
	// Its connection is lost, and the server there again.
	if y.text("select count(*) from pg_stat_activity, lateral pg_terminate_backend(pid) where application_name = 'follower'") == "0" {
		t.Error("nobody follows")
	}
	y.exec("insert into orders (id, at) select 1 + max(id), now() from orders")
	devtest.Eventually(t, func() error {
		if n := y.text("select " + fmt.Sprintf(apart, "orders", "orders_old")); n != "0" {
			return fmt.Errorf("%s rows are not carried over", n)
		}
		return nil
	})
	cancel()
	if err := <-done; err == nil || ctx.Err() == nil {
		t.Errorf("sync ended: %v", err)
	}
	y.alike("orders", "orders_old")
}
