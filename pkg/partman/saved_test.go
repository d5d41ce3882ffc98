package partman_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"plenum/pkg/partman"
)

func again(t *testing.T, plan partman.Plan) (read partman.Plan) {
	t.Helper()
	text, err := json.Marshal(plan)
	if err == nil {
		err = json.Unmarshal(text, &read)
	}
	if err != nil {
		t.Fatal(err)
	}
	return read
}

// TestSavedPlan: a plan that was JSON is done as it was, whatever kind of action is in it, and not once the catalog differs.
func TestSavedPlan(t *testing.T) {
	t.Parallel()
	p := live()
	p.Retention = 2
	h := newHouse(t, nil, p)
	old := h.oldDay(5, 3)
	h.once(partman.CreateLoop)
	today := "telemetry_p" + h.today.Format("20060102")
	h.exec("drop index " + today + "_identity; drop index " + old + "_identity; alter table " + today + " set (fillfactor = 90); create index on only telemetry (seq)")
	plan, err := h.m.Plan(h.ctx, "telemetry")
	if err != nil {
		t.Fatal(err)
	}
	read := again(t, plan)
	r, err := h.m.Apply(h.ctx, read)
	if err != nil || len(r.Done) != len(plan.Actions) || len(r.Done) < 7 {
		t.Errorf("%d of %d actions done: %v", len(r.Done), len(plan.Actions), err)
	}
	if left, err := h.m.Plan(h.ctx, "telemetry"); err != nil || len(left.Actions) > 0 {
		t.Errorf("left to do:\n%s%v", left, err)
	}
	if _, err := h.m.Apply(h.ctx, read); !errors.Is(err, partman.ErrChanged) {
		t.Errorf("applied twice: %v", err)
	}
}

// TestSavedPlanKeepsItsLoop: the repair of a partition past retention is the retire loop's also after it was JSON, so that
// it waits for a round of that loop, here of another table.
func TestSavedPlanKeepsItsLoop(t *testing.T) {
	t.Parallel()
	p := orders()
	p.Retention, p.Expired = 1, partman.ExpiredDrop
	h := newHouse(t, nil, live(), p)
	old := h.oldDay(20, 3)
	h.exec("drop index " + old + "_identity")
	plan, err := h.m.Plan(h.ctx, "telemetry")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range plan.Actions {
		if a.Kind == partman.Reindex {
			plan.Actions = []partman.Action{a}
		}
	}
	h.exec(ordersTable + `create table "Shop".old partition of "Shop"."Orders" for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')`)
	inside, leave, done := make(chan struct{}), make(chan struct{}), make(chan error)
	cfg := h.cfg
	cfg.Prepare = func(_ context.Context, r partman.Retiring) error {
		if r.Table == p.Table {
			close(inside)
			<-leave
		}
		return nil
	}
	busy, _ := h.manager(cfg)
	go func() {
		_, err := busy.RunOnce(h.ctx, partman.RetireLoop)
		done <- err
	}()
	<-inside
	if _, err := h.m.Apply(h.ctx, again(t, plan)); !errors.Is(err, partman.ErrBusy) {
		t.Errorf("beside a round of the retire loop: %v", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPlanOfTheFuture: a file may say any time, and by a later one days of today would be past retention.
func TestPlanOfTheFuture(t *testing.T) {
	t.Parallel()
	p := dropping()
	h := newHouse(t, nil, p)
	h.once(partman.CreateLoop)
	s, err := partman.Inspect(h.ctx, h.pool, p)
	if err != nil {
		t.Fatal(err)
	}
	plan := partman.NewPlan(p, s, s.Now.AddDate(0, 0, 30))
	var leaving []partman.Action
	for _, a := range plan.Actions {
		if a.Kind == partman.Detach {
			leaving = append(leaving, a)
		}
	}
	plan.Actions = leaving
	if r, err := h.m.Apply(h.ctx, again(t, plan)); !errors.Is(err, partman.ErrChanged) || len(r.Done) > 0 || len(leaving) != 3 {
		t.Errorf("%d of %d days left: %v", len(r.Done), len(leaving), err)
	}
}
