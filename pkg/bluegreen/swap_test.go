package bluegreen_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/bluegreen"
)

func cancelable(y *yard) (context.Context, context.CancelFunc) { return context.WithCancel(y.ctx) }

// belongings is a table with all that a swap moves.
const belongings = plain + `
alter table orders add twice bigint generated always as (id * 2) stored;
create table items (id bigint generated always as identity primary key, at timestamptz not null);
insert into items (at) select now() from generate_series(1, 10);
create table heard (what text);
create function hear() returns trigger language plpgsql as $$ begin insert into heard values (tg_op || ' ' || tg_argv[0]); return null; end $$;
create trigger hears after insert on orders for each row execute function hear('orders');
create trigger dumb after update on orders for each row execute function hear('orders');
alter table orders disable trigger dumb;
create publication told for table orders, items where (id > 0) with (publish_via_partition_root);`

const publishedSQL = `string_agg(concat(tablename, attnames, rowfilter), ' ' order by tablename) from pg_publication_tables`

const naming = `string_agg(relname, ' ' order by relname) from pg_class where relkind in ('r', 'p', 'i', 'I', 'S') and relname !~ 'bluegreen|partition_policy|_p2\d{7}' and relnamespace = 'public'::regnamespace`

func TestSwapMovesWhatBelongs(t *testing.T) {
	t.Parallel()
	y := newYard(t, belongings)
	y.init("orders", "items")
	y.sync()
	before := y.text("select " + naming)
	told := y.text("select " + publishedSQL)
	if y.text("select current_setting('server_version_num')::int >= 180000") == "true" {
		_, err := y.m.Swap(y.ctx, bluegreen.Green, bluegreen.SwapOptions{})
		const set = "alter publication told set (publish_generated_columns = stored)"
		if err == nil || !strings.Contains(err.Error(), set) {
			t.Errorf("a swap whose updates would be refused: %v", err)
		}
		y.exec(set)
		told = y.text("select " + publishedSQL)
	}
	if s := y.swap(bluegreen.Green); s.Already || s.Active != bluegreen.Green || s.Tries < 1 || s.Held <= 0 {
		t.Errorf("swapped %+v", s)
	}
	y.is("p p", "select string_agg(relkind, ' ') from pg_class where relname in ('orders', 'items')")
	if after := y.text("select " + naming); after != strings.ReplaceAll(before, "_new", "_old") {
		t.Errorf("names after the swap:  %s\nbefore: %s", after, before)
	}
	y.is("public.items public.orders", "select string_agg(table_schema || '.' || table_name, ' ' order by table_name) from partition_policy")
	y.is("orders.id", "select d.refobjid::regclass || '.' || attname from pg_depend d join pg_attribute on attrelid = refobjid and attnum = refobjsubid where objid = 'orders_id_seq'::regclass and deptype = 'a'")
	y.exec("insert into orders (at) values (now())")
	y.exec("update orders set processed = true where id = 1")
	y.is("INSERT orders", "select string_agg(what, ', ') from heard")
	y.exec("insert into items (at) values (now())")
	y.is("11", "select max(id) from items")
	y.is("482", "select twice from orders where id = 241")
	y.is(told, "select "+publishedSQL)
	y.exec("alter table orders enable always trigger dumb") // the state goes back with it
	if s := y.swap(bluegreen.Green); !s.Already || s.Tries != 0 {
		t.Errorf("swapped again: %+v", s)
	}
	y.swap(bluegreen.Blue)
	if after := y.text("select " + naming); after != before {
		t.Errorf("names after the rollback:  %s\nbefore: %s", after, before)
	}
	y.is(told, "select "+publishedSQL)
	y.is("dumb A, hears O", "select string_agg(tgname || ' ' || tgenabled::text, ', ' order by tgname) from pg_trigger where tgrelid = 'orders'::regclass and tgname in ('dumb', 'hears')")
	y.exec("insert into items (at) values (now())")
	y.is("12", "select max(id) from items")
	y.is("1", "select count(*) from heard") // what is drained is not heard
}

func TestSwapRefusals(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"create view v as select o from orders o; create table children (id bigint references orders on delete cascade);")
	y.init("orders")
	refused := func(word string) {
		t.Helper()
		_, err := y.m.Swap(y.ctx, bluegreen.Green, bluegreen.SwapOptions{SkipVerify: true})
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("swap: %v, want %q", err, word)
		}
		y.is("r", "select relkind from pg_class where relname = 'orders'")
	}
	refused("run sync first")
	y.sync()
	refused("children")
	y.exec("drop table children")
	y.exec("create publication told for table orders")
	refused("publish_via_partition_root")
	y.exec("alter publication told set (publish_via_partition_root = true); alter publication told set table orders (id, at)")
	refused("no replica identity")
	y.exec("do $$ declare t regclass; begin for t in select relid from pg_partition_tree('orders_new') loop execute format('alter table %s replica identity full', t); end loop; end $$")
	refused("column list")
	y.exec("drop publication told")
	refused("view")
	y.exec("drop view v")
	y.exec("update partition_policy set last_run = now() - interval '21 minutes'; update bluegreen_pair set captured_at = now() - interval '1 day'")
	refused("no partition manager has looked after table \"public\".\"orders_new\" since 20")
	y.exec("update partition_policy set last_run = (select captured_at from bluegreen_pair)") // init's own
	refused("since it was built")
	y.exec("update partition_policy set last_run = now()")
	y.exec("update bluegreen_pair set high = now() + interval '23 hours'")
	y.exec("do $$ declare d text; begin for d in select relid::regclass::text from pg_partition_tree('orders_new') where isleaf and right(relid::text, 8) > to_char(now() at time zone 'UTC', 'YYYYMMDD') loop execute 'drop table ' || d; end loop; end $$")
	refused("partitions check")
	y.exec("delete from partition_policy")
	refused("register it")
	if _, err := y.m.Swap(y.ctx, "red", bluegreen.SwapOptions{}); err == nil {
		t.Error("there is no side red")
	}
	if s := y.swap(bluegreen.Blue); !s.Already {
		t.Errorf("%+v", s)
	}
}

func TestSwapGivesUpAndSaysWhoIsInTheWay(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	m, err := bluegreen.New(bluegreen.Config{Pool: y.pool, Schema: "public", LockTimeout: 30 * time.Millisecond, Budget: 80 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := y.connect("").Acquire(y.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	tx, err := conn.Begin(y.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(y.ctx, "set local application_name = 'sleeper'; select from orders"); err != nil {
		t.Fatal(err)
	}
	_, err = m.Swap(y.ctx, bluegreen.Green, bluegreen.SwapOptions{})
	var blocked *bluegreen.BlockedError
	if !errors.As(err, &blocked) || blocked.Tries < 2 || blocked.Tries > 5 || len(blocked.Blockers) != 1 || blocked.Blockers[0].Application != "sleeper" {
		t.Errorf("swap: %+v, %v", blocked, err)
	}
	y.is("r", "select relkind from pg_class where relname = 'orders'")
	if _, err := tx.Exec(y.ctx, "prepare transaction 'forgotten'"); err != nil {
		t.Fatal(err)
	}
	_, err = m.Swap(y.ctx, bluegreen.Green, bluegreen.SwapOptions{})
	if err == nil || !strings.Contains(err.Error(), `"forgotten", prepared transaction`) {
		t.Errorf("swap: %v", err)
	}
	y.exec("rollback prepared 'forgotten'")
	if s := y.swap(bluegreen.Green); s.Tries != 1 {
		t.Errorf("%+v", s)
	}
}

// A vacuum is waited for while the application goes on, for longer than others may be held up.
func TestSwapWaitsForAVacuum(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	m, err := bluegreen.New(bluegreen.Config{Pool: y.pool, Schema: "public", LockTimeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	vacuum, err := y.connect("").Begin(y.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vacuum.Rollback(y.ctx) }()
	if _, err := vacuum.Exec(y.ctx, "lock table orders in share update exclusive mode"); err != nil {
		t.Fatal(err)
	}
	swapped := make(chan error, 1)
	go func() { swapped <- second(m.Swap(y.ctx, bluegreen.Green, bluegreen.SwapOptions{})) }()
	devtest.Eventually(t, func() error {
		if n := y.text("select count(*) from pg_locks where not granted and relation = 'orders'::regclass"); n != "1" {
			return fmt.Errorf("%s wait for the table", n)
		}
		return nil
	})
	for range 20 {
		y.exec("set lock_timeout = '1ms'; insert into orders (at) values (now()); reset lock_timeout")
	}
	if err := vacuum.Rollback(y.ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-swapped; err != nil {
		t.Errorf("swap: %v", err)
	}
	y.sync()
	y.alike("orders", "orders_old")
}

// What is written between the last drain and the locks is drained under them, up to Tail.
func TestSwapDrainsTheTail(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	write := func(rows int) func(string) {
		return at("logs short", func() {
			y.exec("insert into orders (at) select now() from generate_series(1, $1)", rows)
		})
	}
	y.m = y.migration(write(10))
	if s := y.swap(bluegreen.Green); s.Drained != 10 || s.Tries != 1 {
		t.Errorf("%+v", s)
	}
	y.m = y.migration(write(1001))
	if s := y.swap(bluegreen.Blue); s.Drained != 0 || s.Tries != 2 {
		t.Errorf("%+v", s)
	}
	y.alike("orders", "orders_new")
	y.m = y.migration(at("passive sides locked", func() {
		y.exec("truncate orders")
		y.exec("insert into orders (id, at) values (1, now())")
	}))
	if s := y.swap(bluegreen.Green); s.Tries != 2 {
		t.Errorf("%+v", s)
	}
	y.alike("orders", "orders_old")
	y.is("1", "select count(*) from orders")
	// What is written before the last turns is not left for the locks.
	y.m = y.migration(at("passive sides locked", func() { y.exec("insert into orders (at) select now() from generate_series(1, 1001)") }))
	if s := y.swap(bluegreen.Blue); s.Drained != 0 || s.Tries != 1 {
		t.Errorf("%+v", s)
	}
	y.alike("orders", "orders_new")
}

func TestStatusSaysWhatIsNext(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	next := func(want string) bluegreen.Status {
		t.Helper()
		s, err := y.m.Status(y.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(s.Next, ","); got != want {
			t.Errorf("next %q, want %q", got, want)
		}
		return s
	}
	if _, err := y.m.Status(y.ctx); !errors.Is(err, bluegreen.ErrNone) {
		t.Errorf("status before init: %v", err)
	}
	y.init("orders")
	next("sync,abort")
	y.sync()
	next("swap,sync,verify,abort")
	y.swap(bluegreen.Green)
	y.exec("insert into orders (at) select now() from generate_series(1, 500)")
	s := next("rollback,sync,verify,finish")
	if s.Rollback.Entries != 500 || s.Rollback.Drain <= 0 || s.Tables[0].SwappedAt == nil || s.Tables[0].Passive != "public.orders_old" {
		t.Errorf("status %+v", s)
	}
}
