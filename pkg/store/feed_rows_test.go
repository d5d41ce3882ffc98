package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"plenum/pkg/store"
)

// The rows of many lines are a range of one day's index for each run of ids, and one statement for the short ones.
func TestFeedRowsPlans(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for n := -2; n <= 0; n++ {
		h.insertDay(h.day(n), 4000)
	}
	h.exec("vacuum analyze telemetry")
	var lines []store.Line
	id := value[int64](h, "select min(id) from telemetry where last_modified >= $1 and last_modified < $2", h.day(-1), h.today)
	add := func(first, last int64) {
		lines = append(lines, store.Line{FirstID: first, LastID: last, Rows: int(last - first + 1), Day: h.day(-1), Position: int64(len(lines) + 1)})
	}
	add(id+500, id+549)
	for n := id + 499; n >= id; n-- { // lines of a row, the last id first
		add(n, n)
	}
	add(id+1000, id+1299) // a run of its own
	add(id+2000, id+2009) // two short ones
	add(id+3000, id+3009)
	p := h.withPlans(nil)
	rows, err := store.FeedRows(h.ctx, p.Pool, lines)
	if err != nil {
		t.Fatal(err)
	}
	want(h, "rows", len(rows), 870)
	for i, wantID := range []int64{id + 500, id + 501} {
		want(h, "id", rows[i].ID, wantID)
	}
	want(h, "id of the first line of a row", rows[50].ID, id+499)
	want(h, "last id", rows[869].ID, id+3009)
	plans := p.take()
	want(h, "statements", len(plans), 3)
	for _, plan := range plans {
		wantPlan(h, plan, "_id_idx", leafOf("telemetry", h.day(-1)))
		for _, other := range []int{-2, 0} {
			if strings.Contains(plan, leafOf("telemetry", h.day(other))) {
				t.Errorf("the plan touches another day:\n%s", plan)
			}
		}
	}
}

// A page of tiny lines is asked for in few questions, and is as full as the limit says.
func TestFeedLinesThatAreTiny(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.exec(`insert into telemetry_batch (first_id, last_id, row_count, day, source, processed_at, feed_position)
		select n, n, 1, $1, 'test', now(), nextval('telemetry_feed_position_seq') from generate_series(1, 12000) n`, h.today)
	p := h.withPlans(nil)
	for _, c := range []struct{ limit, lines, questions int }{{1, 1, 1}, {2000, 2000, 1}, {2001, 2001, 2}, {10_000, 10_000, 2}, {100_000, 12_000, 2}} {
		p.take()
		lines, err := store.FeedLines(h.ctx, p.Pool, 0, c.limit)
		if err != nil {
			t.Fatal(err)
		}
		want(h, "lines", len(lines), c.lines)
		want(h, "last position", lines[len(lines)-1].Position, int64(c.lines))
		questions := 0
		for _, plan := range p.take() {
			if strings.Contains(plan, "order by feed_position") {
				questions++
			}
		}
		want(h, fmt.Sprintf("questions for %d rows", c.limit), questions, c.questions)
	}
}

// Whatever a row holds comes out as PostgreSQL's own Scan would have it.
func TestFeedRowsAsTheyAre(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first := value[int64](h, "select nextval('telemetry_id_seq')")
	h.exec(`insert into telemetry (id, last_modified, recorded_at, seq, device_id, kind, payload) values
		($1::bigint, $2, '0001-01-01T00:00:00.000001Z', null, '', 'k', '{}'),
		($1::bigint + 1, $2, '294276-12-31T23:59:59.999999Z', -9223372036854775808, 'Größe 😀', 'k', jsonb_build_object('pad', repeat('ü', 100000))),
		($1::bigint + 2, $2, '1969-12-31T23:59:59.999999Z', 9223372036854775807, repeat('x', 256), '', '[1, 2.50, null]')`, first, h.today)
	line := store.Line{FirstID: first, LastID: first + 2, Rows: 3, Day: h.today}
	got, err := store.FeedRows(h.ctx, h.pool, []store.Line{line})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := h.pool.Query(h.ctx, "select id, device_id, kind, seq, recorded_at, last_modified, payload::text from telemetry order by id")
	if err != nil {
		t.Fatal(err)
	}
	wanted, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r store.FeedRow, err error) {
		err = row.Scan(&r.ID, &r.DeviceID, &r.Kind, &r.Seq, &r.RecordedAt, &r.LastModified, &r.Payload)
		return r, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Error(diff)
	}
	h.exec("update telemetry set recorded_at = 'infinity' where id = $1", first)
	if _, err := store.FeedRows(h.ctx, h.pool, []store.Line{line}); err == nil {
		t.Error("a time that Go cannot hold is no error")
	}
	// By the simple protocol, which has everything as text.
	h.exec("update telemetry set recorded_at = '2026-01-01' where id = $1", first)
	cfg := h.pool.Config()
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	if again, err := store.FeedRows(h.ctx, h.poolOf(cfg), []store.Line{line}); err != nil || len(again) != 3 || *again[1].Seq != *wanted[1].Seq || again[2].DeviceID != wanted[2].DeviceID {
		t.Errorf("simple protocol: %d rows, %v", len(again), err)
	}
}
