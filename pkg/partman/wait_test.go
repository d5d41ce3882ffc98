package partman_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// waiting returns the findings of code waiting.
func waiting(m *partman.Manager) []partman.Finding {
	var found []partman.Finding
	for _, st := range m.Status() {
		for _, f := range st.Findings {
			if f.Code == partman.Waiting {
				found = append(found, f)
			}
		}
	}
	return found
}

// inBackground runs a round; the function that it returns waits for its end.
func (h *house) inBackground(m *partman.Manager, loop partman.Loop) func() (partman.Result, error) {
	type end struct {
		r   partman.Result
		err error
	}
	done := make(chan end, 1)
	go func() {
		r, err := m.RunOnce(h.ctx, loop)
		done <- end{r, err}
	}()
	return func() (partman.Result, error) {
		e := <-done
		return e.r, e.err
	}
}

// blocked expects a look at the partitions to say that the application is in the way of one, and of no other.
func (h *house) blocked(m *partman.Manager, partition, application string) error {
	list, err := m.List(h.ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	there := false
	for _, l := range list {
		if l.Partition == partition {
			if there = true; len(l.BlockedBy) != 1 || l.BlockedBy[0].Application != application {
				return errors.New("the list says that " + partition + " is blocked by " + l.Partition)
			}
		} else if len(l.BlockedBy) != 0 {
			h.t.Errorf("%s is blocked by %v, and nothing of it is due", l.Partition, l.BlockedBy)
		}
	}
	if !there {
		h.t.Fatalf("%s is not in the list %v", partition, list)
	}
	return nil
}

// TestBlockerIsNamedWhileItWaits in the log, once, in the status, in the metric and, by any other process, in the list; for
// each kind of action that tries again. When the session ends, the action is done and nobody is named.
func TestBlockerIsNamedWhileItWaits(t *testing.T) {
	t.Parallel()
	soon := dropping()
	soon.Grace = time.Microsecond
	for name, c := range map[string]struct {
		policies []partman.Policy
		loop     partman.Loop
		prepare  func(h *house) (partition, hold string)
	}{
		"create": {[]partman.Policy{live(), archive()}, partman.CreateLoop, func(h *house) (string, string) {
			h.once(partman.CreateLoop)
			last := "telemetry_p" + h.today.AddDate(0, 0, 2).Format("20060102")
			h.exec("drop table " + last)
			return last, "lock table only telemetry in share update exclusive mode"
		}},
		"archive": {[]partman.Policy{live(), archive()}, partman.RetireLoop, func(h *house) (string, string) {
			old := h.oldDay(8, 10)
			h.once(partman.CreateLoop)
			return old, "select count(*) from telemetry"
		}},
		"detach": {[]partman.Policy{soon}, partman.RetireLoop, func(h *house) (string, string) {
			old := h.oldDay(8, 10)
			h.once(partman.CreateLoop)
			return old, "select count(*) from telemetry"
		}},
		"drop": {[]partman.Policy{soon}, partman.RetireLoop, func(h *house) (string, string) {
			name := h.oldDay(8, 10)
			plan, err := h.m.Plan(h.ctx, "telemetry")
			if err != nil {
				h.t.Fatal(err)
			}
			plan.Actions = plan.Actions[len(plan.Actions)-2 : len(plan.Actions)-1]
			if _, err := h.m.Apply(h.ctx, plan); err != nil {
				h.t.Fatal(err)
			}
			return name, "lock table " + name + " in access share mode"
		}},
		"storage": {[]partman.Policy{live(), archive()}, partman.HealthLoop, func(h *house) (string, string) {
			h.once(partman.CreateLoop)
			h.once(partman.HealthLoop)
			h.exec("alter table " + h.partition() + " reset (fillfactor)")
			return h.partition(), "lock table " + h.partition() + " in share mode"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			core, logs := observer.New(zap.WarnLevel)
			h := newHouse(t, func(c *partman.Config) { c.Log, c.Tries, c.LookEvery = zap.New(core), 10_000, 20*time.Millisecond }, c.policies...)
			partition, hold := c.prepare(h)
			holder := h.begin("analyst", hold)
			end := h.inBackground(h.m, c.loop)
			devtest.Eventually(t, func() error {
				if len(waiting(h.m)) == 0 {
					return errors.New("nobody waits")
				}
				return nil
			})
			f := waiting(h.m)[0]
			if b := f.Blockers[0]; f.Partition != partition || len(f.Blockers) != 1 || b.PID != int32(holder.Conn().PgConn().PID()) ||
				b.Application != "analyst" || b.State != "idle in transaction" || b.QueryAge <= 0 {
				t.Errorf("finding %+v", f)
			}
			for _, part := range []string{name + " waits for pid ", `application "analyst"`, "idle in transaction", "query age "} {
				if !contains(f.Detail, part) {
					t.Errorf("%q is missing in: %s", part, f.Detail)
				}
			}
			if age := h.metric("plenum_partition_blocker_query_age_seconds", "action="+name, "table=telemetry"); age <= 0 {
				t.Errorf("metric %v", age)
			}
			other, _ := h.manager(h.cfg)
			if err := h.blocked(other, partition, "analyst"); err != nil {
				t.Error(err)
			}
			if c.loop != partman.CreateLoop {
				if got := kinds(h.once(partman.CreateLoop)); got != created(10) && got != created(3) && got != "[]" {
					t.Errorf("meanwhile the create loop did %s", got)
				}
			}
			h.rollback(holder)
			if r, err := end(); err != nil || len(r.Done) == 0 || string(r.Done[0].Kind) != name {
				t.Errorf("afterwards the round did %s: %v", kinds(r), err)
			}
			if found := waiting(h.m); len(found) != 0 {
				t.Errorf("afterwards %v", found)
			}
			if age := h.metric("plenum_partition_blocker_query_age_seconds", "action="+name, "table=telemetry"); age != 0 {
				t.Errorf("metric afterwards %v", age)
			}
			lines := logs.FilterMessage("partition action waits").All()
			if len(lines) != 1 || lines[0].ContextMap()["partition"] != partition || lines[0].ContextMap()["action"] != name {
				t.Errorf("log %v", lines)
			}
		})
	}
}

// TestBlockerIsForgotten between two rounds, soon after it has gone, though the next try is far off.
func TestBlockerIsForgotten(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *partman.Config) {
		c.Tries, c.RetireEvery, c.LookEvery = 1, time.Hour, 10*time.Millisecond
	}, live(), archive())
	h.oldDay(8, 10)
	holder := h.begin("analyst", "select count(*) from telemetry")
	ctx, cancel := context.WithCancel(h.ctx)
	ended := make(chan error)
	go func() { ended <- h.m.Run(ctx) }()
	gauge := func() float64 {
		return h.metric("plenum_partition_blocker_query_age_seconds", "action=archive", "table=telemetry")
	}
	devtest.Eventually(t, func() error {
		if gauge() <= 0 || len(waiting(h.m)) != 1 {
			return errors.New("nobody is named")
		}
		return nil
	})
	first := gauge()
	devtest.Eventually(t, func() error {
		if gauge() <= first {
			return errors.New("the age does not grow")
		}
		return nil
	})
	h.rollback(holder)
	devtest.Eventually(t, func() error {
		if gauge() != 0 || len(waiting(h.m)) != 0 {
			return errors.New("it is named still")
		}
		return nil
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestBuildNamesTheSnapshot for which it waits, while it waits.
func TestBuildNamesTheSnapshot(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.WarnLevel)
	h := kept(t)
	h.cfg.Log = zap.New(core)
	h.m, h.registry = h.manager(h.cfg)
	h.exec("drop index " + h.partition() + "_identity")
	analyst := h.begin("analyst", "set transaction isolation level repeatable read; select count(*) from telemetry")
	end := h.inBackground(h.m, partman.HealthLoop)
	devtest.Eventually(t, func() error {
		if found := waiting(h.m); len(found) != 1 || found[0].Blockers[0].Application != "analyst" || found[0].Blockers[0].State != "idle in transaction" {
			return errors.New("nobody is named")
		}
		return nil
	})
	if age := h.metric("plenum_partition_blocker_query_age_seconds", "action=index", "table=telemetry"); age <= 0 {
		t.Errorf("metric %v", age)
	}
	h.exec("insert into telemetry default values")
	h.rollback(analyst)
	if r, err := end(); err != nil || kinds(r) != "[index]" {
		t.Errorf("the repair did %s: %v", kinds(r), err)
	}
	if found := waiting(h.m); len(found) != 0 {
		t.Errorf("afterwards %v", found)
	}
	told := 0
	for _, e := range logs.FilterMessage("partition action waits").All() {
		switch fields := fmt.Sprint(e.ContextMap()); {
		case contains(fields, `application "analyst"`):
			told++
		case !contains(fields, `application "test"`): // for a moment a statement of this test is waited for too
			t.Errorf("somebody else is named: %s", fields)
		}
	}
	if told != 1 {
		t.Errorf("%d log lines name the analyst: %v", told, logs.All())
	}
	h.clean()
}
