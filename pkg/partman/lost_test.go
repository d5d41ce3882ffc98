package partman_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"plenum/pkg/partman"
)

// TestLostConnection ends the session that acts after each statement and hook of each kind of plan, and before
// and after each commit: the action stops there, its lock is free, the error says what happened to which partition, and
// another manager goes on from there.
func TestLostConnection(t *testing.T) {
	t.Parallel()
	for title, c := range crashCases() {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, nil, c.policy, archive())
			c.harm(h)
			a := h.first(c.kind)
			before := h.census()
			h.pool.Close()
			walked := h.copy(h.pool.Config().ConnConfig.Database + "_walked")
			lost := walked.walk(a)
			walked.goOn("the walk")
			walked.compare("the walk", before, c.in)
			for n, p := range a.Points() {
				if slices.Contains(lost, words(p)) {
					continue
				}
				one := h.copy(fmt.Sprintf("%s_lost_%d", h.pool.Config().ConnConfig.Database, n))
				one.loseAt(p)
				one.goOn(name(p))
				one.compare(name(p), before, c.in)
			}
		})
	}
}

// words are what a point has in every plan of its action, also in one that goes on from a half.
func words(p partman.Point) string {
	s := p.Action.Statements[p.Statement]
	sql, _, _ := strings.Cut(s.SQL, " is '") // a mark holds the plan's instant
	return fmt.Sprintf("%s %s%s", p.Moment, sql, s.Hook)
}

// walk loses the session at one point after the other, each time of the action as it is planned then, and returns which
// those were. What was not committed has not happened: the same is planned again. Only of ANALYZE the statistics keep the
// time although its transaction is lost, and the next one is a day later.
func (h *house) walk(a partman.Action) (lost []string) {
	h.t.Helper()
	for {
		now, ok := h.again(a)
		next := slices.IndexFunc(now.Points(), func(p partman.Point) bool { return !slices.Contains(lost, words(p)) })
		if !ok || next < 0 {
			return lost
		}
		p := now.Points()[next]
		h.loseAt(p)
		lost = append(lost, words(p))
		lasts := func(s partman.Statement) bool { return s.Tx > 1 || s.Tx == 0 && s.Hook != partman.HookPrepare }
		if p.Moment != partman.AfterCommit && a.Kind != partman.Analyze && !slices.ContainsFunc(now.Statements[:p.Statement+1], lasts) {
			after, _ := h.again(a)
			compareValue(h.t, len(now.Statements), len(after.Statements))
		}
	}
}

// again is the action as it is planned now.
func (h *house) again(a partman.Action) (partman.Action, bool) {
	h.t.Helper()
	plan := h.planned()
	n := slices.IndexFunc(plan.Actions, func(b partman.Action) bool { return a.Kind == b.Kind && a.Partition == b.Partition })
	if n < 0 {
		return partman.Action{}, false
	}
	return plan.Actions[n], true
}

// loseAt has a manager do a round in which the acting session is ended at the point.
func (h *house) loseAt(p partman.Point) {
	h.t.Helper()
	var once sync.Once
	cfg := h.cfg
	lost := false
	cfg.Step = func(_ context.Context, q partman.Point) {
		if name(q) != name(p) {
			return
		}
		once.Do(func() {
			lost = true
			if n := h.number("select count(*) filter (where pg_terminate_backend(pid, 60000)) from (" + actingSQL + ") acting"); n != 1 {
				h.t.Errorf("at %q %d sessions had the lock", name(p), n)
			}
		})
	}
	m, _ := h.manager(cfg)
	r, err := m.RunOnce(h.ctx, p.Action.Loop())
	if !lost {
		h.t.Fatalf("the round did not come to %q: %v", name(p), err)
	}
	points := p.Action.Points()
	at := slices.IndexFunc(points, func(q partman.Point) bool { return name(q) == name(p) })
	where := p.Action.Partition
	if at+1 == len(points) {
		where = "give back the partition lock" // the action is done
	}
	if err == nil || !contains(err.Error(), p.Action.Table) || !contains(err.Error(), where) {
		h.t.Fatalf("at %q the error does not say where: %v", name(p), err)
	}
	if !contains(err.Error(), "terminating connection") && !contains(err.Error(), "unexpected EOF") && !contains(err.Error(), "conn closed") {
		h.t.Errorf("at %q the error does not say what happened: %v", name(p), err)
	}
	done := slices.ContainsFunc(r.Done, func(a partman.Action) bool {
		return a.Kind == p.Action.Kind && a.Partition == p.Action.Partition && a.From.Equal(p.Action.From) && a.Kind != partman.Reindex
	})
	if done && at+1 < len(points) {
		h.t.Errorf("at %q the action went on: %v", name(p), err)
	}
	if n := h.number("select count(*) from (" + actingSQL + ") acting"); n != 0 {
		h.t.Errorf("after %q %d sessions have the lock", name(p), n)
	}
}

// actingSQL finds the session that acts: it has the loop's advisory lock.
const actingSQL = `
select pid from pg_locks
 where locktype = 'advisory' and granted and database = (select oid from pg_database where datname = current_database())`

// planned is the table's plan.
func (h *house) planned() partman.Plan {
	h.t.Helper()
	plan, err := h.m.Plan(h.ctx, "telemetry")
	if err != nil {
		h.t.Fatal(err)
	}
	return plan
}
