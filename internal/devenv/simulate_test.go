package devenv_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/go-cmp/cmp"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

// inbox is a subscriber's: payloads by "device seq".
type inbox struct {
	mu       sync.Mutex
	payloads map[string][]string
	count    int
}

func (b *inbox) add(_ mqtt.Client, m mqtt.Message) {
	var head struct {
		Device string `json:"device_id"`
		Seq    int64  `json:"seq"`
	}
	key := "no JSON"
	if err := json.Unmarshal(m.Payload(), &head); err == nil {
		key = fmt.Sprintf("%s %d", strings.TrimPrefix(m.Topic(), "telemetry/"), head.Seq)
		if !strings.HasPrefix(key, head.Device+" ") {
			key = "wrong topic " + m.Topic()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count++
	b.payloads[key] = append(b.payloads[key], string(m.Payload()))
}

// holds reports what of the keys is missing.
func (b *inbox) holds(keys []string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, key := range keys {
		if len(b.payloads[key]) == 0 {
			return fmt.Errorf("reading %s has not arrived; %d others have", key, b.count)
		}
	}
	return nil
}

func (b *inbox) size() (messages, readings int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count, len(b.payloads)
}

// subscribe keeps a persistent session that takes all telemetry.
func subscribe(t *testing.T, broker string) *inbox {
	t.Helper()
	box := &inbox{payloads: map[string][]string{}}
	client := mqtt.NewClient(mqtt.NewClientOptions().AddBroker(broker).SetClientID("inbox").
		SetCleanSession(false).SetResumeSubs(true).SetDefaultPublishHandler(box.add))
	if err := finish(client.Connect()); err != nil {
		t.Fatal(err)
	}
	if err := finish(client.Subscribe("telemetry/#", 1, nil)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Disconnect(100) })
	return box
}

func recorded(record *strings.Builder) []string {
	return strings.Split(strings.TrimSuffix(record.String(), "\n"), "\n")
}

func TestEveryAcknowledgedReadingArrives(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	box := subscribe(t, broker.URL())
	var record strings.Builder
	var last devenv.SimulateStats
	stats, err := devenv.Simulate(t.Context(), devenv.SimulateConfig{
		Broker: broker.URL(), Devices: 7, FirstDevice: 8, Total: 3000, QoS: 1, Seed: 1, MaxInFlight: 100, Record: &record,
	}, func(s devenv.SimulateStats) { last = s })
	if err != nil {
		t.Fatal(err)
	}
	if want := (devenv.SimulateStats{Sent: 3000, Acknowledged: 3000}); stats != want || last != want {
		t.Errorf("stats %+v, reported at the end %+v, want %+v", stats, last, want)
	}
	keys := recorded(&record)
	if len(keys) != 3000 || keys[0] != "cmp-00008 1" || keys[8] != "cmp-00009 2" {
		t.Errorf("record has %d lines, %q…", len(keys), keys[0])
	}
	devtest.Eventually(t, func() error { return box.holds(keys) })
	if messages, readings := box.size(); messages != 3000 || readings != 3000 {
		t.Errorf("%d messages with %d readings arrived, want 3000 of each", messages, readings)
	}
}

func TestSimulateOutlivesItsBroker(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	box := subscribe(t, broker.URL())
	var record strings.Builder
	type outcome struct {
		stats devenv.SimulateStats
		err   error
	}
	ended := make(chan outcome, 1)
	go func() {
		stats, err := devenv.Simulate(t.Context(), devenv.SimulateConfig{
			Broker: broker.URL(), Devices: 5, Rate: 3000, Total: 6000, QoS: 1, Record: &record,
		}, nil)
		ended <- outcome{stats, err}
	}()
	for _, some := range []int{100, 1000} {
		devtest.Eventually(t, func() error {
			if messages, _ := box.size(); messages < some {
				return fmt.Errorf("%d messages have arrived", messages)
			}
			return nil
		})
		if err := broker.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	got := <-ended
	if got.err != nil {
		t.Fatal(got.err)
	}
	if got.stats.Sent != 6000 || got.stats.Acknowledged != 6000 || got.stats.Reconnects == 0 || got.stats.Lost != nil {
		t.Errorf("stats %+v, want 6000 of 6000, some reconnects, and a connection", got.stats)
	}
	keys := recorded(&record)
	if len(keys) != 6000 {
		t.Errorf("record has %d lines, want 6000", len(keys))
	}
	devtest.Eventually(t, func() error { return box.holds(keys) })
	if _, readings := box.size(); readings != 6000 {
		t.Errorf("%d readings arrived, want 6000", readings)
	}
}

func TestSimulateEndsWithItsContext(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	for _, test := range []struct {
		name  string
		total int
		rate  float64
		want  error
	}{
		{"as asked", 0, 0, nil},
		{"as asked, at a rate", 0, 500, nil},
		{"early", 1 << 40, 0, context.Canceled},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stats, err := devenv.Simulate(ctx, devenv.SimulateConfig{
				Broker: broker.URL(), Devices: 2, QoS: 1, Total: test.total, Rate: test.rate,
			}, func(devenv.SimulateStats) { cancel() })
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if stats.Sent == 0 || stats.Acknowledged != stats.Sent {
				t.Errorf("stats %+v, want everything acknowledged", stats)
			}
		})
	}
}

func TestSimulateWithoutAcknowledgements(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	box := subscribe(t, broker.URL())
	stats, err := devenv.Simulate(t.Context(), devenv.SimulateConfig{Broker: broker.URL(), Devices: 2, Total: 500}, nil)
	if want := (devenv.SimulateStats{Sent: 500}); err != nil || stats != want {
		t.Fatalf("stats %+v, %v, want %+v", stats, err, want)
	}
	devtest.Eventually(t, func() error { return box.holds([]string{"cmp-00002 250"}) })
	if messages, _ := box.size(); messages != 500 {
		t.Errorf("%d messages arrived, want 500", messages)
	}
}

func TestSimulateReplaysAFile(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	box := subscribe(t, broker.URL())
	path := filepath.Join(t.TempDir(), "signals.csv")
	rows := []string{"Unnamed: 0,timestamp,TP2"}
	for i := range 300 {
		rows = append(rows, fmt.Sprintf("%d,2020-02-01 00:%02d:%02d,-0.%016d", 10*i, i/60, i%60, i+1))
	}
	if err := os.WriteFile(path, []byte(strings.Join(rows, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := devenv.SimulateConfig{Broker: broker.URL(), Devices: 2, QoS: 1, File: path}
	if stats, err := devenv.Simulate(t.Context(), config, nil); err != nil || stats.Acknowledged != 300 {
		t.Fatalf("stats %+v, %v, want 300 acknowledged", stats, err)
	}
	const key = "cmp-00002 2990"
	devtest.Eventually(t, func() error { return box.holds([]string{key}) })
	want := []string{`{"ts":1580515499000,"seq":2990,"kind":"parameters","device_id":"cmp-00002","metrics":{"TP2":-0.0000000000000300}}`}
	if diff := cmp.Diff(want, box.payloads[key]); diff != "" {
		t.Errorf("row 299 (-want +got):\n%s", diff)
	}
	config.Total = 10
	if stats, err := devenv.Simulate(t.Context(), config, nil); err != nil || stats.Acknowledged != 10 {
		t.Errorf("10 rows: stats %+v, %v", stats, err)
	}
	config.Total = 301
	stats, err := devenv.Simulate(t.Context(), config, nil)
	if err == nil || !strings.Contains(err.Error(), "has 300 rows, total asks for 301") || stats.Acknowledged != 300 {
		t.Errorf("more than the file has: stats %+v, %v", stats, err)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestSimulateFaults(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	closed := devtest.Mosquitto(t)
	if err := closed.Stop(); err != nil {
		t.Fatal(err)
	}
	strict := devtest.Mosquitto(t, "allow_anonymous false")
	bad := filepath.Join(t.TempDir(), "bad.csv")
	if err := os.WriteFile(bad, []byte("timestamp,a\n2020-02-01 00:00:00,1\nsoon,2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		config devenv.SimulateConfig
		want   string
		acked  int64
	}{
		{"unreachable", devenv.SimulateConfig{Broker: closed.URL(), Devices: 1}, "connection refused", 0},
		{"refused", devenv.SimulateConfig{Broker: strict.URL(), Devices: 1}, "Not Authorised", 0},
		{"file", devenv.SimulateConfig{Broker: broker.URL(), Devices: 1, QoS: 1, File: bad}, "line 3", 1},
		{"record", devenv.SimulateConfig{Broker: broker.URL(), Devices: 1, QoS: 1, Total: 5, Record: fullDisk{}}, "no space left", 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			stats, err := devenv.Simulate(t.Context(), test.config, nil)
			if err == nil || !strings.Contains(err.Error(), test.want) || stats.Acknowledged != test.acked {
				t.Errorf("got %v, %+v; want %q and %d acknowledged", err, stats, test.want, test.acked)
			}
		})
	}
}

func TestSimulateConfigNamesAllFaults(t *testing.T) {
	t.Parallel()
	err := devenv.SimulateConfig{
		Broker: "ws://me:secret@host", Devices: 0, Rate: -1, Total: -2, QoS: 2, MaxInFlight: 70000, FirstDevice: -3,
	}.Validate()
	for _, want := range []string{
		`broker: "ws://me:xxxxx@host"`, "devices: 0", "rate: -1", "total: -2", "qos: 2", "max in flight: 70000", "first device: -3",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	for _, broker := range []string{"", "tcp://", "tcp://me:secret@host:port", "host:1883"} {
		err := devenv.SimulateConfig{Broker: broker, Devices: 1}.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), "broker: ") || strings.Contains(err.Error(), "secret") {
			t.Errorf("broker %q: %v", broker, err)
		}
	}
}
