package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/mqtt"
)

// Messages keep coming while the client pauses and closes. What is done before Close is acknowledged, and the next client gets
// exactly the rest.
func TestCloseUnderLoadAcknowledgesWhatIsDone(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t, "max_inflight_messages 100")
	c := config(t, broker.URL())
	c.WindowMessages = 1000
	const n = 5000
	var first, second inbox
	r := start(t, c, first.handle)
	published := make(chan struct{})
	go func() {
		defer close(published)
		publish(t, broker.URL(), "telemetry/a", 1, numbered(n)...)
	}()
	done := 0
	for done < n/5 {
		for _, d := range first.await(t, done+1)[done:] {
			d.Receipt.Done()
			done++
		}
	}
	r.Pause()
	r.stop(t)
	<-published
	start(t, c, func(d mqtt.Delivery) {
		second.handle(d)
		d.Receipt.Done()
	})
	second.await(t, n-done)
	if diff := cmp.Diff(numbered(n)[done:], second.payloads()); diff != "" {
		t.Errorf("after %d were done, the next client got (-want +got):\n%s", done, diff)
	}
}

func TestPauseStopsIntakeAndStillAcknowledges(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	wire := newTap(t, broker.URL())
	c := config(t, wire.url())
	var before, after inbox
	r := start(t, c, before.handle)
	publish(t, broker.URL(), "telemetry/a", 1, numbered(5)...)
	got := before.await(t, 5)
	r.Pause()
	publish(t, broker.URL(), "telemetry/a", 1, "6", "7")
	for _, d := range got {
		d.Receipt.Done()
	}
	devtest.Eventually(t, func() error {
		if published, acked, _ := wire.seen(); len(acked) != 5 || len(published) != 7 {
			return fmt.Errorf("%d of 5 PUBACKs, %d of 7 messages sent", len(acked), len(published))
		}
		return nil
	})
	r.stop(t)
	if _, _, last := wire.seen(); !strings.HasPrefix(last, "DISCONNECT") {
		t.Errorf("the client's last packet is %s, want DISCONNECT", last)
	}
	if got := before.payloads(); len(got) != 5 {
		t.Errorf("delivered %v after Pause", got[5:])
	}
	start(t, c, after.handle)
	after.await(t, 2)
	if diff := cmp.Diff([]string{"6", "7"}, after.payloads()); diff != "" {
		t.Errorf("the next client got (-want +got):\n%s", diff)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	var in inbox
	client, err := mqtt.New(config(t, broker.URL()), nil, in.handle, zap.NewNop(), prometheus.NewPedanticRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	devtest.Eventually(t, func() error {
		if !client.Status()[0].Connected {
			return errors.New("not connected")
		}
		return nil
	})
	if err := client.Run(ctx); err == nil {
		t.Error("a second Run returned no error")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := client.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCloseBeforeRun(t *testing.T) {
	t.Parallel()
	client, err := mqtt.New(config(t, "tcp://127.0.0.1:1"), nil, func(mqtt.Delivery) {}, zap.NewNop(), prometheus.NewPedanticRegistry())
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := client.Run(t.Context()); err != nil {
		t.Error(err)
	}
}
