package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

func TestMarkGivesEachLineOnePosition(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	var all []store.Line
	for _, day := range []int{-1, 0, -1, 0, 0} {
		all = append(all, h.insertDay(h.day(day), 20))
	}
	m := store.NewMarker(h.pool)
	p := h.pending(m)
	if p.Lines != 5 || p.SetAside != 0 {
		t.Fatalf("pending %+v", p)
	}
	if age := time.Since(h.day(-1).Add(time.Hour)); p.Oldest < age-hang || p.Oldest > age+hang {
		t.Errorf("oldest %s, want about %s", p.Oldest, age)
	}
	want(h, "marked", h.markAll(m), store.Marked{Lines: 5, Rows: 100})
	want(h, "pending afterwards", h.pending(m), store.Pending{})
	want(h, "unprocessed rows", value[int](h, "select count(*) from telemetry where not processed"), 0)
	lines, rows := h.feed(0)
	want(h, "rows in the feed", len(rows), 100)
	for i, l := range lines {
		want(h, "batch, which the oldest first is", l.BatchID, all[i].BatchID)
		want(h, "position", l.Position, int64(i+1))
		want(h, "day", l.Day, all[i].Day)
	}
	if !slices.IsSorted(values[string](h, "select to_char(processed_at, 'YYYY-MM-DD HH24:MI:SS.US') from telemetry_batch order by feed_position")) {
		t.Error("times of processing do not ascend with the positions")
	}
	done, err := m.Mark(h.ctx, 1000)
	if err != nil || done != (store.Marked{}) {
		t.Fatalf("nothing to do: %+v, %v", done, err)
	}
}

func TestMarkTakesAboutTheRowsItMay(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for range 40 {
		h.insertDay(h.today, 10)
	}
	h.insertDay(h.today, 500)
	m := store.NewMarker(h.pool)
	for rows := 0; rows < 400; {
		done, err := m.Mark(h.ctx, 100)
		if err != nil {
			t.Fatal(err)
		}
		if done.Rows > 100 || done.Rows != 10*done.Lines || done.Lines == 0 {
			t.Fatalf("%+v", done)
		}
		rows += done.Rows
	}
	done, err := m.Mark(h.ctx, 100)
	if err != nil || done != (store.Marked{Lines: 1, Rows: 500}) {
		t.Fatalf("a line of more rows than that: %+v, %v", done, err)
	}
}

// No index mentions processed and half of each page is free: a mark touches no index.
func TestMarkIsHOT(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	w := h.writer()
	for n := range int64(4) {
		h.write(w, readings("d", n*500, 500)...)
	}
	want(h, "marked rows", h.markAll(store.NewMarker(h.pool)).Rows, 2000)
	devtest.Eventually(t, func() error {
		var updates, hot int
		err := h.pool.QueryRow(h.ctx, `select sum(n_tup_upd)::int, sum(n_tup_hot_upd)::int from pg_stat_user_tables
			where relname = any($1)`, []string{leafOf("telemetry", h.today), leafOf("telemetry", h.day(1))}).Scan(&updates, &hot)
		if err == nil && updates < 2000 { // statistics arrive late
			err = fmt.Errorf("%d updates", updates)
		}
		if err == nil && (updates != 2000 || hot != updates) {
			t.Fatalf("%d of %d updates are HOT", hot, updates)
		}
		return err
	})
}

// The statements as they were sent and run, not copies of them.
func TestMarkingPlans(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.insertDay(h.day(-2), 4000)
	h.insertDay(h.day(-1), 4000)
	h.insertDay(h.today, 4000)
	first := h.insertDay(h.day(-1), 50)
	h.exec("vacuum analyze telemetry")
	h.exec("update telemetry_batch set processed_at = now(), feed_position = nextval('telemetry_feed_position_seq') where batch_id <> $1", first.BatchID)
	p := h.withPlans(nil)
	done, err := store.NewMarker(p.Pool).Mark(h.ctx, 1000)
	if err != nil || done.Rows != 50 {
		t.Fatal(done, err)
	}
	found := 0
	for _, plan := range p.take() {
		if strings.Contains(plan, "update telemetry set") {
			wantPlan(h, plan, "_id_idx", leafOf("telemetry", h.day(-1)))
			found++
		}
	}
	want(h, "plans of the marking update", found, 1)
}

// The ledger's statements leave no day out and none of the archive's in, and use an index in each.
func TestLedgerPlans(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for n := -6; n < -2; n++ {
		h.addLedgerDay(h.day(n))
	}
	l := h.insertDay(h.day(-1), 5)
	p := h.withPlans(map[string]string{"enable_seqscan": "off"}) // a day of few lines is rightly scanned
	m := store.NewMarker(p.Pool)
	if _, err := m.Pending(h.ctx); err != nil {
		t.Fatal(err)
	}
	if done, err := m.Mark(h.ctx, 1000); err != nil || done.Rows != 5 {
		t.Fatal(done, err)
	}
	if _, err := store.FeedLines(h.ctx, p.Pool, 0, 10); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, plan := range p.take() {
		for mark, name := range map[string]string{"count(*) filter": "pending", "skip locked": "claim", "set processed_at": "position", "order by feed_position": "feed"} {
			if !strings.Contains(plan, mark) {
				continue
			}
			found[name] = true
			if strings.Contains(plan, "Seq Scan") {
				t.Errorf("%s scans:\n%s", name, plan)
			}
			if old := leafOf("telemetry_batch", h.day(-4)); name != "feed" && strings.Contains(plan, old) {
				t.Errorf("%s looks into %s, which is the archive's:\n%s", name, old, plan)
			}
			if name == "position" && strings.Contains(plan, leafOf("telemetry_batch", h.today)) {
				t.Errorf("%s looks beyond the day %s of its lines:\n%s", name, l.Day, plan)
			}
		}
	}
	want(h, "statements found", len(found), 4)
}

// A day that is archived has nothing pending; what stays pending there by hand is not looked for.
func TestClaimBeginsWithTheFirstLiveDay(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.insertDay(h.day(-2), 5)
	h.insertDay(h.day(-1), 7)
	h.archive(h.day(-2))
	m := store.NewMarker(h.pool)
	want(h, "marked", h.markAll(m), store.Marked{Lines: 1, Rows: 7})
}

func TestMismatchIsSetAsideAlone(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first := h.insertDay(h.day(-1), 5)
	h.insertDay(h.day(-1), 5)
	bad := h.insertDay(h.day(-1), 5)
	doubled := h.insertDay(h.today, 5)
	h.insertDay(h.today, 5)
	h.exec("delete from telemetry where id = $1", bad.FirstID+1)
	h.insertRows(h.today, doubled.FirstID, 1) // the id a second time
	m := store.NewMarker(h.pool)
	var tries []int
	var total store.Marked
	for h.pending(m).Lines > 0 {
		done, err := m.Mark(h.ctx, 1000)
		if err != nil {
			t.Fatal(err)
		}
		total.Lines, total.Rows, total.SetAside = total.Lines+done.Lines, total.Rows+done.Rows, total.SetAside+done.SetAside
		tries = append(tries, value[int](h, "select attempts from telemetry_batch where batch_id = $1", bad.BatchID))
	}
	want(h, "total", total, store.Marked{Lines: 3, Rows: 15, SetAside: 2})
	if !slices.IsSorted(tries) || tries[len(tries)-1] != 3 {
		t.Errorf("attempts %v", tries)
	}
	want(h, "pending", h.pending(m), store.Pending{SetAside: 2})
	lines, _ := h.feed(0)
	want(h, "lines of the feed", len(lines), 3)
	want(h, "the first", lines[0].BatchID, first.BatchID)
	details := values[string](h, "select detail from telemetry_batch where set_aside_at is not null and processed_at is null order by batch_id")
	wantParts(h, details[0], "mark 1 lines of "+h.day(-1).Format(time.DateOnly), "4 rows updated, the ledger counts 5")
	wantParts(h, details[1], "6 rows updated, the ledger counts 5")
	want(h, "rows of them marked", value[int](h, "select count(*) from telemetry where processed and id between $1 and $2", bad.FirstID, bad.LastID), 0)
}

// A line that another session holds is nobody else's, and holds up nobody.
func TestMarkPassesOverLockedLines(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	held := h.insertDay(h.today, 5)
	h.insertDay(h.today, 7)
	tx, err := h.pool.Begin(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(h.ctx) }()
	if _, err := tx.Exec(h.ctx, "select from telemetry_batch where batch_id = $1 for update", held.BatchID); err != nil {
		t.Fatal(err)
	}
	m := store.NewMarker(h.pool)
	done, err := m.Mark(h.ctx, 1000)
	if err != nil || done != (store.Marked{Lines: 1, Rows: 7}) {
		t.Fatal(done, err)
	}
	if err := tx.Rollback(h.ctx); err != nil {
		t.Fatal(err)
	}
	want(h, "the rest", h.markAll(m), store.Marked{Lines: 1, Rows: 5})
}

// Positions commit in order, whatever runs: a reader that polls while writers write and markers mark, some of them
// killed, never sees a position at or below one that it has seen, and in the end has each row once.
func TestFeedOrderUnderConcurrency(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for seed := range uint64(10) {
		h.exec("truncate telemetry, telemetry_batch")
		random := rand.New(rand.NewPCG(seed, 0))
		o := order{
			house: h, name: fmt.Sprint("seed ", seed), writers: 1 + random.IntN(3), markers: 2 + random.IntN(3),
			maxRows: []int{1, 30, 1000}[random.IntN(3)], kills: random.IntN(3),
		}
		for range 8 + random.IntN(12) {
			o.sizes = append(o.sizes, 1+random.IntN(40))
		}
		o.run()
	}
}

// order is one run of writers, markers and a reader.
type order struct {
	*house
	name                             string
	writers, markers, maxRows, kills int
	sizes                            []int // rows of each batch of a writer
	written                          atomic.Bool
}

func (o *order) run() {
	rows := 0
	var writing, marking sync.WaitGroup
	for n := range o.writers {
		w := o.writer()
		writing.Go(func() { o.writeAll(w, fmt.Sprint(o.name, " writer ", n)) })
		for _, size := range o.sizes {
			rows += size
		}
	}
	m := store.NewMarker(o.pool)
	for range o.markers {
		marking.Go(func() { o.mark(m) })
	}
	seen := make(chan []int64, 1)
	ctx, stop := context.WithCancel(o.ctx)
	defer stop()
	go func() { seen <- o.poll(ctx) }()
	for range o.kills {
		o.exec(`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
			and query like 'with p as materialized%' and state <> 'idle'`)
	}
	writing.Wait()
	o.written.Store(true)
	marking.Wait()
	stop()
	positions := <-seen
	for i := 1; i < len(positions); i++ {
		if positions[i] <= positions[i-1] {
			o.Fatalf("%s: position %d was seen after %d", o.name, positions[i], positions[i-1])
		}
	}
	lines, feed := o.feed(0)
	if len(lines) != len(positions) || len(feed) != rows {
		o.Fatalf("%s: the poller saw %d lines, the feed has %d, with %d rows of %d", o.name, len(positions), len(lines), len(feed), rows)
	}
	o.checkLedger()
}

func (o *order) writeAll(w *store.Writer, device string) {
	next := int64(0)
	for _, size := range o.sizes {
		if _, err := w.Write(o.ctx, &telemetry.Batch{Readings: readings(device, next, size)}); err != nil {
			o.Error(err)
		}
		next += int64(size)
	}
}

// mark goes on, also after being killed, until all is written and nothing is pending.
func (o *order) mark(m *store.Marker) {
	for o.ctx.Err() == nil {
		last := o.written.Load()
		if done, err := m.Mark(o.ctx, o.maxRows); err != nil || done.Lines > 0 || !last {
			continue
		}
		if p, err := m.Pending(o.ctx); err == nil && p.Lines == 0 {
			return
		}
	}
}

// poll follows the feed until ctx has ended and nothing is left, and returns the positions in the order seen.
func (o *order) poll(ctx context.Context) (seen []int64) {
	after := int64(0)
	for {
		last := ctx.Err() != nil
		lines, err := store.FeedLines(o.ctx, o.pool, after, 50)
		if err != nil {
			o.Error(err)
			return seen
		}
		for _, l := range lines {
			seen = append(seen, l.Position)
			after = max(after, l.Position)
		}
		if len(lines) == 0 && last {
			return seen
		}
	}
}

// Two markers on one line: exactly one has it, also where one of them waits in its commit.
func TestMarkersShareTheLines(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for n := range 60 {
		h.insertDay(h.day(-(n % 2)), 1+n%7)
	}
	var wg sync.WaitGroup
	var lines, rows atomic.Int64
	for range 4 {
		m := store.NewMarker(h.open(h.url)) // as of another process
		wg.Go(func() {
			for {
				done, err := m.Mark(h.ctx, 20)
				if err != nil {
					t.Error(err)
					return
				}
				lines.Add(int64(done.Lines))
				rows.Add(int64(done.Rows))
				if p, err := m.Pending(h.ctx); err != nil || p.Lines == 0 {
					return
				}
			}
		})
	}
	wg.Wait()
	want(h, "lines marked, each once", lines.Load(), 60)
	want(h, "rows", rows.Load(), value[int64](h, "select count(*) from telemetry where processed"))
	want(h, "positions", value[int](h, "select count(distinct feed_position) from telemetry_batch"), 60)
	h.checkLedger()
}
