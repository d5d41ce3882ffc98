package bluegreen_test

import (
	"strings"
	"testing"

	"plenum/pkg/bluegreen"
)

// A role of one test: roles are the server's, databases the test's.
func TestRoleThatOwnsNothing(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`create role stranger login password 'stranger'; grant all on schema public to stranger; grant select, insert on orders to stranger`)
	super := y.pool
	y.pool = y.connect("stranger")
	y.m = y.migration(func(string) {})
	y.pool = super
	y.refuses("orders", "not the owner")
}

func TestOwnerThatIsNoSuperuser(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`create role keeper login password 'keeper'; create role clerk login password 'clerk'; grant all on schema public to keeper;
		alter table orders owner to keeper; grant insert on orders to clerk; grant usage on sequence orders_id_seq to clerk`)
	super := y.pool
	y.pool = y.connect("keeper")
	y.m = y.migration(func(string) {})
	y.init("orders")
	clerk := y.connect("clerk")
	if _, err := clerk.Exec(y.ctx, "insert into orders (at) values (now())"); err != nil {
		t.Errorf("a writer that is not the owner: %v", err)
	}
	y.is("241", "select string_agg(id::text, ',') from bluegreen_log_1")
	if _, err := clerk.Exec(y.ctx, "delete from bluegreen_log_1"); err == nil {
		t.Error("a writer can write the log")
	}
	y.pool = super
	y.is("keeper", "select string_agg(distinct pg_get_userbyid(relowner)::text, ',') from pg_class where relname like 'orders_new%' or relname like 'bluegreen%'")
}

func TestEventTrigger(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`
		create table ddl (tag text);
		create function note() returns event_trigger language plpgsql as 'begin insert into ddl values (tg_tag); end';
		create event trigger note on ddl_command_end execute function note()`)
	y.init("orders")
	y.there("orders", "orders_old", "orders_new", "update orders set state = 'other' where id < 10")
	y.exec("delete from ddl")
	y.swap(bluegreen.Green)
	y.is("true", "select count(*) >= 4 from ddl where tag in ('ALTER TABLE', 'ALTER INDEX')") // it sees the swap, as it is
	y.swap(bluegreen.Blue)
	if err := y.m.Abort(y.ctx); err != nil {
		t.Error(err)
	}
	y.exec("create or replace function note() returns event_trigger language plpgsql as 'begin if tg_tag = ''CREATE TRIGGER'' then raise ''ask the DBA first''; end if; end'")
	if _, err := y.m.Init(y.ctx, bluegreen.InitOptions{Tables: []string{"orders"}, Key: "at", ID: "id"}); err == nil || !strings.Contains(err.Error(), "ask the DBA first") {
		t.Errorf("init that an event trigger refuses: %v", err)
	}
	y.exec("drop event trigger note")
	y.init("orders")
}

// What foreign keys and a materialized view do after a swap, if they are accepted as they are: what the findings say.
func TestForeignKeysAndAMaterializedView(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`
		create table customer (id bigint primary key); insert into customer values (1), (2);
		alter table orders add customer bigint default 1 references customer;
		create table line (orders bigint references orders); insert into line values (5);
		create materialized view recent as select * from orders where id < 10`)
	_, err := y.m.Init(y.ctx, bluegreen.InitOptions{Tables: []string{"orders"}, Key: "at", ID: "id", Accept: []string{
		"matview:public.orders.public.recent", "foreign-key:public.orders.orders_customer_fkey", "foreign-key-in:public.orders.line_orders_fkey of public.line",
	}})
	if err != nil {
		t.Fatal(err)
	}
	y.there("orders", "orders_old", "orders_new", "update orders set state = state || 'x', customer = 3 - customer where id <> 5")
	y.swap(bluegreen.Green)
	y.exec("update orders set state = 'green', customer = 1 where id < 10 and id <> 5")
	y.exec("refresh materialized view recent")
	y.is("0", "select count(*) from recent where state = 'green'") // it reads blue
	refused := func(sql string) {
		t.Helper()
		if _, err := y.pool.Exec(y.ctx, sql); err == nil || !strings.Contains(err.Error(), "foreign key") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	y.exec("insert into orders (id, at) values (1000, now())")
	refused("insert into line values (1000)")
	y.exec("update orders set customer = 1 where id <> 5")
	refused("delete from customer where id = 2")
	y.sync()
	y.exec("delete from customer where id = 2; insert into line values (1000)")
	y.exec("delete from orders where id = 1000") // its line is in the way in blue
	y.sync()
	if _, err := y.m.Swap(y.ctx, bluegreen.Blue, bluegreen.SwapOptions{}); err == nil || !strings.Contains(err.Error(), "line_orders_fkey") {
		t.Errorf("rollback: %v", err)
	}
	y.exec("delete from line where orders = 1000")
	y.swap(bluegreen.Blue)
	y.is("240", "select count(*) from orders")
}
