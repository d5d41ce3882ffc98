package telemetry

import (
	"bytes"
	"testing"
	"time"
)

// benchObject is 250 bytes.
const benchObject = `{"ts": 1795300000123, "seq": 42, "kind": "performance", "device_id": "cmp-00001", "metrics": {"motor_temp_c": 81.4, "state": "loaded", ` +
	`"oil_pressure_bar": 7.25, "flow_m3_min": 12.75, "vibration_mm_s": 1.875, "running": true, "amps": 61.25}}` + `          `

var benchReceived = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func benchmarkDecode(b *testing.B, topic, payload string) {
	d, err := NewDecoder(DefaultConfig())
	if err != nil {
		b.Fatal(err)
	}
	m := Message{Topic: topic, Payload: []byte(payload), ReceivedAt: benchReceived}
	var batch Batch
	d.Decode(m, &batch)
	if len(batch.Rejects) > 0 {
		b.Fatalf("rejected: %s", batch.Rejects[0].Detail)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		batch.Readings = batch.Readings[:0]
		d.Decode(m, &batch)
	}
}

func BenchmarkDecodeObject(b *testing.B) {
	benchmarkDecode(b, "telemetry/cmp-00001", benchObject)
}

func BenchmarkDecodeDeviceFromPayload(b *testing.B) {
	d, err := NewDecoder(Config{
		Topics: []string{"gateway/+"}, Time: "/ts", Metrics: "/metrics", DeviceID: "/device_id", Kind: "/kind", Seq: "/seq",
		TimeUnit: UnitMilliseconds, MaxPayloadBytes: 1 << 18,
	})
	if err != nil {
		b.Fatal(err)
	}
	m := Message{Topic: "gateway/7", Payload: []byte(benchObject), ReceivedAt: benchReceived}
	var batch Batch
	b.ReportAllocs()
	for b.Loop() {
		batch.Readings = batch.Readings[:0]
		d.Decode(m, &batch)
	}
}

func BenchmarkDecodeArrayOf100(b *testing.B) {
	elements := bytes.Repeat([]byte(benchObject+","), 100)
	benchmarkDecode(b, "telemetry/cmp-00001", "["+string(elements[:len(elements)-1])+"]")
}

func BenchmarkDecodeDeep(b *testing.B) {
	d, err := NewDecoder(DefaultConfig())
	if err != nil {
		b.Fatal(err)
	}
	m := Message{Topic: "telemetry/a", Payload: append(bytes.Repeat([]byte("["), 130_000), bytes.Repeat([]byte("]"), 130_000)...), ReceivedAt: benchReceived}
	var batch Batch
	b.ReportAllocs()
	for b.Loop() {
		batch.Rejects = batch.Rejects[:0]
		d.Decode(m, &batch)
	}
}
