package partman_test

import (
	"sync/atomic"
	"testing"

	"plenum/pkg/partman"
)

// Acted is called once for each action that was carried out, and for no other.
func TestActed(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	var acted atomic.Int64
	cfg := h.cfg
	cfg.Acted = func(partman.Action) { acted.Add(1) }
	m, _ := h.manager(cfg)
	for _, loop := range []partman.Loop{partman.CreateLoop, partman.CreateLoop, partman.HealthLoop} {
		before := acted.Load()
		result, err := m.RunOnce(h.ctx, loop)
		if err != nil {
			t.Fatal(err)
		}
		if n := acted.Load() - before; n != int64(len(result.Done)) {
			t.Errorf("loop %s did %d actions and told of %d", loop, len(result.Done), n)
		}
	}
	if acted.Load() == 0 {
		t.Error("nothing was done")
	}
}
