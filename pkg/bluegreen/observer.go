package bluegreen

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.uber.org/zap"
)

const observeEvery = 15 * time.Second

// Observer keeps plenum_bluegreen_pending_rows.
type Observer struct {
	migration *Migration
	log       *zap.Logger
	pending   prometheus.Gauge
}

// NewObserver returns an Observer of the migration of a schema, if there comes one. The pool needs the rights of who gives the commands.
func NewObserver(pool *pgxpool.Pool, schema string, log *zap.Logger, reg prometheus.Registerer) (*Observer, error) {
	m, err := New(Config{Pool: pool, Schema: schema, Log: log})
	if err != nil {
		return nil, err
	}
	return &Observer{
		migration: m, log: log,
		pending: promauto.With(reg).NewGauge(prometheus.GaugeOpts{
			Name: "plenum_bluegreen_pending_rows", Help: "Changes that the passive tables of a blue/green migration do not have yet, about; 0 where none is under way.",
		}),
	}, nil
}

// Run observes until ctx ends.
func (o *Observer) Run(ctx context.Context) {
	failing := false
	for ctx.Err() == nil {
		err := o.RunOnce(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			o.log.Warn("cannot read what a blue/green migration has pending, trying again", zap.Error(err))
		}
		failing = err != nil
		_ = pause(ctx, observeEvery) // the loop ends with ctx
	}
}

// RunOnce sets the gauge.
func (o *Observer) RunOnce(ctx context.Context) error {
	m, total := o.migration, int64(0)
	err := m.reading(ctx, func(tx pgx.Tx) error {
		pairs, err := readPairs(ctx, tx, m.cfg.Schema)
		for _, p := range pairs {
			n, err := m.entries(ctx, tx, p)
			if err != nil {
				return err
			}
			total += n
		}
		return err
	})
	switch {
	case sqlState(err) == "42P01": // it ended just now
		return nil
	case err != nil && !errors.Is(err, ErrNone):
		return err
	}
	o.pending.Set(float64(total))
	return nil
}
