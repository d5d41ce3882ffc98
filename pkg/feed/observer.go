package feed

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.uber.org/zap"

	"plenum/pkg/store"
)

const observeEvery = 5 * time.Second

// Observer keeps the gauges of each consumer's lag.
type Observer struct {
	pool             *pgxpool.Pool
	log              *zap.Logger
	batches, seconds *prometheus.GaugeVec
	names            map[string]bool // of the consumers that have gauges; RunOnce's
}

// NewObserver returns an Observer of the consumers in pool's database. It must be the primary: a standby that has stopped would
// go on showing the lag of then, while a consumer that reads from it gets nothing.
func NewObserver(pool *pgxpool.Pool, log *zap.Logger, reg prometheus.Registerer) *Observer {
	f := promauto.With(reg)
	return &Observer{
		pool: pool, log: log,
		batches: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "plenum_feed_consumer_lag_batches", Help: "Batches that the consumer has not committed.",
		}, []string{"consumer"}),
		seconds: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "plenum_feed_consumer_lag_seconds", Help: "Time since the oldest batch that the consumer has not committed was processed.",
		}, []string{"consumer"}),
	}
}

// Run observes until ctx ends.
func (o *Observer) Run(ctx context.Context) {
	failing := false
	for ctx.Err() == nil {
		err := o.RunOnce(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			o.log.Warn("cannot read the consumers' lag, trying again", zap.Error(err))
		}
		failing = err != nil
		select {
		case <-ctx.Done():
		case <-time.After(observeEvery):
		}
	}
}

// RunOnce sets the gauges; a consumer that is gone has none. It is not to be called twice at once.
func (o *Observer) RunOnce(ctx context.Context) error {
	lags, err := store.ConsumerLags(ctx, o.pool)
	if err != nil {
		return err
	}
	gone := o.names
	o.names = make(map[string]bool, len(lags))
	for _, l := range lags {
		o.names[l.Name] = true
		delete(gone, l.Name)
		o.batches.WithLabelValues(l.Name).Set(float64(l.Batches))
		o.seconds.WithLabelValues(l.Name).Set(l.Oldest.Seconds())
	}
	for name := range gone {
		o.batches.DeleteLabelValues(name)
		o.seconds.DeleteLabelValues(name)
	}
	return nil
}
