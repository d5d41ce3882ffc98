package program

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// kept is an app on a database with Plenum's tables and their premade days.
type kept struct {
	*testing.T
	*App
	today time.Time
}

func newKept(t *testing.T) *kept {
	t.Helper()
	s, err := source{args: []string{"--database.url", devtest.Database(t), "--mqtt.brokers", "tcp://127.0.0.1:1"}}.load(t)
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewApp(t.Context(), "test", s, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	if _, _, err := MigrateUp(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	k := &kept{t, a, time.Now().UTC().Truncate(24 * time.Hour)}
	k.round(partman.CreateLoop)
	return k
}

func (k *kept) round(loop partman.Loop) {
	k.Helper()
	m, err := newManager(&App{Settings: k.Settings, Log: k.Log, Registry: prometheus.NewRegistry(), owner: k.owner})
	if err != nil {
		k.Fatal(err)
	}
	if _, err := m.RunOnce(k.Context(), loop); err != nil {
		k.Fatal(err)
	}
}

func (k *kept) exec(sql string) {
	k.Helper()
	if _, err := k.owner.Exec(k.Context(), sql); err != nil {
		k.Fatalf("%s: %v", sql, err)
	}
}

// leaf is a table's partition, n days from today.
func (k *kept) leaf(table string, n int) string {
	return table + "_p" + k.today.AddDate(0, 0, n).Format("20060102")
}

// plans are the findings, ordered.
func (k *kept) plans() []string {
	k.Helper()
	found, err := findPlans(k.Context(), k.owner)
	if err != nil {
		k.Fatal(err)
	}
	words := []string{}
	for _, f := range found {
		words = append(words, f.String())
	}
	slices.Sort(words)
	return words
}

func (k *kept) wantPlans(when string, want ...string) {
	k.Helper()
	if diff := cmp.Diff(append([]string{}, want...), k.plans()); diff != "" {
		k.Errorf("%s:\n%s", when, diff)
	}
}

// dropIDIndex takes the index on id from some days. That of the table goes with it, and comes back on the other days.
func (k *kept) dropIDIndex(days ...int) {
	k.Helper()
	k.exec("drop index telemetry_id_idx; create index telemetry_id_idx on only telemetry (id)")
	for n := range 5 {
		if !slices.Contains(days, n) {
			k.exec(fmt.Sprintf("create index %[1]s_id_idx on %[1]s (id); alter index telemetry_id_idx attach partition %[1]s_id_idx", k.leaf("telemetry", n)))
		}
	}
}

// rows inserts n rows, of one device each 1,000, into today.
func (k *kept) rows(n int) {
	k.Helper()
	k.exec(fmt.Sprintf(`insert into telemetry (id, recorded_at, seq, device_id, kind, payload)
		select i, now() + i * interval '1 ms', i, 'd' || i / 1000, 'k', '{}' from generate_series(%[1]d * 10, %[1]d * 11 - 1) i`, n))
}

// Whatever a partition holds, and whatever is known of it, its indexes are found; the one that is lost is named.
func TestPlansAtEachSize(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	today, tomorrow := k.leaf("telemetry", 0), k.leaf("telemetry", 1)
	k.wantPlans("days without rows")
	for _, n := range []int{10, 3000, 100000} {
		k.rows(n)
		k.wantPlans(fmt.Sprint(n, " rows more, and no statistics"))
		k.exec("analyze telemetry")
		k.wantPlans(fmt.Sprint(n, " rows more"))
	}
	k.dropIDIndex(0, 1)
	k.wantPlans("without the index on id",
		"feed_rows: sequential scan of "+today+": no index on id", "feed_rows: sequential scan of "+tomorrow+": no index on id",
		"feed_run: sequential scan of "+today+": no index on id", "feed_run: sequential scan of "+tomorrow+": no index on id",
		"mark: sequential scan of "+today+": no index on id", "mark: sequential scan of "+tomorrow+": no index on id")
	k.round(partman.HealthLoop)
	k.wantPlans("repaired")
}

func TestPlansNameWhatIsLost(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		harm func(k *kept)
		want func(k *kept) []string
	}{
		"an invalid index on id": {
			func(k *kept) {
				k.exec("update pg_index set indisvalid = false where indexrelid = '" + k.leaf("telemetry", 0) + "_id_idx'::regclass")
			},
			func(k *kept) []string {
				leaf := k.leaf("telemetry", 0)
				what := fmt.Sprintf("sequential scan of %s: the index %[1]s_id_idx on id is invalid", leaf)
				return []string{"feed_rows: " + what, "feed_run: " + what, "mark: " + what}
			},
		},
		"the index of the readings' identity": {
			func(k *kept) { k.exec("drop index " + k.leaf("telemetry", 0) + "_identity_idx") },
			func(k *kept) []string {
				return []string{"duplicates: sequential scan of " + k.leaf("telemetry", 0) + ": no index on device_id"}
			},
		},
		"the ledger's index of pending lines": {
			func(k *kept) { k.exec("drop index telemetry_batch_pending_idx") },
			func(k *kept) (all []string) {
				for n := range 5 {
					all = append(all, "claim: sequential scan of "+k.leaf("telemetry_batch", n)+": no index on batch_id")
				}
				for n := range 5 {
					all = append(all, "position: sequential scan of "+k.leaf("telemetry_batch", n)+": no index on batch_id")
				}
				return all
			},
		},
		"the ledger's index of positions": {
			func(k *kept) { k.exec("drop index telemetry_batch_feed_position_idx") },
			func(k *kept) (all []string) {
				for n := range 5 {
					all = append(all, "feed_lines: sequential scan of "+k.leaf("telemetry_batch", n)+": no index on feed_position")
				}
				return all
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKept(t)
			c.harm(k)
			k.wantPlans(name, c.want(k)...)
			found, err := findSlowPlans(t.Context(), k.App)
			if err != nil || len(found) == 0 || !strings.Contains(c.want(k)[0], found[0].Subject) {
				t.Errorf("the doctor finds %v, %v", found, err)
			}
		})
	}
}

// The guard warns once, names relation, column and statement, ends the warning after the repair, keeps what it knows while a lock
// keeps it from looking, and looks again while the partition manager misses an index.
func TestPlanGuard(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	core, logs := observer.New(zap.InfoLevel)
	reg := prometheus.NewRegistry()
	g := newPlanGuard(k.owner, zap.New(core), reg)
	var drifts atomic.Bool
	g.drifts = drifts.Load
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.run(ctx)
	}()
	defer func() {
		stop()
		<-done
	}()
	await := func(want int) {
		t.Helper()
		devtest.Eventually(t, func() error {
			if fs := g.check(ctx); len(fs) != want {
				return fmt.Errorf("readiness has %v, want %d", fs, want)
			}
			return nil
		})
	}
	leaf := k.leaf("telemetry", 1)
	k.dropIDIndex(1)
	g.wake()
	await(3)
	for _, f := range g.check(ctx) {
		if f.Failing || f.Component != "plans" || !strings.Contains(f.Message, leaf+": no index on id") {
			t.Errorf("%+v", f)
		}
	}
	all := map[string]float64{"claim": 0, "duplicates": 0, "feed_lines": 0, "feed_rows": 1, "feed_run": 1, "mark": 1, "position": 0}
	if diff := cmp.Diff(all, planMetrics(t, reg)); diff != "" {
		t.Error(diff)
	}

	tx, err := k.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }() // where the test has failed
	if _, err := tx.Exec(ctx, "lock table telemetry"); err != nil {
		t.Fatal(err)
	}
	await(4) // and that it cannot look
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	k.round(partman.HealthLoop)
	await(0)
	if n := planMetrics(t, reg)["mark"]; n != 0 {
		t.Errorf("the metric of mark is %v after the repair", n)
	}
	for _, message := range []string{"no index serves a statement that runs all day", "the statement is served by an index again"} {
		entries := logs.FilterMessage(message).FilterField(zap.String("relation", leaf)).FilterField(zap.String("column", "id"))
		if entries.Len() != 3 { // mark, feed_rows and feed_run, once each
			t.Errorf("%q is logged %d times: %v", message, entries.Len(), logs.All())
		}
	}

	drifts.Store(true) // the partition manager knows before it acts, and nobody wakes the guard
	k.dropIDIndex(1)
	await(3)
}

// The partition manager's actions wake the guard, and what it knows of indexes keeps it looking.
func TestPlanGuardHearsOfActions(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	m, g, err := newGuardedManager(&App{Settings: k.Settings, Log: k.Log, Registry: prometheus.NewRegistry(), owner: k.owner})
	if err != nil {
		t.Fatal(err)
	}
	<-g.woken // for the look at the start
	round := func(loop partman.Loop, woken int, drifts bool) {
		t.Helper()
		if _, err := m.RunOnce(t.Context(), loop); err != nil {
			t.Fatal(err)
		}
		if len(g.woken) != woken || g.drifts() != drifts {
			t.Errorf("woken %d, drifts %t; want %d, %t", len(g.woken), g.drifts(), woken, drifts)
		}
	}
	round(partman.CreateLoop, 0, false)
	k.dropIDIndex(1)
	round(partman.CreateLoop, 0, true)
	round(partman.HealthLoop, 1, false)
}

// planMetrics are the values of plenum_plan_findings by statement.
func planMetrics(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			values[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	return values
}
