package store_test

import (
	"bytes"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

// A full quarantine still takes a reject's code, detail and topic, drops its bytes and counts them; measuring what is
// there decides again.
func TestQuarantineBound(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	reg := prometheus.NewRegistry()
	reject := telemetry.Reject{Code: telemetry.NotJSON, Detail: "why", Topic: "telemetry/d", Raw: bytes.Repeat([]byte("x"), 60_000)}
	write := func(w *store.Writer, n int) {
		t.Helper()
		rejects := make([]telemetry.Reject, n)
		for i := range rejects {
			rejects[i] = reject
		}
		if _, err := w.Write(h.ctx, &telemetry.Batch{Rejects: rejects}); err != nil {
			t.Fatal(err)
		}
	}
	kept := func() int64 {
		t.Helper()
		return value[int64](h, `select count(payload) from telemetry_quarantine where code = 'not_json' and detail = 'why' and topic = 'telemetry/d'`)
	}

	w, q := h.writer(), store.NewQuarantine(h.pool, 300_000, reg)
	w.Bound(q)
	if err := q.Measure(h.ctx); err != nil {
		t.Fatal(err)
	}
	empty, _, _ := q.Full()
	if empty >= 100_000 {
		t.Fatalf("an empty quarantine has %d bytes", empty)
	}
	write(w, 10)
	want(h, "lines", value[int64](h, `select count(*) from telemetry_quarantine`), 10)
	want(h, "payloads", kept(), (300_000-empty)/60_000)
	want(h, "payloads that are not whole", value[int64](h, `select count(*) from telemetry_quarantine where length(payload) <> 60000`), 0)
	want(h, "dropped", counter(t, reg, "plenum_quarantine_payloads_dropped_total"), float64(10-kept()))

	// What others add is found by measuring.
	write(h.writer(), 200)
	if err := q.Measure(h.ctx); err != nil {
		t.Fatal(err)
	}
	measured, _, _ := q.Full()
	want(h, "bytes measured", measured, value[int64](h, `select sum(pg_total_relation_size(inhrelid))::bigint from pg_inherits where inhparent = 'telemetry_quarantine'::regclass`))
	if measured <= empty {
		t.Errorf("%d bytes are measured, %d were there before", measured, empty)
	}
	small := store.NewQuarantine(h.pool, measured, prometheus.NewRegistry())
	if err := small.Measure(h.ctx); err != nil {
		t.Fatal(err)
	}
	if used, allowed, full := small.Full(); !full || used != allowed {
		t.Errorf("%d bytes of %d are used, full: %v", used, allowed, full)
	}
}

func counter(t *testing.T, g prometheus.Gatherer, name string) (total float64) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				total += m.GetCounter().GetValue()
			}
		}
	}
	return total
}
