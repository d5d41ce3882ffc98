package ingest_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/ingest"
	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

// The pipeline over PostgreSQL: every row is in a table when its receipt is done, and the accounting agrees with
// the tables.
func TestOverPostgreSQL(t *testing.T) {
	t.Parallel()
	pool, err := store.Open(t.Context(), store.Config{URL: devtest.Database(t), Schema: "public", Program: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := store.Migrate(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	exec := func(ctx context.Context, sql string) error { _, err := pool.Exec(ctx, sql); return err }
	for _, table := range []string{"telemetry_batch", "telemetry_quarantine"} {
		if err := exec(t.Context(), partitionSQL(table)); err != nil {
			t.Fatal(err)
		}
	}
	// telemetry's partition is missing at first: ingest asks for it.
	writer := store.NewWriter(pool, "test", func(ctx context.Context) error {
		return exec(ctx, partitionSQL("telemetry")+`; create unique index if not exists telemetry_p_identity_idx
			on telemetry_p (device_id, kind, recorded_at, seq) nulls not distinct`)
	})
	c := config()
	c.BatchRows = 50
	r := start(t, c, writer)
	var receipts []*receipt
	receive := func(m telemetry.Message) {
		receipts = append(receipts, new(receipt))
		r.Receive(m, receipts[len(receipts)-1])
	}
	const n = 300
	for seq := range n {
		m, _ := reading("a", seq)
		receive(m)
		if seq%10 == 0 {
			receive(m) // an equal repeat
		}
		if seq%30 == 0 {
			receive(telemetry.Message{Topic: "telemetry/a", Payload: []byte("no JSON"), ReceivedAt: time.Now()})
		}
		if seq%100 == 0 {
			m.Payload = fmt.Appendf(nil, `{"ts":%d,"seq":%d,"metrics":{"other":true}}`, m.ReceivedAt.UnixMilli(), seq)
			receive(m) // the same identity, another payload
		}
	}
	r.drain(t)
	doneOnce(t, receipts...)
	want := ingest.Totals{Messages: 343, Received: 343, Stored: n, Duplicate: 30, Quarantined: 13}
	if got := r.Totals(); got != want {
		t.Errorf("totals %+v, want %+v", got, want)
	}
	const q = `select (select count(*) from telemetry), (select count(*) from telemetry_quarantine),
		(select sum(row_count) from telemetry_batch), (select count(distinct id) from telemetry)`
	var rows, quarantined, counted, ids int64
	if err := pool.QueryRow(t.Context(), q).Scan(&rows, &quarantined, &counted, &ids); err != nil {
		t.Fatal(err)
	}
	if rows != n || quarantined != 13 || counted != n || ids != n {
		t.Errorf("%d rows, %d ids, %d in the ledger, %d quarantined; want %d, %[5]d, %[5]d, 13", rows, ids, counted, quarantined, n)
	}
	metric := func(name string, labels string) float64 {
		v, err := value(r, name, labels)
		if err != nil {
			t.Error(err)
		}
		return v
	}
	if got := metric("plenum_ingest_rows_total", "duplicate"); got != 30 {
		t.Errorf("plenum_ingest_rows_total{result=duplicate} is %v, want 30", got)
	}
	if not, conflict := metric("plenum_ingest_rejects_total", "not_json"), metric("plenum_ingest_rejects_total", "conflict"); not != 10 || conflict != 3 {
		t.Errorf("rejects: %v not_json and %v conflict, want 10 and 3", not, conflict)
	}
	families, err := r.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

// partitionSQL makes a partition for the days around now, TABLE_p.
func partitionSQL(table string) string {
	day := time.Now().UTC().Truncate(24 * time.Hour)
	return fmt.Sprintf("create table if not exists %s partition of %s for values from ('%s+00') to ('%s+00')",
		pgx.Identifier{table + "_p"}.Sanitize(), pgx.Identifier{table}.Sanitize(),
		day.AddDate(0, 0, -1).Format("2006-01-02 15:04:05"), day.AddDate(0, 0, 3).Format("2006-01-02 15:04:05"))
}

// value is the counter of name with a label of that value.
func value(r *run, name, label string) (float64, error) {
	families, err := r.metrics.Gather()
	if err != nil {
		return 0, err
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue(), nil
			}
		}
	}
	return 0, fmt.Errorf("there is no %s with a label %q", name, label)
}
