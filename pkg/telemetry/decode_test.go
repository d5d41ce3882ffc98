package telemetry

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// received is when the tests' messages arrived; good is a time before it, in ms.
var received = time.Date(2026, 11, 22, 12, 0, 0, 123456789, time.UTC)

const (
	good   = "1795000000123"
	prefix = `{"ts":` + good + `,"metrics":{},`
)

func goodTime() time.Time { return time.UnixMilli(1795000000123).UTC() }

func newDecoder(t testing.TB, change func(*Config)) *Decoder {
	t.Helper()
	c := DefaultConfig()
	if change != nil {
		change(&c)
	}
	d, err := NewDecoder(c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func decode(d *Decoder, topic, payload string) Batch {
	var b Batch
	d.Decode(Message{Topic: topic, Payload: []byte(payload), ReceivedAt: received}, &b)
	return b
}

// wantReject checks that b is exactly one reject of the code and detail.
func wantReject(t *testing.T, b Batch, code Code, detail string) {
	t.Helper()
	if len(b.Readings) != 0 || len(b.Rejects) != 1 {
		t.Fatalf("%d readings and %d rejects, want 0 and 1: %+v", len(b.Readings), len(b.Rejects), b)
	}
	if got := b.Rejects[0]; got.Code != code || got.Detail != detail {
		t.Errorf("rejected as %s: %s\nwant         %s: %s", got.Code, got.Detail, code, detail)
	}
}

// wantReading checks that b is exactly one reading, and returns it.
func wantReading(t *testing.T, b Batch) Reading {
	t.Helper()
	if len(b.Rejects) != 0 {
		t.Fatalf("rejected as %s: %s", b.Rejects[0].Code, b.Rejects[0].Detail)
	}
	if len(b.Readings) != 1 {
		t.Fatalf("%d readings, want 1", len(b.Readings))
	}
	return b.Readings[0]
}

func TestDecodeTheDocumentedExample(t *testing.T) {
	t.Parallel()
	b := decode(newDecoder(t, nil), "telemetry/cmp-00001",
		`{"ts": 1732300000123, "seq": 42, "kind": "performance", "device_id": "cmp-00001", "metrics": {"motor_temp_c": 81.4, "state": "loaded"}}`)
	want := Reading{
		DeviceID: "cmp-00001", Kind: KindPerformance, RecordedAt: time.UnixMilli(1732300000123).UTC(), Seq: 42,
		Metrics: []byte(`{"motor_temp_c": 81.4, "state": "loaded"}`),
	}
	if diff := cmp.Diff(want, wantReading(t, b), exported); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeAnArrayKeepsItsGoodElements(t *testing.T) {
	t.Parallel()
	payload := ` [ {"ts":` + good + `,"metrics":{"a":1}} , 5, {"ts":13,"metrics":{}} ,{"ts":` + good + `,"metrics":{"a":2},"seq":0,"kind":"x"} ] `
	got := decode(newDecoder(t, nil), "telemetry/d", payload)
	reject := func(code Code, detail, raw string) Reject {
		return Reject{Code: code, Detail: detail, Topic: "telemetry/d", Raw: []byte(raw)}
	}
	want := Batch{
		Readings: []Reading{
			{DeviceID: "d", Kind: KindParameters, RecordedAt: goodTime(), Seq: NoSeq, Metrics: []byte(`{"a":1}`)},
			{DeviceID: "d", Kind: "x", RecordedAt: goodTime(), Seq: 0, Metrics: []byte(`{"a":2}`)},
		},
		Rejects: []Reject{
			reject(BadType, "element 1: 5 is a number, not an object", "5"),
			reject(BadTime, "element 2: /ts: 13 is before 2000-01-01", `{"ts":13,"metrics":{}}`),
		},
	}
	if diff := cmp.Diff(want, got, exported); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeAppends(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, nil)
	b := Batch{Readings: []Reading{{DeviceID: "before"}}, Rejects: []Reject{{Code: Conflict}}}
	// Both fail as a whole, after elements were judged: what was in the batch before must stay.
	for _, payload := range []string{`[{"ts":` + good + `,"metrics":{}},5,`, "[" + strings.Repeat("5,", 200) + "5]"} {
		d.Decode(Message{Topic: "telemetry/d", Payload: []byte(payload), ReceivedAt: received}, &b)
	}
	if len(b.Readings) != 1 || b.Readings[0].DeviceID != "before" || len(b.Rejects) != 3 || b.Rejects[0].Code != Conflict {
		t.Errorf("%+v", b)
	}
}

func TestDecodeManyRejectsBecomeOne(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, nil)
	element := `{"ts":` + good + `,"metrics":{}}`
	for _, bad := range []int{MaxSingleRejects, MaxSingleRejects + 1} {
		payload := "[" + element + strings.Repeat(`,{"metrics":{}}`, bad) + "," + element + "]"
		b := decode(d, "telemetry/d", payload)
		if len(b.Readings) != 2 {
			t.Fatalf("%d bad: %d readings, want 2", bad, len(b.Readings))
		}
		if bad <= MaxSingleRejects {
			if len(b.Rejects) != bad || b.Rejects[bad-1].Detail != fmt.Sprintf("element %d: /ts: missing", bad) {
				t.Errorf("%d bad: %d rejects, the last %+v", bad, len(b.Rejects), b.Rejects[len(b.Rejects)-1])
			}
			continue
		}
		b.Readings = nil
		wantReject(t, b, MissingField, "101 of 103 elements rejected, first: element 1: /ts: missing")
		if string(b.Rejects[0].Raw) != payload {
			t.Errorf("raw is %d bytes, want the whole message", len(b.Rejects[0].Raw))
		}
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	d := newDecoder(t, nil)
	batch := Batch{Readings: make([]Reading, 0, 4)}
	m := Message{Topic: "telemetry/cmp-00001/performance", Payload: []byte(benchObject), ReceivedAt: received}
	if n := testing.AllocsPerRun(100, func() {
		batch.Readings = batch.Readings[:0]
		d.Decode(m, &batch)
	}); n != 0 || len(batch.Readings) != 1 {
		t.Errorf("%v allocations for %d readings and %d rejects", n, len(batch.Readings), len(batch.Rejects))
	}
}

// exported compares readings by what a store sees of them.
var exported = cmpopts.IgnoreUnexported(Reading{})

// A reading remembers the message it came from, for the rejects that only the database finds.
func TestReadingReject(t *testing.T) {
	t.Parallel()
	var b Batch
	element := `{"ts":1732300000123,"metrics":{}}`
	newDecoder(t, nil).Decode(Message{Topic: "telemetry/d", Payload: []byte("[" + element + "]"), ReceivedAt: received}, &b)
	got := b.Readings[0].Reject(Conflict, "why")
	want := Reject{Code: Conflict, Detail: "why", Topic: "telemetry/d", Raw: []byte(element)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
