package endtoend

import (
	"encoding/json"
	"fmt"
	"maps"
	"testing"
	"time"
)

// TestPath sends messages through mosquitto_pub and finds each once, with its values, in the feed.
func TestPath(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	ingest := s.ingest().awaitReady()
	if ingest.metric("plenum_mqtt_connected") != 1 {
		t.Error("ingest says that it is ready before it is connected")
	}
	syncjob := s.syncjob().awaitReady()

	const n = 2000
	start := time.Now().UTC().Truncate(time.Millisecond)
	lines := make([]string, n)
	for i := range lines {
		lines[i] = fmt.Sprintf(`{"ts":%d,"seq":%d,"kind":"performance","metrics":{"i":%d,"motor_temp_c":81.40,"state":"loaded"}}`, start.UnixMilli(), i, i)
	}
	s.publish("telemetry/cmp-00001", lines)

	r := &reader{t: t, from: syncjob, name: "test"}
	r.readUntil(n)
	r.once()
	seen := map[int64]bool{}
	for _, row := range r.rows {
		if row.DeviceID != "cmp-00001" || row.Kind != "performance" || !row.RecordedAt.Equal(start) || row.Seq == nil {
			t.Fatalf("row %+v", row)
		}
		var payload map[string]any
		if err := json.Unmarshal(row.Payload, &payload); err != nil {
			t.Fatal(err)
		}
		want := map[string]any{"i": float64(*row.Seq), "motor_temp_c": 81.4, "state": "loaded"}
		if !maps.Equal(payload, want) {
			t.Fatalf("payload %v, want %v", payload, want)
		}
		seen[*row.Seq] = true
	}
	if len(seen) != n || len(r.rows) != n {
		t.Fatalf("%d rows of %d readings for %d messages", len(r.rows), len(seen), n)
	}
	if code := ingest.terminate(); code != 0 {
		t.Errorf("ingest exits %d", code)
	}
	if code := syncjob.terminate(); code != 0 {
		t.Errorf("syncjob exits %d", code)
	}
}
