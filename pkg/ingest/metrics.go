package ingest

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"plenum/pkg/telemetry"
)

type metrics struct {
	stored, duplicate, quarantined prometheus.Counter
	rejects                        *prometheus.CounterVec
	retries                        prometheus.Counter
	batchRows, commitDuration      prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, received func() float64) metrics {
	f := promauto.With(reg)
	f.NewCounterFunc(prometheus.CounterOpts{
		Name: "plenum_ingest_received_rows_total",
		Help: "Readings and rejected elements received, counted before they are stored: those of plenum_ingest_rows_total and what waits.",
	}, received)
	rows := f.NewCounterVec(prometheus.CounterOpts{
		Name: "plenum_ingest_rows_total",
		Help: "Readings and rejected elements by what became of them, counted after the commit.",
	}, []string{"result"})
	m := metrics{
		stored:      rows.WithLabelValues("stored"),
		duplicate:   rows.WithLabelValues("duplicate"),
		quarantined: rows.WithLabelValues("quarantined"),
		rejects: f.NewCounterVec(prometheus.CounterOpts{
			Name: "plenum_ingest_rejects_total",
			Help: "Quarantined rows by code.",
		}, []string{"code"}),
		retries: f.NewCounter(prometheus.CounterOpts{
			Name: "plenum_ingest_store_retries_total",
			Help: "Tries of a batch that failed and are repeated.",
		}),
		batchRows: f.NewHistogram(prometheus.HistogramOpts{
			Name:                            "plenum_ingest_batch_rows",
			Help:                            "Rows of a committed batch.",
			Buckets:                         prometheus.ExponentialBuckets(1, 4, 9),
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}),
		commitDuration: f.NewHistogram(prometheus.HistogramOpts{
			Name:                            "plenum_ingest_commit_duration_seconds",
			Help:                            "Time from the start of a batch's successful try to the answer to its COMMIT.",
			Buckets:                         prometheus.ExponentialBuckets(0.001, 2, 15),
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}),
	}
	for _, c := range telemetry.Codes() {
		m.rejects.WithLabelValues(string(c))
	}
	return m
}

// Totals is the accounting since the start of the process.
type Totals struct {
	Messages                                 int64 // messages received
	Late                                     int64 // messages that came after Drain and are left to the broker; of QoS 0, lost
	Received, Stored, Duplicate, Quarantined int64 // rows
}

type totals struct{ stored, duplicate, quarantined atomic.Int64 }

func (t *totals) add(o telemetry.Outcome) {
	t.stored.Add(int64(o.Stored))
	t.duplicate.Add(int64(o.Duplicate))
	t.quarantined.Add(int64(o.Quarantined))
}

// Totals returns the accounting; while batches are under way, Received is ahead of the others' sum.
func (p *Pipeline) Totals() Totals {
	t := Totals{Stored: p.totals.stored.Load(), Duplicate: p.totals.duplicate.Load(), Quarantined: p.totals.quarantined.Load()}
	p.queue.mu.Lock() // after the others: what they count was received before
	defer p.queue.mu.Unlock()
	t.Messages, t.Received, t.Late = p.queue.messages, p.queue.received, p.queue.late
	return t
}
