package program

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/zap"

	"plenum/pkg/feed"
	"plenum/pkg/syncjob"
)

// Both daemons' metrics in one registry, as in the demo: no name twice, and each as Prometheus' conventions want it.
func TestMetrics(t *testing.T) {
	t.Parallel()
	s, err := source{args: []string{"--database.url", "postgres://127.0.0.1:1/none", "--mqtt.brokers", "tcp://127.0.0.1:1"}}.load(t)
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewApp(t.Context(), "test", s, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	manager, err := newManager(a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newPath(a, manager, newPlanGuard(a.owner, a.Log, a.Registry)); err != nil {
		t.Fatal(err)
	}
	if _, err := syncjob.New(s.sync(), a.pool, a.Log, a.Registry); err != nil {
		t.Fatal(err)
	}
	feed.NewObserver(a.pool, a.Log, a.Registry)
	feed.NewListener(a.feed, a.Log, a.Registry)
	if _, err := newPushing(a, a.Log); err != nil {
		t.Fatal(err)
	}
	families, err := a.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
	}
	for _, want := range []string{
		"plenum_build_info", "plenum_mqtt_messages_received_total", "plenum_mqtt_connected", "plenum_ingest_rows_total",
		"plenum_ingest_unacked_messages", "plenum_ingest_batch_rows", "plenum_ingest_commit_duration_seconds", "plenum_ingest_ack_delay_seconds",
		"plenum_sync_rows_processed_total", "plenum_sync_batch_duration_seconds", "plenum_sync_pending_batches",
		"plenum_sync_set_aside_batches", "plenum_sync_lag_seconds", "plenum_plan_findings", "plenum_bluegreen_pending_rows",
	} {
		if !names[want] {
			t.Errorf("there is no %s", want)
		}
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "plenum_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}
