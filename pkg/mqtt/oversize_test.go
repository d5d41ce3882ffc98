package mqtt_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/google/go-cmp/cmp"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/mqtt"
)

// publishLarge publishes n bytes of 'x' with QoS 1 from another process.
func publishLarge(tb testing.TB, broker, topic string, n int64) {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "payload")
	out, err := exec.Command("sh", "-c", fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x > %s", n, file)).CombinedOutput()
	if err != nil {
		tb.Fatalf("make a payload: %v: %s", err, out)
	}
	host, port := hostPort(tb, broker)
	if out, err := exec.Command("mosquitto_pub", "-h", host, "-p", port, "-q", "1", "-t", topic, "-f", file).CombinedOutput(); err != nil {
		tb.Fatalf("mosquitto_pub to %s: %v: %s", broker, err, out)
	}
	if err := os.Remove(file); err != nil {
		tb.Error(err)
	}
}

// Not parallel: it measures what is allocated.
func TestOversizedMessagesAreCutAndHoldUpNothing(t *testing.T) {
	broker := devtest.Mosquitto(t)
	c := config(t, broker.URL())
	var in inbox
	start(t, c, in.handle).stop(t)
	type received struct {
		Topic, Begins   string
		Payload, Length int
	}
	var want []received
	for i, size := range []int64{0, 9 << 20, 0, 60 << 20, 60 << 20, 0} {
		topic := fmt.Sprint("telemetry/", i)
		if size == 0 {
			publish(t, broker.URL(), topic, 1, "small")
			want = append(want, received{topic, "small", 5, 0})
			continue
		}
		publishLarge(t, broker.URL(), topic, size)
		want = append(want, received{topic, "xxxxx", 64 << 10, int(size)})
	}

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := start(t, c, func(d mqtt.Delivery) {
		in.handle(d)
		d.Receipt.Done()
	})
	in.await(t, len(want))
	runtime.ReadMemStats(&after)
	var got []received
	for _, d := range in.all() {
		got = append(got, received{d.Topic, string(d.Payload[:5]), len(d.Payload), d.Length})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
		t.Errorf("%d bytes allocated for 129 MiB in three messages", grown)
	}
	if got := r.metric(t, "plenum_mqtt_reconnects_total"); got != 0 {
		t.Errorf("%v reconnects", got)
	}
	r.stop(t)

	// All were acknowledged: the session holds nothing but what comes now.
	var next inbox
	publish(t, broker.URL(), "telemetry/a", 1, "next")
	start(t, c, next.handle)
	next.await(t, 1)
	if diff := cmp.Diff([]string{"next"}, next.payloads()); diff != "" {
		t.Errorf("delivered again (-want +got):\n%s", diff)
	}
}

// publishHeader is a PUBLISH packet up to its topic.
func publishHeader(kind byte, remainingLength int, topic string) []byte {
	p := []byte{kind}
	for ; remainingLength >= 0x80; remainingLength >>= 7 {
		p = append(p, byte(remainingLength)|0x80)
	}
	return append(append(p, byte(remainingLength), 0, byte(len(topic))), topic...)
}

// An announced length alone makes nobody allocate it, whatever the packet is.
func TestOversizedPacketIsNotAllocated(t *testing.T) {
	for name, test := range map[string]struct {
		packet []byte
		want   string
	}{
		"a message that ends early": {append(publishHeader(0x32, 200<<20, "a"), make([]byte, 1<<20)...), "closed by the broker"},
		"no message":                {[]byte{0x90, 0xff, 0xff, 0xff, 0x7f}, "packet of type 9 and 268435460 bytes refused: over the limit of 8388608"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		url := scripted(t, func(conn net.Conn) {
			answer(conn, connack...)
			answer(conn, append(subackQoS1[:5:5], test.packet...)...)
		})
		r := launch(t, config(t, url), func(mqtt.Delivery) { t.Errorf("%s: delivered", name) })
		r.awaitError(t, test.want)
		r.stop(t)
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 32<<20 {
			t.Errorf("%s: %d bytes allocated", name, grown)
		}
		if u := r.Unacked(); u != 0 {
			t.Errorf("%s: %d messages in the window of a connection that has ended", name, u)
		}
	}
}

// The answer to a ping may stand behind a message that takes longer than any keep-alive: the connection lives as long as bytes
// come, and goes on to ping, or the broker would end it after one and a half keep-alives (MQTT-3.1.2-24).
func TestLivesAndPingsWhileALongMessageComes(t *testing.T) {
	t.Parallel()
	const keepAlive, long = time.Second, 9 << 20
	pinged := make(chan time.Time, 100)
	url := scripted(t, func(conn net.Conn) {
		answer(conn, connack...)
		answer(conn, publishHeader(0x30, long+3, "a")...) // SUBACK comes behind it
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			for {
				if _, err := packets.ReadPacket(conn); err != nil {
					return
				}
				pinged <- time.Now()
			}
		}()
		piece := make([]byte, 1024)
		sent := 0
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for range 35 {
			<-tick.C
			n, _ := conn.Write(piece)
			sent += n
		}
		_, _ = conn.Write(slices.Concat(make([]byte, long-sent), subackQoS1, publishHeader(0x30, 4, "b"), []byte(".")))
		<-closed
	})
	c := config(t, url)
	c.KeepAlive = keepAlive
	c.DialTimeout = time.Second // the message takes longer, a piece of it does not
	var in inbox
	begun := time.Now()
	r := start(t, c, in.handle)
	if d := in.await(t, 2)[0]; d.Length != long {
		t.Errorf("length %d, want %d", d.Length, long)
	}
	last := begun
	for len(pinged) > 0 {
		at := <-pinged
		if gap := at.Sub(last); gap > 3*keepAlive/2 {
			t.Errorf("nothing written for %s", gap)
		}
		last = at
	}
	if time.Since(last) > 2*keepAlive {
		t.Errorf("no ping since %s", last.Sub(begun))
	}
	if got := r.metric(t, "plenum_mqtt_reconnects_total"); got != 0 {
		t.Errorf("%v reconnects, the last after: %s", got, r.Status()[0].LastError)
	}
}

func TestSilentBrokerIsLeft(t *testing.T) {
	t.Parallel()
	url := scripted(t, func(conn net.Conn) {
		answer(conn, connack...)
		answer(conn, subackQoS1...)
		untilClosed(conn)
	})
	c := config(t, url)
	c.KeepAlive = time.Second
	r := start(t, c, func(mqtt.Delivery) {})
	r.awaitError(t, "nothing heard from the broker for 2s")
	if !strings.Contains(r.Status()[0].LastError, url) {
		t.Errorf("the error does not name the broker: %s", r.Status()[0].LastError)
	}
}
