package partman_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

func (h *house) pause(table string) {
	h.t.Helper()
	if err := partman.Pause(h.ctx, h.pool, "public", "public", table, "bluegreen", "it is passive"); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) resume(table string) {
	h.t.Helper()
	if err := partman.Resume(h.ctx, h.pool, "public", "public", table, "bluegreen"); err != nil {
		h.t.Fatal(err)
	}
}

// TestPause: of a paused table nothing is archived, detached or dropped; days are made, indexes repaired and rounds written
// down as ever. It is told, and ends with Resume.
func TestPause(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		policy partman.Policy
		due    func(h *house)
		want   string
		code   partman.Code
	}{
		"archive": {live(), func(h *house) { h.oldDay(8, 10) }, "[archive]", partman.PastRetention},
		"detach":  {dropping(), func(h *house) { h.oldDay(8, 10) }, "[detach]", partman.PastRetention},
		"drop":    {dropping(), (*house).dropDue, "[drop]", partman.Leftover},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, nil, c.policy, archive())
			c.due(h)
			h.pause("telemetry")
			h.exec("update partition_policy set paused_at = paused_at - interval '1 hour', last_run = null")
			if got := kinds(h.once(partman.RetireLoop)); got != "[]" {
				t.Fatalf("a round of the paused table did %s", got)
			}
			h.exec("drop table if exists telemetry_p" + h.today.AddDate(0, 0, 1).Format("20060102"))
			if got := kinds(h.once(partman.CreateLoop)); got == "[]" {
				t.Error("no day was made")
			}
			h.exec("drop index " + h.partition() + "_identity")
			if got := kinds(h.once(partman.HealthLoop)); !contains(got, "index") {
				t.Errorf("the round of health did %s", got)
			}
			told := slices.ContainsFunc(h.find(c.code), func(f partman.Finding) bool {
				return contains(f.Detail, "; cannot go: retiring is paused by bluegreen since 20") && contains(f.Detail, ": it is passive")
			})
			if !told {
				t.Errorf("no finding %s names the pause: %v", c.code, h.find(c.code))
			}
			h.tellsPause(true)
			last, err := partman.LastRun(h.ctx, h.pool, "public", "public", "telemetry")
			if err != nil || time.Since(last).Abs() > time.Hour {
				t.Errorf("the last round was at %s: %v", last, err)
			}
			h.resume("telemetry")
			if got := kinds(h.once(partman.RetireLoop)); got != c.want {
				t.Errorf("once resumed the round did %s, want %s", got, c.want)
			}
			h.tellsPause(false)
		})
	}
}

// tellsPause compares what list, status and metrics say of table telemetry, after a round.
func (h *house) tellsPause(paused bool) {
	h.t.Helper()
	list, err := h.m.List(h.ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, l := range list {
		if said := l.Paused != nil; l.State != partman.Due && said != (paused && l.Table == "telemetry") {
			h.t.Errorf("%s is listed as paused: %t", l.Partition, said)
		}
	}
	for _, s := range h.m.Status() {
		if said := s.Paused != nil && s.Paused.By == "bluegreen"; said != (paused && s.Table == "telemetry") {
			h.t.Errorf("the status of %s says that it is paused: %t", s.Table, said)
		}
	}
	blocked, seconds := h.metric("plenum_partition_retire_blocked", "reason=paused", "table=telemetry"),
		h.metric("plenum_partition_retention_paused_seconds", "table=telemetry")
	if paused && (blocked != 1 || seconds < 3600) || !paused && (blocked != -1 || seconds != 0) {
		h.t.Errorf("paused %t: the metrics say %v blocked, for %v s", paused, blocked, seconds)
	}
	if n := h.metric("plenum_partition_retention_paused_seconds", "table=telemetry_archive"); n != 0 {
		h.t.Errorf("the other table has been paused for %v s", n)
	}
}

// TestPauseIsItsOwners: it is kept when paused again and when somebody else pauses or resumes, and not forgotten by Unregister.
func TestPauseIsItsOwners(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live())
	at := func() int64 { return h.number("select extract(epoch from paused_at)::bigint from partition_policy") }
	h.resume("telemetry") // nothing
	h.pause("telemetry")
	h.exec("update partition_policy set paused_at = paused_at - interval '1 hour'")
	first := at()
	h.pause("telemetry")
	if again := at(); again != first {
		t.Errorf("paused again, it began at %d, before at %d", again, first)
	}
	if err := partman.Pause(h.ctx, h.pool, "public", "public", "telemetry", "anna", ""); !errors.Is(err, partman.ErrPaused) || !contains(err.Error(), "by bluegreen since") {
		t.Errorf("another's pause was replaced: %v", err)
	}
	if err := partman.Resume(h.ctx, h.pool, "public", "public", "telemetry", "anna"); !errors.Is(err, partman.ErrPaused) {
		t.Errorf("another's pause was ended: %v", err)
	}
	if _, err := partman.Unregister(h.ctx, h.pool, "public", "public", "telemetry"); err == nil || !contains(err.Error(), "it would be forgotten") {
		t.Errorf("the pause was forgotten: %v", err)
	}
	if _, err := partman.Register(h.ctx, h.pool, "public", dropping()); err != nil {
		t.Fatal(err)
	}
	if at() != first {
		t.Error("another policy has ended the pause")
	}
	if err := partman.Resume(h.ctx, h.pool, "public", "public", "telemetry", ""); err != nil {
		t.Fatal(err)
	}
	if err := partman.Pause(h.ctx, h.pool, "public", "public", "telemetry", "", ""); err != nil {
		t.Fatal(err)
	}
	if n := h.number("select count(*) from partition_policy where paused_by = current_user and paused_at > now() - interval '1 minute'"); n != 1 {
		t.Error("who pauses and does not say who he is is not the role")
	}
	for what, err := range map[string]error{
		"pause":  partman.Pause(h.ctx, h.pool, "public", "public", "nowhere", "anna", ""),
		"resume": partman.Resume(h.ctx, h.pool, "public", "public", "nowhere", ""),
	} {
		if !errors.Is(err, partman.ErrUnknownTable) {
			t.Errorf("%s of a table without a policy: %v", what, err)
		}
	}
	if _, err := partman.LastRun(h.ctx, h.pool, "public", "public", "nowhere"); !errors.Is(err, partman.ErrUnknownTable) {
		t.Errorf("the last round of a table without a policy: %v", err)
	}
	if last, err := partman.LastRun(h.ctx, h.pool, "public", "public", "telemetry"); err != nil || !last.IsZero() {
		t.Errorf("before the first round the last was at %s: %v", last, err)
	}
}

// TestPauseWinsUnderTheLock: one that comes after the plan keeps the day, even while the guard looks or the drop has its lock.
func TestPauseWinsUnderTheLock(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		policy partman.Policy
		due    func(h *house)
	}{
		"archive": {live(), func(h *house) { h.oldDay(8, 10) }},
		"detach":  {dropping(), func(h *house) { h.oldDay(8, 10) }},
		"drop":    {dropping(), (*house).dropDue},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var h *house
			var armed atomic.Bool
			h = newHouse(t, func(cfg *partman.Config) {
				cfg.Step = func(_ context.Context, p partman.Point) {
					hook := p.Action.Statements[p.Statement].Hook // under the lock, before the last look
					if armed.Load() && p.Moment == partman.AfterStatement && (hook == partman.HookGuard || hook == partman.HookDetached) {
						h.pause("telemetry")
					}
				}
			}, c.policy, archive())
			c.due(h)
			armed.Store(true)
			r := h.once(partman.RetireLoop)
			if len(r.Done) != 0 || len(r.Refused) != 1 || r.Refused[0].Blocked.Reason != "paused" {
				t.Errorf("the round did %s, refused %+v", kinds(r), r.Refused)
			}
			if n := h.metric("plenum_partition_retire_blocked", "reason=paused", "table=telemetry"); n != 1 {
				t.Errorf("%v blocked in the metric, want 1", n)
			}
		})
	}
}

// TestPauseWaitsForTheCommit of what has looked already: once it has returned nothing leaves any more.
func TestPauseWaitsForTheCommit(t *testing.T) {
	t.Parallel()
	var h *house
	paused := make(chan error, 1)
	h = newHouse(t, func(c *partman.Config) {
		c.Step = func(ctx context.Context, p partman.Point) {
			if p.Moment != partman.BeforeCommit || p.Action.Kind != partman.Detach {
				return
			}
			go func() { paused <- partman.Pause(ctx, h.pool, "public", "public", "telemetry", "anna", "") }()
			devtest.Eventually(t, func() error {
				if h.number("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'") == 0 {
					return errors.New("the pause does not wait for the commit")
				}
				return nil
			})
		}
	}, dropping())
	h.oldDay(8, 10)
	if got := kinds(h.once(partman.RetireLoop)); got != "[detach]" {
		t.Errorf("the round did %s", got)
	}
	if err := <-paused; err != nil {
		t.Error(err)
	}
}

// TestPauseKeepsAShorterLockTimeout: in a transaction that was begun for less, no statement waits longer afterwards.
func TestPauseKeepsAShorterLockTimeout(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live())
	for set, want := range map[string]string{"40ms": "40ms", "0": "1s", "2min": "1s"} {
		tx := h.begin("caller", "set local lock_timeout = '"+set+"'")
		if err := partman.Pause(h.ctx, tx, "public", "public", "telemetry", "anna", ""); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := tx.QueryRow(h.ctx, "show lock_timeout").Scan(&got); err != nil || got != want {
			t.Errorf("lock_timeout %s has become %s, want %s: %v", set, got, want, err)
		}
		h.rollback(tx)
	}
	if n := h.number("select count(paused_at) from partition_policy"); n != 0 {
		t.Error("the pause did not end with the caller's transaction")
	}
}

// TestPauseWrittenByHand: one without a name, or for ever, is one.
func TestPauseWrittenByHand(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	h.oldDay(8, 10)
	for _, at := range []string{"infinity", "-infinity", "2999-01-01"} {
		h.exec("update partition_policy set paused_at = $1::text::timestamptz where table_name = 'telemetry'", at)
		if got := kinds(h.once(partman.RetireLoop)); got != "[]" {
			t.Errorf("paused at %s: the round did %s", at, got)
		}
		if n := h.metric("plenum_partition_retention_paused_seconds", "table=telemetry"); n < 0 {
			t.Errorf("paused at %s: for %v s", at, n)
		}
	}
	h.once(partman.CreateLoop)
}
