package telemetry

import (
	"slices"
	"strings"
	"testing"
)

func TestValidateNamesEveryFault(t *testing.T) {
	t.Parallel()
	c := Config{
		Topics: []string{"", "a/{device_id}x", "a/{devic}", "{kind}/{kind}", "a/#/b", "a+/b", "a\x00", "$share/g/a", "ok/{device_id}", "ok/+"},
		Time:   "ts", Metrics: "/a~2", DeviceID: "/~", Kind: "", Seq: strings.Repeat("/x", 65),
		TimeUnit: "minutes", MaxPayloadBytes: 0,
	}
	err := c.Validate()
	if err == nil {
		t.Fatal("no fault")
	}
	want := []string{
		`mqtt.topics "": is empty`,
		`mqtt.topics "a/{device_id}x": level "{device_id}x": only {device_id} and {kind}, each a whole level, may have braces`,
		`mqtt.topics "a/{devic}": level "{devic}": only {device_id} and {kind}, each a whole level, may have braces`,
		`mqtt.topics "{kind}/{kind}": has {kind} more than once`,
		`mqtt.topics "a/#/b": level "#": + must be a whole level, # the last one`,
		`mqtt.topics "a+/b": level "a+": + must be a whole level, # the last one`,
		`mqtt.topics "a\x00": is not UTF-8 without NUL`,
		`mqtt.topics "$share/g/a": a share group is set by mqtt.share_group`,
		`mqtt.topics "ok/+": never matches, as "ok/{device_id}" before it subscribes to the same "ok/+"`,
		`payload.time "ts": a JSON pointer begins with /`,
		`payload.metrics "/a~2": ~ must be followed by 0 or 1`,
		`payload.device_id "/~": ~ must be followed by 0 or 1`,
		`payload.seq "` + c.Seq + `": has 65 tokens, more than 64`,
		`payload.time_unit "minutes": is none of ms, s, us, ns, rfc3339, arrival`,
		`ingest.max_payload_bytes 0: is not from 1 to 33554432`,
	}
	if got := strings.Split(err.Error(), "\n"); !slices.Equal(got, want) {
		t.Errorf("faults:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if _, err := NewDecoder(c); err == nil {
		t.Error("NewDecoder took it")
	}
}

func TestValidateEmptyPointers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"defaults", func(*Config) {}, ""},
		{"no time", func(c *Config) { c.Time = "" }, `payload.time "": may be empty only with payload.time_unit arrival`},
		{"no time, by arrival", func(c *Config) { c.Time, c.TimeUnit = "", UnitArrival }, ""},
		{"no optional ones", func(c *Config) { c.Kind, c.Seq, c.DeviceID, c.Metrics = "", "", "", "" }, ""},
		{
			"a topic without device", func(c *Config) { c.DeviceID, c.Topics = "", []string{"a/+"} },
			`payload.device_id "": may be empty only if each topic has {device_id}, and "a/+" has not`,
		},
		{"no topics", func(c *Config) { c.Topics = nil }, "mqtt.topics: is empty"},
		{"a long topic", func(c *Config) { c.Topics = []string{strings.Repeat("x", 65536)} }, `mqtt.topics "` + strings.Repeat("x", 64) + `…": is a filter of 65536 bytes, more than 65535`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := DefaultConfig()
			test.change(&c)
			got := ""
			if err := c.Validate(); err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("%s\nwant %s", got, test.want)
			}
		})
	}
}
