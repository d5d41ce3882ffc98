package bluegreen_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/bluegreen"
)

// died is what a step panics with, in place of the process's end.
type died struct{ point string }

// dies runs do with a migration that ends at the n-th point; done says that it came through.
func (y *yard) dies(n int, do func(m *bluegreen.Migration) error) (done bool, points []string) {
	y.Helper()
	shared := y.pool
	y.pool = y.connect("")
	defer func() {
		y.pool.Close() // with the migration's lock, as where a process ends
		y.pool = shared
		y.freed()
		if r := recover(); r != nil {
			if _, ok := r.(died); !ok {
				panic(r)
			}
		}
	}()
	m := y.migration(func(point string) {
		points = append(points, point)
		if len(points) == n {
			panic(died{point})
		}
	})
	if err := do(m); err != nil {
		y.Fatalf("at point %d of %q: %v", n, points, err)
	}
	return true, points
}

func TestInitDiesAnywhere(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"create table orders_archive (like orders including all); insert into orders_archive select * from orders")
	before := y.text("select " + catalogSQL)
	o := bluegreen.InitOptions{Tables: []string{"orders", "public.orders_archive"}, Key: "at", ID: "id", Premake: 2}
	begin := func(m *bluegreen.Migration) error { _, err := m.Init(y.ctx, o); return err }
	for n := 1; ; n++ {
		done, points := y.dies(n, begin)
		if done {
			t.Logf("%q", points)
			if len(points) < 11 {
				t.Errorf("only %d points", len(points))
			}
			break
		}
		_, err := y.m.Status(y.ctx)
		if err == nil && y.text("select count(*) from bluegreen_pair where captured_at is null") != "0" || err != nil && !strings.Contains(err.Error(), "init") {
			t.Errorf("status after point %q: %v", points, err)
		}
		if done, _ := y.dies(-1, func(m *bluegreen.Migration) error {
			other := o
			other.Retention = 3
			if _, err := m.Init(y.ctx, other); err == nil || !strings.Contains(err.Error(), "abort") {
				return fmt.Errorf("init with another retention: %w", err)
			}
			return begin(m)
		}); !done {
			t.Fatal("the second call did not end")
		}
		y.is("2", "select count(*) from bluegreen_pair where captured_at is not null")
		y.is("13 13", "select (select count(*) from pg_inherits where inhparent = 'orders_new'::regclass) || ' ' || (select count(*) from pg_inherits where inhparent = 'orders_archive_new'::regclass)")
		y.is(fmt.Sprint(4*(2+2+13+13)+2*(1+13)), "select count(*) from pg_trigger where tgname like 'plenum%' and tgenabled = 'A'")
		y.exec("update orders_archive set at = at where id = 7")
		y.is("1", "select count(*) from bluegreen_log_2 where id = 7")
		for d := 1; ; d++ { // anywhere only the first time
			if n > 1 {
				d = -1
			}
			if done, _ := y.dies(d, func(m *bluegreen.Migration) error {
				if err := m.Abort(y.ctx); !errors.Is(err, bluegreen.ErrNone) {
					return err
				}
				return nil
			}); done {
				break
			}
		}
		if after := y.text("select " + catalogSQL); after != before {
			t.Fatalf("after abort %s\nbefore %s", after, before)
		}
	}
}

// freed waits until the server knows that the process has died.
func (y *yard) freed() {
	y.Helper()
	devtest.Eventually(y.T, func() error {
		if n := y.text("select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())"); n != "0" {
			return fmt.Errorf("%s advisory locks are held", n)
		}
		return nil
	})
}

func TestCapture(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ sql, ids string }{
		"on conflict": {"insert into orders (id, at) values (1, now()), (900, now()) on conflict (id) do update set state = 'x'", "1,900"},
		"replica":     {"set session_replication_role = replica; delete from orders where id = 5; reset session_replication_role", "5"},
		"silent":      {"begin; set local plenum_bluegreen.applying = 'on'; delete from orders where id = 5; commit", "null"},
		"loud again":  {"begin; set local plenum_bluegreen.applying = 'on'; commit; delete from orders where id = 5", "5"},
		"rolled back": {"begin; delete from orders where id = 5; rollback", "null"},
		"a leaf":      {"do $$ begin execute format('insert into %s (id, at) values (7, now())', (select max(relname) from pg_class where relname = 'orders_new_p' || to_char(now() at time zone 'UTC', 'YYYYMMDD'))); end $$", "7"},
		"a key":       {"insert into orders_new (id, at) values (7, now()); update orders_new set at = at - interval '2 days'", "7,7,7,7"},
		"search path": {"create table bluegreen_log_1_shadow (); set search_path = pg_temp; delete from public.orders where id = 5; reset search_path", "5"},
		"copy":        {"merge into orders o using (values (3), (901)) v (id) on o.id = v.id when matched then delete when not matched then insert (id, at) values (v.id, now())", "3,901"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			y := newYard(t, plain)
			y.init("orders")
			y.exec(c.sql)
			y.is(c.ids, "select string_agg(id::text, ',' order by id) from bluegreen_log_1")
		})
	}
}

// A MERGE that moves a row to another partition fires no statement trigger that sees it.
func TestMergeMovesARow(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"alter table orders add check (true)", "alter table orders drop constraint orders_pkey, alter id set not null; create index on orders (id)"} {
		y := newYard(t, plain+key)
		const merge = "merge into orders o using (values (3), (4), (7001)) s (id) on o.id = s.id when matched then update set state = state || 'm', at = o.at - interval '2 days'"
		y.init("orders")
		y.sync()
		y.swap(bluegreen.Green)
		y.exec(merge + " when not matched then insert (id, at) values (s.id, now())")
		y.sync()
		y.alike("orders", "orders_old")
		y.exec(merge)
		y.m = y.migration(at("logs short", func() { y.exec(merge) }))
		y.swap(bluegreen.Blue)
		y.alike("orders", "orders_new")
		y.is("newmmm newmmm newmm", "select string_agg(state, ' ' order by id) from orders where id in (3, 4, 7001)")
		y.exec(merge)
		y.sync()
		y.alike("orders", "orders_new")
	}
}

// A transaction that wrote before the capture began is waited for, in short tries: what it wrote is committed when init has returned.
func TestInitWaitsForOpenWriters(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	writer, err := y.pool.Begin(y.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Exec(y.ctx, "update orders set state = 'late' where id = 1"); err != nil {
		t.Fatal(err)
	}
	y.m = y.migration(func(string) {})
	ended := make(chan error, 1)
	go func() {
		_, err := y.m.Init(y.ctx, bluegreen.InitOptions{Tables: []string{"orders"}, Key: "at", ID: "id"})
		ended <- err
	}()
	devtest.Eventually(t, func() error {
		if y.text("select count(*) from pg_locks where relation = 'orders'::regclass and mode = 'ShareRowExclusiveLock' and not granted") == "0" {
			return errors.New("init does not wait for blue")
		}
		return nil
	})
	y.exec("update orders set state = 'other' where id = 2") // after at most one try
	select {
	case err := <-ended:
		t.Fatalf("init has ended while a writer is open: %v", err)
	default:
	}
	if err := writer.Commit(y.ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	y.is("t", "select (captured_at is not null)::text::char from bluegreen_pair")
}

func TestNewLeavesAreCaptured(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"insert into orders (at) select now() + i * interval '1 day' from generate_series(8, 12) i")
	r := y.init("orders")
	if !slices.Equal(names(r.Findings), []string{"future-rows:public.orders"}) {
		t.Errorf("findings %+v", r.Findings)
	}
	y.exec(`do $$ declare day timestamptz; begin select high into day from bluegreen_pair;
		execute format('create table next partition of orders_new for values from (%L) to (%L)', day, day + interval '1 day');
		execute format('create table far partition of orders_new for values from (%L) to (%L)', day + interval '3 days', day + interval '4 days');
		execute format('insert into next (id, at) values (-5, %L)', day); end $$`)
	high := y.text("select high + interval '1 day' from bluegreen_pair")
	dies := 1
	for ; ; dies++ { // an end between triggers and ids loses none
		done, _ := y.dies(dies, func(m *bluegreen.Migration) error { return m.EnsureCapture(y.ctx) })
		if done {
			break
		}
	}
	if dies == 1 {
		t.Error("it did not die")
	}
	y.is("-5,241", "select string_agg(id::text, ',' order by id) from bluegreen_log_1") // the leaf's, and blue's of that day
	y.is(high, "select high from bluegreen_pair")
	y.exec("insert into far (id, at) select 800, at from orders where id = 244")
	y.is("1", "select count(*) from bluegreen_log_1 where id = 800")
}

func TestFinish(t *testing.T) {
	t.Parallel()
	for _, drop := range []bool{false, true} {
		t.Run(fmt.Sprint("drop ", drop), func(t *testing.T) {
			t.Parallel()
			y := newYard(t, plain+`create function f() returns trigger language plpgsql as 'begin return new; end';
				create trigger f before update on orders for each row execute function f()`)
			if _, err := y.m.Init(y.ctx, bluegreen.InitOptions{Tables: []string{"orders"}, Key: "at", ID: "id", Retention: 30}); err != nil {
				t.Fatal(err)
			}
			// What a swap does of it.
			y.exec(`alter table orders rename to orders_old; alter table orders_new rename to orders; alter sequence orders_id_seq owned by orders.id;
				alter table orders_old disable trigger f; alter table orders enable trigger f;
				update partition_policy set table_name = 'orders'; update bluegreen_pair set active = 'green'`)
			if err := y.m.Abort(y.ctx); err == nil || !strings.Contains(err.Error(), "rollback first") {
				t.Errorf("abort with green active: %v", err)
			}
			if err := y.m.Finish(y.ctx, drop); err != nil {
				t.Fatal(err)
			}
			y.is(fmt.Sprint(!drop), "select to_regclass('orders_old') is not null")
			y.is("0", "select count(*) from pg_trigger where tgname like 'plenum%' or tgenabled = 'D'")
			y.is("null", "select string_agg(relname, ',') from pg_class where relname like 'bluegreen%'")
			y.is("null", "select string_agg(proname, ',') from pg_proc where proname like 'bluegreen%'")
			y.is("orders 30 drop ", "select string_agg(concat_ws(' ', table_name, retention, expired, pending, paused_at, ''), ', ') from partition_policy")
			y.exec("insert into orders (at) values (now())")
		})
	}
}
