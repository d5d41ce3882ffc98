package syncjob

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"plenum/pkg/store"
)

// Config says how much is marked at once.
type Config struct {
	BatchRows int // rows of a transaction; the last line's rows may exceed it
	Workers   int // transactions at once in this process
}

// Validate joins every fault, each naming its key and value.
func (c Config) Validate() error {
	var errs []error
	if c.BatchRows < 1 || c.BatchRows > 1_000_000 {
		errs = append(errs, fmt.Errorf("sync.batch_rows: %d is not from 1 to 1000000", c.BatchRows))
	}
	if c.Workers < 1 || c.Workers > 64 {
		errs = append(errs, fmt.Errorf("sync.workers: %d is not from 1 to 64", c.Workers))
	}
	return errors.Join(errs...)
}

const (
	shortestPoll    = 10 * time.Millisecond // pause of a worker that found nothing, doubling …
	longestPoll     = 160 * time.Millisecond
	firstRetry      = 100 * time.Millisecond // pause after an error, full jitter below a doubling bound …
	lastRetry       = 10 * time.Second
	markTimeout     = 30 * time.Second // one transaction
	reconcileEvery  = time.Minute
	reconcileWindow = 5 * time.Minute // what each reconcile looks back over
	observeEvery    = 2 * time.Second
)

// Job is the sync worker of one process.
type Job struct {
	cfg     Config
	pool    *pgxpool.Pool
	marker  *store.Marker
	log     *zap.Logger
	m       metrics
	given   chan struct{} // positions were given and nobody was notified yet
	rows    atomic.Int64
	mu      sync.Mutex
	failing int      // workers whose last try failed
	failure *Failure // theirs; nil if none
}

// Failure is why a worker cannot mark at the moment.
type Failure struct {
	Since time.Time // of the first failed try
	Err   error     // of the latest
}

// New returns a Job on pool, which needs a connection for each worker and three more.
func New(c Config, pool *pgxpool.Pool, log *zap.Logger, reg prometheus.Registerer) (*Job, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &Job{cfg: c, pool: pool, marker: store.NewMarker(pool), given: make(chan struct{}, 1), log: log, m: newMetrics(reg)}, nil
}

// Run works until ctx ends.
func (j *Job) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range j.cfg.Workers {
		wg.Go(func() { j.work(ctx) })
	}
	wg.Go(func() { j.notify(ctx) })
	wg.Go(func() { j.every(ctx, reconcileEvery, "reconcile", j.reconcile) })
	wg.Go(func() { j.every(ctx, observeEvery, "observe the ledger", j.observe) })
	wg.Wait()
	return ctx.Err()
}

// Failing returns why a worker cannot mark now, or nil if none has that trouble.
func (j *Job) Failing() *Failure {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failure
}

// Rows returns how many rows this process has marked.
func (j *Job) Rows() int64 { return j.rows.Load() }

func (j *Job) work(ctx context.Context) {
	idle, failed, failing := shortestPoll, firstRetry, false
	for ctx.Err() == nil {
		done, err := j.RunOnce(ctx)
		j.note(err, &failing)
		var pause time.Duration
		switch {
		case err != nil:
			pause, failed = rand.N(failed), min(2*failed, lastRetry)
		case done.Lines == 0:
			pause, idle = idle, min(2*idle, longestPoll)
		default:
			idle = shortestPoll
		}
		if err == nil {
			failed = firstRetry
		}
		if pause > 0 {
			sleep(ctx, pause)
		}
	}
}

// RunOnce marks one batch. A transaction begun is finished even if ctx ends.
func (j *Job) RunOnce(ctx context.Context) (store.Marked, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	start := time.Now()
	done, err := j.marker.Mark(ctx, j.cfg.BatchRows)
	if done.Lines > 0 {
		j.signal()
		j.rows.Add(int64(done.Rows))
		j.m.rows.Add(float64(done.Rows))
		j.m.duration.Observe(time.Since(start).Seconds())
	}
	if done.SetAside > 0 {
		j.log.Error("batches set aside: their rows differ from the ledger's count; see docs/operations.md, set-aside-batches", zap.Int("batches", done.SetAside))
	}
	return done, err
}

// note counts the workers that fail, and logs when the first begins to and when the last has recovered. failing is the
// worker's own state.
func (j *Job) note(err error, failing *bool) {
	if err == nil && !*failing {
		return
	}
	was := *failing
	*failing = err != nil
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		if j.failing--; j.failing == 0 {
			j.log.Info("marking again", zap.Duration("after", time.Since(j.failure.Since)))
			j.failure = nil
		}
		return
	}
	j.m.errors.Inc()
	if !was {
		j.failing++
	}
	since := time.Now()
	if j.failure != nil {
		since = j.failure.Since
	} else {
		j.log.Error("cannot mark a batch, trying again", zap.Error(err))
	}
	j.failure = &Failure{since, err}
}

// every runs f at once and then at each interval. It logs when f begins to fail, and once more when it works again.
func (j *Job) every(ctx context.Context, interval time.Duration, what string, f func(context.Context) error) {
	failing := false
	for ctx.Err() == nil {
		err := f(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			j.log.Error("background step fails, trying again", zap.String("step", what), zap.Error(err))
		case err == nil && failing:
			j.log.Info("background step works again", zap.String("step", what))
		}
		failing = err != nil
		sleep(ctx, interval)
	}
}

// reconcile covers the last minutes, day by day.
func (j *Job) reconcile(ctx context.Context) error {
	now, err := store.Now(ctx, j.pool)
	if err != nil {
		return err
	}
	for _, w := range windows(now) {
		n, err := store.Reconcile(ctx, j.pool, w.from, w.to)
		if err != nil {
			return err
		}
		if n > 0 {
			j.m.reconciled.Add(float64(n))
			j.log.Info("rows without a ledger line got one", zap.Int64("rows", n))
		}
	}
	return nil
}

type window struct{ from, to time.Time }

// windows are the last minutes and what is left of the UTC day, in two where midnight lies between.
func windows(now time.Time) []window {
	now = now.UTC()
	from, midnight := now.Add(-reconcileWindow), now.Truncate(24*time.Hour)
	tomorrow := midnight.Add(24 * time.Hour)
	if from.Before(midnight) {
		return []window{{from, midnight}, {midnight, tomorrow}}
	}
	return []window{{from, tomorrow}}
}

func (j *Job) observe(ctx context.Context) error {
	p, err := j.marker.Pending(ctx)
	if err != nil {
		return err
	}
	j.m.pending.Set(float64(p.Lines))
	j.m.setAside.Set(float64(p.SetAside))
	j.m.lag.Set(p.Oldest.Seconds())
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
