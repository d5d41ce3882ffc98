package telemetry

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// fuzzConfigs are the configurations that the fuzzer chooses from.
func fuzzConfigs() []Config {
	nested := DefaultConfig()
	nested.Topics = []string{"t/{device_id}/x/#", "+/+/{kind}", "#"}
	nested.Time, nested.Metrics, nested.Seq, nested.Kind = "/h/0/ts", "", "/h/1", "/a~1b/~0"
	nested.TimeUnit = UnitNanoseconds
	text := DefaultConfig()
	text.TimeUnit, text.Kind, text.Metrics = UnitRFC3339, "", "/m/0"
	seconds := DefaultConfig()
	seconds.TimeUnit, seconds.MaxPayloadBytes, seconds.DeviceID = UnitSeconds, 300, "/metrics/device_id"
	arrival := DefaultConfig()
	arrival.Topics = []string{"telemetry/#"}
	arrival.TimeUnit, arrival.Time, arrival.Seq = UnitArrival, "", ""
	return []Config{DefaultConfig(), nested, text, seconds, arrival}
}

func FuzzDecode(f *testing.F) {
	for _, payload := range []string{
		benchObject, "", "[]", "{}", "null", " 5 ", "[5,5]", "[{}]", prefix[:20], prefix + `"seq":1e400000}`, prefix + `"seq":0e-400}`,
		`[` + prefix + `"seq":1},` + prefix + `"seq":"x"},5]`,
		prefix + `"a":"\ud83d\ude00\u0000"}`, prefix + `"a":"\ud83d"}`, prefix + `"a\u0062":[1,{"c":2e-400}]}`,
		prefix + `"device_id":"\u0064","device_id":"d","kind":"fault"}`, prefix + `"device_id":"` + strings.Repeat("x", 257) + `"}`,
		`{"h":[{"ts":1795000000123456789},7],"a/b":{"~":"k"},"device_id":"d","h":[{"ts":1795000000123456789}]}`,
		`{"ts":"2026-11-18T11:06:40.123456789+05:30","m":[{"a":-0.0}]}`, `{"ts":1795000000,"metrics":{"device_id":"d"}}`,
		strings.Repeat("[", 70) + strings.Repeat("]", 70), `{"a":` + strings.Repeat(`{"a":`, 64) + `{}` + strings.Repeat("}", 65),
		"[" + strings.Repeat("5,", 101) + "5]", "{\"a\":\"\xff\"}",
	} {
		for config := range fuzzConfigs() {
			f.Add("telemetry/d", []byte(payload), uint8(config))
		}
		f.Add("t/d/x", []byte(payload), uint8(1))
		f.Add("telemetry//", []byte(payload), uint8(0))
	}
	configs := fuzzConfigs()
	decoders := make([]*Decoder, len(configs))
	for i, c := range configs {
		var err error
		if decoders[i], err = NewDecoder(c); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, topic string, payload []byte, config uint8) {
		i := int(config) % len(configs)
		checkSyntax(t, payload)
		m := Message{Topic: topic, Payload: payload, ReceivedAt: received}
		var got Batch
		decoders[i].Decode(m, &got)
		checkBatch(t, got)
		if maxDepth(payload) < 10_000 { // encoding/json refuses more
			checkReference(t, configs[i], m, got)
		}
	})
}

// checkSyntax compares the scanner with json.Valid on any bytes, also such as Decode never gives it.
func checkSyntax(t *testing.T, payload []byte) {
	if maxDepth(payload) >= 10_000 {
		return
	}
	r := run{d: &Decoder{}, m: Message{Payload: payload}, topicFault: "only the syntax", s: scanner{b: payload, paths: &paths{}}}
	if got, want := r.message(), json.Valid(payload); got != want {
		t.Errorf("syntax is right: %v, by encoding/json: %v; stopped at %d", got, want, r.s.syntaxAt)
	}
}

// maxDepth returns a bound of payload's depth.
func maxDepth(payload []byte) int {
	return bytes.Count(payload, []byte("[")) + bytes.Count(payload, []byte("{"))
}

// checkBatch checks what holds of every batch.
func checkBatch(t *testing.T, b Batch) {
	if len(b.Readings)+len(b.Rejects) == 0 {
		t.Error("neither a reading nor a reject")
	}
	if len(b.Rejects) > MaxSingleRejects {
		t.Errorf("%d rejects", len(b.Rejects))
	}
	for _, r := range b.Rejects {
		if !utf8.ValidString(r.Detail+r.Topic) || strings.ContainsRune(r.Detail+r.Topic, 0) || len(r.Detail) > 1024 || len(r.Topic) > MaxRejectTopicBytes {
			t.Errorf("detail %q (%d bytes), topic %q (%d bytes)", r.Detail, len(r.Detail), r.Topic, len(r.Topic))
		}
	}
	for _, r := range b.Readings {
		var object map[string]any
		if err := json.Unmarshal(r.Metrics, &object); err != nil || object == nil {
			t.Errorf("metrics %q: %v", r.Metrics, err)
		}
		if _, offset := r.RecordedAt.Zone(); offset != 0 || r.RecordedAt.Nanosecond()%1000 != 0 {
			t.Errorf("recorded at %v", r.RecordedAt)
		}
	}
}

func checkReference(t *testing.T, c Config, m Message, b Batch) {
	want := reference(c, m)
	if diff := cmp.Diff(want.readings, b.Readings, cmpopts.EquateEmpty(), exported); diff != "" {
		t.Errorf("readings (-reference):\n%s", diff)
	}
	var codes []Code
	var raws []string
	for _, r := range b.Rejects {
		codes, raws = append(codes, r.Code), append(raws, string(r.Raw))
	}
	if diff := cmp.Diff(want.codes, codes); diff != "" {
		t.Errorf("codes (-reference):\n%s\n%+v", diff, b.Rejects)
	}
	if diff := cmp.Diff(want.raws, raws); diff != "" {
		t.Errorf("raws (-reference):\n%s", diff)
	}
}
