package program

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
)

// A stop stores and acknowledges what was received, and keeps the client id until it has left the broker.
func TestADrainKeepsTheClientID(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	s, err := source{args: []string{"--database.url", devtest.Database(t), "--mqtt.brokers", broker.URL()}}.load(t)
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.InfoLevel)
	a, err := NewApp(t.Context(), "test", s, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- Ingest(ctx, a) }()
	devtest.Eventually(t, func() error {
		if logs.FilterField(zap.String("part", "mqtt")).FilterMessageSnippet("connected").Len() == 0 {
			return fmt.Errorf("not connected; %v", logs.All())
		}
		return nil
	})

	tx, err := a.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), "lock table telemetry"); err != nil { // nothing can be stored
		t.Fatal(err)
	}
	payload := fmt.Sprintf(`{"ts":%d,"metrics":{}}`, time.Now().UnixMilli())
	if out, err := exec.Command("mosquitto_pub", "-L", "mqtt"+broker.URL()[len("tcp"):]+"/telemetry/a", "-q", "1", "-m", payload).CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_pub: %v: %s", err, out)
	}
	devtest.Eventually(t, func() error {
		return received(a.Registry)
	})
	cancel()
	devtest.Eventually(t, func() error {
		if logs.FilterMessage("draining").Len() == 0 {
			return errors.New("not draining")
		}
		return nil
	})
	// LockNames itself goes on asking for seconds before it gives up.
	lock, err := store.LockNames(t.Context(), a.pool, clientIDs(s))
	if held := (*store.HeldError)(nil); !errors.As(err, &held) {
		if err == nil {
			lock.Unlock(t.Context())
		}
		t.Fatalf("the client id could be taken during the drain: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := logs.FilterMessage("drained").FilterField(zap.Int64("stored", 1)).Len(); n != 1 {
		t.Errorf("not drained with one row stored: %v", logs.All())
	}
	lock, err = store.LockNames(t.Context(), a.pool, clientIDs(s))
	if err != nil {
		t.Fatalf("the client id after the stop: %v", err)
	}
	lock.Unlock(t.Context())
}

// received returns an error until a message has been received.
func received(reg *prometheus.Registry) error {
	families, err := reg.Gather()
	if err != nil {
		return err
	}
	for _, f := range families {
		if f.GetName() == "plenum_mqtt_messages_received_total" && f.GetMetric()[0].GetCounter().GetValue() > 0 {
			return nil
		}
	}
	return errors.New("no message was received")
}
