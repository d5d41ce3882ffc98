package bluegreen_test

import (
	"testing"

	"plenum/pkg/bluegreen"
)

// TestViewsFollow has views read the live table, whichever it is: of two tables that are swapped together, with options, names and
// rights of their own, and one that other views read.
func TestViewsFollow(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`
		create table past (like orders including all);
		create schema "Re ports"; create role "Reader "; grant usage on schema "Re ports" to "Reader ";
		create view "Re ports"."All" with (security_barrier = true) as select id as "I d", state from orders union all select id, state from past;
		alter view "Re ports"."All" rename column state to "St";
		grant select on "Re ports"."All" to "Reader "; comment on view "Re ports"."All" is 'of both';
		create view latest as select max("I d") as id from "Re ports"."All";
		create view bare as select id, at from orders where id > 0 with cascaded check option`)
	defer y.exec(`drop owned by "Reader "; drop role "Reader "`)
	if r := y.init("orders", "past"); len(r.Findings) != 0 {
		t.Errorf("findings %+v", r.Findings)
	}
	y.round()
	y.sync()
	const look = `select string_agg(c.relname || c.oid || coalesce(c.reloptions::text, '') || coalesce(c.relacl::text, '') || coalesce(obj_description(c.oid), '') || pg_get_viewdef(c.oid), ' ' order by c.relname)
		from pg_class c where relkind = 'v' and relname in ('All', 'latest', 'bare')`
	before := y.text(look)
	for _, side := range []bluegreen.Side{bluegreen.Green, bluegreen.Blue, bluegreen.Green} {
		y.swap(side)
		y.exec("insert into bare (id, at) values ((select max(id) + 1 from orders), now())")
		y.exec("insert into past (id, at, state) select coalesce(max(id), 0) + 1, now(), 'x' from past")
		want := y.text("select (select count(*) from orders) + (select count(*) from past)")
		y.is(want, `select count(*) from "Re ports"."All"`)
		y.is(y.text("select greatest((select max(id) from orders), (select max(id) from past))"), "select id from latest")
		y.is(before, look)
	}
	if err := y.m.Finish(y.ctx, true); err != nil {
		t.Fatal(err)
	}
	y.is(before, look)
}

// A view that groups by the primary key alone needs one, which green has not.
func TestViewThatNeedsThePrimaryKey(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"create view v as select id, state, count(*) from orders group by id")
	if found := names(y.init("orders").Findings); len(found) != 1 || found[0] != "view:public.orders.public.v" {
		t.Errorf("found %q", found)
	}
}
