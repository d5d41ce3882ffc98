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
	markTimeout     = 60 * time.Second // one transaction
	reconcileEvery  = time.Minute
	reconcileWindow = 10 * time.Minute // what each reconcile looks back over
	observeEvery    = 2 * time.Second
)

// Job is the sync worker of one process.
type Job struct {
	cfg     Config
	pool    *pgxpool.Pool
	marker  *store.Marker
	log     *zap.Logger
	m       metrics
	failure atomic.Pointer[Failure]
	rows    atomic.Int64
}

// Failure is why nothing can be marked at the moment.
type Failure struct {
	Since time.Time
	Err   error
}

// New returns a Job on pool, which needs a connection for each worker and two more.
func New(c Config, pool *pgxpool.Pool, log *zap.Logger, reg prometheus.Registerer) (*Job, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &Job{cfg: c, pool: pool, marker: store.NewMarker(pool), log: log, m: newMetrics(reg)}, nil
}

// Run works until ctx ends.
func (j *Job) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range j.cfg.Workers {
		wg.Go(func() { j.work(ctx) })
	}
	wg.Go(func() { j.every(ctx, reconcileEvery, "reconcile", j.reconcile) })
	wg.Go(func() { j.every(ctx, observeEvery, "observe the ledger", j.observe) })
	wg.Wait()
	return ctx.Err()
}

// Failing returns why nothing can be marked now, or nil.
func (j *Job) Failing() *Failure { return j.failure.Load() }

// Rows returns how many rows this process has marked.
func (j *Job) Rows() int64 { return j.rows.Load() }

func (j *Job) work(ctx context.Context) {
	idle, failed := shortestPoll, firstRetry
	for ctx.Err() == nil {
		done, err := j.RunOnce(ctx)
		var pause time.Duration
		switch {
		case err != nil:
			j.fail(err)
			pause, failed = rand.N(failed), min(2*failed, lastRetry)
		case done.Lines == 0:
			pause, idle = idle, min(2*idle, longestPoll)
		default:
			idle = shortestPoll
		}
		if err == nil {
			failed = firstRetry
			j.recover()
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
		j.rows.Add(int64(done.Rows))
		j.m.rows.Add(float64(done.Rows))
		j.m.duration.Observe(time.Since(start).Seconds())
	}
	if done.SetAside > 0 {
		j.log.Error("batches set aside: their rows differ from the ledger's count; see plenumctl sync status", zap.Int("batches", done.SetAside))
	}
	return done, err
}

func (j *Job) fail(err error) {
	j.m.errors.Inc()
	f := &Failure{Since: time.Now(), Err: err}
	if old := j.failure.Load(); old != nil {
		f.Since = old.Since
	} else {
		j.log.Error("cannot mark a batch, trying again", zap.Error(err))
	}
	j.failure.Store(f)
}

func (j *Job) recover() {
	if f := j.failure.Swap(nil); f != nil {
		j.log.Info("marking again", zap.Duration("after", time.Since(f.Since)))
	}
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

// reconcile covers the last minutes, also across midnight, day by day.
func (j *Job) reconcile(ctx context.Context) error {
	now, err := store.Now(ctx, j.pool)
	if err != nil {
		return err
	}
	from, midnight := now.Add(-reconcileWindow), now.Truncate(24*time.Hour)
	to := midnight.Add(24 * time.Hour)
	if from.Before(midnight) {
		if err := j.reconcileDay(ctx, from, midnight); err != nil {
			return err
		}
		from = midnight
	}
	return j.reconcileDay(ctx, from, to)
}

func (j *Job) reconcileDay(ctx context.Context, from, to time.Time) error {
	n, err := store.Reconcile(ctx, j.pool, from, to)
	if n > 0 {
		j.m.reconciled.Add(float64(n))
		j.log.Info("rows without a ledger line got one", zap.Int64("rows", n))
	}
	return err
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
