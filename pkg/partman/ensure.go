package partman

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// busyPause is the time between two looks while another instance creates partitions.
const busyPause = 100 * time.Millisecond

// flights lets concurrent callers for one table share one attempt.
type flights struct {
	mu  sync.Mutex
	all map[string]*flight
}

type flight struct {
	done chan struct{}
	err  error
}

// EnsureNow creates what is missing of the step that holds the database's now, for a caller whose row found no partition.
// Callers that come while one is at work share its result. It returns nil once a row of now finds its partition, and then
// wakes Run's create loop for the premade ones: the caller's rows do not wait for those. Where another instance is at work
// it waits for that one's result, as long as ctx lets it.
func (m *Manager) EnsureNow(ctx context.Context, table string) error {
	for {
		f, leader := m.ensure.join(table)
		if leader {
			f.err = m.ensureNow(ctx, table)
			m.ensure.leave(table, f)
			return f.err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the partition of now of table %q: %w", table, ctx.Err())
		case <-f.done:
		}
		if !errors.Is(f.err, context.Canceled) && !errors.Is(f.err, context.DeadlineExceeded) {
			return f.err
		}
		// The leader's own context ended, which is no answer to this caller.
	}
}

func (f *flights) join(table string) (*flight, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if running := f.all[table]; running != nil {
		return running, false
	}
	if f.all == nil {
		f.all = make(map[string]*flight)
	}
	started := &flight{done: make(chan struct{})}
	f.all[table] = started
	return started, true
}

func (f *flights) leave(table string, done *flight) {
	f.mu.Lock()
	delete(f.all, table)
	f.mu.Unlock()
	close(done.done)
}

func (m *Manager) ensureNow(ctx context.Context, table string) error {
	p, err := m.policy(ctx, table)
	if err != nil {
		return err
	}
	choose := func(s Snapshot) (Action, bool) {
		for _, a := range NewPlan(p, s, s.Now).Actions {
			if a.Kind == Create && !a.From.After(s.Now) && a.To.After(s.Now) {
				return a, true
			}
		}
		return Action{}, false
	}
	for {
		_, fault := m.step(ctx, p, CreateLoop, choose, new(Result))
		s, err := m.inspect(ctx, m.cfg.Pool, p)
		if err != nil {
			return errors.Join(fault, err)
		}
		m.observe(p, s)
		if Runway(s, s.Now) > 0 {
			m.wake(CreateLoop)
			return nil
		}
		if !errors.Is(fault, ErrBusy) {
			return errors.Join(fmt.Errorf("no partition of table %q takes a row of %s", p.String(), s.Now.Format(time.RFC3339)), fault)
		}
		if err := wait(ctx, busyPause); err != nil {
			return fmt.Errorf("another instance is creating partitions of table %q: %w", p.String(), err)
		}
	}
}
