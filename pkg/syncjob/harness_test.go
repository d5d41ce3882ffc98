package syncjob

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

// TestMain also fails where a Job's goroutine outlives its Run: all tests have waited for theirs.
func TestMain(m *testing.M) {
	devtest.Main(m, func() error {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if strings.Contains(string(stacks), "syncjob.(*Job)") {
			return fmt.Errorf("goroutines of a Job are left:\n%s", stacks)
		}
		return nil
	})
}

// hang is when a test has failed; nothing takes a tenth of it.
const hang = 3 * time.Minute

// house is a database with Plenum's tables and the partitions of yesterday, today and tomorrow.
type house struct {
	*testing.T
	ctx  context.Context
	url  string
	pool *pgxpool.Pool
}

func newHouse(t *testing.T, url string) *house {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	t.Cleanup(cancel)
	h := &house{T: t, ctx: ctx, url: url}
	h.pool = h.open()
	if _, err := store.Migrate(ctx, h.pool); err != nil {
		t.Fatal(err)
	}
	h.exec(`do $$ declare day date; begin
		for n in -1 .. 1 loop
			day := (now() at time zone 'UTC')::date + n;
			execute format('create table telemetry_p%s partition of telemetry for values from (%L) to (%L) with (fillfactor = 50)', n + 1, day, day + 1);
			execute format('create table telemetry_batch_p%s partition of telemetry_batch for values from (%L) to (%L)', n + 1, day, day + 1);
		end loop;
	end $$`)
	return h
}

func (h *house) open() *pgxpool.Pool {
	h.Helper()
	pool, err := store.Open(h.ctx, store.Config{URL: h.url, Schema: "public", Program: "syncjob-test", Connections: 8})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(pool.Close)
	return pool
}

func (h *house) exec(sql string, args ...any) {
	h.Helper()
	if _, err := h.pool.Exec(h.ctx, sql, args...); err != nil {
		h.Fatalf("%s: %v", sql, err)
	}
}

// count is a query's single number.
func (h *house) count(sql string, args ...any) (n int) {
	h.Helper()
	if err := h.pool.QueryRow(h.ctx, sql, args...).Scan(&n); err != nil {
		h.Fatalf("%s: %v", sql, err)
	}
	return n
}

// load writes batches of device until ctx ends, and returns how many rows it has stored.
func (h *house) load(ctx context.Context, device string) (rows int) {
	w := store.NewWriter(h.pool, "test", nil)
	for ctx.Err() == nil {
		var b telemetry.Batch
		for range 1 + rows%37 {
			b.Readings = append(b.Readings, telemetry.Reading{
				DeviceID: device, Kind: "k", Seq: int64(rows + len(b.Readings)),
				RecordedAt: time.Unix(1_790_000_000, 0), Metrics: []byte(`{"a": 1}`),
			})
		}
		if _, err := w.Write(h.ctx, &b); err != nil {
			h.Error(err)
			return rows
		}
		rows += len(b.Readings)
	}
	return rows
}

// running is a Job that Run works on.
type running struct {
	*Job
	h        *house
	registry *prometheus.Registry
	logs     *observer.ObservedLogs
	stop     context.CancelFunc
	result   chan error
}

func (h *house) start(c Config) *running {
	h.Helper()
	return h.startOn(h.open().Config(), c)
}

// startOn starts a Job on a pool of that configuration.
func (h *house) startOn(pool *pgxpool.Config, c Config) *running {
	h.Helper()
	own, err := pgxpool.NewWithConfig(h.ctx, pool)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(own.Close)
	core, logs := observer.New(zapcore.DebugLevel)
	r := &running{h: h, registry: prometheus.NewPedanticRegistry(), logs: logs, result: make(chan error, 1)}
	if r.Job, err = New(c, own, zap.New(core), r.registry); err != nil {
		h.Fatal(err)
	}
	ctx, stop := context.WithCancel(h.ctx)
	r.stop = stop
	go func() { r.result <- r.Run(ctx) }()
	h.Cleanup(r.end)
	return r
}

// end stops Run and waits for it; a second call does nothing.
func (r *running) end() {
	r.h.Helper()
	if r.stop == nil {
		return
	}
	r.stop()
	r.stop = nil
	if err := <-r.result; !errors.Is(err, context.Canceled) {
		r.h.Errorf("Run: got %v, want its context's error", err)
	}
}

// metric is the value of a metric without labels; of a histogram, the number of observations.
func (r *running) metric(name string) float64 {
	r.h.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.h.Fatal(err)
	}
	for _, f := range families {
		if m := f.GetMetric()[0]; f.GetName() == name {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	r.h.Fatalf("there is no metric %s", name)
	return 0
}

// logged is how often a message was logged.
func (r *running) logged(message string) int { return r.logs.FilterMessage(message).Len() }

// atLeast waits until the metric has reached value.
func (r *running) atLeast(name string, value float64) {
	r.h.Helper()
	devtest.Eventually(r.h, func() error {
		if got := r.metric(name); got < value {
			return fmt.Errorf("%s is %g, want %g", name, got, value)
		}
		return nil
	})
}

// allMarked waits until nothing is pending.
func (h *house) allMarked() {
	h.Helper()
	devtest.Eventually(h, func() error {
		var n int
		err := h.pool.QueryRow(h.ctx, "select count(*) from telemetry_batch where processed_at is null").Scan(&n)
		if err == nil && n > 0 {
			err = fmt.Errorf("%d lines are pending", n)
		}
		return err // also that of a connection from before a restart
	})
}

// checkHalves fails where a line is processed and a row of it not, or the other way round.
func (h *house) checkHalves() {
	h.Helper()
	if n := h.count(`select count(*) from telemetry t join telemetry_batch b on t.id between b.first_id and b.last_id
		where t.processed <> (b.processed_at is not null)`); n > 0 {
		h.Fatalf("%d rows are not as their lines say", n)
	}
}
