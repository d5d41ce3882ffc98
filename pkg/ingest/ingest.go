package ingest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"plenum/pkg/telemetry"
)

// Config bounds batches and says how many are stored at once.
type Config struct {
	BatchRows  int           // rows that seal a batch; the last message's rows may exceed it
	BatchBytes int           // payload and topic bytes that seal a batch; the last message's may exceed it
	Linger     time.Duration // how long the first message of a batch waits for others
	Writers    int           // transactions at once
}

// maxBatchBytes keeps a batch that is quarantined as a whole within one protocol message of PostgreSQL, 1 GiB.
const maxBatchBytes = 256 << 20

// Validate joins every fault, each naming its key and value.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, key string, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %v %s", key, value, want))
		}
	}
	check(c.BatchRows >= 1 && c.BatchRows <= 1_000_000, "ingest.batch_rows", c.BatchRows, "is not from 1 to 1000000")
	check(c.BatchBytes >= 1024 && c.BatchBytes <= maxBatchBytes, "ingest.batch_bytes", c.BatchBytes, fmt.Sprintf("is not from 1024 to %d", maxBatchBytes))
	check(c.Linger >= 0 && c.Linger <= time.Minute, "ingest.linger", c.Linger, "is not from 0s to 1m")
	check(c.Writers >= 1 && c.Writers <= 64, "ingest.writers", c.Writers, "is not from 1 to 64")
	return errors.Join(errs...)
}

// Store commits batches. On error the outcome counts what Write committed all the same, and the batch holds the rest, with
// which it is called again.
type Store interface {
	Write(context.Context, *telemetry.Batch) (telemetry.Outcome, error)
}

// Back-off between tries of a batch: full jitter below a bound that doubles.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	tryTimeout = time.Minute // of one try
)

// Pipeline is the path from a received message to its receipt.
type Pipeline struct {
	decoder *telemetry.Decoder
	store   Store
	writers int
	queue   *queue
	log     *zap.Logger
	m       metrics
	totals  totals
	failing failing
}

// New returns a Pipeline; Run makes it store.
func New(c Config, d *telemetry.Decoder, s Store, log *zap.Logger, reg prometheus.Registerer) (*Pipeline, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	p := &Pipeline{decoder: d, store: s, writers: c.Writers, queue: newQueue(c), log: log}
	p.m = newMetrics(reg, func() float64 { return float64(p.Totals().Received) })
	return p, nil
}

// Receive takes a message in. It does not block, and several goroutines may call it. After Drain it does nothing
// but count: the receipt is never done.
func (p *Pipeline) Receive(m telemetry.Message, r Receipt) { p.queue.add(p.decoder, m, r) }

// Run stores batches until ctx ends, which gives up what is not stored, or until Drain was called and the
// queue is empty.
func (p *Pipeline) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range p.writers {
		wg.Go(func() {
			for b := p.queue.take(ctx); b != nil; b = p.queue.take(ctx) {
				if !p.storeBatch(ctx, b) {
					return
				}
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// Drain ends intake: Run stores what is queued and returns.
func (p *Pipeline) Drain() { p.queue.close() }

// storeBatch tries until the batch is stored, and then acknowledges it. It returns false when ctx ended before.
func (p *Pipeline) storeBatch(ctx context.Context, b *batch) bool {
	rest := b.Batch
	for attempt := 0; ; attempt++ {
		start, before := time.Now(), len(rest.Readings)+len(rest.Rejects)
		out, err := p.try(ctx, &rest)
		p.count(out)
		if err == nil {
			p.m.commitDuration.Observe(time.Since(start).Seconds())
			p.committed(b)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		p.failed(b, err)
		if len(rest.Readings)+len(rest.Rejects) < before {
			attempt = 0
		}
		bound := min(lastRetry, firstRetry<<min(attempt, 16))
		select {
		case <-ctx.Done():
			return false
		case <-time.After(rand.N(bound)):
		}
	}
}

func (p *Pipeline) try(ctx context.Context, rest *telemetry.Batch) (telemetry.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	return p.store.Write(ctx, rest)
}

// count accounts for what was committed.
func (p *Pipeline) count(out telemetry.Outcome) {
	p.m.stored.Add(float64(out.Stored))
	p.m.duplicate.Add(float64(out.Duplicate))
	p.m.quarantined.Add(float64(out.Quarantined))
	p.m.rejects.WithLabelValues(string(telemetry.Conflict)).Add(float64(out.Conflicts))
	p.m.rejects.WithLabelValues(string(telemetry.RejectedByDatabase)).Add(float64(out.RejectedByDatabase))
	p.totals.add(out)
}

// committed acknowledges the batch's messages.
func (p *Pipeline) committed(b *batch) {
	p.m.batchRows.Observe(float64(b.rows()))
	for _, r := range b.Rejects {
		p.m.rejects.WithLabelValues(string(r.Code)).Inc()
	}
	if since, last := p.failing.clear(b); last {
		p.log.Info("storing again", zap.Duration("after", time.Since(since)))
	}
	for _, r := range b.receipts {
		r.Done()
	}
	p.queue.recycle(b)
}

func (p *Pipeline) failed(b *batch, err error) {
	p.m.retries.Inc()
	if p.failing.set(b, err) {
		p.log.Error("cannot store a batch, trying again; nothing of it is acknowledged",
			zap.Int("messages", len(b.receipts)), zap.Int("rows", b.rows()), zap.Error(err))
	}
}
