package endtoend

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/deploy"
	"plenum/internal/devenv/devtest"
)

var (
	metricLine = regexp.MustCompile(`(?m)^(plenum_[a-z_]+)(\{[^}]*\})? (\S+)$`)
	labelName  = regexp.MustCompile(`([a-z_]+)="`)
)

// metric returns the value of a series as /metrics writes it, 0 where it is not there.
func (p *process) metric(series string) float64 {
	p.t.Helper()
	_, body, _ := p.get("/metrics")
	for _, m := range metricLine.FindAllStringSubmatch(body, -1) {
		if m[1]+m[2] == series {
			v, err := strconv.ParseFloat(m[3], 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

// contractMetrics are the metrics that operators rely on, and a label of each that has one.
var contractMetrics = map[string]string{
	"plenum_build_info": "version", "plenum_mqtt_messages_received_total": "", "plenum_mqtt_connected": "",
	"plenum_ingest_rows_total": "result", "plenum_ingest_unacked_messages": "", "plenum_ingest_batch_rows_count": "",
	"plenum_ingest_commit_duration_seconds_count": "", "plenum_ingest_ack_delay_seconds_count": "",
	"plenum_sync_rows_processed_total": "", "plenum_sync_batch_duration_seconds_count": "", "plenum_sync_pending_batches": "",
	"plenum_sync_set_aside_batches": "", "plenum_sync_lag_seconds": "",
	"plenum_feed_consumer_lag_batches": "consumer", "plenum_feed_consumer_lag_seconds": "consumer",
	"plenum_partition_runway_seconds": "table", "plenum_partitions": "table", "plenum_partition_actions_total": "action",
	"plenum_partition_index_drift": "table", "plenum_partition_retire_blocked": "reason",
	"plenum_bluegreen_pending_rows": "",
}

// watch scrapes the daemons and keeps every series name, and name with label, that was ever above zero.
func watch(moved map[string]bool, daemons ...*process) {
	for _, p := range daemons {
		_, body, _ := p.get("/metrics")
		for _, m := range metricLine.FindAllStringSubmatch(body, -1) {
			if v, err := strconv.ParseFloat(m[3], 64); err != nil || v <= 0 {
				continue
			}
			moved[m[1]] = true
			for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
				moved[m[1]+" "+l[1]] = true
			}
		}
	}
}

// TestMetrics moves every metric of the contract, and finds every metric and label that the alert rules and the
// dashboard name.
func TestMetrics(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.ingest().awaitReady().terminate()
	s.leaveTrouble()
	ingest := s.ingest().awaitReady()
	moved := map[string]bool{}
	until := func(names []string, daemons ...*process) {
		t.Helper()
		devtest.Eventually(t, func() error {
			watch(moved, daemons...)
			for _, name := range names {
				if !moved[name] {
					return fmt.Errorf("%s does not move", name)
				}
			}
			return nil
		})
	}
	until([]string{"plenum_partition_retire_blocked reason", "plenum_partition_index_drift table"}, ingest)

	s.legacy(10)
	s.expect()(0, "the new tables are built", initOrders...)
	s.exec("update orders set processed = true")
	held := s.hold(`lock table telemetry in access exclusive mode`)
	s.publish("telemetry/cmp-1", append(generated(300), "no JSON"))
	until([]string{"plenum_ingest_unacked_messages"}, ingest)
	held()

	devtest.Eventually(t, func() error {
		if n := s.count("telemetry_batch where source <> 'reconcile'"); n == 0 {
			return fmt.Errorf("nothing is stored")
		}
		return nil
	})
	s.exec(`delete from telemetry where id = (select first_id from telemetry_batch where source <> 'reconcile' order by batch_id limit 1)`)
	s.publish("telemetry/cmp-2", generated(10))
	var last int64
	devtest.Eventually(t, func() error {
		return s.query(`select max(batch_id) from telemetry_batch b where exists (select from telemetry t where t.device_id = 'cmp-2' and t.id between b.first_id and b.last_id)
			having max(batch_id) is not null`, nil, &last)
	})
	held = s.hold(`select from telemetry_batch where batch_id = ` + strconv.FormatInt(last, 10) + ` for update`)
	syncjob := s.syncjob("PLENUM_PUSH=[{name: pushed, webhook: {url: " + newEndpoint(t).URL + "}}]").awaitReady()
	(&reader{t: t, from: syncjob, name: "committed"}).readOnce()
	if code, body, _ := syncjob.get("/api/v1/feed/behind?from=earliest"); code != 200 {
		t.Fatalf("feed answers %d: %s", code, body)
	}
	until([]string{"plenum_sync_set_aside_batches", "plenum_sync_pending_batches", "plenum_sync_lag_seconds"}, ingest, syncjob)
	held()
	var all []string
	for name, label := range contractMetrics {
		all = append(all, strings.TrimSpace(name+" "+label))
	}
	slices.Sort(all)
	until(all, ingest, syncjob)
	namedByDeploy(t, ingest, syncjob)
}

// namedByDeploy finds each metric and label that deploy/ names in what the daemons expose.
func namedByDeploy(t *testing.T, daemons ...*process) {
	t.Helper()
	named, err := deploy.Names("../../deploy")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, p := range daemons {
		_, body, _ := p.get("/metrics")
		for _, m := range metricLine.FindAllStringSubmatch(body, -1) {
			there[m[1]] = true
			for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
				there[m[1]+" "+l[1]] = true
			}
		}
	}
	for name, labels := range named {
		for _, label := range append(labels, "") {
			if key := strings.TrimSpace(name + " " + label); strings.HasPrefix(name, "plenum_") && !there[key] {
				t.Errorf("deploy/ names %q, which no daemon has", key)
			}
		}
	}
}

// leaveTrouble leaves, in the absence of both daemons, a day past its retention with an unprocessed row, and today's
// leaf without its identity index, which duplicates keep from being built.
func (s *system) leaveTrouble() {
	s.t.Helper()
	old := time.Now().UTC().AddDate(0, 0, -20).Truncate(24 * time.Hour)
	bounds := fmt.Sprintf("for values from ('%s+00') to ('%s+00')", old.Format(time.DateTime), old.AddDate(0, 0, 1).Format(time.DateTime))
	s.exec("create table telemetry_old partition of telemetry " + bounds)
	s.exec(fmt.Sprintf("create table telemetry_batch_old partition of telemetry_batch for values from ('%s') to ('%s')",
		old.Format(time.DateOnly), old.AddDate(0, 0, 1).Format(time.DateOnly)))
	s.exec("alter table telemetry_old owner to plenum_owner")
	s.exec("alter table telemetry_batch_old owner to plenum_owner")
	const row = "insert into telemetry (last_modified, recorded_at, device_id, kind, payload) values ($1, '2026-01-01', 'by hand', 'x', '{}')"
	s.exec(row, old)
	today := time.Now().UTC()
	s.exec(fmt.Sprintf("drop index telemetry_p%s_identity_idx", today.Format("20060102")))
	s.exec(row, today)
	s.exec(row, today)
}

// hold begins a transaction with a statement; what is returned ends it.
func (s *system) hold(sql string) (release func()) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.postgres.URL(s.database))
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := conn.Exec(s.t.Context(), "begin; "+sql); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	return func() {
		if err := conn.Close(context.Background()); err != nil {
			s.t.Error(err)
		}
	}
}
