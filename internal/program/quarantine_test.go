package program

import (
	"strings"
	"testing"

	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

// A line is held against what the decoder writes of a message that is too large or came on a long topic.
func TestIncomplete(t *testing.T) {
	t.Parallel()
	c := telemetry.DefaultConfig()
	c.MaxPayloadBytes = 10
	d, err := telemetry.NewDecoder(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		what   string
		m      telemetry.Message
		bytes  int64
		reason string
	}{
		{"whole", telemetry.Message{Topic: "telemetry/a", Payload: []byte("{}")}, 2, ""},
		{"too large and whole", telemetry.Message{Topic: "telemetry/a", Payload: []byte(strings.Repeat("x", 20))}, 20, ""},
		{"too large, its beginning", telemetry.Message{Topic: "telemetry/a", Payload: []byte(strings.Repeat("x", 11)), Length: 20}, 11, "of its 20 bytes only the first 11 were kept"},
		{"no payload", telemetry.Message{Topic: "telemetry/a", Payload: []byte("{}")}, store.DroppedPayload, "was not kept"},
		{"a long topic", telemetry.Message{Topic: "telemetry/" + strings.Repeat("x", 2000), Payload: []byte("{}")}, 2, "topic"},
	} {
		var b telemetry.Batch
		d.Decode(test.m, &b)
		r := b.Rejects[0]
		got := incomplete(store.QuarantinedLine{Code: r.Code, Detail: r.Detail, Topic: r.Topic, Bytes: test.bytes})
		if (got == "") != (test.reason == "") || !strings.Contains(got, test.reason) {
			t.Errorf("%s: %q, want %q", test.what, got, test.reason)
		}
	}
}
