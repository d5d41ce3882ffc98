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

// PushMetrics are those of every pusher of a process, and the dead letters of every consumer.
type PushMetrics struct {
	rows, deliveries     *prometheus.CounterVec
	duration             *prometheus.HistogramVec
	failing, deadLetters *prometheus.GaugeVec
	counted              map[string]int64 // the consumers that had dead letters, or might; of ObserveDeadLetters
}

// NewPushMetrics registers the metrics.
func NewPushMetrics(reg prometheus.Registerer) *PushMetrics {
	f, consumer := promauto.With(reg), []string{"consumer"}
	return &PushMetrics{
		rows: f.NewCounterVec(prometheus.CounterOpts{
			Name: "plenum_push_rows_total", Help: "Rows that a target has taken; rows that were sent again count again.",
		}, consumer),
		deliveries: f.NewCounterVec(prometheus.CounterOpts{
			Name: "plenum_push_deliveries_total", Help: "Deliveries, by what became of them: delivered, refused for their content, or failed for the time being.",
		}, []string{"consumer", "result"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "plenum_push_delivery_duration_seconds", Help: "Time until the target answered.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, consumer),
		failing: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "plenum_push_failing", Help: "1 from the first delivery that did not succeed until one does again.",
		}, consumer),
		deadLetters: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "plenum_feed_dead_letters", Help: "Dead letters in the database.",
		}, consumer),
	}
}

// begin makes every series of a consumer, so that the first failure is an increase.
func (m *PushMetrics) begin(consumer string) {
	m.rows.WithLabelValues(consumer)
	m.duration.WithLabelValues(consumer)
	m.failing.WithLabelValues(consumer)
	m.deadLetters.WithLabelValues(consumer)
	for _, result := range []string{"delivered", "refused", "failed"} {
		m.deliveries.WithLabelValues(consumer, result)
	}
}

func (m *PushMetrics) delivered(consumer, result string, rows int, took time.Duration) {
	m.deliveries.WithLabelValues(consumer, result).Inc()
	m.duration.WithLabelValues(consumer).Observe(took.Seconds())
	if result == "delivered" {
		m.rows.WithLabelValues(consumer).Add(float64(rows))
	}
}

// ObserveDeadLetters keeps the gauge of dead letters until ctx ends.
func (m *PushMetrics) ObserveDeadLetters(ctx context.Context, pool *pgxpool.Pool, log *zap.Logger) {
	const every = 10 * time.Second
	for failing := false; ctx.Err() == nil; {
		err := m.countDeadLetters(ctx, pool)
		if err != nil && !failing && ctx.Err() == nil {
			log.Warn("cannot count the dead letters, trying again", zap.Error(err))
		}
		failing = err != nil
		select {
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
}

func (m *PushMetrics) countDeadLetters(ctx context.Context, pool *pgxpool.Pool) error {
	counts, err := store.CountDeadLetters(ctx, pool)
	if err != nil {
		return err
	}
	for consumer := range m.counted {
		if _, there := counts[consumer]; !there { // it is gone, and its dead letters too
			m.deadLetters.DeleteLabelValues(consumer)
		}
	}
	m.counted = counts
	for consumer, n := range counts {
		m.deadLetters.WithLabelValues(consumer).Set(float64(n))
	}
	return nil
}
