package store_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
)

func TestFeedLinesAreWhole(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for range 3 {
		h.insertDay(h.today, 10)
	}
	h.markAll(store.NewMarker(h.pool))
	for _, c := range []struct{ limit, lines int }{{1, 1}, {9, 1}, {10, 1}, {11, 2}, {20, 2}, {1000, 3}, {0, 1}} {
		lines, err := store.FeedLines(h.ctx, h.pool, 0, c.limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(lines) != c.lines {
			t.Errorf("limit %d: %d lines, want %d", c.limit, len(lines), c.lines)
		}
	}
	lines, rows := h.feed(0)
	want(h, "rows", len(rows), 30)
	for i, r := range rows {
		l := lines[i/10]
		want(h, "id", r.ID, l.FirstID+int64(i%10))
	}
	if none, err := store.FeedLines(h.ctx, h.pool, lines[2].Position, 10); err != nil || none != nil {
		t.Fatalf("behind the head: %v, %v", none, err)
	}
	// Drawn but never committed: nobody is told of it.
	head := lines[2].Position
	h.exec("select nextval('telemetry_feed_position_seq')")
	if none, err := store.FeedLines(h.ctx, h.pool, head, 10); err != nil || len(none) != 0 {
		t.Fatalf("behind the head: %v, %v", none, err)
	}
}

func TestFeedRowsOfAMovedDay(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.insertDay(h.day(-2), 5)
	h.insertDay(h.day(-1), 5)
	h.markAll(store.NewMarker(h.pool))
	lines, err := store.FeedLines(h.ctx, h.pool, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	h.archive(h.day(-2))
	rows, err := store.FeedRows(h.ctx, h.pool, lines)
	if err != nil {
		t.Fatal(err)
	}
	want(h, "rows", len(rows), 10)
	want(h, "rows left in the live table", value[int](h, "select count(*) from telemetry"), 5)
}

// A reader meets a day that moves to and fro: it has each row in one place, always.
func TestFeedRowsWhileADayMoves(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.insertDay(h.day(-2), 50)
	h.markAll(store.NewMarker(h.pool))
	lines, err := store.FeedLines(h.ctx, h.pool, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(h.ctx)
	var wg sync.WaitGroup
	reads := make([]int, 3)
	for i := range reads {
		wg.Go(func() {
			for ; ctx.Err() == nil; reads[i]++ {
				rows, err := store.FeedRows(h.ctx, h.pool, lines)
				if err != nil || len(rows) != 50 {
					t.Errorf("%d rows, %v", len(rows), err)
					return
				}
			}
		})
	}
	for range 20 {
		h.move("telemetry", "telemetry_archive", h.day(-2))
		h.move("telemetry_archive", "telemetry", h.day(-2))
	}
	stop()
	wg.Wait()
	if reads[0] == 0 {
		t.Fatal("nothing was read meanwhile")
	}
}

func TestFeedRowsThatAreMissing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.insertDay(h.today, 3)
	l := h.insertDay(h.today, 5)
	h.markAll(store.NewMarker(h.pool))
	h.exec("delete from telemetry where id = $1", l.FirstID+2)
	lines, err := store.FeedLines(h.ctx, h.pool, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	_, err = store.FeedRows(h.ctx, h.pool, lines)
	var incomplete *store.IncompleteError
	if !errors.As(err, &incomplete) {
		t.Fatalf("got %v, want an IncompleteError", err)
	}
	want(h, "what is missing", *incomplete, store.IncompleteError{Position: 2, BatchID: l.BatchID, Found: 4, Want: 5})
}

func TestFeedBoundsAndTimes(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	wantBounds := func(horizon, head int64) {
		t.Helper()
		gotHorizon, gotHead, err := store.FeedBounds(h.ctx, h.pool)
		if err != nil || gotHorizon != horizon || gotHead != head {
			t.Fatalf("horizon %d, head %d, %v; want %d, %d", gotHorizon, gotHead, err, horizon, head)
		}
	}
	before := func(at time.Time) int64 {
		t.Helper()
		p, err := store.FeedPositionBefore(h.ctx, h.pool, at)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	wantBounds(0, 0)
	want(h, "position in an empty feed", before(h.today), 0)
	for range 9 {
		h.insertDay(h.today, 1)
	}
	h.markAll(store.NewMarker(h.pool))
	// A crash has left positions 4, 5 and 9 empty; a line a minute.
	h.exec("delete from telemetry_batch where feed_position in (4, 5, 9)")
	h.exec("update telemetry_batch set processed_at = $1::timestamptz + feed_position * interval '1 minute'", h.today)
	wantBounds(0, 8)
	minute := func(n float64) time.Time { return h.today.Add(time.Duration(n * float64(time.Minute))) }
	for _, c := range []struct {
		at     time.Time
		behind int64 // the first line that is read from there
	}{{minute(-5), 1}, {minute(1), 1}, {minute(1.5), 2}, {minute(3), 3}, {minute(3.5), 6}, {minute(6), 6}, {minute(8), 8}} {
		lines, err := store.FeedLines(h.ctx, h.pool, before(c.at), 1)
		if err != nil {
			t.Fatal(err)
		}
		want(h, "first line from "+c.at.Format(time.TimeOnly), lines[0].Position, c.behind)
	}
	want(h, "position of the future", before(minute(99)), 8)
	h.exec("update feed_horizon set position = 6")
	wantBounds(6, 8)
	want(h, "position of what was dropped", before(minute(-5)), 6)
	h.exec("delete from telemetry_batch")
	wantBounds(6, 6)
	want(h, "position in a feed that was dropped", before(minute(7)), 6)
}

func TestConsumers(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for range 5 {
		h.insertDay(h.today, 1)
	}
	h.markAll(store.NewMarker(h.pool))
	h.checkConsumers(h.pool)
}

// checkConsumers does with pool's rights what the feed does with consumers. The feed has three lines or more.
func (h *house) checkConsumers(pool *pgxpool.Pool) {
	h.Helper()
	must := func(err error) {
		h.Helper()
		if err != nil {
			h.Fatal(err)
		}
	}
	_, ok, err := store.ReadConsumer(h.ctx, pool, "a")
	must(err)
	want(h, "a consumer before its creation", ok, false)
	must(store.CreateConsumer(h.ctx, pool, "a", 1))
	must(store.CreateConsumer(h.ctx, pool, "a", 0))
	_, head, err := store.FeedBounds(h.ctx, pool)
	must(err)
	must(store.CreateConsumer(h.ctx, pool, "b", head))
	for _, step := range []struct {
		position int64
		moved    bool
	}{{2, true}, {2, true}, {1, false}} {
		moved, err := store.AdvanceConsumer(h.ctx, pool, "a", step.position)
		must(err)
		want(h, "moved", moved, step.moved)
	}
	moved, err := store.AdvanceConsumer(h.ctx, pool, "nobody", 1)
	must(err)
	want(h, "a consumer that is not there moved", moved, false)
	c, ok, err := store.ReadConsumer(h.ctx, pool, "a")
	must(err)
	if !ok || c.Position != 2 || c.Required {
		h.Fatalf("consumer %+v, %v", c, ok)
	}
	lags, err := store.ConsumerLags(h.ctx, pool)
	must(err)
	want(h, "consumers", len(lags), 2)
	want(h, "a's lag", lags[0].Batches, head-2)
	if lags[0].Name != "a" || lags[0].Oldest <= 0 || lags[0].Oldest > hang {
		h.Fatalf("%+v", lags[0])
	}
	want(h, "b's lag", lags[1].Batches, 0)
	want(h, "b's oldest", lags[1].Oldest, 0)
}

func TestLockNames(t *testing.T) {
	t.Parallel()
	h := emptyHouse(t)
	first, err := store.LockNames(h.ctx, h.pool, []string{"ingest-0", "ingest-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Unlock(h.ctx)
	second := h.open(h.url)
	held := func(names ...string) *store.HeldError {
		t.Helper()
		l, err := store.LockNames(h.ctx, second, names)
		if err == nil {
			l.Unlock(h.ctx)
			t.Fatal("two processes hold one name")
		}
		var e *store.HeldError
		if !errors.As(err, &e) {
			t.Fatal(err)
		}
		return e
	}
	e := held("free", "ingest-1")
	pid := value[string](h, `select distinct pid::text from pg_locks where locktype = 'advisory' and granted
		and database = (select oid from pg_database where datname = current_database())`)
	want(h, "name", e.Name, "ingest-1")
	wantParts(h, e.Error(), "ingest-1", "store-test@", "backend pid "+pid, "127.0.0.1", "connected since 2")
	// Both pools are of this process; a lock that one lost without PostgreSQL's knowing is its own.
	cfg := second.Config()
	cfg.ConnConfig.RuntimeParams["application_name"] += "1"
	want(h, "held by this process, and by another one's reckoning", [2]bool{e.By(second), e.By(h.poolOf(cfg))}, [2]bool{true, false})

	other, err := store.LockNames(h.ctx, second, []string{"free"})
	if err != nil {
		t.Fatalf("the name that the refused process got first stays locked: %v", err)
	}
	other.Unlock(h.ctx)
	other.Unlock(h.ctx)
	if other.Alive(h.ctx) == nil {
		t.Fatal("unlocked, and alive")
	}

	if err := first.Alive(h.ctx); err != nil {
		t.Fatal(err)
	}
	h.exec("select pg_terminate_backend($1::int)", pid)
	var third *store.NameLock
	devtest.Eventually(t, func() error {
		third, err = store.LockNames(h.ctx, second, []string{"ingest-0", "ingest-1"})
		return err
	})
	defer third.Unlock(h.ctx)
	if first.Alive(h.ctx) == nil {
		t.Fatal("the connection is dead, and the lock alive")
	}
}
