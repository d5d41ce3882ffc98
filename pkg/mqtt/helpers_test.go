package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/mqtt"
)

// hang is when a test that waits for something has gone wrong.
const hang = 60 * time.Second

// config is a configuration for one connection to broker, with a client id that no other test has.
func config(tb testing.TB, broker string) mqtt.Config {
	return mqtt.Config{
		Brokers: []string{broker}, ClientID: strings.ReplaceAll(tb.Name(), "/", "."), Filters: []string{"telemetry/#"},
		MaxBackoff: 100 * time.Millisecond,
	}
}

// running is a client that runs.
type running struct {
	*mqtt.Client
	metrics *prometheus.Registry
	logs    *observer.ObservedLogs
	done    chan error
}

// start runs a client until stop or the end of the test, and waits until it is connected.
func start(tb testing.TB, c mqtt.Config, handler mqtt.Handler) *running {
	tb.Helper()
	r := launch(tb, c, handler)
	r.awaitConnected(tb)
	return r
}

// launch runs a client that remembers no sessions, and waits for nothing.
func launch(tb testing.TB, c mqtt.Config, handler mqtt.Handler) *running {
	tb.Helper()
	return launchWith(tb, c, nil, handler)
}

func launchWith(tb testing.TB, c mqtt.Config, sessions mqtt.Sessions, handler mqtt.Handler) *running {
	tb.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	reg := prometheus.NewPedanticRegistry()
	client, err := mqtt.New(c, sessions, handler, zap.New(core), reg)
	if err != nil {
		tb.Fatal(err)
	}
	r := &running{Client: client, metrics: reg, logs: logs, done: make(chan error, 1)}
	go func() { r.done <- client.Run(context.Background()) }()
	tb.Cleanup(func() { r.stop(tb) })
	return r
}

// stop closes the client; more than once does nothing.
func (r *running) stop(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	if err := r.Close(ctx); err != nil {
		tb.Error(err)
	}
	select {
	case err := <-r.done:
		if err != nil {
			tb.Error(err)
		}
		r.done <- nil
	case <-ctx.Done():
		tb.Error("Run did not return after Close")
	}
}

func (r *running) awaitConnected(tb testing.TB) {
	tb.Helper()
	devtest.Eventually(tb, func() error {
		for _, s := range r.Status() {
			if !s.Connected {
				return fmt.Errorf("%s is not connected: %s", s.ClientID, s.LastError)
			}
		}
		return nil
	})
}

// awaitError waits until connection 0 shows an error with all of the texts.
func (r *running) awaitError(tb testing.TB, texts ...string) {
	tb.Helper()
	devtest.Eventually(tb, func() error {
		last := r.Status()[0].LastError
		for _, text := range texts {
			if !strings.Contains(last, text) {
				return fmt.Errorf("last error %q lacks %q", last, text)
			}
		}
		return nil
	})
}

// metric returns a counter's or gauge's value, summed over its labels.
func (r *running) metric(tb testing.TB, name string) float64 {
	tb.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		for _, m := range family.Metric {
			if family.GetName() == name {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// inbox keeps deliveries in order of receipt.
type inbox struct {
	mu         sync.Mutex
	deliveries []mqtt.Delivery
}

func (i *inbox) handle(d mqtt.Delivery) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.deliveries = append(i.deliveries, d)
}

func (i *inbox) all() []mqtt.Delivery {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]mqtt.Delivery(nil), i.deliveries...)
}

func (i *inbox) payloads() []string {
	var payloads []string
	for _, d := range i.all() {
		payloads = append(payloads, string(d.Payload))
	}
	return payloads
}

// await waits for at least n deliveries and returns all.
func (i *inbox) await(tb testing.TB, n int) []mqtt.Delivery {
	tb.Helper()
	devtest.Eventually(tb, func() error {
		if got := len(i.all()); got < n {
			return fmt.Errorf("%d of %d messages received", got, n)
		}
		return nil
	})
	return i.all()
}

// numbered is "1" to "n", each a payload.
func numbered(n int) []string {
	lines := make([]string, n)
	for i := range lines {
		lines[i] = fmt.Sprint(i + 1)
	}
	return lines
}

// publish sends payloads in order with mosquitto_pub, which returns when the broker has them.
func publish(tb testing.TB, broker, topic string, qos int, payloads ...string) {
	tb.Helper()
	host, port := hostPort(tb, broker)
	cmd := exec.Command("mosquitto_pub", "-h", host, "-p", port, "-q", fmt.Sprint(qos), "-t", topic, "-l")
	cmd.Stdin = strings.NewReader(strings.Join(payloads, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("mosquitto_pub to %s: %v: %s", broker, err, out)
	}
}

func hostPort(tb testing.TB, broker string) (host, port string) {
	tb.Helper()
	_, address, _ := strings.Cut(broker, "://")
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		tb.Fatal(err)
	}
	return host, port
}

// freePort is a port for a broker's second listener, which cannot be 0.
func freePort(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err := errors.Join(err, l.Close()); err != nil {
		tb.Fatal(err)
	}
	return port
}

func publishRetained(tb testing.TB, broker, topic, payload string) {
	tb.Helper()
	host, port := hostPort(tb, broker)
	cmd := exec.Command("mosquitto_pub", "-h", host, "-p", port, "-q", "1", "-r", "-t", topic, "-m", payload)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("mosquitto_pub to %s: %v: %s", broker, err, out)
	}
}
