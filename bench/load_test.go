package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// load inserts batches at a steady rate, whether the ones before have been answered or not: a batch's latency counts from the
// instant at which it was due, so that a stall counts for each that waited behind it.
type load struct {
	every   time.Duration // between two batches
	rows    int           // in each
	writers int           // connections
}

// running is a load under way.
type running struct {
	stop    context.CancelFunc
	writers sync.WaitGroup
	mu      sync.Mutex
	samples []sample
	err     error
}

// sample is one batch.
type sample struct {
	due     time.Time
	latency time.Duration
}

// start runs the load until end is called.
func (l load) start(ctx context.Context, url string) *running {
	ctx, stop := context.WithCancel(ctx)
	r := &running{stop: stop}
	begin := time.Now()
	var next atomic.Int64
	for range l.writers {
		r.writers.Go(func() {
			samples, err := l.write(ctx, url, begin, &next)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.samples, r.err = append(r.samples, samples...), errors.Join(r.err, err)
		})
	}
	return r
}

// end stops the load and returns its batches in the order in which they were due.
func (r *running) end() ([]sample, error) {
	r.stop()
	r.writers.Wait()
	slices.SortFunc(r.samples, func(a, b sample) int { return a.due.Compare(b.due) })
	return r.samples, r.err
}

// write is one writer: it takes the next batch that is due, waits until then, and stores it. What was due when the load was stopped is
// stored still, or the end of a stall would go unmeasured.
func (l load) write(ctx context.Context, url string, begin time.Time, next *atomic.Int64) (samples []sample, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var stopped time.Time
	for {
		n := next.Add(1)
		due := begin.Add(time.Duration(n) * l.every)
		if wait(ctx, time.Until(due)) != nil && stopped.IsZero() {
			stopped = time.Now()
		}
		if !stopped.IsZero() && due.After(stopped) {
			return samples, nil
		}
		const copySQL = "copy telemetry (device_id, recorded_at, seq, payload) from stdin"
		if _, err := conn.PgConn().CopyFrom(context.WithoutCancel(ctx), strings.NewReader(l.batch(n, due)), copySQL); err != nil {
			return samples, fmt.Errorf("batch %d: %w", n, err)
		}
		samples = append(samples, sample{due, time.Since(due)})
	}
}

// batch is COPY's text.
func (l load) batch(n int64, at time.Time) string {
	var b strings.Builder
	for i := range l.rows {
		fmt.Fprintf(&b, "cmp-%05d\t%s\t%d\t%s\n", i, at.UTC().Format(time.RFC3339Nano), n, loadPayload)
	}
	return b.String()
}

const loadPayload = `{"motor_temp_c": 81.4, "oil_temp_c": 74.2, "pressure_bar": 7.91, "current_a": 41.7, "flow_m3_min": 5.2, "state": "loaded"}`

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// quantile of the latencies, by nearest rank; 1 is the greatest.
func quantile(samples []sample, q float64) time.Duration {
	all := make([]time.Duration, len(samples))
	for i, s := range samples {
		all[i] = s.latency
	}
	return quantileOf(all, q)
}

func quantileOf(all []time.Duration, q float64) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[min(len(all)-1, int(q*float64(len(all))))]
}
