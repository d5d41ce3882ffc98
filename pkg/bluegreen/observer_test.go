package bluegreen_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/zap/zaptest"

	"plenum/pkg/bluegreen"
)

func TestPendingRows(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain)
	reg := prometheus.NewPedanticRegistry()
	o, err := bluegreen.NewObserver(y.pool, "public", zaptest.NewLogger(t), reg)
	if err != nil {
		t.Fatal(err)
	}
	pending := func(want float64) {
		t.Helper()
		if err := o.RunOnce(y.ctx); err != nil {
			t.Fatal(err)
		}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		if name, got := families[0].GetName(), families[0].GetMetric()[0].GetGauge().GetValue(); name != "plenum_bluegreen_pending_rows" || got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
		if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
			t.Errorf("metrics: %v %v", problems, err)
		}
	}
	pending(0)
	y.init("orders")
	y.exec("update orders set processed = true where id <= 7")
	pending(7)
	if err := y.m.Abort(y.ctx); err != nil {
		t.Fatal(err)
	}
	pending(0)
}
