package partman_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// TestOverdue: what is due is a finding only when it has been due for more than an hour, counted from the first midnight
// at which it was; what plainly cannot go is one at once.
func TestOverdue(t *testing.T) {
	t.Parallel()
	odd := leaf("telemetry_p20261113", at("2026-11-13T18:30:00Z"))
	detached := snapshot(days("2026-11-15", 12)...)
	detached.Detached = []partman.Detached{{Schema: "public", Name: "telemetry_p20261113", At: at("2026-11-21T09:00:00Z")}}
	shared := snapshot(days("2026-11-14", 11)...)
	shared.Archive.Partitions = days("2026-11-14", 1)
	for name, c := range map[string]struct {
		policy partman.Policy
		now    string
		s      partman.Snapshot
		want   string
	}{
		"an hour":        {live(), "2026-11-22T01:00:00Z", snapshot(days("2026-11-14", 11)...), ""},
		"a moment more":  {live(), "2026-11-22T01:00:00.000001Z", snapshot(days("2026-11-14", 11)...), "telemetry_p20261114: ends before 2026-11-15 and is due since 2026-11-22T00:00:00Z"},
		"a day":          {live(), "2026-11-23T00:00:00Z", snapshot(days("2026-11-14", 12)...), "telemetry_p20261114: ends before 2026-11-16 and is due since 2026-11-22T00:00:00Z"},
		"odd bounds":     {live(), "2026-11-22T00:30:00Z", snapshot(append([]partman.Partition{odd}, days("2026-11-15", 10)...)...), ""},
		"cannot":         {live(), "2026-11-22T00:00:00Z", shared, `telemetry_p20261114: ends before 2026-11-15 and is due since 2026-11-22T00:00:00Z; cannot go: the archive has these bounds already, in "telemetry_p20261114"`},
		"grace":          {dropping(), "2026-11-22T08:00:00Z", detached, ""},
		"grace over":     {dropping(), "2026-11-22T10:00:00Z", detached, ""},
		"grace long ago": {dropping(), "2026-11-22T10:00:01Z", detached, "telemetry_p20261113: detached at 2026-11-21T09:00:00Z and due to be dropped since 2026-11-22T09:00:00Z"},
	} {
		var got []string
		for _, f := range partman.Check(c.policy, c.s, at(c.now)) {
			if f.Code == partman.PastRetention || f.Code == partman.Leftover {
				got = append(got, f.String())
			}
		}
		if strings.Join(got, "\n") != c.want {
			t.Errorf("%s: found %q, want %q", name, got, c.want)
		}
	}
}

// TestStray: a day that the archive detached keeps the live table's name, and is no stray; one that only says so is.
func TestStray(t *testing.T) {
	t.Parallel()
	var later atomic.Int64
	h := newHouse(t, func(c *partman.Config) {
		c.Now = func(now time.Time) time.Time { return now.Add(time.Duration(later.Load())) }
	}, live(), archive())
	name := h.oldDay(8, 10)
	h.once(partman.RetireLoop)
	later.Store(int64(100 * 24 * time.Hour))
	h.acceptClock()
	if got := kinds(h.once(partman.RetireLoop)); got != "[detach]" {
		t.Fatalf("the archive's round did %s", got)
	}
	h.once(partman.CreateLoop)
	for _, st := range h.m.Status() {
		for _, f := range st.Findings {
			if f.Partition == name {
				t.Errorf("finding %s of %s: %s", f.Code, st.Table, f)
			}
		}
	}
	h.exec("comment on table " + name + ` is 'partman detached {"schema":"public"}'`)
	if found := h.find(partman.Stray); len(found) != 1 || found[0].Partition != name {
		t.Errorf("findings %+v, want the stray %s", found, name)
	}
}

// status returns the findings of telemetry in the manager's memory, but those of coverage and of who is in the way just now.
func (h *house) status() []partman.Finding {
	h.t.Helper()
	var found []partman.Finding
	for _, st := range h.m.Status() {
		for _, f := range st.Findings {
			if st.Table == "telemetry" && f.Code != partman.NoCurrent && f.Code != partman.FewPremade && f.Code != partman.Missing && f.Code != partman.Waiting {
				found = append(found, f)
			}
		}
	}
	return found
}

// TestRefusalIsAFinding: at once, by partition, with the guard's words, in Status and Check of that manager; it takes the
// place of the finding that says less an hour later, and ends when the day has gone, whoever moved it.
func TestRefusalIsAFinding(t *testing.T) {
	t.Parallel()
	var later atomic.Int64
	h := newHouse(t, func(c *partman.Config) {
		c.Now = func(now time.Time) time.Time {
			return now.UTC().Truncate(24 * time.Hour).Add(time.Duration(later.Load()))
		}
		c.Guard = func(context.Context, pgx.Tx, partman.Retiring) error {
			return fmt.Errorf("asked: %w", &partman.Blocked{Reason: "consumer", Detail: "x at 12"})
		}
	}, live(), archive())
	name := h.oldDay(8, 10)
	h.once(partman.CreateLoop)
	if found := h.status(); len(found) != 0 {
		t.Errorf("before the first try: %v", found)
	}
	want := fmt.Sprintf("%s: ends before %s and is due since %s; refused: consumer: x at 12", name,
		h.today.AddDate(0, 0, -7).Format(time.DateOnly), h.today.Format(time.RFC3339))
	for _, passed := range []time.Duration{time.Second, 2 * time.Hour} {
		later.Store(int64(passed))
		h.once(partman.RetireLoop)
		for source, found := range map[string][]partman.Finding{"status": h.status(), "check": h.find(partman.PastRetention)} {
			if len(found) != 1 || found[0].String() != want || found[0].Refused.Reason != "consumer" || found[0].Broken {
				t.Errorf("after %s, %s: %v, want %s", passed, source, found, want)
			}
		}
	}
	cfg := h.cfg
	cfg.Guard = nil
	other, _ := h.manager(cfg)
	found, err := other.Check(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if f.Refused != nil {
			t.Errorf("a manager that has asked no guard knows its words: %s", f)
		}
	}
	if r, err := other.RunOnce(h.ctx, partman.RetireLoop); err != nil || kinds(r) != "[archive]" {
		t.Fatalf("the other did %s: %v", kinds(r), err)
	}
	h.once(partman.CreateLoop) // any look will do
	if found := h.status(); len(found) != 0 {
		t.Errorf("after the day has gone: %v", found)
	}
}

// TestFailureIsAFinding: so is a lock that was not had, with who had it, of moving as of dropping; the next try that
// succeeds ends it.
func TestFailureIsAFinding(t *testing.T) {
	t.Parallel()
	p := dropping()
	p.Grace = time.Microsecond
	h := newHouse(t, func(c *partman.Config) { c.Tries = 2 }, p)
	name := h.oldDay(8, 10)
	for _, c := range []struct {
		code partman.Code
		lock string
		say  string
		done string
	}{
		{partman.PastRetention, "lock table telemetry in access share mode", "and is due since", "[detach]"},
		{partman.Leftover, "lock table " + name + " in access share mode", "and due to be dropped since", "[drop]"},
	} {
		holder := h.begin("holder", c.lock)
		if _, err := h.m.RunOnce(h.ctx, partman.RetireLoop); err == nil {
			t.Fatalf("a round beside %q went well", c.lock)
		}
		found := h.status()
		if len(found) != 1 {
			t.Fatalf("findings %v, want one %s", found, c.code)
		}
		f := found[0]
		if f.Code != c.code || f.Partition != name || len(f.Blockers) == 0 || f.Blockers[0].Application != "holder" {
			t.Errorf("finding %+v", f)
		}
		for _, part := range []string{name + ": ", c.say, "; failed: ", "no lock after 2 tries", `application "holder"`} {
			if !contains(f.String(), part) {
				t.Errorf("%q is missing in: %s", part, f)
			}
		}
		h.rollback(holder)
		// With a grace of nothing, what is detached may be dropped in the same round: one action each.
		plan, err := h.m.Plan(h.ctx, "telemetry")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range plan.Actions {
			if a.Kind == partman.Detach || a.Kind == partman.Drop {
				plan.Actions = []partman.Action{a}
			}
		}
		if r, err := h.m.Apply(h.ctx, plan); err != nil || kinds(r) != c.done {
			t.Fatalf("apply did %s: %v", kinds(r), err)
		}
		h.once(partman.CreateLoop) // any look will do
		if found := h.status(); len(found) != 0 {
			t.Errorf("afterwards: %v", found)
		}
	}
}

// TestFaultsAreFindings: an action that fails is told with its partition, a round that comes to none with its loop; each
// ends with the next round that goes well.
func TestFaultsAreFindings(t *testing.T) {
	t.Parallel()
	h := kept(t)
	if found := h.status(); len(found) != 0 {
		t.Fatalf("to begin with: %v", found)
	}
	h.exec("drop index " + h.partition() + "_identity")
	h.exec("insert into telemetry (device_id, kind, recorded_at, seq) select 'x', 'y', 'epoch', 1 from generate_series(1, 2)")
	if _, err := h.m.RunOnce(h.ctx, partman.HealthLoop); sqlState(err) != "23505" {
		t.Fatalf("the build of a unique index over two equal rows: %v", err)
	}
	told := func() (text []string) {
		for _, f := range h.status() {
			if f.Code == partman.Failed {
				text = append(text, f.String())
			}
		}
		return text
	}
	got := told()
	if len(got) != 1 || !strings.HasPrefix(got[0], h.partition()+": index failed: ") || contains(got[0], "\n") {
		t.Errorf("the failed build: %q", got)
	}
	h.exec("delete from telemetry where device_id = 'x'")
	h.once(partman.HealthLoop)
	if got = told(); len(got) != 0 {
		t.Errorf("after the build: %q", got)
	}

	h.exec("alter table telemetry rename to away")
	for _, loop := range []partman.Loop{partman.CreateLoop, partman.RetireLoop} {
		if _, err := h.m.RunOnce(h.ctx, loop); err == nil {
			t.Fatalf("the %s round without the table went well", loop)
		}
	}
	got = told()
	if len(got) != 2 || !contains(got[0], `create round failed: inspect table "public.telemetry"`) || !strings.HasPrefix(got[1], "retire round failed: ") {
		t.Errorf("without the table: %q", got)
	}
	h.exec("alter table away rename to telemetry")
	h.once(partman.CreateLoop)
	if got = told(); len(got) != 1 || !strings.HasPrefix(got[0], "retire ") {
		t.Errorf("after the create round: %q", got)
	}
}

// TestLogNamesThePartition where there is one, and has no empty field where there is none.
func TestLogNamesThePartition(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.InfoLevel)
	h := newHouse(t, func(c *partman.Config) { c.Log = zap.New(core) }, live())
	ctx, cancel := context.WithCancel(h.ctx)
	ended := make(chan error)
	h.once(partman.CreateLoop) // so that the first health round has a table to analyze
	h.exec("drop table " + h.partition())
	go func() { ended <- h.m.Run(ctx) }()
	of := func(kind partman.Kind) *observer.ObservedLogs {
		return logs.FilterMessage("partition action done").FilterField(zap.String("action", string(kind)))
	}
	devtest.Eventually(t, func() error {
		if of(partman.Create).Len() == 0 || of(partman.Analyze).Len() == 0 {
			return errors.New("not both are logged")
		}
		return nil
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := of(partman.Create).All()[0].ContextMap()["partition"]; got != h.partition() {
		t.Errorf("partition %v of a creation, want %s", got, h.partition())
	}
	if got, there := of(partman.Analyze).All()[0].ContextMap()["partition"]; there {
		t.Errorf("partition %v of what is on no partition", got)
	}
}
