package feed_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/feed"
	"plenum/pkg/store"
)

// spy sees each delivery to a target, and what the pusher makes of it.
type spy struct {
	feed.Target
	// after is called with what the target said, and decides what the pusher gets to hear; nil: the same.
	after func(ctx context.Context, d feed.Delivery, err error) error

	mu         sync.Mutex
	deliveries []feed.Delivery
}

func (s *spy) Deliver(ctx context.Context, d feed.Delivery) error {
	s.mu.Lock()
	s.deliveries = append(s.deliveries, d)
	s.mu.Unlock()
	err := s.Target.Deliver(ctx, d)
	if s.after != nil {
		return s.after(ctx, d, err)
	}
	return err
}

func (s *spy) seen() []feed.Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.deliveries)
}

// pusher is one that runs.
type pusher struct {
	*feed.Pusher
	*spy
	t      *testing.T
	reg    *prometheus.Registry
	logs   *observer.ObservedLogs
	cancel context.CancelFunc
	ended  chan struct{}
}

// push runs a pusher of consumer "a", with connections of its own, until the test ends or stop is called.
func (d *database) push(s *spy, change func(*feed.PushConfig)) *pusher {
	d.t.Helper()
	return d.pushAt(s, func(p *feed.Pusher) { p.Hasten(time.Millisecond) }, change)
}

// pushAt is push at another tempo.
func (d *database) pushAt(s *spy, tempo func(*feed.Pusher), change func(*feed.PushConfig)) *pusher {
	d.t.Helper()
	c := feed.PushConfig{Name: "a", Target: "test", Limit: 100, DeadLetterAfter: 3}
	if change != nil {
		change(&c)
	}
	core, logs := observer.New(zap.InfoLevel)
	pool, reg := open(d.t, d.pool.Config().ConnString()), prometheus.NewPedanticRegistry()
	p := &pusher{spy: s, t: d.t, reg: reg, logs: logs, ended: make(chan struct{})}
	var err error
	if p.Pusher, err = feed.NewPusher(c, pool, feed.New(pool, pool), s, zap.New(core), feed.NewPushMetrics(reg)); err != nil {
		d.t.Fatal(err)
	}
	tempo(p.Pusher)
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(context.WithoutCancel(d.t.Context()))
	go func() {
		defer close(p.ended)
		p.Run(ctx)
	}()
	d.t.Cleanup(p.stop)
	return p
}

func (p *pusher) stop() {
	p.cancel()
	<-p.ended
}

// await waits until it has ended by itself.
func (p *pusher) await() {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		p.t.Fatal("the pusher goes on")
	}
}

// counted is a counter of the pusher's, or a gauge.
func (p *pusher) counted(name string, labels map[string]string) float64 {
	p.t.Helper()
	families, err := p.reg.Gather()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			matches := f.GetName() == name
			for _, l := range m.GetLabel() {
				if want, given := labels[l.GetName()]; given && want != l.GetValue() {
					matches = false
				}
			}
			if matches {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return -1
}

func (p *pusher) logged(message string) int { return p.logs.FilterMessageSnippet(message).Len() }

// state is what the database knows of consumer "a".
func (d *database) state() store.PushState {
	d.t.Helper()
	s, known, err := store.ReadPush(context.WithoutCancel(d.t.Context()), d.pool, "a")
	if err != nil {
		d.t.Fatal(err)
	}
	if !known {
		s.Position = -1
	}
	return s
}

// awaitState waits until the consumer's state is as wanted.
func (d *database) awaitState(what string, is func(store.PushState) bool) store.PushState {
	d.t.Helper()
	var s store.PushState
	devtest.Eventually(d.t, func() error {
		if s = d.state(); !is(s) {
			return fmt.Errorf("want %s: %+v", what, s)
		}
		return nil
	})
	return s
}

func (d *database) awaitPosition(want int64) {
	d.t.Helper()
	d.awaitState(fmt.Sprintf("position %d", want), func(s store.PushState) bool { return s.Position == want })
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	devtest.Eventually(t, func() error {
		if !is() {
			return fmt.Errorf("not yet: %s", what)
		}
		return nil
	})
}

// await waits until the receiver has exactly these rows, by their seq, in this order.
func await(t *testing.T, r receiver, want ...int64) {
	t.Helper()
	devtest.Eventually(t, func() error {
		if got := r.got(); !slices.Equal(got, want) {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		return nil
	})
}

// through is the numbers from first to last.
func through(first, last int64) []int64 {
	var all []int64
	for n := first; n <= last; n++ {
		all = append(all, n)
	}
	return all
}
