package telemetry

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestFilters(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, func(c *Config) {
		c.Topics = []string{"telemetry/{device_id}", "telemetry/{device_id}/{kind}", "site/+/{device_id}/x/#", "#"}
	})
	want := []string{"telemetry/+", "telemetry/+/+", "site/+/+/x/#", "#"}
	if got := d.Filters(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	tests := []struct {
		templates, topic string
		device, kind     string // of the reading; "" is topic_mismatch
	}{
		{"t/{device_id}", "t/d", "d", KindParameters},
		{"t/{device_id}", "t/d/", "", ""},
		{"t/{device_id}", "t", "", ""},
		{"t/{device_id}", "T/d", "", ""},
		{"t/{device_id}", "", "", ""},
		{"{kind}/{device_id}", "fault/d", "d", "fault"},
		{"{kind}/{device_id}", "$SYS/d", "", ""},
		{"+/{device_id}", "$SYS/d", "", ""},
		{"$own/{device_id}", "$own/d", "d", KindParameters},
		{"#", "$SYS/d", "", ""},
		{"#", "any/thing", "payload", KindParameters},
		{"t/+/{device_id}", "t//d", "d", KindParameters},
		{"t/{device_id}/#", "t/d", "d", KindParameters},
		{"t/{device_id}/#", "t/d/x/y", "d", KindParameters},
		{"t/{device_id}/#", "t/", "", ""},
		{"t/{device_id}/#", "t", "", ""},
		{"/{device_id}", "/d", "d", KindParameters},
		{"t/x,t/{device_id}", "t/x", "payload", KindParameters},
		{"t/{device_id}/{kind},t/#", "t//k", "", ""}, // the first that matches decides
		{"t/{device_id}/{kind},t/#", "t/a/b/c", "payload", KindParameters},
	}
	for _, test := range tests {
		t.Run(test.templates+" "+test.topic, func(t *testing.T) {
			t.Parallel()
			d := newDecoder(t, func(c *Config) { c.Topics = strings.Split(test.templates, ",") })
			b := decode(d, test.topic, prefix+`"x":0}`)
			if test.device == "payload" {
				wantReject(t, b, MissingField, "/device_id: missing, and the topic names no device")
				b = decode(d, test.topic, prefix+`"device_id":"payload"}`)
			}
			if test.device == "" {
				if len(b.Rejects) != 1 || b.Rejects[0].Code != TopicMismatch {
					t.Errorf("%+v", b)
				}
				return
			}
			if r := wantReading(t, b); r.DeviceID != test.device || r.Kind != test.kind {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestRejectTopicIsStorable(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, nil)
	tests := []struct{ topic, want string }{
		{strings.Repeat("a", 1024), strings.Repeat("a", 1024)},
		{strings.Repeat("a", 60_000), strings.Repeat("a", 1021) + "…"},
		{"b" + strings.Repeat("é", 30_000), "b" + strings.Repeat("é", 510) + "…"},
		{"a\x00\xffb", "a??b"},
		{strings.Repeat("\xff\x00", 30_000), strings.Repeat("?", 1021) + "…"},
	}
	for _, test := range tests {
		got := decode(d, test.topic, "{}").Rejects[0]
		if got.Code != TopicMismatch || !utf8.ValidString(got.Topic) || strings.ContainsRune(got.Topic, 0) || len(got.Topic) > MaxRejectTopicBytes {
			t.Errorf("%.20q: %s with %d bytes: %q", test.topic, got.Code, len(got.Topic), got.Topic)
		}
		if test.want != got.Topic {
			t.Errorf("%.20q: topic %q, want %q", test.topic, got.Topic, test.want)
		}
	}
}
