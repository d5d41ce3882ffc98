package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/mqtt"
)

// lateSecond cannot be asked for connection 1 while it is held, as when an access list refuses its client id.
type lateSecond struct {
	memory
	held atomic.Bool
}

func (s *lateSecond) Filters(ctx context.Context, id string) ([]string, error) {
	if s.held.Load() && strings.HasSuffix(id, "-1") {
		return nil, errors.New("held by the test")
	}
	return s.memory.Filters(ctx, id)
}

// A filter that moves to another connection is left by the first only when the second has it: nothing falls between them.
func TestMovedFilterIsLeftOnceItIsTaken(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	c := config(t, broker.URL())
	c.Filters = []string{"a/#", "b/#"}
	sessions := new(lateSecond)
	startWith(t, c, sessions, func(mqtt.Delivery) {}).stop(t) // both are connection 0's
	c.Connections = 2
	sessions.held.Store(true)
	var in inbox
	r := launchWith(t, c, sessions, in.handle)
	devtest.Eventually(t, func() error {
		if !r.Status()[0].Connected {
			return errors.New("connection 0 is not up")
		}
		return nil
	})
	publish(t, broker.URL(), "b/x", 1, "between")
	in.await(t, 1)
	sessions.held.Store(false)
	devtest.Eventually(t, func() error {
		if kept, _ := sessions.state(c.ClientID + "-0"); !slices.Equal(kept, []string{"a/#"}) {
			return fmt.Errorf("connection 0 keeps %v", kept)
		}
		return nil
	})
	publish(t, broker.URL(), "b/x", 1, "after")
	publish(t, broker.URL(), "a/x", 1, "end")
	in.await(t, 3)
	got := in.payloads()
	if slices.Sort(got); !slices.Equal(got, []string{"after", "between", "end"}) {
		t.Errorf("received %v", got)
	}
	r.stop(t)
}

// relay stands between a client and a broker, whose packets it can hold back.
type relay struct {
	listener net.Listener
	held     sync.RWMutex // for writing: the broker's packets are held back
}

func newRelay(t *testing.T, broker string) *relay {
	t.Helper()
	host, port := hostPort(t, broker)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &relay{listener: l}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", net.JoinHostPort(host, port))
			if err != nil {
				_ = down.Close()
				continue
			}
			all.Go(func() {
				_, _ = io.Copy(up, down)
				_ = up.Close()
			})
			all.Go(func() {
				_, _ = io.Copy(holding{p, down}, up)
				_ = down.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return p
}

// holding writes while the relay is not held.
type holding struct {
	p  *relay
	to io.Writer
}

func (h holding) Write(b []byte) (int, error) {
	h.p.held.RLock()
	defer h.p.held.RUnlock()
	return h.to.Write(b)
}

// A broker that stands still for longer than the time of quiet is not taken for an empty session.
func TestDrainOfABrokerThatStandsStill(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t, "max_inflight_messages 20")
	c, id, sessions := orphan(t, broker.URL(), "old/#")
	publish(t, broker.URL(), "old/x", 1, numbered(1000)...)
	p := newRelay(t, broker.URL())
	c.Brokers = []string{"tcp://" + p.listener.Addr().String()}
	n := 0
	stats, err := drain(t, t.Context(), c, id, sessions, func(d mqtt.Delivery) {
		if n++; n == 100 {
			p.held.Lock()
			time.AfterFunc(4*quiet, p.held.Unlock)
		}
		d.Receipt.Done()
	})
	if err != nil || stats.Received != 1000 || !stats.Ended {
		t.Errorf("%+v, %v", stats, err)
	}
}

// More filters of earlier than a packet of the broker's size holds are left in several.
func TestUnsubscribesInParts(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t, "max_packet_size 20000")
	c := config(t, broker.URL())
	c.Filters = []string{"old/0"}
	sessions := new(memory)
	startWith(t, c, sessions, func(mqtt.Delivery) {}).stop(t)
	id := c.ClientID + "-0"
	var old []string
	for n := range 1500 {
		old = append(old, fmt.Sprintf("old/%d/%s", n, strings.Repeat("x", 30)))
	}
	if err := sessions.Keep(t.Context(), id, append(old, "old/0")); err != nil {
		t.Fatal(err)
	}
	c.Filters = []string{"new"}
	r := startWith(t, c, sessions, func(mqtt.Delivery) {})
	devtest.Eventually(t, func() error {
		if kept, _ := sessions.state(id); !slices.Equal(kept, []string{"new"}) {
			return fmt.Errorf("%d filters are kept; %s", len(kept), r.Status()[0].LastError)
		}
		return nil
	})
	r.stop(t)
}
