package partman_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"plenum/pkg/partman"
)

// TestClockInDoubt: how far the clock may be from the last round's and from the host's.
func TestClockInDoubt(t *testing.T) {
	t.Parallel()
	last := at("2026-11-22T10:00:00Z")
	forever := live()
	forever.Retention = 0
	for name, c := range map[string]struct {
		policy    partman.Policy
		last      time.Time
		gap, skew time.Duration
		want      string
	}{
		"no round before":         {live(), time.Time{}, 1000 * time.Hour, 0, ""},
		"two days":                {live(), last, 48 * time.Hour, 0, ""},
		"more than two days":      {live(), last, 48*time.Hour + 1, 0, "apply --accept-clock"},
		"five minutes back":       {live(), last, -5 * time.Minute, 0, ""},
		"further back":            {live(), last, -5*time.Minute - 1, 0, "apply --accept-clock"},
		"an hour ahead of host":   {live(), last, 0, time.Hour, ""},
		"more than an hour":       {live(), last, 0, time.Hour + 1, "1h0m0s ahead of this host's"},
		"behind the host":         {live(), last, 0, -2 * time.Hour, "2h0m0s behind this host's"},
		"nothing is ever retired": {forever, last, 1000 * time.Hour, 2 * time.Hour, ""},
	} {
		now := last.Add(c.gap)
		s := snapshot(days(now.AddDate(0, 0, -8).Format(time.DateOnly), 11)...)
		s.Record.LastRun, s.Skew = c.last, c.skew
		var got []string
		for _, f := range partman.Check(c.policy, s, now) {
			if f.Code == partman.ClockDoubt {
				got = append(got, f.Detail)
			}
		}
		if text := strings.Join(got, "\n"); (text == "") != (c.want == "") || !contains(text, c.want) {
			t.Errorf("%s: found %q, want %q", name, text, c.want)
		}
		retires := false
		for _, a := range partman.NewPlan(c.policy, s, now).Actions {
			retires = retires || a.Kind == partman.Move
		}
		if want := c.want == "" && c.policy.Retention > 0; retires != want {
			t.Errorf("%s: something retires: %t, want %t", name, retires, want)
		}
	}
}

// TestClockJump: while the clock cannot be right nothing leaves, whatever seems due, and days are created all the same; a
// person's word, or the clock set right again, ends it.
func TestClockJump(t *testing.T) {
	t.Parallel()
	for name, jump := range map[string]time.Duration{"forward": 72 * time.Hour, "backward": -72 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var off atomic.Int64
			h := newHouse(t, func(c *partman.Config) {
				c.Now = func(now time.Time) time.Time { return now.Add(time.Duration(off.Load())) }
			}, dropping(), archive())
			h.oldDay(6, 10) // due after the jump forward
			h.once(partman.CreateLoop)
			if got := kinds(h.once(partman.RetireLoop)); got != "[]" {
				t.Fatalf("the first round did %s", got)
			}
			h.exec("create table detached_day (like telemetry)")
			h.exec(`comment on table detached_day is 'partman detached {"schema":"public","table":"telemetry","from":"2020-01-01T00:00:00Z","to":"2020-01-02T00:00:00Z","at":"2020-02-01T00:00:00Z"}'`)
			off.Store(int64(jump))
			h.exec("drop table if exists telemetry_p" + h.today.Add(jump).Format("20060102"))
			for range 2 { // a round does not take the clock for right
				if got := kinds(h.once(partman.RetireLoop)); got != "[]" {
					t.Errorf("with a clock in doubt the round did %s", got)
				}
			}
			found := h.find(partman.ClockDoubt)
			if len(found) != 2 || !contains(found[0].Detail, "apply --accept-clock") || found[0].Broken {
				t.Errorf("findings %v, want the clock of both tables", found)
			}
			if found := append(h.find(partman.PastRetention), h.find(partman.Leftover)...); len(found) != 0 {
				t.Errorf("found to be due by a clock in doubt: %v", found)
			}
			if n := h.metric("plenum_partition_retire_blocked", "reason=clock", "table=telemetry"); n < 1 {
				t.Errorf("%v blocked by the clock in the metric", n)
			}
			if r := h.once(partman.CreateLoop); len(r.Done) == 0 {
				t.Error("no day was created")
			}
			plan, err := h.m.Plan(h.ctx, "telemetry")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.m.Apply(h.ctx, plan); err != nil || len(h.find(partman.ClockDoubt)) != 2 {
				t.Errorf("to apply a plan takes the clock for right: %v", err)
			}
			off.Store(0)
			if found := h.find(partman.ClockDoubt); len(found) != 0 {
				t.Errorf("with the clock set right again: %v", found)
			}
			off.Store(int64(jump))
			h.acceptClock()
			if r := h.once(partman.RetireLoop); len(r.Done) == 0 || len(h.find(partman.ClockDoubt)) != 0 {
				t.Errorf("with the clock accepted the round did %s, %v", kinds(r), h.find(partman.ClockDoubt))
			}
		})
	}
}

// TestClockOfTheHost: two clocks that differ stop retiring, and nobody's word makes them agree.
func TestClockOfTheHost(t *testing.T) {
	t.Parallel()
	var off atomic.Int64
	h := newHouse(t, func(c *partman.Config) {
		c.Host = func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
	}, live(), archive())
	h.oldDay(8, 10)
	off.Store(int64(-2 * time.Hour))
	if got := kinds(h.once(partman.RetireLoop)); got != "[]" {
		t.Errorf("the round did %s", got)
	}
	if err := h.m.AcceptClock(h.ctx, "telemetry"); err == nil || !contains(err.Error(), "ahead of this host's") {
		t.Errorf("the clock was accepted: %v", err)
	}
	off.Store(int64(-30 * time.Minute))
	if got := kinds(h.once(partman.RetireLoop)); got != "[archive]" {
		t.Errorf("half an hour apart: the round did %s", got)
	}
}
