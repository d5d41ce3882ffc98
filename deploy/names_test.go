package deploy_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"plenum/deploy"
)

// The documented metrics with their labels, histograms with the suffixes in use. A name that isn't here is no promise
// of the daemons, and nothing that somebody's night may hang on.
var documented = map[string][]string{
	"plenum_bluegreen_pending_rows":                nil,
	"plenum_build_info":                            nil,
	"plenum_feed_consumer_lag_batches":             {"consumer"},
	"plenum_feed_consumer_lag_seconds":             {"consumer"},
	"plenum_feed_dead_letters":                     {"consumer"},
	"plenum_ingest_account_rows":                   {"result"},
	"plenum_ingest_ack_delay_seconds_bucket":       {"le"},
	"plenum_ingest_batch_rows_bucket":              {"le"},
	"plenum_ingest_batch_rows_count":               nil,
	"plenum_ingest_batch_rows_sum":                 nil,
	"plenum_ingest_commit_duration_seconds_bucket": {"le"},
	"plenum_ingest_oldest_unacked_seconds":         nil,
	"plenum_ingest_received_rows_total":            nil,
	"plenum_ingest_rejects_total":                  {"code"},
	"plenum_ingest_rows_total":                     {"result"},
	"plenum_ingest_unacked_messages":               nil,
	"plenum_mqtt_connected":                        nil,
	"plenum_mqtt_messages_received_total":          nil,
	"plenum_mqtt_stalled_connections":              nil,
	"plenum_partition_actions_total":               {"action", "result", "table"},
	"plenum_partition_blocker_query_age_seconds":   {"action", "table"},
	"plenum_partition_index_drift":                 {"table"},
	"plenum_partition_retire_blocked":              {"reason", "table"},
	"plenum_partition_retention_paused_seconds":    {"table"},
	"plenum_partition_runway_seconds":              {"table"},
	"plenum_partitions":                            {"table"},
	"plenum_push_deliveries_total":                 {"consumer", "result"},
	"plenum_push_delivery_duration_seconds_bucket": {"consumer", "le"},
	"plenum_push_failing":                          {"consumer"},
	"plenum_push_rows_total":                       {"consumer"},
	"plenum_plan_findings":                         {"statement"},
	"plenum_ready":                                 nil,
	"plenum_sync_batch_duration_seconds_bucket":    {"le"},
	"plenum_sync_batch_duration_seconds_count":     nil,
	"plenum_sync_batch_duration_seconds_sum":       nil,
	"plenum_sync_lag_seconds":                      nil,
	"plenum_sync_pending_batches":                  nil,
	"plenum_sync_rows_processed_total":             nil,
	"plenum_sync_set_aside_batches":                nil,
}

func TestNamesOfTheFilesHere(t *testing.T) {
	t.Parallel()
	got, err := deploy.Names(".")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(documented, got); diff != "" {
		t.Errorf("rules and dashboard, documented -, named +:\n%s", diff)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	type found = map[string][]string
	for _, test := range []struct {
		expression string
		want       found
		fault      string
	}{
		{expression: `up{job="plenum_x"}`, want: found{}},
		{expression: `plenum_a`, want: found{"plenum_a": nil}},
		{expression: `plenum_a{}`, want: found{"plenum_a": nil}},
		{expression: `plenum_a{x="1", y=~"{(plenum_no", z!="\"", w!~'$v', job="j",}`, want: found{"plenum_a": {"w", "x", "y", "z"}}},
		{expression: "plenum_a[5m:1m] offset 1d # plenum_no{", want: found{"plenum_a": nil}},
		{expression: `sum by (x, instance) (rate(plenum_a{y="1"}[$__rate_interval])) / sum(plenum_b)`, want: found{"plenum_a": {"x", "y"}, "plenum_b": nil}},
		{expression: `sum(plenum_a) by(x) > 1 and max without (y) (plenum_b)`, want: found{"plenum_a": {"x"}, "plenum_b": {"y"}}},
		{expression: `plenum_a * on (x) group_left (y) plenum_b`, want: found{"plenum_a": {"x", "y"}, "plenum_b": {"x", "y"}}},
		{expression: `histogram_quantile(0.9, SUM BY (le) (rate(plenum_a_bucket{x="${x}"}[15m] offset 1d)))`, want: found{"plenum_a_bucket": {"le", "x"}}},
		{expression: `job:plenum_a:rate5m + my_plenum_a`, want: found{}},
		{expression: `{__name__="plenum_a"}`, fault: "__name__"},
		{expression: `sum(plenum_a`, fault: "partner"},
		{expression: `plenum_a{x="1")`, fault: "partner"},
	} {
		t.Run(test.expression, func(t *testing.T) {
			t.Parallel()
			got, err := deploy.Names(folder(t, test.expression))
			switch {
			case test.fault != "":
				if err == nil || !strings.Contains(err.Error(), test.fault) {
					t.Errorf("error %v, want %q", err, test.fault)
				}
			case err != nil:
				t.Error(err)
			default:
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestNamesOfNothingIsAnError(t *testing.T) {
	t.Parallel()
	if got, err := deploy.Names(t.TempDir()); err == nil {
		t.Errorf("an empty folder names %v", got)
	}
}

// folder makes a folder like this one, with one rule, and the same expression deep in a dashboard.
func folder(t *testing.T, expression string) string {
	t.Helper()
	quoted, err := json.Marshal(expression) // a JSON string is a YAML one too
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, content := range map[string]string{
		"prometheus/rules/a.yml":    "groups: [{name: a, rules: [{alert: A, expr: " + string(quoted) + "}]}]",
		"grafana/dashboards/a.json": `{"panels": [{"panels": [{"targets": [{"expr": ` + string(quoted) + `}]}]}]}`,
	} {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
