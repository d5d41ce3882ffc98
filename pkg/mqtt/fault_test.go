package mqtt_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/mqtt"
)

func TestReconnectsAfterBrokerRestart(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	var in inbox
	r := start(t, config(t, broker.URL()), in.handle)
	publish(t, broker.URL(), "telemetry/a", 0, "before") // with QoS 1 its PUBACK might come too late for the broker
	in.await(t, 1)
	if err := broker.Stop(); err != nil {
		t.Fatal(err)
	}
	devtest.Eventually(t, func() error {
		if r.Status()[0].Connected {
			return fmt.Errorf("still connected")
		}
		return nil
	})
	if err := broker.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.awaitConnected(t)
	publish(t, broker.URL(), "telemetry/a", 1, "after")
	in.await(t, 2)
	if diff := cmp.Diff([]string{"before", "after"}, in.payloads()); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

func TestTriesBrokersInTurn(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	c := config(t, "tcp://user:secret@127.0.0.1:1") // nothing listens there
	c.Brokers = append(c.Brokers, broker.URL())
	r := start(t, c, func(mqtt.Delivery) {})
	if s := r.Status()[0]; s.Broker != broker.URL() || !strings.Contains(s.LastError, `broker "tcp://127.0.0.1:1": connect: `) {
		t.Errorf("status %+v", s)
	}
	for _, entry := range r.logs.All() {
		if strings.Contains(fmt.Sprint(entry), "secret") {
			t.Errorf("password in the log: %v", entry)
		}
	}
}

func TestRefusedConnectionSaysWhy(t *testing.T) {
	t.Parallel()
	passwords := filepath.Join(t.TempDir(), "passwords")
	if err := os.WriteFile(passwords, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broker := devtest.Mosquitto(t, "allow_anonymous false", "password_file "+passwords)
	c := config(t, broker.URL())
	c.Username, c.Password = "nobody", "secret"
	r := launch(t, c, func(mqtt.Delivery) {})
	r.awaitError(t, broker.URL(), "connection refused by the broker: not authorized (CONNACK 5)")
	if r.metric(t, "plenum_mqtt_connected") != 0 {
		t.Error("counted as connected")
	}
}

// Mosquitto's dynamic security plugin is what answers a SUBSCRIBE with 0x80; its ACL file does not.
func TestRefusedSubscriptionNamesFilterAndBroker(t *testing.T) {
	t.Parallel()
	plugins, err := filepath.Glob("/usr/lib/*/mosquitto_dynamic_security.so")
	if err != nil || len(plugins) == 0 {
		t.Fatalf("no mosquitto_dynamic_security.so under /usr/lib/*: %v", err)
	}
	access := map[string]any{"defaultACLAccess": map[string]bool{
		"publishClientSend": true, "publishClientReceive": true, "subscribe": false, "unsubscribe": true,
	}}
	settings, err := json.Marshal(access)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "security.json")
	if err := os.WriteFile(file, settings, 0o600); err != nil {
		t.Fatal(err)
	}
	broker := devtest.Mosquitto(t, "plugin "+plugins[0], "plugin_opt_config_file "+file)
	r := launch(t, config(t, broker.URL()), func(mqtt.Delivery) {})
	r.awaitError(t, broker.URL(), `subscription refused (SUBACK 0x80): "telemetry/#"`)
	if r.Status()[0].Connected || r.metric(t, "plenum_mqtt_connected") != 0 {
		t.Error("counted as connected")
	}
	if r.logs.FilterLevelExact(zap.ErrorLevel).Len() == 0 {
		t.Error("not logged as an error")
	}
}

func TestLowerQoSIsAWarning(t *testing.T) {
	t.Parallel()
	url := scripted(t, func(conn net.Conn) {
		answer(conn, connack...)
		answer(conn, 0x90, 3, 0, 1, 0)
		untilClosed(conn)
	})
	r := start(t, config(t, url), func(mqtt.Delivery) {})
	want := []string{`filter "telemetry/#": QoS 1 asked for, 0 granted`}
	if diff := cmp.Diff(want, r.Status()[0].Warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func TestProtocolFaultsEndTheConnection(t *testing.T) {
	t.Parallel()
	after := func(packets ...[]byte) func(net.Conn) {
		return func(conn net.Conn) {
			for _, packet := range packets {
				answer(conn, packet...)
			}
			untilClosed(conn)
		}
	}
	for name, test := range map[string]struct {
		script func(net.Conn)
		want   string
	}{
		"reserved CONNACK":    {after([]byte{0x20, 2, 0, 9}), "reserved return code (CONNACK 9)"},
		"no CONNACK":          {after([]byte{0xd0, 0}), "the first packet is not a CONNACK"},
		"closed":              {func(conn net.Conn) { answer(conn) }, "no CONNACK: closed by the broker"},
		"too many codes":      {after(connack, []byte{0x90, 4, 0, 1, 1, 1}), "SUBACK with 2 return codes for 1 filters"},
		"unexpected type":     {after(connack, append(subackQoS1[:5:5], 0x10, 0)), "unexpected packet of type 1"},
		"endless length":      {after(connack, append(subackQoS1[:5:5], 0x30, 0xff, 0xff, 0xff, 0xff, 1)), "malformed packet length"},
		"QoS 3":               {after(connack, append(subackQoS1[:5:5], 0x36, 2, 0, 0)), "PUBLISH with QoS 3"},
		"closed after SUBACK": {func(conn net.Conn) { answer(conn, connack...); answer(conn, subackQoS1...) }, "closed by the broker"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := launch(t, config(t, scripted(t, test.script)), func(mqtt.Delivery) { t.Error("delivered") })
			r.awaitError(t, test.want)
		})
	}
}

func TestLargestPacketIsDelivered(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	c := config(t, broker.URL())
	c.WindowBytes = 1 << 10 // one packet fits an empty window, however large
	var in inbox
	start(t, c, in.handle)
	payload := strings.Repeat("x", 300_000)
	publish(t, broker.URL(), "telemetry/a", 1, payload)
	if d := in.await(t, 1)[0]; string(d.Payload) != payload {
		t.Errorf("payload of %d bytes differs", len(d.Payload))
	}
}

func TestFullWindowStopsReadingAndResumes(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	c := config(t, broker.URL())
	c.WindowMessages = 10
	var in inbox
	r := start(t, c, in.handle)
	publish(t, broker.URL(), "telemetry/a", 1, numbered(100)...)
	for done := 0; done < 100; {
		for _, d := range in.await(t, done+1)[done:] {
			if u := r.Unacked(); u > 10 {
				t.Fatalf("%d unacknowledged, window of 10", u)
			}
			d.Receipt.Done()
			done++
		}
	}
	if diff := cmp.Diff(numbered(100), in.payloads()); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
	if r.metric(t, "plenum_mqtt_paused_total") == 0 {
		t.Error("never paused")
	}
	if r.metric(t, "plenum_mqtt_reconnects_total") != 0 {
		t.Error("reconnected")
	}
}

func TestWindowFullForHalfTheKeepAliveReconnectsWhenThereIsRoom(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	wire := newTap(t, broker.URL())
	c := config(t, wire.url())
	c.WindowMessages = 10
	c.KeepAlive = 2 * time.Second
	var in inbox
	r := start(t, c, in.handle)
	publish(t, broker.URL(), "telemetry/a", 1, numbered(20)...)
	first := in.await(t, 10)
	r.awaitError(t, "window full for 1s: 10 messages are not acknowledged")
	devtest.Eventually(t, func() error {
		if s := r.Status()[0]; s.Connected {
			return fmt.Errorf("connected: %+v", s)
		}
		return nil
	})
	for _, d := range first[:4] {
		d.Receipt.Done() // of an ended connection: only room, and not half of it yet
	}
	awaitBackoffs(t, c)
	if n := wire.connections(); n != 1 {
		t.Errorf("%d connections, want 1: more than half the window is in use", n)
	}
	first[4].Receipt.Done()
	devtest.Eventually(t, func() error {
		if n := wire.connections(); n != 2 {
			return fmt.Errorf("%d connections, want 2: half the window is free", n)
		}
		return nil
	})
	for _, d := range first[5:] {
		d.Receipt.Done()
	}
	for done := 10; done < 30; done++ {
		in.await(t, done+1)[done].Receipt.Done()
	}
	if diff := cmp.Diff(append(numbered(10), numbered(20)...), in.payloads()); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

// awaitBackoffs waits until a client like c, which finds no broker, has tried so often that c would have connected by now.
func awaitBackoffs(tb testing.TB, c mqtt.Config) {
	tb.Helper()
	c.Brokers = []string{"tcp://127.0.0.1:1"}
	other := launch(tb, c, func(mqtt.Delivery) {})
	devtest.Eventually(tb, func() error {
		if n := other.metric(tb, "plenum_mqtt_reconnects_total"); n < 20 {
			return fmt.Errorf("%v attempts", n)
		}
		return nil
	})
	other.stop(tb)
}

// In a resumed session SUBACK comes after the messages that were in flight, and they may fill the window.
func TestSubackBehindAFullWindow(t *testing.T) {
	t.Parallel()
	message := []byte{0x32, 5, 0, 1, 'a', 0, 1}
	url := scripted(t, func(conn net.Conn) {
		answer(conn, connack...)
		answer(conn, slices.Concat(message, message, message, subackQoS1)...)
		untilClosed(conn)
	})
	c := config(t, url)
	c.WindowMessages = 2
	c.DialTimeout = 500 * time.Millisecond // two of them are less than the window is full
	c.KeepAlive = 6 * time.Second
	var in inbox
	r := launch(t, c, in.handle)
	r.awaitError(t, "window full for 3s")
	for _, d := range in.await(t, 2) {
		d.Receipt.Done()
	}
	in.await(t, 3)[2].Receipt.Done()
	r.awaitConnected(t)
}

func TestNoSuback(t *testing.T) {
	t.Parallel()
	url := scripted(t, func(conn net.Conn) {
		answer(conn, connack...)
		untilClosed(conn)
	})
	c := config(t, url)
	c.DialTimeout = 100 * time.Millisecond
	launch(t, c, func(mqtt.Delivery) {}).awaitError(t, "no SUBACK within 100ms")
}

func TestLeavesNoGoroutine(t *testing.T) {
	broker := devtest.Mosquitto(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	wire := newTap(t, broker.URL())
	var in inbox
	r := start(t, config(t, wire.url()), in.handle)
	publish(t, broker.URL(), "telemetry/a", 1, numbered(50)...)
	in.await(t, 50)
	wire.cut()
	in.await(t, 100)
	r.stop(t)
	unreachable := launch(t, config(t, "tcp://127.0.0.1:1"), in.handle)
	unreachable.awaitError(t, "connection refused")
	unreachable.stop(t)
	wire.close(t)
}
