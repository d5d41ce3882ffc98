package bluegreen_test

import (
	"errors"
	"strings"
	"testing"

	"plenum/pkg/bluegreen"
)

func TestRefusedRowStopsASwapAndNothingElse(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.exec("alter table orders_new add constraint odd check (state <> 'odd')")
	y.exec("update orders set state = 'odd' where id in (3, 4)")
	y.sync()
	y.is("238", "select count(*) from orders_new")
	y.exec("insert into orders (id, at) select i, now() from generate_series(1000, 1100) i")
	y.exec("update orders set state = 'odd' where id = 5")
	y.sync()
	y.is("338", "select count(*) from orders_new")
	following, cancel := cancelable(y)
	refused, rounds := int64(0), 0
	tried := func() string { return y.text("select string_agg(at::text, ' ' order by id) from bluegreen_stuck") }
	first := ""
	err := y.m.Sync(following, bluegreen.SyncOptions{Follow: true, Progress: func(p bluegreen.Progress) {
		if rounds++; rounds == 12 {
			first = tried()
		}
		if refused = p.Refused; rounds == 16 {
			cancel()
		}
	}})
	if err == nil || refused != 3 {
		t.Errorf("a sync that follows: %d ids refused, %v", refused, err)
	}
	if now := tried(); now != first {
		t.Errorf("ids that are refused are tried again each time: at %s, at %s", first, now)
	}
	st, err := y.m.Status(y.ctx)
	if err != nil || len(st.Tables[0].Stuck) != 3 || len(st.Blocked) != 4 || !strings.Contains(st.Blocked[3], "orders_aside") || !strings.Contains(st.Blocked[0], "odd") {
		t.Errorf("status %+v, %v", st, err)
	}
	if _, err := y.m.Swap(y.ctx, bluegreen.Green, bluegreen.SwapOptions{}); err == nil || !strings.Contains(err.Error(), "refuses rows") {
		t.Errorf("swap: %v", err)
	}
	y.exec("update orders set state = 'even' where state = 'odd'")
	y.swap(bluegreen.Green)
	y.alike("orders", "orders_old")
}

// Green has no unique key by the id: it may take a second row of one, which blue refuses. At night these rows go aside, all of them.
func TestRollbackWithRowsThatBlueRefuses(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"alter table orders add twice bigint generated always as (id * 2) stored")
	y.init("orders")
	y.sync()
	y.swap(bluegreen.Green)
	y.exec("insert into orders (id, at, state) values (7, now(), 'second'), (1000, now(), 'good')")
	y.sync()
	_, err := y.m.Swap(y.ctx, bluegreen.Blue, bluegreen.SwapOptions{})
	var stuck *bluegreen.StuckError
	if !errors.As(err, &stuck) || len(stuck.Stuck) != 1 || stuck.Stuck[0].ID != "7" {
		t.Fatalf("rollback: %v", err)
	}
	t.Log(err)
	y.exec(strings.Join(stuck.Aside, ";"))
	y.swap(bluegreen.Blue)
	y.is("new second", "select string_agg(state, ' ' order by state) from orders_aside")
	y.is("0 1", "select count(*) filter (where id = 7) || ' ' || count(*) filter (where id = 1000) from orders")
}

// Two rows exchange a unique value. Each alone is refused as long as the other has it.
func TestRowsThatAreRefusedInTurn(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"alter table orders add number bigint; create unique index orders_number on orders (number, at); update orders set number = id, at = date_trunc('day', now(), 'UTC')")
	y.init("orders")
	y.sync()
	y.exec("update orders set number = -1 where id = 1")
	y.exec("update orders set number = 1 where id = 2")
	y.exec("update orders set number = 2 where id = 1")
	m, err := bluegreen.New(bluegreen.Config{Pool: y.pool, Schema: "public", Batch: 1, Tail: 1})
	if err != nil {
		t.Fatal(err)
	}
	y.m = m
	// Of each row one entry is left, as a batch has it.
	y.exec("delete from bluegreen_log_1 where seq > (select min(seq) + 1 from bluegreen_log_1)")
	y.sync()
	y.alike("orders", "orders_new")
	y.swap(bluegreen.Green)
}
