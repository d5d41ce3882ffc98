package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/store"
)

func (h *house) resolve(batch int64, dryRun bool) store.Resolution {
	h.Helper()
	r, err := store.Resolve(h.ctx, h.pool, batch, dryRun)
	if err != nil {
		h.Fatal(err)
	}
	return r
}

// leaves fails unless the day may leave the live table.
func (h *house) leaves(day time.Time) error {
	h.Helper()
	return pgx.BeginFunc(h.ctx, h.pool, func(tx pgx.Tx) error {
		return store.GuardLiveDay(h.ctx, tx, pgx.Identifier{leafOf("telemetry", day)}, day)
	})
}

// again inserts n rows with ids of the line, from its k-th on, as other readings.
func (h *house) again(l store.Line, k int64, n int) {
	h.Helper()
	h.insertRows(l.Day.Add(rand.N(20*time.Hour)), l.FirstID+k, n)
}

// damages are what a person can do to a line's rows by hand, to a line of ten rows.
var damages = map[string]func(h *house, l store.Line){
	"a row deleted": func(h *house, l store.Line) { h.exec("delete from telemetry where id = $1", l.FirstID+3) },
	"half the batch deleted": func(h *house, l store.Line) {
		h.exec("delete from telemetry where id between $1 and $2", l.FirstID, l.FirstID+4)
	},
	"the whole batch deleted": func(h *house, l store.Line) {
		h.exec("delete from telemetry where id between $1 and $2", l.FirstID, l.LastID)
	},
	"a row twice": func(h *house, l store.Line) { h.again(l, 3, 1) },
	"a row three times": func(h *house, l store.Line) {
		h.again(l, 3, 1)
		h.again(l, 3, 1)
	},
	"the whole batch twice": func(h *house, l store.Line) { h.again(l, 0, 10) },
	"one deleted and one twice": func(h *house, l store.Line) {
		h.exec("delete from telemetry where id = $1", l.FirstID)
		h.again(l, 1, 1)
	},
	"one more inserted where one was deleted": func(h *house, l store.Line) {
		h.exec("delete from telemetry where id between $1 and $2", l.FirstID, l.FirstID+1)
		h.again(l, 0, 1)
	},
}

// Each kind of damage: three tries, then the line alone is set aside, the others go on, and the day is held. After it is resolved each
// row that is there is handed on once, and the day may go.
func TestResolve(t *testing.T) {
	t.Parallel()
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			day := h.day(-1)
			h.insertDay(day, 7)
			bad := h.insertDay(day, 10)
			h.insertDay(day, 8)
			damage(h, bad)
			right := name == "one deleted and one twice" // as many rows as counted: the count alone cannot tell
			m := store.NewMarker(h.pool)
			got := h.markAll(m)
			if right {
				want(h, "marked", got, store.Marked{Lines: 3, Rows: 25})
			} else {
				want(h, "marked", got, store.Marked{Lines: 2, Rows: 15, SetAside: 1})
				want(h, "tries", value[int](h, "select attempts from telemetry_batch where batch_id = $1", bad.BatchID), 3)
				var refusal *store.Refusal
				if err := h.leaves(day); !errors.As(err, &refusal) || refusal.Reason != "unprocessed" {
					t.Errorf("the day leaves before the batch is resolved: %v", err)
				}
				h.checkSetAside(bad)
			}
			planned := h.resolve(bad.BatchID, true)
			if planned.Changed() == right {
				t.Errorf("planned: %+v", planned)
			}
			done := h.resolve(bad.BatchID, false)
			if done.Count != planned.Count || done.Found != planned.Found || rowsOf(done.Moved) != rowsOf(planned.Moved) || done.Deleted != planned.Deleted {
				t.Errorf("planned %+v, done %+v", planned, done)
			}
			h.markAll(m)
			h.delivered()
			if err := h.leaves(day); err != nil {
				t.Errorf("the day does not leave: %v", err)
			}
			if !done.Deleted {
				if again := h.resolve(bad.BatchID, false); again.Changed() {
					t.Errorf("resolved again: %+v", again)
				}
			}
		})
	}
}

func rowsOf(lines []store.Line) (n int) {
	for _, l := range lines {
		n += l.Rows
	}
	return n
}

func (h *house) checkSetAside(bad store.Line) {
	h.Helper()
	list, err := store.SetAside(h.ctx, h.pool, 10)
	if err != nil {
		h.Fatal(err)
	}
	want(h, "lines set aside", len(list), 1)
	l := list[0]
	want(h, "its batch", l.BatchID, bad.BatchID)
	want(h, "its day", l.Day, bad.Day)
	want(h, "its source", l.Source, "test")
	want(h, "its rows", l.Found, value[int](h, "select count(*) from telemetry where id between $1 and $2", bad.FirstID, bad.LastID))
	if l.Since.IsZero() || !strings.Contains(l.Detail, "the ledger counts 10") {
		h.Errorf("%+v", l)
	}
}

// delivered fails unless the feed has each row that is there, once, and nothing waits.
func (h *house) delivered() {
	h.Helper()
	_, rows := h.feed(0)
	got := map[string]int{}
	for _, r := range rows {
		got[fmt.Sprint(r.DeviceID, " ", r.LastModified.UnixMicro())]++
	}
	there := values[string](h, "select device_id || ' ' || (extract(epoch from last_modified) * 1000000)::bigint from telemetry_all")
	for _, key := range there {
		if got[key] != 1 {
			h.Errorf("row %s is handed on %d times", key, got[key])
		}
	}
	want(h, "rows handed on", len(rows), len(there))
	want(h, "lines that are not processed", value[int](h, "select count(*) from telemetry_batch where processed_at is null"), 0)
}

// Random damage before and after the lines are processed: after each damaged line is resolved, every row that is there and has not
// been handed on is, once, and what had been is not handed on again.
func TestResolveRandomDamage(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	names := make([]string, 0, len(damages))
	for name := range damages {
		names = append(names, name)
	}
	slices.Sort(names)
	for seed := range uint64(12) {
		h.exec("truncate telemetry, telemetry_batch")
		random := rand.New(rand.NewPCG(seed, 1))
		m := store.NewMarker(h.pool)
		var lines []store.Line
		for range 3 + random.IntN(6) {
			lines = append(lines, h.insertDay(h.day(-random.IntN(2)), 10))
			if random.IntN(2) == 0 {
				h.markAll(m)
			}
			if random.IntN(2) == 0 {
				damages[names[random.IntN(len(names))]](h, lines[random.IntN(len(lines))])
			}
		}
		h.markAll(m)
		for _, l := range lines {
			if _, err := store.Resolve(h.ctx, h.pool, l.BatchID, false); err != nil && !errors.Is(err, store.ErrUnknownBatch) {
				t.Fatal(err)
			}
		}
		h.markAll(m)
		h.delivered()
		for _, n := range []int{-1, 0} {
			if err := h.leaves(h.day(n)); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// Of a processed line, what was handed on stays: only what was not gets an id of its own.
func TestResolveProcessedLines(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	m := store.NewMarker(h.pool)
	fewer, more, all, fine := h.insertDay(h.today, 10), h.insertDay(h.today, 10), h.insertDay(h.today, 10), h.insertDay(h.today, 10)
	want(h, "marked", h.markAll(m).Rows, 40)
	_, before := h.feed(0)
	head := before[len(before)-1]
	h.exec("delete from telemetry where id between $1 and $2", fewer.FirstID, fewer.FirstID+2)
	h.insertRows(h.today, more.FirstID+4, 1)
	h.exec("update telemetry set processed = false where id = $1", more.FirstID+5)
	h.exec("delete from telemetry where id between $1 and $2", all.FirstID, all.LastID)
	var missing *store.IncompleteError
	lines, err := store.FeedLines(h.ctx, h.pool, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.FeedRows(h.ctx, h.pool, lines); !errors.As(err, &missing) {
		t.Fatalf("the feed with rows missing: %v", err)
	}

	want(h, "of 10 rows, 3 deleted", h.resolve(fewer.BatchID, false).Count, 7)
	r := h.resolve(more.BatchID, false)
	want(h, "rows that stay", r.Count, 9)
	want(h, "rows moved", rowsOf(r.Moved), 2)
	want(h, "doubled", r.Doubled, 0)
	want(h, "stray", r.Stray, 2)
	want(h, "without rows", h.resolve(all.BatchID, false).Deleted, true)
	if h.resolve(fine.BatchID, false).Changed() {
		t.Error("a line that is right is changed")
	}
	_, rows := h.feed(0)
	want(h, "rows of the feed before the moved are marked", len(rows), 7+9+10)
	want(h, "the head", rows[len(rows)-1].ID, head.ID)
	h.markAll(m)
	_, rows = h.feed(value[int64](h, "select feed_position from telemetry_batch where batch_id = $1", fine.BatchID))
	want(h, "rows that come behind the head", len(rows), 2)
	h.delivered()
}

func TestResolveRefuses(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	if _, err := store.Resolve(h.ctx, h.pool, 4711, false); !errors.Is(err, store.ErrUnknownBatch) {
		t.Errorf("an unknown batch: %v", err)
	}
	m := store.NewMarker(h.pool)
	archived, dropped, held := h.insertDay(h.day(-2), 10), h.insertDay(h.day(-1), 10), h.insertDay(h.today, 10)
	h.markAll(m)
	h.archive(h.day(-2))
	h.exec("delete from telemetry_archive where id = $1", archived.FirstID)
	want(h, "a day in the archive with a row missing", h.resolve(archived.BatchID, false).Count, 9)
	h.exec("insert into telemetry_archive select id, last_modified, recorded_at, 7, processed, device_id, kind, payload from telemetry_archive where id = $1", archived.LastID)
	if _, err := store.Resolve(h.ctx, h.pool, archived.BatchID, false); err == nil || !strings.Contains(err.Error(), "1 rows too many stand in the archive") {
		t.Errorf("a row too many in the archive: %v", err)
	}

	err := pgx.BeginFunc(h.ctx, h.pool, func(tx pgx.Tx) error { return store.DropDay(h.ctx, tx, h.day(-1)) })
	if err != nil {
		t.Fatal(err)
	}
	h.exec("drop table " + leafOf("telemetry", h.day(-1)))
	if r := h.resolve(dropped.BatchID, false); r.Changed() {
		t.Errorf("a day that was dropped in its time: %+v", r)
	}

	tx, err := h.pool.Begin(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(h.ctx)) }()
	if _, err := tx.Exec(h.ctx, "select from telemetry where id = $1 for update", held.FirstID); err != nil {
		t.Fatal(err)
	}
	h.exec("update telemetry_batch set row_count = 9 where batch_id = $1", held.BatchID)
	if _, err := store.Resolve(h.ctx, h.pool, held.BatchID, false); err == nil || !strings.Contains(err.Error(), "plenumctl doctor says who; nothing was changed") {
		t.Errorf("a row that somebody holds: %v", err)
	}
	want(h, "its count", value[int](h, "select row_count from telemetry_batch where batch_id = $1", held.BatchID), 9)
}
