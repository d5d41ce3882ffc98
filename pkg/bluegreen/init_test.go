package bluegreen_test

import (
	"errors"
	"testing"

	"plenum/pkg/bluegreen"
)

const catalogSQL = `string_agg(n, ', ' order by n) from (
	select relkind::text || ' ' || relname n from pg_class where relnamespace = 'public'::regnamespace
	union all select 'f ' || proname from pg_proc where pronamespace = 'public'::regnamespace
	union all select 'g ' || tgname from pg_trigger where not tgisinternal) x`

func TestInitAndAbort(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	before := y.text("select " + catalogSQL)
	r := y.init("orders")
	if r.Resumed || len(r.Findings) > 0 {
		t.Errorf("report %+v", r)
	}
	y.is("p", "select relkind from pg_class where oid = 'orders_new'::regclass")
	y.is("18", "select count(*) from pg_inherits where inhparent = 'orders_new'::regclass") // ten days, today, seven more
	y.is("orders_at:orders_at_new, orders_pkey:orders_pkey_new",
		"select string_agg(name || ':' || green::regclass, ', ' order by name) from bluegreen_name where blue::regclass::text = name")
	y.exec("insert into orders (at) values (now()), (now())")
	y.exec("update orders set id = -id where id in (1, 2)")
	y.exec("delete from orders where id = 3")
	y.exec("insert into orders_new (id, at) values (1000, now())")
	y.is("-2,-1,1,2,3,241,242,1000", "select string_agg(id::text, ',' order by id) from bluegreen_log_1")
	y.exec("truncate orders")
	y.is("1", "select count(*) from bluegreen_log_1 where id is null")
	if err := y.m.Finish(y.ctx, false); err == nil {
		t.Error("finished while blue is active")
	}
	if err := y.m.Abort(y.ctx); err != nil {
		t.Fatal(err)
	}
	if after := y.text("select " + catalogSQL); after != before {
		t.Errorf("after abort %s\nbefore init %s", after, before)
	}
	if err := y.m.Abort(y.ctx); !errors.Is(err, bluegreen.ErrNone) {
		t.Errorf("abort again: %v", err)
	}
}
