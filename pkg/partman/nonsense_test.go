package partman_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"plenum/pkg/partman"
)

// TestRowsWrittenByHand: what a person has made of the row of one table costs that table its rounds and its findings say so;
// nothing of it leaves, and the other tables are kept.
func TestRowsWrittenByHand(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]string{
		"retention": "retention = -1", "premake": "premake = -2", "grace": "grace = '-1 day'", "step": "step = 'week'",
		"storage": `storage = '{"fillfactor": 50}'`, "indexes": "indexes = '{}'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, nil, live(), archive())
			h.oldDay(8, 10)
			h.once(partman.CreateLoop)
			before := h.census()
			h.exec("update partition_policy set " + set + " where table_name = 'telemetry'")
			for _, loop := range []partman.Loop{partman.CreateLoop, partman.RetireLoop, partman.HealthLoop} {
				r, err := h.m.RunOnce(h.ctx, loop)
				if err == nil || !contains(err.Error(), "partition_policy is no policy") || !contains(err.Error(), "partitions register --table public.telemetry") {
					t.Errorf("the %s round did %s: %v", loop, kinds(r), err)
				}
			}
			compareValue(t, before, h.census())
			if found := h.status(); len(slices.DeleteFunc(found, func(f partman.Finding) bool { return f.Code != partman.Failed })) != 3 {
				t.Errorf("findings %v", h.status())
			}
			if _, err := h.m.Check(h.ctx, "telemetry_archive"); err != nil {
				t.Errorf("the other table: %v", err)
			}
			if _, err := h.m.Check(h.ctx); err == nil {
				t.Error("a check of all finds nothing wrong")
			}
			if _, err := partman.Register(h.ctx, h.pool, "public", live()); err != nil {
				t.Fatal(err)
			}
			if got := kinds(h.once(partman.RetireLoop)); got != "[archive]" {
				t.Errorf("set right, the round did %s", got)
			}
		})
	}
}

// makesAndKeeps expects that days are made, and that the old one stays.
func (h *house) makesAndKeeps() {
	h.t.Helper()
	if got := kinds(h.once(partman.CreateLoop)); got != created(10) {
		h.t.Errorf("the create round did %s", got)
	}
	if got := kinds(h.once(partman.RetireLoop)); got != "[]" {
		h.t.Errorf("the retire round did %s", got)
	}
}

// TestRecordWrittenByHand: where holds cannot be read nothing leaves, and days are made.
func TestRecordWrittenByHand(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	h.oldDay(8, 10)
	h.exec("update partition_policy set held = '{}' where table_name = 'telemetry'")
	h.makesAndKeeps()
	if found := h.find(partman.ClockDoubt); len(found) != 1 || !contains(found[0].Detail, "column held") {
		t.Errorf("found %v", found)
	}
}

// TestNoArchive: that the archive is gone keeps days from leaving, and none from being made.
func TestNoArchive(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live())
	h.oldDay(8, 10)
	h.exec("drop table telemetry_archive cascade")
	h.makesAndKeeps()
	if found := h.find(partman.ArchiveNotReady); len(found) != 1 || !contains(found[0].Detail, `"public.telemetry_archive" is not there`) {
		t.Errorf("found %v", found)
	}
}

// TestBlind: a table that cannot be looked at any more is broken once the last known day is over, and the runway runs out.
func TestBlind(t *testing.T) {
	t.Parallel()
	later := time.Duration(0)
	h := newHouse(t, func(c *partman.Config) {
		c.Now = func(now time.Time) time.Time { return now.Add(later) }
	}, live(), archive())
	h.once(partman.CreateLoop)
	h.exec("alter table telemetry rename to elsewhere")
	broken := func() (n int) {
		if _, err := h.m.RunOnce(h.ctx, partman.CreateLoop); err == nil {
			t.Error("no error")
		}
		for _, st := range h.m.Status() {
			for _, f := range st.Findings {
				if f.Broken && st.Table == "telemetry" {
					n++
				}
			}
		}
		return n
	}
	if n := broken(); n != 0 {
		t.Errorf("%d faults while there are days", n)
	}
	before := h.metric("plenum_partition_runway_seconds", "table=telemetry")
	later = 24 * time.Hour
	if n := broken(); n != 0 {
		t.Errorf("%d faults a day later", n)
	}
	if after := h.metric("plenum_partition_runway_seconds", "table=telemetry"); after > before-80_000 || after <= 0 {
		t.Errorf("runway %v, and a day later %v", before, after)
	}
	later = 10 * 24 * time.Hour
	if n := broken(); n != 1 {
		t.Errorf("%d faults ten days later, want 1", n)
	}
	if after := h.metric("plenum_partition_runway_seconds", "table=telemetry"); after != 0 {
		t.Errorf("runway %v ten days later", after)
	}
}

// TestLockedPolicies: whoever locks partition_policy holds up no loop for ever.
func TestLockedPolicies(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	h.oldDay(8, 10)
	h.once(partman.CreateLoop)
	for _, sql := range []string{"lock table partition_policy in access exclusive mode", "update partition_policy set retention = retention"} {
		holder := h.begin("somebody", sql)
		ctx, cancel := context.WithTimeout(h.ctx, hang/2)
		if _, err := h.m.RunOnce(ctx, partman.RetireLoop); err == nil || !contains(err.Error(), "lock timeout") {
			t.Errorf("beside %q: %v", sql, err)
		}
		if _, err := partman.Register(ctx, h.pool, "public", dropping()); err == nil || !contains(err.Error(), "lock timeout") {
			t.Errorf("register beside %q: %v", sql, err)
		}
		cancel()
		h.rollback(holder)
	}
	if got := kinds(h.once(partman.RetireLoop)); got != "[archive]" {
		t.Errorf("afterwards the round did %s", got)
	}
}

// TestDetachedIsKeptByALongerRetention: what was detached by a shorter one is not dropped, and no table that holds a day is forgotten.
func TestDetachedIsKeptByALongerRetention(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, dropping())
	h.oldDay(8, 10)
	h.once(partman.RetireLoop)
	longer := dropping()
	longer.Retention, longer.Grace = 30, time.Microsecond
	shorter := dropping()
	shorter.Grace = time.Microsecond
	for _, p := range []partman.Policy{shorter, longer} {
		if _, err := partman.Register(h.ctx, h.pool, "public", p); err != nil {
			t.Fatal(err)
		}
		if p.Retention < 30 {
			if _, _, err := h.m.Confirm(h.ctx, "telemetry"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := kinds(h.once(partman.RetireLoop)); got != "[]" {
		t.Errorf("the round did %s", got)
	}
	if found := h.find(partman.Leftover); len(found) != 1 || !contains(found[0].Detail, "the retention keeps that day now") {
		t.Errorf("found %v", found)
	}
	h.hold("telemetry", h.dayHold(8))
	if _, err := partman.Unregister(h.ctx, h.pool, "public", "public", "telemetry"); err == nil || !contains(err.Error(), "partitions release") {
		t.Errorf("unregister beside a hold: %v", err)
	}
	h.release("telemetry", 8, 1)
	if _, err := partman.Unregister(h.ctx, h.pool, "public", "public", "telemetry"); err != nil {
		t.Error(err)
	}
}

// TestClockOfTablesThatFail: that a table cannot be looked at for days says nothing of the clock, which others have seen go on.
func TestClockOfTablesThatFail(t *testing.T) {
	t.Parallel()
	later := time.Duration(0)
	h := newHouse(t, func(c *partman.Config) {
		c.Now = func(now time.Time) time.Time { return now.Add(later) }
	}, live(), archive())
	h.once(partman.CreateLoop)
	h.once(partman.RetireLoop)
	h.exec("alter table telemetry rename to elsewhere")
	for range 4 {
		later += 24 * time.Hour
		if _, err := h.m.RunOnce(h.ctx, partman.RetireLoop); err == nil {
			t.Fatal("no error")
		}
	}
	h.exec("alter table elsewhere rename to telemetry")
	if found := h.find(partman.ClockDoubt); len(found) != 0 {
		t.Errorf("found %v", found)
	}
}
