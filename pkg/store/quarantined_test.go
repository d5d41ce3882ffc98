package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

// addQuarantined inserts n lines of a code and topic, a second apart from at on, and returns their first id.
func (h *house) addQuarantined(n int, code telemetry.Code, topic string, at time.Time) int64 {
	h.Helper()
	return value[int64](h, `with lines as (
			insert into telemetry_quarantine (received_at, code, detail, topic, payload)
			select $4::timestamptz + n * interval '1 second', $2, 'detail ' || n, $3, convert_to('payload ' || n, 'UTF8')
			from generate_series(1, $1::int) n order by n returning id)
		select min(id) from lines`, n, string(code), topic, at)
}

func ids(t *testing.T, lines func(func(store.QuarantinedLine, error) bool)) (out []int64) {
	t.Helper()
	for l, err := range lines {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l.ID)
	}
	return out
}

func ptr[T any](v T) *T { return &v }

// More lines than a page: each once, in order, by every way to narrow them.
func TestQuarantinedLines(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	at := h.today.Add(time.Hour)
	const n = 1203
	first := h.addQuarantined(n, telemetry.NotJSON, "telemetry/a", at)
	odd := h.addQuarantined(3, telemetry.BadTime, "telemetry/odd", at.Add(time.Hour))
	h.exec(`update telemetry_quarantine set payload = null, replayed_at = $2 where id = $1`, odd+1, at.Add(2*time.Hour))
	q := store.NewQuarantined(h.pool)
	var all []int64
	for id := first; id < odd+3; id++ {
		all = append(all, id)
	}
	reversed := slices.Clone(all)
	slices.Reverse(reversed)
	for what, test := range map[string]struct {
		selection store.Selection
		want      []int64
	}{
		"all":             {store.Selection{}, all},
		"ids":             {store.Selection{IDs: []int64{odd, first, odd + 77}}, []int64{first, odd}},
		"a code":          {store.Selection{Code: telemetry.BadTime}, []int64{odd, odd + 1, odd + 2}},
		"since":           {store.Selection{Since: at.Add(time.Hour + 2*time.Second)}, []int64{odd + 1, odd + 2}},
		"before":          {store.Selection{Before: at.Add(2 * time.Second)}, []int64{first}},
		"replayed":        {store.Selection{Replayed: ptr(true)}, []int64{odd + 1}},
		"not replayed":    {store.Selection{Code: telemetry.BadTime, Replayed: ptr(false)}, []int64{odd, odd + 2}},
		"text of a topic": {store.Selection{Topic: "y/o"}, []int64{odd, odd + 1, odd + 2}},
		"no pattern":      {store.Selection{Topic: "%"}, nil},
		"match":           {store.Selection{Match: func(topic string) bool { return topic == "telemetry/odd" }}, []int64{odd, odd + 1, odd + 2}},
	} {
		if d := cmp.Diff(test.want, ids(t, q.Oldest(h.ctx, test.selection))); d != "" {
			t.Errorf("%s, oldest first: %s", what, d)
		}
		slices.Reverse(test.want)
		if d := cmp.Diff(test.want, ids(t, q.Newest(h.ctx, test.selection))); d != "" {
			t.Errorf("%s, newest first: %s", what, d)
		}
	}

	var lines []store.QuarantinedLine
	for l, err := range q.Newest(h.ctx, store.Selection{}) {
		if err != nil {
			t.Fatal(err)
		}
		if lines = append(lines, l); len(lines) == 2 {
			break
		}
	}
	if d := cmp.Diff([]store.QuarantinedLine{
		{ID: odd + 2, ReceivedAt: at.Add(time.Hour + 3*time.Second), Code: telemetry.BadTime, Detail: "detail 3", Topic: "telemetry/odd", Bytes: 9},
		{
			ID: odd + 1, ReceivedAt: at.Add(time.Hour + 2*time.Second), ReplayedAt: at.Add(2 * time.Hour), Code: telemetry.BadTime,
			Detail: "detail 2", Topic: "telemetry/odd", Bytes: store.DroppedPayload,
		},
	}, lines); d != "" {
		t.Error(d)
	}
	for i, want := range []string{"payload 3", ""} {
		payload, err := q.Payload(h.ctx, lines[i])
		if err != nil || string(payload) != want || (payload == nil) != (want == "") {
			t.Errorf("payload of line %d: %q, %v", lines[i].ID, payload, err)
		}
	}
	missing, err := q.Missing(h.ctx, []int64{odd + 99, first, odd + 5, odd + 99})
	if d := cmp.Diff([]int64{odd + 5, odd + 99}, missing); err != nil || d != "" {
		t.Errorf("missing: %v %s", err, d)
	}

	// What arrives while it reads is not part of it: a replay that quarantines again comes to an end.
	seen := 0
	for _, err := range q.Oldest(h.ctx, store.Selection{}) {
		if err != nil {
			t.Fatal(err)
		}
		if seen++; seen%500 == 0 {
			h.addQuarantined(10, telemetry.NotJSON, "telemetry/late", at)
		}
	}
	want(h, "lines seen", seen, n+3)
}

func TestQuarantineGroups(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	at := h.today.Add(time.Hour)
	q := store.NewQuarantined(h.pool)
	none, rest, err := q.Groups(h.ctx, store.Selection{}, 5)
	if err != nil || len(none) != 0 || rest != (store.QuarantineRest{}) {
		t.Fatalf("an empty quarantine: %v, %v, %v", none, rest, err)
	}
	a := h.addQuarantined(5, telemetry.NotJSON, "telemetry/a", at)
	h.addQuarantined(3, telemetry.NotJSON, "telemetry/b", at)
	h.addQuarantined(4, telemetry.BadTime, "telemetry/a", at)
	h.addQuarantined(2, telemetry.BadTime, "telemetry/c", at)
	h.exec(`update telemetry_quarantine set replayed_at = now() where id = any($1)`, []int64{a, a + 1})
	groups, rest, err := q.Groups(h.ctx, store.Selection{}, 2)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]store.QuarantineGroup{
		{Code: telemetry.NotJSON, Topic: "telemetry/a", Lines: 5, Replayed: 2, First: at.Add(time.Second), Last: at.Add(5 * time.Second), Newest: a + 4},
		{Code: telemetry.BadTime, Topic: "telemetry/a", Lines: 4, First: at.Add(time.Second), Last: at.Add(4 * time.Second), Newest: a + 11},
	}, groups); d != "" {
		t.Error(d)
	}
	want(h, "rest", rest, store.QuarantineRest{Groups: 2, Lines: 5})
	details, err := q.Details(h.ctx, []int64{a + 4, a + 999})
	if d := cmp.Diff(map[int64]string{a + 4: "detail 5"}, details); err != nil || d != "" {
		t.Errorf("details: %v %s", err, d)
	}
}

// Delete takes what is selected, in more than one transaction, and nothing else; Vacuum gives the space back.
func TestQuarantineDelete(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.exec(`drop table telemetry_quarantine_all`)
	for _, n := range []int{-1, 0} {
		h.exec(fmt.Sprintf(`create table %q partition of telemetry_quarantine for values from ('%s') to ('%s')`, fmt.Sprintf("Q %d", n),
			h.day(n).Format(time.RFC3339), h.day(n+1).Format(time.RFC3339)))
	}
	kept := h.addQuarantined(3, telemetry.BadTime, "telemetry/a", h.day(-1).Add(time.Hour)) // between those that go
	h.addQuarantined(1100, telemetry.NotJSON, "telemetry/a", h.day(-1).Add(time.Hour))
	h.exec(`update telemetry_quarantine set payload = convert_to(repeat(md5(id::text), 200), 'UTF8') where code = 'not_json'`)
	today := h.addQuarantined(2, telemetry.NotJSON, "telemetry/b", h.day(0))
	size := func(leaf string) int64 {
		t.Helper()
		return value[int64](h, `select pg_relation_size($1::text::regclass)`, leaf)
	}
	const leaf = `"Q -1"`
	before := size(leaf)
	q := store.NewQuarantined(h.pool)
	p, err := q.Delete(h.ctx, store.Selection{Code: telemetry.NotJSON, Before: h.day(0)})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(store.Purge{Lines: 1100, Bytes: 1100 * 6400, Leaves: []string{leaf}}, p); d != "" {
		t.Error(d)
	}
	left := []int64{kept, kept + 1, kept + 2, today, today + 1}
	if d := cmp.Diff(left, values[int64](h, `select id from telemetry_quarantine order by id`)); d != "" {
		t.Error(d)
	}
	if err := q.Vacuum(h.ctx, p.Leaves); err != nil {
		t.Fatal(err)
	}
	if after := size(leaf); after > before/10 {
		t.Errorf("%d bytes are left of %d", after, before)
	}
	if err := q.Vacuum(h.ctx, []string{"gone"}); err != nil {
		t.Errorf("a partition that was dropped meanwhile: %v", err)
	}
	p, err = q.Delete(h.ctx, store.Selection{})
	if err != nil || p.Lines != 5 || len(p.Leaves) != 2 {
		t.Errorf("the rest: %+v, %v", p, err)
	}
	if p, err = q.Delete(h.ctx, store.Selection{}); err != nil || p.Lines != 0 {
		t.Errorf("nothing: %+v, %v", p, err)
	}
}

// A page, a payload and a page's end are found by the id's index, in the partitions that can hold them.
func TestQuarantinedPlans(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first := h.addQuarantined(20_000, telemetry.NotJSON, "telemetry/a", h.today)
	h.exec(`analyze telemetry_quarantine`)
	p := h.withPlans(nil)
	q := store.NewQuarantined(p.Pool)
	check := func(what string) {
		t.Helper()
		for _, plan := range p.take() {
			if strings.Contains(plan, "Seq Scan on telemetry_quarantine") {
				t.Errorf("%s:\n%s", what, plan)
			}
		}
	}
	n := 0
	for _, err := range q.Newest(h.ctx, store.Selection{}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 600 {
			break
		}
	}
	check("newest")
	if got := ids(t, q.Oldest(h.ctx, store.Selection{IDs: []int64{first + 7}})); len(got) != 1 {
		t.Errorf("%v", got)
	}
	check("by id")
	if _, err := q.Payload(h.ctx, store.QuarantinedLine{ID: first, ReceivedAt: h.today.Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	check("payload")
	if _, err := q.Delete(h.ctx, store.Selection{IDs: []int64{first + 7}}); err != nil {
		t.Fatal(err)
	}
	check("delete")
}
