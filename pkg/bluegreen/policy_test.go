package bluegreen_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/pkg/bluegreen"
	"plenum/pkg/partman"
)

const policiesSQL = `string_agg(concat_ws(' ', table_name, premake, retention, nullif(expired, ''), nullif(archive_table, ''),
	case when indexes <> '[]' then 'indexed' end, case when paused_at is not null then 'paused' end), ', ' order by table_name) from partition_policy`

// kept is a pair of tables that partman keeps, archive and live, with days past retention.
const kept = `
create table orders (id bigint not null, at timestamptz not null, state text) partition by range (at);
create index on orders (id);
create table archive (like orders) partition by range (at);
create index on archive (id);`

func (y *yard) keeps(list ...partman.Policy) {
	y.Helper()
	if err := partman.Install(y.ctx, y.pool, "public"); err != nil {
		y.Fatal(err)
	}
	for _, p := range list {
		p.Schema, p.Key, p.Step, p.Premake = "public", "at", partman.Day, 3
		if _, err := partman.Register(y.ctx, y.pool, "public", p); err != nil {
			y.Fatal(err)
		}
	}
	y.round()
}

// Retiring of both sides is paused from init to finish; days are made all the while. Green is kept as blue was.
func TestPoliciesFollow(t *testing.T) {
	t.Parallel()
	y := newYard(t, kept)
	y.keeps(partman.Policy{Table: "orders", Retention: 5, Expired: partman.ExpiredArchive, ArchiveTable: "archive", Indexes: []partman.Index{{Name: "state", Columns: []string{"state"}}}},
		partman.Policy{Table: "archive"})
	y.exec("insert into orders select i, now() from generate_series(1, 9) i")
	before := y.text("select " + policiesSQL)
	y.init("orders", "archive")
	y.is("archive 3 0 paused, archive_new 7 0 paused, orders 3 5 archive archive indexed paused, orders_new 7 5 archive archive_new indexed paused", "select "+policiesSQL)
	y.sync()
	y.swap(bluegreen.Green)
	swapped := "archive 7 0 paused, archive_old 3 0 paused, orders 7 5 archive archive indexed paused, orders_old 3 5 archive archive_old indexed paused"
	y.is(swapped, "select "+policiesSQL)
	y.exec("drop table " + y.text("select max(relid::text) from pg_partition_tree('orders') where isleaf"))
	y.round()
	y.is("8", "select count(*) from pg_partition_tree('orders') where isleaf")
	y.swap(bluegreen.Blue)
	if err := y.m.Abort(y.ctx); err != nil {
		t.Fatal(err)
	}
	y.is(before, "select "+policiesSQL)
	y.init("orders", "archive")
	y.sync()
	y.swap(bluegreen.Green)
	if err := y.m.Finish(y.ctx, false); err != nil {
		t.Fatal(err)
	}
	y.is("archive 7 0, orders 7 5 archive archive indexed", "select "+policiesSQL)
}

// A day past retention leaves neither side while a swap can be reversed.
func TestNothingLeavesMeanwhile(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	if _, err := y.m.Init(y.ctx, bluegreen.InitOptions{Tables: []string{"orders"}, Key: "at", ID: "id", Retention: 30}); err != nil {
		t.Fatal(err)
	}
	y.exec("update partition_policy set retention = 2")
	y.round()
	y.sync()
	y.swap(bluegreen.Green)
	y.round()
	y.is("240", "select count(*) from orders")
	if err := y.m.Finish(y.ctx, true); err != nil {
		t.Fatal(err)
	}
	y.round()
	y.is("true", "select count(*) < 240 and count(*) > 0 from orders")
}

func TestPauseOfAnother(t *testing.T) {
	t.Parallel()
	y := newYard(t, kept)
	y.keeps(partman.Policy{Table: "orders"})
	if err := partman.Pause(y.ctx, y.pool, "public", "public", "orders", "somebody", "an audit"); err != nil {
		t.Fatal(err)
	}
	o := bluegreen.InitOptions{Tables: []string{"orders"}, Key: "at", ID: "id"}
	if _, err := y.m.Init(y.ctx, o); err == nil || !strings.Contains(err.Error(), "an audit") {
		t.Errorf("init of a table that another has paused: %v", err)
	}
	if err := partman.Resume(y.ctx, y.pool, "public", "public", "orders", "somebody"); err != nil {
		t.Fatal(err)
	}
	if r := y.init("orders"); !r.Resumed {
		t.Errorf("report %+v", r)
	}
	o.Premake = 9
	if _, err := y.m.Init(y.ctx, o); err == nil || !strings.Contains(err.Error(), "premake 9") {
		t.Errorf("init with another premake: %v", err)
	}
}

func TestSmallPool(t *testing.T) {
	t.Parallel()
	for conns, wants := range map[int32]bool{2: false, 3: true} {
		cfg, err := pgxpool.ParseConfig(fmt.Sprintf("host=localhost pool_max_conns=%d", conns))
		if err != nil {
			t.Fatal(err)
		}
		pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		if _, err := bluegreen.New(bluegreen.Config{Pool: pool, Schema: "public"}); (err == nil) != wants {
			t.Errorf("%d connections: %v", conns, err)
		}
	}
}
