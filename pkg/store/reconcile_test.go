package store_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

func (h *house) reconcile(from, to time.Time) int64 {
	h.Helper()
	n, err := store.Reconcile(h.ctx, h.pool, from, to)
	if err != nil {
		h.Fatal(err)
	}
	return n
}

func (h *house) handLines() []string {
	h.Helper()
	return values[string](h, `select format('%s-%s %s %s', first_id, last_id, row_count, day) from telemetry_batch where source = 'reconcile' order by first_id`)
}

func TestReconcileGivesRowsTheirLinesOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	w := h.writer()
	h.write(w, readings("d", 0, 700)...)
	h.write(w, readings("d", 690, 20)...) // holes where the repeats would have been
	want(h, "rows found where all have lines", h.reconcile(h.today, h.day(1)), 0)

	day := h.day(-1).Format(time.DateOnly)
	h.insertRows(h.day(-1).Add(time.Hour), 1_000_000, 10)     // contiguous
	h.insertRows(h.day(-1).Add(2*time.Hour), 1_000_010, 5)    // and on
	h.insertRows(h.day(-1).Add(3*time.Hour), 1_000_020, 1)    // alone
	h.insertRows(h.day(-1).Add(4*time.Hour), -7, 3)           // an odd hand
	h.insertRows(h.day(-1).Add(5*time.Hour), 2_004_990, 6000) // longer than a line may be
	h.insertRows(h.day(-2).Add(5*time.Hour), 1_000_015, 2)    // another day's
	h.exec(`insert into telemetry (last_modified, recorded_at, device_id, kind, payload)
		select $1, now(), 'default ' || n, 'k', '{}' from generate_series(1, 3) n`, h.day(-1))
	want(h, "rows found", h.reconcile(h.day(-1), h.today), 10+5+1+3+6000+3)
	var wanted []string
	wanted = append(wanted, "-7--5 3 "+day)
	for _, id := range values[string](h, "select id::text as text from telemetry t where device_id like 'default%' order by t.id") {
		wanted = append(wanted, id+"-"+id+" 1 "+day)
	}
	wanted = append(wanted, "1000000-1000014 15 "+day, "1000020-1000020 1 "+day, "2004990-2009989 5000 "+day, "2009990-2010989 1000 "+day)
	if d := cmp.Diff(wanted, h.handLines()); d != "" {
		t.Fatal(d)
	}
	want(h, "rows found again", h.reconcile(h.day(-1), h.today), 0)
	want(h, "the other day's", h.reconcile(h.day(-2), h.day(-1)), 2)
	h.checkLedger()
	h.markAll(store.NewMarker(h.pool))
	_, rows := h.feed(0)
	want(h, "rows in the feed", len(rows), value[int](h, "select count(*) from telemetry"))
}

// A window ends anywhere: what it has of a run gets a line, and the rest of the run later its own.
func TestReconcileWindows(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.exec(`insert into telemetry (id, last_modified, recorded_at, device_id, kind, payload)
		select n, $1::timestamptz + n * interval '1 minute', now(), 'd' || n, 'k', '{}' from generate_series(0, 1439) n`, h.day(-1))
	at := func(minutes int) time.Time { return h.day(-1).Add(time.Duration(minutes) * time.Minute) }
	want(h, "the last ten minutes before midnight", h.reconcile(at(1430), h.today), 10)
	want(h, "overlapping", h.reconcile(at(1420), at(1435)), 10)
	want(h, "the day", h.reconcile(at(0), h.today), 1420)
	want(h, "the day again", h.reconcile(at(0), h.today), 0)
	h.checkLedger()
}

func TestReconcileBesideWritersAndItself(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	w := h.writer()
	var wg sync.WaitGroup
	var written atomic.Bool
	var found atomic.Int64
	for range 3 {
		wg.Go(func() {
			for last := false; !last; {
				last = written.Load()
				n, err := store.Reconcile(h.ctx, h.pool, h.today, h.day(1))
				if err != nil {
					t.Error(err)
					return
				}
				found.Add(n)
			}
		})
	}
	var writing sync.WaitGroup
	for n := range 2 {
		writing.Go(func() {
			for i := range int64(25) {
				batch := telemetry.Batch{Readings: readings([]string{"a", "b"}[n], i*40, 40)}
				if _, err := w.Write(h.ctx, &batch); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 10 {
		h.exec("insert into telemetry (recorded_at, device_id, kind, payload) values (clock_timestamp(), 'hand', 'k', '{}')")
	}
	writing.Wait()
	written.Store(true)
	wg.Wait()
	found.Add(h.reconcile(h.today, h.day(1)))
	want(h, "rows found: those by hand only", found.Load(), 10)
	h.checkLedger()
}

// Rows and lines of a transaction that is open are seen together later, never the rows alone.
func TestReconcileBesideAnOpenTransaction(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	tx, err := h.pool.Begin(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(h.ctx) }()
	if _, err := tx.Exec(h.ctx, "insert into telemetry (id, recorded_at, device_id, kind, payload) values (1, now(), 'd', 'k', '{}')"); err != nil {
		t.Fatal(err)
	}
	want(h, "rows found of an open transaction", h.reconcile(h.today, h.day(1)), 0)
	if _, err := tx.Exec(h.ctx, "insert into telemetry_batch (first_id, last_id, row_count, day, source) values (1, 1, 1, (now() at time zone 'UTC')::date, 'x')"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(h.ctx); err != nil {
		t.Fatal(err)
	}
	want(h, "rows found after its commit", h.reconcile(h.today, h.day(1)), 0)
	h.checkLedger()
}
