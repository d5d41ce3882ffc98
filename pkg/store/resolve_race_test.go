package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
)

// Two people resolve each damaged line at once, beside two workers that mark it: each row that is there is handed on once, and the days may go.
func TestResolveBesideWorkers(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	var lines []store.Line
	for n := range 40 {
		lines = append(lines, h.insertDay(h.day(-n%2), 10))
	}
	for _, l := range lines {
		if random := rand.IntN(3); random == 0 {
			h.again(l, 3, 1)
		} else if random == 1 {
			h.exec("delete from telemetry where id = $1", l.FirstID+3)
		}
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			m := store.NewMarker(h.pool)
			for range 60 {
				if _, err := m.Mark(h.ctx, 30); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for _, l := range lines {
				if _, err := store.Resolve(h.ctx, h.pool, l.BatchID, false); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	h.markAll(store.NewMarker(h.pool))
	h.delivered()
	for _, n := range []int{-1, 0} {
		if err := h.leaves(h.day(n)); err != nil {
			t.Error(err)
		}
	}
}

// Rows that a person moved to another day come back as that day's: the line counts what is left, and reconcile gives the others a line.
func TestResolveAfterRowsMovedToAnotherDay(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	l := h.insertDay(h.day(-1), 10)
	h.exec("update telemetry set last_modified = last_modified + interval '1 day' where id between $1 and $2", l.FirstID+2, l.FirstID+4)
	m := store.NewMarker(h.pool)
	h.markAll(m)
	want(h, "rows left", h.resolve(l.BatchID, false).Count, 7)
	if n, err := store.Reconcile(h.ctx, h.pool, h.today, h.day(1)); err != nil || n != 3 {
		t.Fatalf("reconciled %d: %v", n, err)
	}
	h.markAll(m)
	h.delivered()
	for _, n := range []int{-1, 0} {
		if err := h.leaves(h.day(n)); err != nil {
			t.Error(err)
		}
	}
}

// What is not marked yet cannot be marked in the archive, and two lines cannot have the same rows: resolve changes nothing, and says so.
func TestResolveRefusesWhatItCannotSettle(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	m := store.NewMarker(h.pool)
	away := h.insertDay(h.day(-2), 10)
	h.exec("delete from telemetry where id = $1", away.FirstID)
	h.markAll(m)
	h.archive(h.day(-2))
	one, two, behind := h.insertDay(h.today, 10), h.insertDay(h.today, 10), h.insertDay(h.today, 10)
	h.exec("update telemetry_batch set first_id = $2, last_id = $3, row_count = 5 where batch_id = $1", two.BatchID, one.FirstID+5, one.LastID)
	h.markAll(m)
	const state = "select md5(string_agg(b::text, ';' order by batch_id)) || (select md5(string_agg(t::text, ';' order by id)) from telemetry_all t) from telemetry_batch b"
	before := value[string](h, state)
	for batch, says := range map[int64]string{
		away.BatchID: "its 9 rows stand in the archive and were never marked",
		one.BatchID:  fmt.Sprintf("batch %d (source \"test\") has the ids %d…%d too", two.BatchID, one.FirstID+5, one.LastID),
		two.BatchID:  fmt.Sprintf("batch %d (source \"test\") has the ids %d…%d too", one.BatchID, one.FirstID+5, one.LastID),
	} {
		if _, err := store.Resolve(h.ctx, h.pool, batch, false); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	want(h, "state", value[string](h, state), before)

	h.exec("delete from telemetry_batch where batch_id = $1", two.BatchID)
	for _, l := range []store.Line{one, behind} {
		want(h, "changed", h.resolve(l.BatchID, false).Changed(), false)
	}
}

// While the day moves to the archive and back, each line is resolved where its rows are at that moment.
func TestResolveWhileTheDayMoves(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	day := h.day(-1)
	var lines []store.Line
	for range 30 {
		lines = append(lines, h.insertDay(day, 10))
	}
	h.markAll(store.NewMarker(h.pool))
	for _, l := range lines {
		h.exec("delete from telemetry where id = $1", l.FirstID+3)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for from, to := "telemetry", "telemetry_archive"; ; from, to = to, from {
			h.move(from, to, day)
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	where := map[string]int{}
	for _, l := range lines {
		r, err := store.Resolve(h.ctx, h.pool, l.BatchID, false)
		if err != nil || r.Count != 9 {
			t.Errorf("%+v, %v", r, err)
		}
		where[r.Where]++
	}
	close(stop)
	wg.Wait()
	t.Log(where)
	_, rows := h.feed(0)
	want(h, "rows of the feed", len(rows), 9*len(lines))
}

// A line that a worker is just marking is waited for, and then seen as processed: what was handed on stays, also the row whose id stands twice.
func TestResolveWaitsForTheWorker(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	l := h.insertDay(h.today, 10)
	damages["one deleted and one twice"](h, l)
	tx, err := h.pool.Begin(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(h.ctx)) }() // where the test has failed
	for _, sql := range []string{
		"update telemetry set processed = true",
		"update telemetry_batch set processed_at = now(), feed_position = nextval('telemetry_feed_position_seq')",
	} {
		if _, err := tx.Exec(h.ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	var r store.Resolution
	done := make(chan error, 1)
	go func() {
		var err error
		r, err = store.Resolve(h.ctx, h.pool, l.BatchID, false)
		done <- err
	}()
	devtest.Eventually(t, func() error {
		if n := value[int](h, "select count(*) from pg_locks where not granted and pid in (select pid from pg_stat_activity where datname = current_database())"); n == 0 {
			return errors.New("resolve does not wait")
		}
		return nil
	})
	if err := tx.Commit(h.ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || !r.Processed || r.Changed() {
		t.Errorf("%+v, %v", r, err)
	}
	h.delivered()
}
