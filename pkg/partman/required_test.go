package partman_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// needing is live with indexes that the table cannot do without.
func needing() partman.Policy {
	p := live()
	p.Indexes[0].Required = true
	p.Indexes = append(p.Indexes, partman.Index{Name: "id_idx", Columns: []string{"id"}, OnParent: true, Required: true})
	return p
}

// TestRequiredIndexIsRepairedAtOnce: long before the health loop's next turn it is a finding that names leaf and index, and the
// repair has begun; here it waits for a transaction. It begins anew only for what is missing anew.
func TestRequiredIndexIsRepairedAtOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		harm func(h *house)
		say  string
	}{
		"one leaf's, dropped":  {func(h *house) { h.exec("drop index " + h.partition() + "_identity") }, `index "identity" of the policy is missing; `},
		"one leaf's, invalid":  {func(h *house) { h.invalidate(h.partition() + "_id_idx") }, `for index "telemetry_id_idx" of the table is invalid; `},
		"dropped with its own": {func(h *house) { h.exec("drop index telemetry_id_idx") }, `index "id_idx" of the policy is missing; `},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, func(c *partman.Config) {
				c.CreateEvery, c.HealthEvery, c.RetireEvery, c.LookEvery = time.Hour, time.Hour, time.Hour, 10*time.Millisecond
			}, needing(), archive())
			h.oldDay(1, 10)
			h.once(partman.CreateLoop)
			ctx, cancel := context.WithCancel(h.ctx)
			ended := make(chan error)
			go func() { ended <- h.m.Run(ctx) }()
			devtest.Eventually(t, func() error {
				if h.metric("plenum_partition_actions_total", "action=analyze", "result=done", "table=telemetry") < 1 || len(h.m.Status()) != 2 {
					return errors.New("the first rounds are not over")
				}
				return nil
			})
			old := h.begin("old snapshot", "set transaction isolation level repeatable read; select count(*) from partition_policy")
			c.harm(h)
			devtest.Eventually(t, func() error {
				told := false
				for _, f := range h.status() {
					told = told || f.Partition == h.partition() && contains(f.Detail, c.say) && contains(f.Detail, "scan")
				}
				if !told {
					return fmt.Errorf("it is no finding: %+v", h.status())
				}
				if h.number("select count(*) from pg_stat_activity where pid <> pg_backend_pid() and wait_event_type = 'Lock' and query like '% concurrently %'") == 0 {
					return errors.New("the repair has not begun")
				}
				return nil
			})
			h.rollback(old)
			devtest.Eventually(t, func() error {
				found, err := h.m.Check(h.ctx)
				if err != nil {
					return err
				}
				if len(found) != 0 {
					return errors.New(found[0].String())
				}
				for _, f := range h.status() {
					return errors.New("still told: " + f.String())
				}
				return nil
			})
			if n := h.number("select count(*) from pg_inherits where inhparent = 'telemetry_id_idx'::regclass"); n != 4 {
				t.Errorf("%d leaves' indexes are attached to the table's, want 4", n)
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLaterLookCounts has a loop come late with what it saw before an index was dropped, and another one has told of that.
func TestLaterLookCounts(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, needing(), archive())
	h.once(partman.CreateLoop)
	h.once(partman.HealthLoop)
	look := func() partman.Snapshot {
		t.Helper()
		s, err := h.m.Inspect(h.ctx, needing())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := look()
	h.exec("drop index " + h.partition() + "_identity")
	h.m.Observe(needing(), look())
	h.m.Observe(needing(), before)
	if len(h.status()) == 0 {
		t.Error("the finding is forgotten")
	}
}

// TestRequiredIndexThatCannotBeBuilt does not begin a build each time that Run looks.
func TestRequiredIndexThatCannotBeBuilt(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *partman.Config) {
		c.CreateEvery, c.HealthEvery, c.RetireEvery, c.LookEvery = time.Hour, time.Hour, time.Hour, time.Millisecond
	}, needing(), archive())
	h.once(partman.CreateLoop)
	h.once(partman.HealthLoop)
	h.exec("drop index " + h.partition() + "_identity")
	h.exec("insert into telemetry (device_id, kind, recorded_at, seq) select 'x', 'y', 'epoch', 1 from generate_series(1, 2)")
	ctx, cancel := context.WithCancel(h.ctx)
	ended := make(chan error)
	go func() { ended <- h.m.Run(ctx) }()
	failed := func() float64 {
		return h.metric("plenum_partition_actions_total", "action=index", "result=failed", "table=telemetry")
	}
	devtest.Eventually(t, func() error {
		if failed() < 1 {
			return errors.New("no build has failed")
		}
		return nil
	})
	for range 200 { // while Run looks about as often
		h.once(partman.CreateLoop)
	}
	if n := failed(); n > 2 {
		t.Errorf("%v builds have failed; one of the first round, and one of the first look, are to be expected", n)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestRequiredFirst: the newest leaf's required index before all other repairs.
func TestRequiredFirst(t *testing.T) {
	t.Parallel()
	s := snapshot(days("2026-11-20", 5)...)
	for n := range s.Partitions {
		s.Partitions[n].Indexes = s.Partitions[n].Indexes[:2] // without the identity
		s.Partitions[n].Options = nil
	}
	var got []string
	for _, a := range partman.NewPlan(needing(), s, at("2026-11-22T10:00:00Z")).Actions {
		got = append(got, string(a.Kind)+" "+strings.TrimPrefix(a.Partition, "telemetry_p202611"))
	}
	compareValue(t, []string{
		"index 24", "index 23", "index 22", "index 21", "index 20", "storage 20", "storage 21", "storage 22", "storage 23", "storage 24",
	}, got)
}

// TestIndexOfAPerson: whatever a person does to an index, each leaf, old or new, ends with what the parent and the policy
// declare, valid and attached, and what is nobody's but the person's is left alone.
func TestIndexOfAPerson(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		harm func(h *house)
		own  string // an index that is there afterwards
	}{
		"on the parent":                {func(h *house) { h.exec("create index by_kind on telemetry (kind)") }, "by_kind"},
		"on only the parent":           {func(h *house) { h.exec("create index by_kind on only telemetry (kind)") }, "by_kind"},
		"concurrently on one leaf":     {func(h *house) { h.exec("create index concurrently by_kind on " + h.partition() + " (kind)") }, "by_kind"},
		"the declared one on one leaf": {func(h *house) { h.exec("create index concurrently mine on " + h.partition() + " (id)") }, "mine"},
		"the declared one on one leaf, left invalid": {func(h *house) {
			h.exec("create index mine on " + h.partition() + " (id)")
			h.invalidate("mine")
		}, "telemetry_id_idx"},
		"dropped from the parent": {func(h *house) { h.exec("drop index telemetry_id_idx") }, "telemetry_id_idx"},
		"dropped, and made anew on only the parent": {func(h *house) {
			h.exec("drop index telemetry_id_idx; create index other on only telemetry (id)")
		}, "other"},
		"dropped from a leaf": {func(h *house) { h.exec("drop index " + h.partition() + "_identity") }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, nil, needing(), archive())
			name := h.oldDay(1, 10)
			h.once(partman.CreateLoop)
			h.once(partman.HealthLoop)
			h.exec("drop table telemetry_p" + h.today.AddDate(0, 0, 2).Format("20060102"))
			c.harm(h)
			h.once(partman.CreateLoop) // a new leaf
			for range 2 {
				h.once(partman.HealthLoop)
			}
			h.clean()
			if n := h.number("select count(*) from pg_index where not indisvalid"); n != 0 {
				t.Errorf("%d invalid indexes", n)
			}
			if c.own != "" && h.number("select count(*) from pg_class where relname = $1", c.own) != 1 {
				t.Errorf("%q is gone", c.own)
			}
			if got := h.once(partman.HealthLoop); len(got.Done) != 0 {
				t.Errorf("a further round did %s", kinds(got))
			}
			// An id is found by index in the oldest leaf as in the newest.
			for _, leaf := range []string{name, "telemetry_p" + h.today.AddDate(0, 0, 2).Format("20060102")} {
				if n := h.number("select count(*) from pg_index where indrelid = $1::regclass and pg_get_indexdef(indexrelid) like '%USING btree (id)'", leaf); n != 1 {
					t.Errorf("%s has %d indexes on id", leaf, n)
				}
			}
		})
	}
}

// TestRequiredIndexAfterALookThatFailed: a look that finds an index gone and then cannot inspect the table has told nobody; the next
// one does.
func TestRequiredIndexAfterALookThatFailed(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, needing(), archive())
	h.once(partman.CreateLoop)
	h.once(partman.HealthLoop)
	look := func(fails bool) {
		t.Helper()
		if err := h.m.Look(h.ctx); (err != nil) != fails {
			t.Fatalf("the look says %v", err)
		}
	}
	look(false)
	h.exec("drop index " + h.partition() + "_identity")
	h.exec("alter table telemetry rename column last_modified to elsewhere")
	look(true)
	h.exec("alter table telemetry rename column elsewhere to last_modified")
	look(false)
	for _, f := range h.status() {
		if f.Partition == h.partition() && contains(f.Detail, `index "identity" of the policy is missing; `) {
			return
		}
	}
	t.Errorf("readiness has only %v", h.status())
}
