package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/mqtt"
)

const quiet = 300 * time.Millisecond

// orphan leaves a session with filters at the broker, and what is kept of it.
func orphan(tb testing.TB, broker string, filters ...string) (c mqtt.Config, id string, sessions *memory) {
	tb.Helper()
	c = config(tb, broker)
	c.Filters = filters
	sessions = new(memory)
	startWith(tb, c, sessions, func(mqtt.Delivery) {}).stop(tb)
	return c, c.ClientID + "-0", sessions
}

// sessionPresent asks the broker, which as a side effect makes a session.
func sessionPresent(tb testing.TB, broker, id string) bool {
	tb.Helper()
	host, port := hostPort(tb, broker)
	conn, err := net.Dial("tcp", net.JoinHostPort(host, port))
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close()
	connect := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	connect.ProtocolName, connect.ProtocolVersion, connect.ClientIdentifier = "MQTT", 4, id
	if err := connect.Write(conn); err != nil {
		tb.Fatal(err)
	}
	answer, err := packets.ReadPacket(conn)
	if err != nil {
		tb.Fatal(err)
	}
	return answer.(*packets.ConnackPacket).SessionPresent
}

func drain(tb testing.TB, ctx context.Context, c mqtt.Config, id string, sessions mqtt.Sessions, handler mqtt.Handler) (mqtt.DrainStats, error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(ctx, hang)
	defer cancel()
	return mqtt.Drain(ctx, c, id, sessions, handler, quiet, zap.NewNop())
}

// 500 messages wait, some of them retained, and the session's filter still matches what is being published. The first drain is
// killed in the middle; the second delivers the rest, and then there is no session any more.
func TestDrainEmptiesAndEndsASession(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t, "max_inflight_messages 20")
	c, id, sessions := orphan(t, broker.URL(), "old/#", "other")
	var want []string
	for n := range 10 {
		publishRetained(t, broker.URL(), fmt.Sprint("old/retained/", n), fmt.Sprint("r", n))
		want = append(want, fmt.Sprint("r", n))
	}
	publish(t, broker.URL(), "old/x", 1, numbered(490)...)
	want = append(want, numbered(490)...)

	ctx, kill := context.WithCancel(t.Context())
	var first, second inbox
	done := 0
	stats, err := drain(t, ctx, c, id, sessions, func(d mqtt.Delivery) {
		first.handle(d)
		if done++; done <= 100 {
			d.Receipt.Done()
		} else {
			kill()
		}
	})
	if !errors.Is(err, context.Canceled) || stats.Ended || !stats.SessionPresent || stats.Received < 101 {
		t.Errorf("killed in the middle: %+v, %v", stats, err)
	}
	if kept, _ := sessions.state(id); len(kept) != 2 {
		t.Errorf("kept %v after a drain that was killed", kept)
	}

	// Live traffic: the filter was left by the first drain, so none of it is for this session.
	live, stop := context.WithCancel(t.Context())
	published := make(chan struct{})
	go func() {
		defer close(published)
		for live.Err() == nil {
			publish(t, broker.URL(), "old/live", 1, "live")
		}
	}()
	stats, err = drain(t, t.Context(), c, id, sessions, func(d mqtt.Delivery) {
		second.handle(d)
		time.AfterFunc(5*time.Millisecond, d.Receipt.Done)
	})
	stop()
	<-published
	if err != nil || !stats.Ended || !stats.SessionPresent || stats.Received != len(second.all()) {
		t.Errorf("second drain: %+v, %v", stats, err)
	}
	if diff := cmp.Diff([]string{"old/#", "other"}, stats.Unsubscribed); diff != "" {
		t.Errorf("unsubscribed from (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, append(first.payloads()[:100], second.payloads()...)); diff != "" {
		t.Errorf("acknowledged by the first drain, and received by the second (-want +got):\n%s", diff)
	}
	if kept, writes := sessions.state(id); kept != nil || writes != 2 {
		t.Errorf("kept %v after %d writes, want nothing after 2", kept, writes)
	}
	if sessionPresent(t, broker.URL(), id) {
		t.Error("the broker still has a session")
	}
}

// What matches while the drain connects is received; once its filters are left nothing more comes, so it ends.
func TestDrainUnderLiveTraffic(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	c, id, sessions := orphan(t, broker.URL(), "telemetry/#")
	live, stop := context.WithCancel(t.Context())
	published := make(chan struct{})
	go func() {
		defer close(published)
		for live.Err() == nil {
			publish(t, broker.URL(), "telemetry/a", 1, numbered(10)...)
		}
	}()
	stats, err := drain(t, t.Context(), c, id, sessions, func(d mqtt.Delivery) { d.Receipt.Done() })
	stop()
	<-published
	if err != nil || !stats.Ended {
		t.Errorf("%+v, %v", stats, err)
	}
	if sessionPresent(t, broker.URL(), id) {
		t.Error("the broker still has a session")
	}
}

func TestDrainReconnects(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	c, id, sessions := orphan(t, broker.URL(), "telemetry/#")
	publish(t, broker.URL(), "telemetry/a", 1, numbered(50)...)
	wire := newTap(t, broker.URL())
	c.Brokers = []string{wire.url()}
	var in inbox
	stats, err := drain(t, t.Context(), c, id, sessions, func(d mqtt.Delivery) {
		if in.handle(d); len(in.all()) == 20 {
			wire.cut()
		}
		d.Receipt.Done()
	})
	if err != nil || !stats.Ended || stats.Received < 50 {
		t.Errorf("%+v, %v", stats, err)
	}
	got := in.payloads()
	slices.Sort(got)
	want := numbered(50)
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}
	if n := wire.connections(); n != 3 {
		t.Errorf("%d connections, want two to empty and one to end", n)
	}
}

// Storing takes longer than the time of quiet, and the broker sends a message only when the one before is acknowledged.
func TestDrainWaitsForWhatIsHeld(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t, "max_inflight_messages 1")
	c, id, sessions := orphan(t, broker.URL(), "telemetry/#")
	publish(t, broker.URL(), "telemetry/a", 1, numbered(3)...)
	var in inbox
	stats, err := drain(t, t.Context(), c, id, sessions, func(d mqtt.Delivery) {
		in.handle(d)
		time.AfterFunc(2*quiet, d.Receipt.Done)
	})
	if err != nil || !stats.Ended {
		t.Errorf("%+v, %v", stats, err)
	}
	if diff := cmp.Diff(numbered(3), in.payloads()); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}
}

func TestDrainOfNoSession(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	sessions := memory{kept: map[string][]string{"gone": {"telemetry/#"}}}
	stats, err := drain(t, t.Context(), config(t, broker.URL()), "gone", &sessions, func(mqtt.Delivery) { t.Error("delivered") })
	if diff := cmp.Diff(mqtt.DrainStats{Ended: true}, stats); err != nil || diff != "" {
		t.Errorf("%v, (-want +got):\n%s", err, diff)
	}
	if kept, _ := sessions.state("gone"); len(kept) != 1 { // another broker may have the session
		t.Errorf("kept %v", kept)
	}
	if sessionPresent(t, broker.URL(), "gone") {
		t.Error("the drain left a session")
	}
}

// The session is ended before it is forgotten: where that fails, the next drain finds none, and leaves it to a person.
func TestDrainThatCannotForget(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	c, id, sessions := orphan(t, broker.URL(), "telemetry/#")
	sessions.inject(nil, func(int, bool) error { return errors.New("database is away") })
	stats, err := drain(t, t.Context(), c, id, sessions, func(mqtt.Delivery) {})
	if err == nil || !strings.Contains(err.Error(), "database is away") || !stats.Ended {
		t.Errorf("%+v, %v", stats, err)
	}
	sessions.inject(nil, nil)
	stats, err = drain(t, t.Context(), c, id, sessions, func(mqtt.Delivery) {})
	if kept, _ := sessions.state(id); err != nil || stats.SessionPresent || len(kept) != 1 {
		t.Errorf("%+v, %v, kept %v", stats, err, kept)
	}
}

func TestDrainRefusesWhatItCannotUse(t *testing.T) {
	t.Parallel()
	stats, err := mqtt.Drain(t.Context(), mqtt.Config{KeepAlive: time.Millisecond}, "", nil, nil, 0, zap.NewNop())
	for _, want := range []string{"mqtt.brokers", "mqtt.keepalive", "client id: empty", "quiet time 0s"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v lacks %q (%+v)", err, want, stats)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer time.AfterFunc(time.Second, cancel).Stop()
	_, err = mqtt.Drain(ctx, config(t, "tcp://127.0.0.1:1"), "x", nil, func(mqtt.Delivery) {}, quiet, zap.NewNop())
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %v, want the end of ctx and why there is no connection", err)
	}
}
