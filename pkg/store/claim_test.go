package store_test

import (
	"errors"
	"strings"
	"testing"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
)

// A line of an older day, which reconcile or a person may bring, waits for no more than a moment beside a stream of today's; and what
// is pending of older days is marked first.
func TestOlderDaysAreClaimed(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	m := store.NewMarker(h.pool)
	h.insertDay(h.today, 1)
	h.markAll(m) // sees that no older day has any
	older := h.insertDay(h.day(-2), 1)
	devtest.Eventually(t, func() error {
		h.insertDay(h.today, 1)
		if _, err := m.Mark(h.ctx, 1); err != nil {
			t.Fatal(err)
		}
		if value[int](h, "select count(*) from telemetry_batch where batch_id = $1 and processed_at is not null", older.BatchID) == 0 {
			return errors.New("the older day's line is still pending")
		}
		return nil
	})
	h.markAll(m)

	fresh := store.NewMarker(h.pool)
	for _, l := range []store.Line{h.insertDay(h.day(-2), 1), h.insertDay(h.day(-2), 1), h.insertDay(h.today, 1)} {
		if _, err := fresh.Mark(h.ctx, 1); err != nil {
			t.Fatal(err)
		}
		want(h, "pending of the line", value[bool](h, "select processed_at is null from telemetry_batch where batch_id = $1", l.BatchID), false)
	}
}

// Beside older days' parts of the ledger, a claim leaves those alone that have nothing to mark.
func TestClaimLeavesOlderDaysAlone(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	p := h.withPlans(nil)
	m := store.NewMarker(p.Pool)
	h.insertDay(h.today, 1)
	h.markAll(m)
	h.insertDay(h.today, 1)
	p.take()
	if _, err := m.Mark(h.ctx, 1); err != nil {
		t.Fatal(err)
	}
	for _, plan := range p.take() {
		if strings.Contains(plan, "for update skip locked") && strings.Contains(plan, leafOf("telemetry_batch", h.day(-2))) {
			t.Errorf("the claim looks at an older day:\n%s", plan)
		}
	}
}
