package bluegreen_test

import (
	"fmt"
	"testing"

	"plenum/pkg/bluegreen"
)

// The drain's own writes to the passive side, as a trigger on it sees them.
const toldSQL = `
create table told (what text not null, id bigint not null);
create function tell() returns trigger language plpgsql as $$ begin insert into told values (lower(tg_op), coalesce(new.id, old.id)); return null; end $$;
create trigger plenum_bluegreen_teller after insert or update or delete on orders_new for each row execute function tell();
alter table orders_new enable always trigger plenum_bluegreen_teller`

const tellSQL = "select coalesce(string_agg(what || ' ' || id, ', ' order by id, what), '') from told"

// A row that stays where it is is updated, and left alone if it is the same; only one that has another place is deleted and inserted.
func TestRowsAreUpdatedWhereTheyAre(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`alter table orders add column "Big J" json, add column code integer, add column serial integer generated always as identity, add column total numeric;
		update orders set "Big J" = '{"a": 1}', code = id, total = 1.0`)
	y.init("orders")
	y.sync()
	y.exec("create unique index on orders_new (code, at)")
	y.exec(toldSQL)
	for _, c := range []struct{ sql, told string }{
		{"update orders set state = 'x' where id = 1", "update 1"},
		{"update orders set state = state where id = 1", ""},
		{`update orders set "Big J" = '{"a":1}' where id = 2`, "update 2"},
		{"update orders set total = 1.00 where id = 3", "update 3"}, // equal, but not the same
		{"update orders set at = at + interval '1 second' where id = 4", "delete 4, insert 4"},
		{"update orders set at = at + interval '1 day' where id = 5", "delete 5, insert 5"},
		{"update orders set id = 1000 where id = 6", "delete 6, insert 1000"},
		{"update orders set code = case id when 7 then 8 else 7 end, at = '2020-01-01Z' where id in (7, 8); update orders set at = date_trunc('day', now(), 'UTC') where id in (7, 8)", "delete 7, insert 7, delete 8, insert 8"},
		{"update orders set code = case id when 7 then 7 else 8 end where id in (7, 8)", "delete 7, insert 7, delete 8, insert 8"}, // one would be in the other's way
		{"update orders set serial = default where id = 9", "delete 9, insert 9"},                                                  // nothing else may write it
		{"delete from orders where id = 10", "delete 10"},
		{"insert into orders (id, at) values (2000, now())", "insert 2000"},
		{"update orders_new set state = 'undone' where id = 11", "update 11, update 11"},
		{"insert into orders_new (id, at) select id, at from orders where id = 12", "delete 12, delete 12, insert 12, insert 12"}, // twice, which is not alike
	} {
		y.exec("truncate told")
		y.exec(c.sql)
		y.sync()
		y.is(c.told, tellSQL)
	}
	same := func(passive string) {
		t.Helper()
		y.is("0", fmt.Sprintf(`select count(*) from ((select t::text from orders t except all select t::text from %[1]s t)
			union all (select t::text from %[1]s t except all select t::text from orders t)) x`, passive))
	}
	same("orders_new")
	y.exec("drop trigger plenum_bluegreen_teller on orders_new; drop table told; drop function tell(); drop index orders_new_code_at_idx")
	y.round()
	y.swap(bluegreen.Green)
	y.exec("update orders set state = 'y', total = 2 where id < 100; update orders set at = at - interval '1 day' where id between 100 and 120; update orders set id = id + 5000 where id between 130 and 140")
	y.sync()
	same("orders_old")
}

// An id that is the key of the old table has one place there: where it was is known before where it is, in whatever batches.
func TestMovedRowsInSmallBatches(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	y.init("orders")
	y.sync()
	y.swap(bluegreen.Green)
	y.exec("update orders set at = at - interval '1 hour'; update orders set at = at + interval '1 day' where id > 24")
	m, err := bluegreen.New(bluegreen.Config{Pool: y.pool, Schema: "public", Batch: 7, Step: func(point string) {
		if n := y.text("select count(*) from bluegreen_stuck"); n != "0" {
			t.Errorf("%s: %s ids are set aside", point, n)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Sync(y.ctx, bluegreen.SyncOptions{}); err != nil {
		t.Fatal(err)
	}
	y.alike("orders", "orders_old")
}
