package feed

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.uber.org/zap"

	"plenum/pkg/store"
)

const (
	firstRetry  = 100 * time.Millisecond // pause after an error, full jitter below a doubling bound …
	lastRetry   = 10 * time.Second
	proofWithin = 5 * time.Second // a NOTIFY of its own must have come by then
)

// Listener wakes a Feed's waiting readers when a NOTIFY says that positions were given.
//
// A transaction pooler takes a LISTEN and passes nothing on. So it counts as listening only once it has heard a NOTIFY that went
// over another connection; until then readers look by themselves, often.
type Listener struct {
	feed   *Feed
	log    *zap.Logger
	hears  prometheus.Gauge
	wakes  prometheus.Counter
	silent bool // said so; Run's
}

// NewListener returns a Listener of f's primary.
func NewListener(f *Feed, log *zap.Logger, reg prometheus.Registerer) *Listener {
	with := promauto.With(reg)
	return &Listener{
		feed: f, log: log,
		hears: with.NewGauge(prometheus.GaugeOpts{
			Name: "plenum_feed_listening", Help: "1 while waiting reads are woken by a NOTIFY, 0 while they look by themselves each 50 ms.",
		}),
		wakes: with.NewCounter(prometheus.CounterOpts{
			Name: "plenum_feed_wakes_total", Help: "NOTIFYs that woke the waiting reads.",
		}),
	}
}

// Run listens until ctx ends, on a connection of its own.
func (l *Listener) Run(ctx context.Context) {
	for bound := firstRetry; ctx.Err() == nil; bound = min(2*bound, lastRetry) {
		heard, err := l.listen(ctx)
		l.set(false)
		if heard {
			bound = firstRetry
		}
		if ctx.Err() == nil && !l.silent {
			l.silent = true
			l.log.Warn("cannot listen for NOTIFY, waiting reads look by themselves", zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(bound)):
		}
	}
}

// set says whether a NOTIFY is heard. At either change readers look once: what came before was not heard.
func (l *Listener) set(hears bool) {
	value := 0.0
	if hears {
		value = 1
	}
	l.hears.Set(value)
	l.feed.waker.setHears(hears)
	l.feed.waker.wake()
}

// listen returns why the connection ended, and whether anything was heard on it.
func (l *Listener) listen(ctx context.Context) (heard bool, err error) {
	pooled, err := l.feed.pool.Acquire(ctx)
	if err != nil {
		return false, fmt.Errorf("connect for LISTEN: %w", err)
	}
	conn := pooled.Hijack() // it goes back to nobody
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	var schema string
	if err := conn.QueryRow(ctx, `select current_schema()`).Scan(&schema); err != nil {
		return false, fmt.Errorf("read the schema to listen for: %w", err)
	}
	if _, err := conn.Exec(ctx, `listen plenum_feed`); err != nil {
		return false, fmt.Errorf("listen: %w", err)
	}
	for {
		if !heard {
			heard, err = l.prove(ctx, conn, schema)
		} else {
			err = l.wait(ctx, conn, schema)
		}
		if err != nil {
			return heard, err
		}
	}
}

func (l *Listener) wait(ctx context.Context, conn *pgx.Conn, schema string) error {
	n, err := conn.WaitForNotification(ctx)
	if err != nil {
		return fmt.Errorf("wait for NOTIFY: %w", err)
	}
	if n.Payload == schema {
		l.wakes.Inc()
		l.feed.waker.wake()
	}
	return nil
}

// prove sends a NOTIFY over the pool and waits for one.
func (l *Listener) prove(ctx context.Context, conn *pgx.Conn, schema string) (bool, error) {
	if err := store.NotifyFeed(ctx, l.feed.pool); err != nil {
		return false, err
	}
	within, cancel := context.WithTimeout(ctx, proofWithin)
	defer cancel()
	if err := l.wait(within, conn, schema); err != nil {
		return false, fmt.Errorf("no NOTIFY came within %s; is database.url a transaction pooler's? %w", proofWithin, err)
	}
	if l.set(true); l.silent {
		l.silent = false
		l.log.Info("listening for NOTIFY again")
	}
	return true, nil
}
