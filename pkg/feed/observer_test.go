package feed_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/feed"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func TestLagOfEachConsumer(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	reg := prometheus.NewPedanticRegistry()
	o := feed.NewObserver(d.pool, zap.NewNop(), reg)
	observe := func(want map[string]float64) map[string]float64 {
		t.Helper()
		if err := o.RunOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
		batches, seconds := gauges(t, reg, "plenum_feed_consumer_lag_batches"), gauges(t, reg, "plenum_feed_consumer_lag_seconds")
		if fmt.Sprint(batches) != fmt.Sprint(want) || len(seconds) != len(want) {
			t.Errorf("lag %v batches, %v seconds; want %v batches", batches, seconds, want)
		}
		return seconds
	}
	observe(map[string]float64{})
	first := d.add(1)
	d.add(2, 3)
	d.read(feed.Request{Name: "a"}, 0, 6)
	d.read(feed.Request{Name: "b"}, 0, 6)
	d.commit("b", first)
	d.read(feed.Request{Name: "c", From: "latest"}, 6, 0)
	seconds := observe(map[string]float64{"a": 3, "b": 2, "c": 0})
	if !(seconds["a"] > seconds["b"] && seconds["b"] > 0 && seconds["c"] == 0) {
		t.Errorf("lag in seconds %v, want a > b > 0 and c 0", seconds)
	}
	d.exec("delete from feed_consumer where name = 'a'")
	observe(map[string]float64{"b": 2, "c": 0})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

func gauges(t *testing.T, reg *prometheus.Registry, name string) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			values[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	return values
}

func TestObserverGoesOnWithoutADatabase(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.pool.Close()
	core, logs := observer.New(zap.WarnLevel)
	o := feed.NewObserver(d.pool, zap.New(core), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.Run(ctx)
	}()
	devtest.Eventually(t, func() error {
		if logs.Len() == 0 {
			return fmt.Errorf("nothing logged")
		}
		return nil
	})
	cancel()
	<-done
}
