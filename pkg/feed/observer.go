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
}

// NewObserver returns an Observer of the consumers in pool's database.
func NewObserver(pool *pgxpool.Pool, log *zap.Logger, reg prometheus.Registerer) *Observer {
	f := promauto.With(reg)
	return &Observer{pool, log,
		f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "plenum_feed_consumer_lag_batches", Help: "Batches that the consumer has not committed.",
		}, []string{"consumer"}),
		f.NewGaugeVec(prometheus.GaugeOpts{
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

// RunOnce sets the gauges; a consumer that is gone has none.
func (o *Observer) RunOnce(ctx context.Context) error {
	lags, err := store.ConsumerLags(ctx, o.pool)
	if err != nil {
		return err
	}
	o.batches.Reset()
	o.seconds.Reset()
	for _, l := range lags {
		o.batches.WithLabelValues(l.Name).Set(float64(l.Batches))
		o.seconds.WithLabelValues(l.Name).Set(l.Oldest.Seconds())
	}
	return nil
}
