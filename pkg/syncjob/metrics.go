package syncjob

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	rows, errors, reconciled prometheus.Counter
	notified, notNotified    prometheus.Counter
	duration                 prometheus.Histogram
	pending, setAside, lag   prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) metrics {
	f := promauto.With(reg)
	return metrics{
		notified: f.NewCounter(prometheus.CounterOpts{
			Name: "plenum_sync_notifications_total", Help: "NOTIFYs to the feed's readers, each for all commits since the one before.",
		}),
		notNotified: f.NewCounter(prometheus.CounterOpts{
			Name: "plenum_sync_notify_errors_total", Help: "NOTIFYs that could not be sent; readers look by themselves.",
		}),
		rows: f.NewCounter(prometheus.CounterOpts{
			Name: "plenum_sync_rows_processed_total", Help: "Rows marked processed by this process.",
		}),
		errors: f.NewCounter(prometheus.CounterOpts{
			Name: "plenum_sync_errors_total", Help: "Marking transactions that failed and are repeated.",
		}),
		reconciled: f.NewCounter(prometheus.CounterOpts{
			Name: "plenum_sync_rows_reconciled_total", Help: "Rows found without a ledger line and given one.",
		}),
		duration: f.NewHistogram(prometheus.HistogramOpts{
			Name: "plenum_sync_batch_duration_seconds", Help: "Time of a marking transaction that marked rows.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16), NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
		}),
		pending: f.NewGauge(prometheus.GaugeOpts{
			Name: "plenum_sync_pending_batches", Help: "Ledger lines that wait to be marked.",
		}),
		setAside: f.NewGauge(prometheus.GaugeOpts{
			Name: "plenum_sync_set_aside_batches", Help: "Ledger lines given up because their rows differ from their count.",
		}),
		lag: f.NewGauge(prometheus.GaugeOpts{
			Name: "plenum_sync_lag_seconds", Help: "Age of the oldest ledger line that waits to be marked.",
		}),
	}
}
