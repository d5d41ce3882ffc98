package program

import (
	"context"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"plenum/pkg/store"
)

// account is what has become of the rows of a client id over all its processes, as the database has it: each transaction adds to
// it what it did. Rows under way are not in it.
type account struct {
	pool   *pgxpool.Pool
	source string
	last   atomic.Pointer[store.Account] // as last read
}

// newAccount returns the account of a source, collected as a metric once it was read.
func newAccount(pool *pgxpool.Pool, source string, reg prometheus.Registerer) *account {
	a := &account{pool: pool, source: source}
	reg.MustRegister(accountMetric{a})
	return a
}

func (a *account) read(ctx context.Context) error {
	now, err := store.ReadAccount(ctx, a.pool, a.source)
	if err == nil {
		a.last.Store(&now)
	}
	return err
}

// fields are for the log.
func (a *account) fields() (fields []zap.Field) {
	a.each(func(result string, rows int64) { fields = append(fields, zap.Int64(result, rows)) })
	return fields
}

// each visits the account as last read, if it was.
func (a *account) each(visit func(result string, rows int64)) {
	if n := a.last.Load(); n != nil {
		visit("received", n.Received)
		visit("stored", n.Stored)
		visit("duplicate", n.Duplicate)
		visit("quarantined", n.Quarantined)
	}
}

type accountMetric struct{ *account }

var accountDesc = prometheus.NewDesc("plenum_ingest_account_rows",
	"Rows of this client id over all its processes, by what became of them: received is the sum of the others.", []string{"result"}, nil)

func (m accountMetric) Describe(ch chan<- *prometheus.Desc) { ch <- accountDesc }

func (m accountMetric) Collect(ch chan<- prometheus.Metric) {
	m.each(func(result string, rows int64) {
		ch <- prometheus.MustNewConstMetric(accountDesc, prometheus.GaugeValue, float64(rows), result)
	})
}
