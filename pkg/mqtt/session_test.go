package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/mqtt"
)

// memory remembers sessions. Its fault, if any, is asked before and after each Keep, which are its steps.
type memory struct {
	mu     sync.Mutex
	kept   map[string][]string
	writes int
	broken error
	fault  func(write int, stored bool) error
}

func (m *memory) Filters(_ context.Context, clientID string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.kept[clientID]), m.broken
}

func (m *memory) Keep(_ context.Context, clientID string, filters []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	if m.fault != nil {
		if err := m.fault(m.writes, false); err != nil {
			return err
		}
	}
	if m.kept == nil {
		m.kept = make(map[string][]string)
	}
	if m.kept[clientID] = slices.Clone(filters); len(filters) == 0 {
		delete(m.kept, clientID)
	}
	if m.fault != nil {
		return m.fault(m.writes, true)
	}
	return nil
}

// state is what is kept, and the number of writes so far.
func (m *memory) state(clientID string) (filters []string, writes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.kept[clientID]), m.writes
}

// inject changes the faults.
func (m *memory) inject(broken error, fault func(write int, stored bool) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken, m.fault = broken, fault
}

func startWith(tb testing.TB, c mqtt.Config, sessions mqtt.Sessions, handler mqtt.Handler) *running {
	tb.Helper()
	r := launchWith(tb, c, sessions, handler)
	r.awaitConnected(tb)
	return r
}

// awaitKept waits until these filters are kept: a connection is up before it has left others.
func (m *memory) awaitKept(tb testing.TB, id string, filters ...string) {
	tb.Helper()
	devtest.Eventually(tb, func() error {
		if kept, _ := m.state(id); !slices.Equal(kept, filters) {
			return fmt.Errorf("kept %v, want %v", kept, filters)
		}
		return nil
	})
}

// checkSubscribed publishes to each topic, in order, and checks that exactly the wanted arrive, each once.
func checkSubscribed(tb testing.TB, broker string, in *inbox, topics, wanted []string) {
	tb.Helper()
	before := len(in.all())
	for _, topic := range topics {
		publish(tb, broker, topic, 1, topic)
	}
	publish(tb, broker, wanted[0], 1, "end") // whatever was published before has been received before
	devtest.Eventually(tb, func() error {
		if got := in.payloads(); !slices.Contains(got[before:], "end") {
			return fmt.Errorf("received %v, not the end", got[before:])
		}
		return nil
	})
	if diff := cmp.Diff(append(slices.Clone(wanted), "end"), in.payloads()[before:]); diff != "" {
		tb.Errorf("received (-want +got):\n%s", diff)
	}
}

func TestUnsubscribesFromFiltersOfEarlier(t *testing.T) {
	t.Parallel()
	for name, group := range map[string]string{"plain": "", "shared": "ingest"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := devtest.Mosquitto(t)
			wire := newTap(t, broker.URL())
			c := config(t, wire.url())
			c.ShareGroup, c.Filters = group, []string{"a", "b"}
			id := c.ClientID + "-0"
			form := func(filters ...string) []string {
				for i := range filters {
					if group != "" {
						filters[i] = "$share/" + group + "/" + filters[i]
					}
				}
				return filters
			}
			var sessions memory
			startWith(t, c, &sessions, func(mqtt.Delivery) {}).stop(t)
			if kept, _ := sessions.state(id); !slices.Equal(kept, form("a", "b")) {
				t.Errorf("kept %v", kept)
			}
			publish(t, broker.URL(), "a", 1, "queued") // for a filter of earlier: delivered like any other

			var in inbox
			c.Filters = []string{"b", "c"}
			r := startWith(t, c, &sessions, in.handle)
			if group == "" { // what waits for the last member of a group, Mosquitto does not queue
				in.await(t, 1)
			}
			devtest.Eventually(t, func() error { // it is up before it has left
				if kept, writes := sessions.state(id); !slices.Equal(kept, form("b", "c")) || writes != 3 {
					return fmt.Errorf("kept %v after %d writes, want 3", kept, writes)
				}
				return nil
			})
			checkSubscribed(t, broker.URL(), &in, []string{"a", "b", "c"}, []string{"b", "c"})
			if r.logs.FilterMessage("unsubscribed from MQTT filters of earlier").Len() != 1 {
				t.Error("not logged once")
			}
			r.stop(t)
			want := []string{"CONNECT", "SUBSCRIBE", "DISCONNECT", "CONNECT", "SUBSCRIBE", "UNSUBSCRIBE", "DISCONNECT"}
			if diff := cmp.Diff(want, wire.sent()); diff != "" {
				t.Errorf("the new filters are to be subscribed to before the old are left (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWritesNothingWhereNothingChanged(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	wire := newTap(t, broker.URL())
	c := config(t, wire.url())
	c.Filters = []string{"b", "a"}
	var sessions memory
	r := startWith(t, c, &sessions, func(mqtt.Delivery) {})
	if _, writes := sessions.state(c.ClientID + "-0"); writes != 1 {
		t.Errorf("%d writes at the first start, want 1", writes)
	}
	wire.cut()
	devtest.Eventually(t, func() error {
		if n := len(wire.sent()); n < 4 {
			return fmt.Errorf("%d packets", n)
		}
		return nil
	})
	r.awaitConnected(t)
	r.stop(t)
	startWith(t, c, &sessions, func(mqtt.Delivery) {})
	if _, writes := sessions.state(c.ClientID + "-0"); writes != 1 {
		t.Errorf("%d writes after a reconnect and a restart, want 1", writes)
	}
	if slices.Contains(wire.sent(), "UNSUBSCRIBE") {
		t.Errorf("unsubscribed: %v", wire.sent())
	}
}

// A client with filters b and c takes over the session of one with a and b, and dies at some step. The next wants d alone.
// Whatever the step, it must receive d alone: what is kept covers what the broker knows at each moment.
func TestSessionAfterACrashAtEachStep(t *testing.T) {
	t.Parallel()
	crash := errors.New("crash")
	type step struct {
		write  int // of Keep, from 1
		stored bool
		packet string
		after  bool
	}
	for name, at := range map[string]step{
		"before the union is kept": {write: 1},
		"after the union is kept":  {write: 1, stored: true},
		"before SUBSCRIBE":         {packet: "SUBSCRIBE"},
		"after SUBSCRIBE":          {packet: "SUBSCRIBE", after: true},
		"before SUBACK":            {packet: "SUBACK"},
		"after SUBACK":             {packet: "SUBACK", after: true},
		"before UNSUBSCRIBE":       {packet: "UNSUBSCRIBE"},
		"after UNSUBSCRIBE":        {packet: "UNSUBSCRIBE", after: true},
		"before UNSUBACK":          {packet: "UNSUBACK"},
		"after UNSUBACK":           {packet: "UNSUBACK", after: true},
		"before the wanted kept":   {write: 2},
		"after the wanted kept":    {write: 2, stored: true},
		"without a crash":          {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := devtest.Mosquitto(t)
			c := config(t, broker.URL())
			c.Filters = []string{"a", "b"}
			var sessions memory
			startWith(t, c, &sessions, func(mqtt.Delivery) {}).stop(t)

			wire := newTap(t, broker.URL())
			wire.cutAt = func(kind string) (bool, bool) {
				if kind == at.packet {
					sessions.inject(crash, nil) // the dead do not try again
				}
				return kind == at.packet, at.after
			}
			sessions.inject(nil, func(write int, stored bool) error {
				if write == 1+at.write && stored == at.stored {
					sessions.broken = crash
					return crash
				}
				return nil
			})
			dying := c
			dying.Brokers, dying.Filters = []string{wire.url()}, []string{"b", "c"}
			r := launchWith(t, dying, &sessions, func(mqtt.Delivery) {})
			if name == "without a crash" {
				r.awaitConnected(t)
			} else {
				devtest.Eventually(t, func() error {
					if r.metric(t, "plenum_mqtt_reconnects_total") == 0 {
						return errors.New("no crash yet")
					}
					return nil
				})
			}
			r.stop(t)
			if at.write == 1 && slices.Contains(wire.sent(), "SUBSCRIBE") {
				t.Error("subscribed before the union was kept")
			}
			sessions.inject(nil, nil)

			var in inbox
			c.Filters = []string{"d"}
			startWith(t, c, &sessions, in.handle)
			sessions.awaitKept(t, c.ClientID+"-0", "d")
			checkSubscribed(t, broker.URL(), &in, []string{"a", "b", "c", "d"}, []string{"d"})
		})
	}
}

// Where the session is gone there is nothing to leave, and what was kept of it is replaced.
func TestSessionThatTheBrokerLost(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	wire := newTap(t, broker.URL())
	c := config(t, wire.url())
	sessions := memory{kept: map[string][]string{c.ClientID + "-0": {"old", "telemetry/#"}}}
	r := startWith(t, c, &sessions, func(mqtt.Delivery) {})
	sessions.awaitKept(t, c.ClientID+"-0", c.Filters...)
	r.stop(t)
	if diff := cmp.Diff([]string{"CONNECT", "SUBSCRIBE", "DISCONNECT"}, wire.sent()); diff != "" {
		t.Errorf("packets (-want +got):\n%s", diff)
	}
}

func TestNoConnectionWithoutItsSession(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	wire := newTap(t, broker.URL())
	var sessions memory
	sessions.inject(errors.New("database is away"), nil)
	r := launchWith(t, config(t, wire.url()), &sessions, func(mqtt.Delivery) {})
	r.awaitError(t, "read the filters kept for client id", "database is away")
	if n := wire.connections(); n != 0 {
		t.Errorf("%d connections", n)
	}
	sessions.inject(nil, nil)
	r.awaitConnected(t)
	if got := r.reasons(t); !slices.Equal(got, []string{"session"}) {
		t.Errorf("reconnected because of %v", got)
	}
}

// reasons are those that reconnects have had.
func (r *running) reasons(tb testing.TB) (reasons []string) {
	tb.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "plenum_mqtt_reconnects_total" && m.GetCounter().GetValue() > 0 {
				reasons = append(reasons, m.GetLabel()[0].GetValue())
			}
		}
	}
	return reasons
}

// failsOnce is a memory whose first read fails.
type failsOnce struct {
	memory
	once sync.Once
}

func (f *failsOnce) Filters(ctx context.Context, clientID string) (filters []string, err error) {
	f.once.Do(func() { err = errors.New("database is away") })
	if err != nil {
		return nil, err
	}
	return f.memory.Filters(ctx, clientID)
}

// That the session could not be read says nothing against the broker: it is the one that is tried next.
func TestSessionErrorLeavesTheBroker(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	c := config(t, broker.URL())
	c.Brokers = append(c.Brokers, "tcp://127.0.0.1:1") // nothing listens there
	r := startWith(t, c, new(failsOnce), func(mqtt.Delivery) {})
	if got := r.reasons(t); !slices.Equal(got, []string{"session"}) {
		t.Errorf("reconnected because of %v", got)
	}
}

func TestNoUnsuback(t *testing.T) {
	t.Parallel()
	wire := newTap(t, devtest.Mosquitto(t).URL())
	c := config(t, wire.url())
	sessions := memory{}
	startWith(t, c, &sessions, func(mqtt.Delivery) {}).stop(t)
	wire.mu.Lock()
	wire.mute = "UNSUBSCRIBE"
	wire.mu.Unlock()
	c.Filters, c.DialTimeout = []string{"other"}, 200*time.Millisecond
	launchWith(t, c, &sessions, func(mqtt.Delivery) {}).awaitError(t, "no UNSUBACK within 200ms")
}
