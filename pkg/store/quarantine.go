package store

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"plenum/pkg/telemetry"
)

// Quarantine bounds the bytes that telemetry_quarantine holds, indexes included. Past the bound a reject's line is still
// written, with code, detail and topic, but without the message's bytes: the one loss that is meant, of what was no
// telemetry. Its methods may be called concurrently.
type Quarantine struct {
	pool    *pgxpool.Pool
	max     int64
	used    atomic.Int64 // as last measured, and what this process has added since
	bytes   prometheus.Gauge
	dropped *prometheus.CounterVec
}

// NewQuarantine returns the bound of maxBytes; Measure makes it known how much is used.
func NewQuarantine(pool *pgxpool.Pool, maxBytes int64, reg prometheus.Registerer) *Quarantine {
	f := promauto.With(reg)
	return &Quarantine{
		pool: pool, max: maxBytes,
		bytes: f.NewGauge(prometheus.GaugeOpts{
			Name: "plenum_quarantine_bytes", Help: "Size of the quarantine in the database, indexes included.",
		}),
		dropped: f.NewCounterVec(prometheus.CounterOpts{
			Name: "plenum_quarantine_payloads_dropped_total", Help: "Quarantined messages kept without their bytes because the quarantine is full.",
		}, []string{"code"}),
	}
}

// MeasureEvery is how often Measure is to be called: other processes add to the quarantine too, and days leave it.
const MeasureEvery = 30 * time.Second

// Measure asks the database how much is used.
func (q *Quarantine) Measure(ctx context.Context) error {
	const sql = `select coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint from pg_inherits where inhparent = 'telemetry_quarantine'::regclass`
	var n int64
	if err := q.pool.QueryRow(ctx, sql).Scan(&n); err != nil {
		return fmt.Errorf("measure the quarantine: %w", err)
	}
	q.used.Store(n)
	q.bytes.Set(float64(n))
	return nil
}

// Full returns the bytes used and allowed, and whether messages' bytes are being dropped.
func (q *Quarantine) Full() (used, allowed int64, full bool) {
	used = q.used.Load()
	return used, q.max, used >= q.max
}

// quarantined is what a transaction adds, to be counted once it has committed.
type quarantined struct {
	bytes   int64
	dropped []telemetry.Code // of the rejects kept without their bytes
}

func (q *Quarantine) committed(added quarantined) {
	q.used.Add(added.bytes)
	for _, code := range added.dropped {
		q.dropped.WithLabelValues(string(code)).Inc()
	}
}

// insert writes the rejects within tx.
func (q *Quarantine) insert(ctx context.Context, tx pgx.Tx, rejects []telemetry.Reject) (added quarantined, err error) {
	if len(rejects) == 0 {
		return added, nil
	}
	const sql = `insert into telemetry_quarantine (code, detail, topic, payload)
		select * from unnest($1::text[], $2::text[], $3::text[], $4::bytea[])`
	n := len(rejects)
	codes, details, topics, payloads := make([]string, n), make([]string, n), make([]string, n), make([][]byte, n)
	for i, r := range rejects {
		codes[i], details[i], topics[i] = string(r.Code), r.Detail, r.Topic
		if q.used.Load()+added.bytes+int64(len(r.Raw)) > q.max {
			added.dropped = append(added.dropped, r.Code)
			continue // NULL: not kept, where an empty payload is an empty message
		}
		added.bytes += int64(len(r.Raw))
		payloads[i] = append([]byte{}, r.Raw...)
	}
	_, err = tx.Exec(ctx, sql, codes, details, topics, payloads)
	return added, err
}
