package mqtt_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/mqtt"
)

func TestDeliversBothQoS(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	var in inbox
	r := start(t, config(t, broker.URL()), in.handle)
	publish(t, broker.URL(), "telemetry/a", 0, "zero")
	in.await(t, 1)
	publish(t, broker.URL(), "telemetry/a/fault", 1, "one")
	got := in.await(t, 2)
	for i, want := range []struct {
		topic, payload string
		qos            byte
	}{{"telemetry/a", "zero", 0}, {"telemetry/a/fault", "one", 1}} {
		d := got[i]
		if d.Topic != want.topic || string(d.Payload) != want.payload || d.QoS != want.qos || d.Retained || d.ReceivedAt.IsZero() {
			t.Errorf("delivery %d: %+v, want %+v", i, d.Message, want)
		}
	}
	if n := r.Unacked(); n != 2 {
		t.Errorf("%d unacknowledged, want 2", n)
	}
	for _, d := range got {
		d.Receipt.Done()
		d.Receipt.Done()
	}
	if n := r.Unacked(); n != 0 {
		t.Errorf("%d unacknowledged after Done, want 0", n)
	}
	for name, want := range map[string]float64{
		"plenum_mqtt_messages_received_total": 2, "plenum_mqtt_connected": 1, "plenum_ingest_unacked_messages": 0,
		"plenum_ingest_ack_delay_seconds": 1, "plenum_mqtt_reconnects_total": 0,
	} {
		if got := r.metric(t, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func TestAtMostOnceSubscribesWithQoS0(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	c := config(t, broker.URL())
	c.AtMostOnce = true
	var in inbox
	start(t, c, in.handle)
	publish(t, broker.URL(), "telemetry/a", 1, "one")
	if d := in.await(t, 1)[0]; d.QoS != 0 {
		t.Errorf("QoS %d, want 0", d.QoS)
	}
}

func TestRetainedMessagesAreMarked(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	publishRetained(t, broker.URL(), "telemetry/a", "kept")
	var in inbox
	start(t, config(t, broker.URL()), in.handle)
	if d := in.await(t, 1)[0]; !d.Retained {
		t.Errorf("not marked as retained: %+v", d.Message)
	}
}

// Done comes from four goroutines in random order; the PUBACKs must be those of the messages in order, none before its Done.
func TestAcknowledgesInOrderOfReceipt(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	wire := newTap(t, broker.URL())
	var in inbox
	r := start(t, config(t, wire.url()), in.handle)
	const n = 2000
	publish(t, broker.URL(), "telemetry/a", 1, numbered(n)...)
	got := in.await(t, n)

	// All but the first: nothing may leave.
	rest := rand.Perm(n - 1)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := worker; i < len(rest); i += 4 {
				got[rest[i]+1].Receipt.Done()
			}
		})
	}
	wg.Wait()
	if u := r.Unacked(); u != n {
		t.Errorf("%d unacknowledged before the first is done, want %d", u, n)
	}
	if _, acked, _ := wire.seen(); len(acked) != 0 {
		t.Errorf("%d PUBACKs before the first message is done", len(acked))
	}
	got[0].Receipt.Done()
	devtest.Eventually(t, func() error {
		if _, acked, _ := wire.seen(); len(acked) != n {
			return fmt.Errorf("%d of %d PUBACKs", len(acked), n)
		}
		return nil
	})
	published, acked, _ := wire.seen()
	if diff := cmp.Diff(published, acked); diff != "" {
		t.Errorf("PUBACKs differ from the order of receipt (-published +acknowledged):\n%s", diff)
	}
}

func TestRedeliversWhatWasNotDone(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	wire := newTap(t, broker.URL())
	var in inbox
	r := start(t, config(t, wire.url()), in.handle)
	publish(t, broker.URL(), "telemetry/a", 1, numbered(10)...)
	first := in.await(t, 10)
	for _, i := range []int{0, 1, 2, 3, 5, 7} { // the prefix ends at the fifth
		first[i].Receipt.Done()
	}
	devtest.Eventually(t, func() error {
		if _, acked, _ := wire.seen(); len(acked) != 4 {
			return fmt.Errorf("%d PUBACKs, want 4", len(acked))
		}
		return nil
	})
	wire.cut()
	all := in.await(t, 16)
	if diff := cmp.Diff(numbered(10)[4:], in.payloads()[10:]); diff != "" {
		t.Errorf("redelivered (-want +got):\n%s", diff)
	}

	// Receipts of the ended connection make room, and acknowledge nothing on the new one.
	_, before, _ := wire.seen()
	for _, d := range first {
		d.Receipt.Done()
	}
	if u := r.Unacked(); u != 6 {
		t.Errorf("%d unacknowledged, want the 6 of the new connection", u)
	}
	all[10].Receipt.Done()
	devtest.Eventually(t, func() error {
		if _, acked, _ := wire.seen(); len(acked) <= len(before) {
			return fmt.Errorf("no PUBACK on the new connection")
		}
		return nil
	})
	if _, acked, _ := wire.seen(); len(acked) != len(before)+1 {
		t.Errorf("%d PUBACKs on the new connection, want 1", len(acked)-len(before))
	}
	if got := r.metric(t, "plenum_mqtt_reconnects_total"); got != 1 {
		t.Errorf("%v reconnects, want 1", got)
	}
}

func TestSessionKeepsMessagesWhileAway(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	c := config(t, broker.URL())
	var before, after inbox
	start(t, c, before.handle).stop(t)
	publish(t, broker.URL(), "telemetry/a", 1, numbered(100)...)
	start(t, c, after.handle)
	after.await(t, 100)
	if diff := cmp.Diff(numbered(100), after.payloads()); diff != "" {
		t.Errorf("messages of the session (-want +got):\n%s", diff)
	}
}

func TestShareGroupDividesMessages(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	var in inbox
	handle := func(d mqtt.Delivery) {
		in.handle(d)
		d.Receipt.Done()
	}
	for _, member := range []string{"a", "b"} {
		c := config(t, broker.URL())
		c.ClientID += "." + member
		c.ShareGroup = "ingest"
		c.Connections = 2
		start(t, c, handle)
	}
	publish(t, broker.URL(), "telemetry/a", 1, numbered(200)...)
	in.await(t, 200)
	count := make(map[string]int)
	for _, payload := range in.payloads() {
		count[payload]++
	}
	for _, payload := range numbered(200) {
		if count[payload] != 1 {
			t.Errorf("message %s received %d times", payload, count[payload])
		}
	}
}

func TestConnectionsDivideFilters(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	c := config(t, broker.URL())
	c.Filters = []string{"a/#", "b/#", "c/#"}
	c.Connections = 2
	var in inbox
	r := start(t, c, in.handle)
	for _, topic := range []string{"a/1", "b/1", "c/1"} {
		publish(t, broker.URL(), topic, 1, topic)
	}
	in.await(t, 3)
	var unacked []string
	for _, s := range r.Status() {
		unacked = append(unacked, fmt.Sprintf("%s %d", s.ClientID[strings.LastIndexByte(s.ClientID, '-'):], s.Unacked))
	}
	if diff := cmp.Diff([]string{"-0 2", "-1 1"}, unacked); diff != "" {
		t.Errorf("messages of each connection (-want +got):\n%s", diff)
	}
	if got := r.metric(t, "plenum_mqtt_connected"); got != 2 {
		t.Errorf("plenum_mqtt_connected is %v, want 2", got)
	}
}

func TestStalledConnectionShows(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	c := config(t, broker.URL())
	c.StallAfter = 50 * time.Millisecond
	var in inbox
	r := start(t, c, in.handle)
	publish(t, broker.URL(), "telemetry/a", 1, numbered(3)...)
	got := in.await(t, 3)
	got[1].Receipt.Done()
	devtest.Eventually(t, func() error {
		if r.metric(t, "plenum_mqtt_stalled_connections") != 1 || r.logs.FilterMessageSnippet("holds up").Len() == 0 {
			return errors.New("not stalled")
		}
		return nil
	})
	want := &mqtt.Stall{Topic: "telemetry/a", ReceivedAt: got[0].ReceivedAt, Waiting: 2}
	if diff := cmp.Diff(want, r.Status()[0].Stalled, cmpopts.EquateApproxTime(time.Microsecond)); diff != "" {
		t.Errorf("stalled (-want +got):\n%s", diff)
	}
	if age := r.metric(t, "plenum_ingest_oldest_unacked_seconds"); age < 0.05 {
		t.Errorf("the oldest message is %v s old", age)
	}
	got[0].Receipt.Done()
	got[2].Receipt.Done()
	for _, name := range []string{"plenum_mqtt_stalled_connections", "plenum_ingest_oldest_unacked_seconds"} {
		if v := r.metric(t, name); v != 0 {
			t.Errorf("%s is %v after all are done", name, v)
		}
	}
	if s := r.Status()[0].Stalled; s != nil {
		t.Errorf("stalled: %+v", s)
	}
}
