package syncjob

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
)

func TestConfigNamesEveryFault(t *testing.T) {
	t.Parallel()
	_, err := New(Config{BatchRows: 0, Workers: 65}, nil, zap.NewNop(), prometheus.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), "sync.batch_rows: 0") || !strings.Contains(err.Error(), "sync.workers: 65") {
		t.Fatalf("got %v", err)
	}
	if err := (Config{BatchRows: 1, Workers: 64}).Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestWindowsStayInOneDay(t *testing.T) {
	t.Parallel()
	midnight := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	next := midnight.AddDate(0, 0, 1)
	for _, c := range []struct {
		now  time.Time
		want []window
	}{
		{midnight, []window{{midnight.Add(-reconcileWindow), midnight}, {midnight, next}}},
		{midnight.Add(time.Minute).In(time.FixedZone("elsewhere", 5400)), []window{{midnight.Add(time.Minute - reconcileWindow), midnight}, {midnight, next}}},
		{midnight.Add(reconcileWindow), []window{{midnight, next}}},
		{next.Add(-1), []window{{next.Add(-1 - reconcileWindow), next}}},
	} {
		if got := windows(c.now); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.now, got, c.want)
		}
	}
}

// Two processes of two workers each mark beside two writers; each is stopped in mid-load and the next goes on.
func TestJobsStopAndGoOnUnderLoad(t *testing.T) {
	t.Parallel()
	h := newHouse(t, devtest.Database(t))
	load, endLoad := context.WithCancel(h.ctx)
	defer endLoad()
	var writing sync.WaitGroup
	stored := make([]int, 2)
	for n := range stored {
		writing.Go(func() { stored[n] = h.load(load, fmt.Sprint("d", n)) })
	}
	config := Config{BatchRows: 50, Workers: 2}
	other := h.start(config)
	marked := 0.0
	for range 3 {
		r := h.start(config)
		r.atLeast("plenum_sync_rows_processed_total", 100)
		r.end()
		h.checkHalves()
		if got := r.metric("plenum_sync_rows_processed_total"); got != float64(r.Rows()) {
			t.Errorf("the metric counts %g rows, Rows %d", got, r.Rows())
		}
		marked += float64(r.Rows())
		if r.logs.FilterLevelExact(zapcore.ErrorLevel).Len() > 0 {
			t.Errorf("logged: %v", r.logs.All())
		}
	}
	endLoad()
	writing.Wait()
	h.allMarked()
	other.end()
	rows := stored[0] + stored[1]
	if got := h.count("select count(*) from telemetry where processed"); got != rows || int64(marked)+other.Rows() != int64(rows) {
		t.Fatalf("%d rows stored, %d processed, %d marked by the jobs", rows, got, int64(marked)+other.Rows())
	}
	h.checkFeed(rows)
}

// checkFeed reads the whole feed: rows in all, each once.
func (h *house) checkFeed(rows int) {
	h.Helper()
	seen := map[int64]bool{}
	for after := int64(0); ; {
		lines, err := store.FeedLines(h.ctx, h.pool, after, 500)
		if err != nil {
			h.Fatal(err)
		}
		if len(lines) == 0 {
			break
		}
		after = lines[len(lines)-1].Position
		page, err := store.FeedRows(h.ctx, h.pool, lines)
		if err != nil {
			h.Fatal(err)
		}
		for _, r := range page {
			if seen[r.ID] {
				h.Fatalf("row %d is in the feed twice", r.ID)
			}
			seen[r.ID] = true
		}
	}
	if len(seen) != rows {
		h.Fatalf("%d rows in the feed, want %d", len(seen), rows)
	}
}

func TestMetricsMove(t *testing.T) {
	t.Parallel()
	h := newHouse(t, devtest.Database(t))
	h.exec("insert into telemetry (recorded_at, device_id, kind, payload) select now(), 'hand' || n, 'k', '{}' from generate_series(1, 3) n")
	// A line whose rows are not there, and one that another session holds.
	h.exec("insert into telemetry_batch (first_id, last_id, row_count, day, source) values (1000001, 1000005, 5, (now() at time zone 'UTC')::date, 'x')")
	h.exec(`insert into telemetry_batch (first_id, last_id, row_count, day, source, created_at)
		values (1000010, 1000010, 1, (now() at time zone 'UTC')::date, 'held', now() - interval '1 hour')`)
	h.exec("insert into telemetry (id, recorded_at, device_id, kind, payload) values (1000010, now(), 'd', 'k', '{}')")
	tx, err := h.pool.Begin(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(h.ctx) }()
	if _, err := tx.Exec(h.ctx, "select from telemetry_batch where source = 'held' for update"); err != nil {
		t.Fatal(err)
	}
	r := h.start(Config{BatchRows: 1000, Workers: 1})
	r.atLeast("plenum_sync_rows_reconciled_total", 3)
	r.atLeast("plenum_sync_rows_processed_total", 3)
	r.atLeast("plenum_sync_batch_duration_seconds", 1)
	r.atLeast("plenum_sync_set_aside_batches", 1)
	r.atLeast("plenum_sync_pending_batches", 1)
	r.atLeast("plenum_sync_lag_seconds", 3600)
	if n := r.logged("rows without a ledger line got one"); n != 1 {
		t.Errorf("reconciling was logged %d times", n)
	}
	if n := r.logged("batches set aside: their rows differ from the ledger's count; see docs/operations.md, set-aside-batches"); n != 1 {
		t.Errorf("setting aside was logged %d times", n)
	}
	if err := tx.Rollback(h.ctx); err != nil {
		t.Fatal(err)
	}
	devtest.Eventually(t, func() error {
		if r.metric("plenum_sync_pending_batches") != 0 || r.metric("plenum_sync_lag_seconds") != 0 {
			return errors.New("the gauges stay up")
		}
		return nil
	})
	if got := r.metric("plenum_sync_errors_total"); got != 0 {
		t.Errorf("%g errors", got)
	}
}

// The server is killed and comes back, twice: each time one error and one recovery are logged, and all is marked once.
func TestRunSurvivesTheDatabase(t *testing.T) {
	t.Parallel()
	server, err := devenv.StartPostgres(t.Context(), devtest.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	h := newHouse(t, server.URL("postgres"))
	r := h.start(Config{BatchRows: 100, Workers: 3})
	rows := 0
	for outage := 1; outage <= 2; outage++ {
		load, endLoad := context.WithCancel(h.ctx)
		done := make(chan int)
		go func() { done <- h.load(load, fmt.Sprint("d", outage)) }()
		r.atLeast("plenum_sync_rows_processed_total", float64(rows+50))
		endLoad()
		rows += <-done
		errorsBefore := r.metric("plenum_sync_errors_total")
		if err := server.Crash(); err != nil {
			t.Fatal(err)
		}
		devtest.Eventually(t, func() error {
			if f := r.Failing(); f == nil || f.Err == nil || f.Since.IsZero() {
				return fmt.Errorf("failing: %+v", f)
			}
			return nil
		})
		r.atLeast("plenum_sync_errors_total", errorsBefore+9) // more than the pool had connections: no dead one is left
		if err := server.Restart(h.ctx); err != nil {
			t.Fatal(err)
		}
		h.pool.Reset()
		devtest.Eventually(t, func() error {
			if f := r.Failing(); f != nil {
				return f.Err
			}
			return nil
		})
		h.allMarked()
		for _, message := range []string{"cannot mark a batch, trying again", "marking again"} {
			if n := r.logged(message); n != outage {
				t.Errorf("after %d outages, %q was logged %d times", outage, message, n)
			}
		}
	}
	h.checkHalves()
	h.checkFeed(rows)
	r.end()
}

// A database that is not there at the start is an outage like another; Run still ends with its context.
func TestRunStopsWithoutADatabase(t *testing.T) {
	t.Parallel()
	h := newHouse(t, devtest.Database(t))
	h.url = "postgres://nobody@127.0.0.1:1/nothing"
	r := h.start(Config{BatchRows: 100, Workers: 2})
	r.atLeast("plenum_sync_errors_total", 3)
	r.end()
	if n := r.logged("cannot mark a batch, trying again"); n != 1 {
		t.Errorf("the error was logged %d times", n)
	}
}

// A worker's success is no other's recovery.
func TestFailureOfOneWorker(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zapcore.DebugLevel)
	j, err := New(Config{BatchRows: 1, Workers: 2}, nil, zap.New(core), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	var a, b bool
	first, second := errors.New("first"), errors.New("second")
	for _, step := range []struct {
		err     error
		worker  *bool
		failing error
		logs    int
	}{
		{nil, &a, nil, 0},
		{first, &a, first, 1},
		{nil, &b, first, 1},
		{second, &a, second, 1},
		{first, &b, first, 1},
		{nil, &a, first, 1},
		{nil, &b, nil, 2},
		{nil, &a, nil, 2},
		{second, &b, second, 3},
	} {
		j.note(step.err, step.worker)
		var got error
		if f := j.Failing(); f != nil {
			got = f.Err
		}
		if got != step.failing || logs.Len() != step.logs {
			t.Fatalf("%+v: failing %v, %d lines logged", step, got, logs.Len())
		}
	}
}
