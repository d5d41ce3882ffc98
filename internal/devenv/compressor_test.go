package devenv

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 123_456_789, time.UTC)

// message is what a subscriber makes of a payload.
type message struct {
	TS      int64          `json:"ts"`
	Seq     int64          `json:"seq"`
	Kind    string         `json:"kind"`
	Device  string         `json:"device_id"`
	Metrics map[string]any `json:"metrics"`
}

// life is what a fleet publishes in its next n readings.
func life(t *testing.T, f *fleet, n int) (messages []message, bytes int) {
	t.Helper()
	for range n {
		r, err := f.next(noon)
		if err != nil {
			t.Fatal(err)
		}
		var m message
		if err := json.Unmarshal(r.payload, &m); err != nil {
			t.Fatalf("%s: %v", r.payload, err)
		}
		if m.Device != r.device || m.Seq != r.seq {
			t.Fatalf("reading of %s, %d has the payload %s", r.device, r.seq, r.payload)
		}
		messages = append(messages, m)
		bytes += len(r.payload)
	}
	return messages, bytes
}

func TestFleetDependsOnItsSeedAlone(t *testing.T) {
	t.Parallel()
	first, _ := life(t, newFleet(1, 3, 7), 600)
	again, _ := life(t, newFleet(1, 3, 7), 600)
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("the same seed gave (-first +again):\n%s", diff)
	}
	if other, _ := life(t, newFleet(1, 3, 8), 600); cmp.Equal(first, other) {
		t.Error("another seed gave the same signals")
	}
}

func TestFleetTakesTurnsAndCounts(t *testing.T) {
	t.Parallel()
	messages, _ := life(t, newFleet(1, 3, 1), 9)
	for i, m := range messages {
		if want := deviceName(i % 3); m.Device != want || m.Seq != int64(i/3+1) || m.TS != noon.UnixMilli() {
			t.Errorf("reading %d is number %d of %s at %d, want %d of %s at %d",
				i, m.Seq, m.Device, m.TS, i/3+1, want, noon.UnixMilli())
		}
	}
}

func TestFleetLivesLikeCompressors(t *testing.T) {
	t.Parallel()
	const devices, each = 4, 4000
	messages, bytes := life(t, newFleet(1, devices, 42), devices*each)
	if mean := bytes / len(messages); mean < 220 || mean > 280 {
		t.Errorf("a payload has %d bytes on average, want about 250", mean)
	}
	kinds := map[string]int{}
	current, discharge := map[string]*mean{}, map[string]*mean{}
	hours := map[string]float64{}
	for _, m := range messages {
		kinds[m.Kind]++
		if m.Kind != "parameters" {
			continue
		}
		state := m.Metrics["state"].(string)
		if current[state] == nil {
			current[state], discharge[state] = &mean{}, &mean{}
		}
		current[state].add(m.Metrics["motor_current_a"].(float64))
		discharge[state].add(m.Metrics["discharge_temp_c"].(float64))
		if bar := m.Metrics["pressure_bar"].(float64); bar < loadBelowBar-0.3 || bar > unloadAboveBar+0.1 {
			t.Fatalf("%s has a pressure of %v bar", m.Device, bar)
		}
		if now := m.Metrics["running_hours"].(float64); now < hours[m.Device] {
			t.Fatalf("running hours of %s went back from %v to %v", m.Device, hours[m.Device], now)
		} else {
			hours[m.Device] = now
		}
		for name, value := range m.Metrics {
			if number, ok := value.(float64); ok && (math.IsNaN(number) || number < 0) {
				t.Fatalf("%s of %s is %v", name, m.Device, number)
			}
		}
	}
	if share := float64(kinds["performance"]) / float64(len(messages)); math.Abs(share*performanceEvery-1) > 0.05 {
		t.Errorf("%d of %d readings are summaries, want one in %d", kinds["performance"], len(messages), performanceEvery)
	}
	if n := kinds["fault"]; n == 0 || n > len(messages)/500 {
		t.Errorf("%d of %d readings are faults, want a few", n, len(messages))
	}
	if current["loaded"] == nil || current["unloaded"] == nil {
		t.Fatalf("states seen: %v, want loaded and unloaded", current)
	}
	if loaded, idle := current["loaded"].value(), current["unloaded"].value(); loaded < 1.5*idle {
		t.Errorf("the motor takes %.1f A loaded and %.1f A unloaded", loaded, idle)
	}
	if loaded, idle := discharge["loaded"].value(), discharge["unloaded"].value(); loaded <= idle {
		t.Errorf("discharge has %.1f °C loaded and %.1f °C unloaded", loaded, idle)
	}
}

type mean struct {
	sum float64
	n   int
}

func (m *mean) add(value float64) { m.sum += value; m.n++ }
func (m *mean) value() float64    { return m.sum / float64(m.n) }

func TestIdleMotorStops(t *testing.T) {
	t.Parallel()
	c := newCompressor(0, 1)
	c.usual, c.demand = 0, 0
	seen := map[string]bool{}
	for range 20_000 {
		c.step()
		seen[c.state] = true
	}
	if !seen["stopped"] || !seen["loaded"] {
		t.Errorf("states of a plant without demand: %v, want stopped now and then", seen)
	}
}

func BenchmarkFleet(b *testing.B) {
	f := newFleet(1, 50, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.next(noon); err != nil {
			b.Fatal(err)
		}
	}
}
