package store_test

import (
	"strings"
	"testing"

	"plenum/pkg/store"
)

// The function reads one day's partition at a time, by its index on id.
func TestFeedBySQLPlans(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for n := -2; n <= 0; n++ {
		for range 20 {
			h.insertDay(h.day(n), 200)
		}
	}
	h.markAll(store.NewMarker(h.pool))
	// Rows that lie anyhow, and a caller's session that has everything else than the functions need.
	h.exec("with moved as (delete from telemetry returning *) insert into telemetry select * from moved order by md5(id::text)")
	h.archive(h.day(-2))
	h.exec("analyze")
	p := h.withPlans(map[string]string{
		"auto_explain.log_nested_statements": "on", "plan_cache_mode": "force_generic_plan", "work_mem": "64kB", "random_page_cost": "20",
		"parallel_setup_cost": "0", "parallel_tuple_cost": "0", "min_parallel_table_scan_size": "0", "min_parallel_index_scan_size": "0",
	})
	for day, after := range map[int]int64{-2: 0, -1: 20, 0: 40} {
		p.take()
		if _, err := p.Exec(h.ctx, "select count(*) from telemetry_feed($1, 4000)", after); err != nil {
			t.Fatal(err)
		}
		var reads []string
		for _, plan := range p.take() {
			if strings.Contains(plan, "Gather") {
				t.Errorf("day %d: the plan is parallel:\n%s", day, plan)
			}
			if strings.Contains(plan, "from telemetry_batch") && !strings.Contains(plan, "->  Limit") {
				t.Errorf("day %d: all lines behind the position are read:\n%s", day, plan)
			}
			if strings.Contains(plan, "telemetry_all a") && strings.Contains(plan, "unnest(spots") {
				reads = append(reads, plan)
			}
		}
		if len(reads) != 1 {
			t.Fatalf("%d statements read rows, want 1", len(reads))
		}
		wantPlan(h, reads[0], "_id_idx", leafOf("telemetry", h.day(day)))
		if strings.Contains(reads[0], "Sort Method: external") {
			t.Errorf("day %d: the rows are sorted on disk:\n%s", day, reads[0])
		}
		for other := -2; other <= 1; other++ {
			if other != day && strings.Contains(reads[0], "on "+leafOf("telemetry", h.day(other))) {
				t.Errorf("day %d: the plan touches day %d:\n%s", day, other, reads[0])
			}
		}
	}
}
