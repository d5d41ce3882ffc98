package telemetry

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestJudgeFields(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, func(c *Config) { c.Topics = append(c.Topics, "gateway/+") })
	id256, kind64 := strings.Repeat("x", 256), strings.Repeat("k", 64)
	tests := []struct {
		name, topic, payload string
		code                 Code
		detail               string
	}{
		{"no time", "telemetry/d", `{"metrics":{}}`, MissingField, "/ts: missing"},
		{"null time", "telemetry/d", `{"ts":null,"metrics":{}}`, MissingField, "/ts: missing"},
		{"boolean time", "telemetry/d", `{"ts":true,"metrics":{}}`, BadType, "/ts: true is a boolean, not an integer or an RFC 3339 string"},
		{"time is an object", "telemetry/d", `{"ts":{},"metrics":{}}`, BadType, "/ts: {} is an object, not an integer or an RFC 3339 string"},
		{"time before metrics", "telemetry/d", `{"ts":1.5}`, BadTime, "/ts: 1.5 is not an integer"},
		{"no metrics", "telemetry/d", `{"ts":` + good + `}`, MissingField, "/metrics: missing"},
		{"metrics are an array", "telemetry/d", `{"ts":` + good + `,"metrics":[1]}`, BadType, "/metrics: [1] is an array, not an object"},
		{"seq is a string", "telemetry/d", prefix + `"seq":"42"}`, BadType, `/seq: "42" is a string, not an integer`},
		{"seq -1", "telemetry/d", prefix + `"seq":-1}`, BadValue, "/seq: -1 is not an integer from 0 to 9007199254740991"},
		{"seq 1.0", "telemetry/d", prefix + `"seq":1.0}`, BadValue, "/seq: 1.0 is not an integer from 0 to 9007199254740991"},
		{"seq 2^53", "telemetry/d", prefix + `"seq":9007199254740992}`, BadValue, "/seq: 9007199254740992 is not an integer from 0 to 9007199254740991"},
		{"seq past 2^64", "telemetry/d", prefix + `"seq":18446744073709551617}`, BadValue, "/seq: 18446744073709551617 is not an integer from 0 to 9007199254740991"},
		{"no device", "gateway/7", prefix + `"device_id":null}`, MissingField, "/device_id: missing, and the topic names no device"},
		{"device is a number", "telemetry/7", prefix + `"device_id":7}`, BadType, "/device_id: 7 is a number, not a string"},
		{"empty device", "gateway/7", prefix + `"device_id":""}`, BadValue, `/device_id: "" is empty`},
		{"device of 257 bytes", "gateway/7", prefix + `"device_id":"x` + id256 + `"}`, BadValue, `/device_id: "` + id256[:63] + "… is longer than 256 bytes"},
		{"device of the topic of 257 bytes", "telemetry/x" + id256, prefix + `"seq":1}`, BadValue, `topic {device_id}: "` + id256[:63] + "… is longer than 256 bytes"},
		{"device of the topic with NUL", "telemetry/\x00", prefix + `"seq":1}`, BadValue, `topic {device_id}: "\x00" has NUL, which PostgreSQL cannot keep`},
		{"device of the topic not UTF-8", "telemetry/\xff", prefix + `"seq":1}`, BadValue, `topic {device_id}: "\xff" is not UTF-8`},
		{"devices differ", "telemetry/d", prefix + `"device_id":"D"}`, DeviceMismatch, `/device_id: "D" differs from the topic's "d"`},
		{"kind is an array", "telemetry/d", prefix + `"kind":[]}`, BadType, "/kind: [] is an array, not a string"},
		{"empty kind", "telemetry/d", prefix + `"kind":""}`, BadValue, `/kind: "" is empty`},
		{"kind of 65 bytes", "telemetry/d", prefix + `"kind":"k` + kind64 + `"}`, BadValue, `/kind: "` + kind64[:63] + "… is longer than 64 bytes"},
		{"kind of the topic of 65 bytes", "telemetry/d/k" + kind64, prefix + `"seq":1}`, BadValue, `topic {kind}: "` + kind64[:63] + "… is longer than 64 bytes"},
		{"kinds differ", "telemetry/d/fault", prefix + `"kind":"performance"}`, TopicMismatch, `/kind: "performance" differs from the topic's kind "fault"`},
		{"no template", "elsewhere/d", prefix + `"seq":1}`, TopicMismatch, `topic: "elsewhere/d" matches none of mqtt.topics`},
		{"too deep a topic", "telemetry/d/fault/x", prefix + `"seq":1}`, TopicMismatch, `topic: "telemetry/d/fault/x" matches none of mqtt.topics`},
		{"empty device level", "telemetry//fault", prefix + `"seq":1}`, TopicMismatch, `topic: the level {device_id} of "telemetry//fault" is empty`},
		{"empty kind level", "telemetry/d/", prefix + `"seq":1}`, TopicMismatch, `topic: the level {kind} of "telemetry/d/" is empty`},
		{"bad JSON before the topic", "elsewhere/d", "{", NotJSON, "payload: ends at offset 1, where more must follow"},
		{"topic before fields", "elsewhere/d", `{"a":"\u0000"}`, TopicMismatch, `topic: "elsewhere/d" matches none of mqtt.topics`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			wantReject(t, decode(d, test.topic, test.payload), test.code, test.detail)
		})
	}
}

func TestJudgeAccepts(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, func(c *Config) { c.Topics = append(c.Topics, "gateway/+") })
	id256, kind64 := strings.Repeat("x", 256), strings.Repeat("k", 64)
	tests := []struct {
		name, topic, payload string
		device, kind         string
		seq                  int64
		metrics              string
	}{
		{"all from the topic", "telemetry/d/fault", prefix + `"x":0}`, "d", "fault", NoSeq, "{}"},
		{"all from the payload", "gateway/7", prefix + `"device_id":"d","kind":"custom","seq":9007199254740991}`, "d", "custom", MaxSeq, "{}"},
		{"nulls are absent", "telemetry/d", prefix + `"device_id":null,"kind":null,"seq":null}`, "d", KindParameters, NoSeq, "{}"},
		{"negative zero", "telemetry/d", prefix + `"seq":-0}`, "d", KindParameters, 0, "{}"},
		{"they agree", "telemetry/d/fault", prefix + `"device_id":"d","kind":"fault"}`, "d", "fault", NoSeq, "{}"},
		{"they agree, escaped", "telemetry/é😀", prefix + `"device_id":"\u00E9\uD83D\uDE00"}`, "é😀", KindParameters, NoSeq, "{}"},
		{"escaped", "gateway/7", `{"\u0074s":` + good + `,"m\u0065trics":{"a":1},"device_id":"\u00e9\ud83d\ude00\/\n\"","\u006bind":"f\u0061ult"}`, "é😀/\n\"", "fault", NoSeq, `{"a":1}`},
		{"longest names", "gateway/7", prefix + `"device_id":"` + id256 + `","kind":"` + kind64 + `"}`, id256, kind64, NoSeq, "{}"},
		{"longest after unescaping", "gateway/7", prefix + `"device_id":"` + strings.Repeat(`\u0078`, 256) + `"}`, id256, KindParameters, NoSeq, "{}"},
		{"the last duplicate wins", "gateway/7", `{"seq":"x","ts":true,"metrics":5,"device_id":7,` + prefix[1:] + `"device_id":"a","device_id":"b","seq":1,"s\u0065q":2}`, "b", KindParameters, 2, "{}"},
		{"white space", "telemetry/d", " {\r\n\t\"ts\" : " + good + " , \"metrics\" : { } , \"seq\" : 7 } ", "d", KindParameters, 7, "{ }"},
		{"keys that only begin alike", "telemetry/d", prefix + `"seq2":1,"se":2,"":3,"SEQ":4}`, "d", KindParameters, NoSeq, "{}"},
		{"same names deeper", "telemetry/d", `{"x":{"ts":1,"seq":2,"device_id":"e"},"metrics":{"ts":1,"seq":3,"metrics":{}},"ts":` + good + `}`, "d", KindParameters, NoSeq, `{"ts":1,"seq":3,"metrics":{}}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := wantReading(t, decode(d, test.topic, test.payload))
			if r.DeviceID != test.device || r.Kind != test.kind || r.Seq != test.seq || string(r.Metrics) != test.metrics || !r.RecordedAt.Equal(goodTime()) {
				t.Errorf("%+v with metrics %s", r, r.Metrics)
			}
		})
	}
}

func TestJudgePointers(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, func(c *Config) {
		c.Topics = []string{"t/{device_id}"}
		c.Time, c.Metrics, c.Seq, c.Kind = "/head/0/ts", "", "/head/1/2", "/a~1b/~01/"
	})
	tests := []struct {
		name, payload string
		seq           int64
		kind          string
	}{
		{"nested", `{"head":[{"ts":` + good + `},[0,1,5,3]],"a/b":{"~1":{"":"fault"}}}`, 5, "fault"},
		{"an index is a key of an object", `{"head":{"0":{"ts":` + good + `},"1":{"2":6}}}`, 6, KindParameters},
		{"too short an array", `{"head":[{"ts":` + good + `},[0,1]]}`, NoSeq, KindParameters},
		{"containers between", `{"head":[{"x":[[1],{}],"ts":` + good + `},[[9,9,9],{"2":9},5]]}`, 5, KindParameters},
		{"a repeated parent resets", `{"a/b":{"~1":{"":7}},"head":[{"ts":1},[0,0,1]],"a/b":{},"head":[{"ts":` + good + `}]}`, NoSeq, KindParameters},
		{"a parent that became a scalar", `{"a/b":{"~1":{"":"fault"}},"a\/b":5,"head":[{"ts":` + good + `}]}`, NoSeq, KindParameters},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := wantReading(t, decode(d, "t/d", test.payload))
			if r.Seq != test.seq || r.Kind != test.kind || string(r.Metrics) != test.payload || !r.RecordedAt.Equal(goodTime()) {
				t.Errorf("%+v with metrics %s", r, r.Metrics)
			}
		})
	}
	wantReject(t, decode(d, "t/d", `{"head":[{"ts":`+good+`}],"head":{}}`), MissingField, "/head/0/ts: missing")
	wantReject(t, decode(d, "t/d", `{"head":[{"ts":5}]}`), BadTime, "/head/0/ts: 5 is before 2000-01-01")
}

func TestJudgeDeepestPointer(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, func(c *Config) { c.Seq = strings.Repeat("/s", MaxDepth) })
	payload := func(depth int, value string) string {
		return prefix + strings.Repeat(`"s":{`, depth-1) + `"s":` + value + strings.Repeat("}", depth)
	}
	if r := wantReading(t, decode(d, "telemetry/d", payload(MaxDepth, "5"))); r.Seq != 5 {
		t.Errorf("seq %d, want 5", r.Seq)
	}
	if b := decode(d, "telemetry/d", payload(MaxDepth+1, "5")); b.Rejects[0].Code != BadValue {
		t.Errorf("%+v", b)
	}
}

func parseInstant(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return at.UTC()
}

func TestJudgeTime(t *testing.T) {
	t.Parallel()
	instant := func(text string) time.Time { return parseInstant(t, text) }
	ahead := received.Add(24 * time.Hour)
	nanoseconds := strconv.FormatInt(ahead.UnixNano(), 10)
	tests := []struct {
		unit, value string
		want        time.Time // zero: rejected
		detail      string
	}{
		{"ms", "946684800000", instant("2000-01-01T00:00:00Z"), ""},
		{"ms", "946684799999", time.Time{}, "946684799999 is before 2000-01-01"},
		{"ms", "-1", time.Time{}, "-1 is before 2000-01-01"},
		{"ms", "-0", time.Time{}, "-0 is before 2000-01-01"},
		{"ms", "-99999999999999999999", time.Time{}, "-99999999999999999999 is before 2000-01-01"},
		{"ms", "-1.5", time.Time{}, "-1.5 is not an integer"},
		{"ms", "1.795e12", time.Time{}, "1.795e12 is not an integer"},
		{"ms", "9223372036854775807", time.Time{}, "9223372036854775807 is more than 24 h after its receipt"},
		{"ms", "9223372036854775808", time.Time{}, "9223372036854775808 is more than 24 h after its receipt"},
		{"ms", "18446744073709551616", time.Time{}, "18446744073709551616 is more than 24 h after its receipt"},
		{"s", "1795000000", instant("2026-11-18T11:06:40Z"), ""},
		{"s", "9223372036854775807", time.Time{}, "9223372036854775807 is more than 24 h after its receipt"},
		{"us", "1795000000123456", instant("2026-11-18T11:06:40.123456Z"), ""},
		{"ns", "1795000000123456999", instant("2026-11-18T11:06:40.123456Z"), ""},
		{"ns", nanoseconds, ahead.Truncate(time.Microsecond), ""},
		{"ns", nanoseconds[:len(nanoseconds)-1] + "9", ahead.Truncate(time.Microsecond), ""},
		{"ns", "1795435200123456790", time.Time{}, "1795435200123456790 is more than 24 h after its receipt"},
		{"ms", `"2026-11-18T11:06:40Z"`, instant("2026-11-18T11:06:40Z"), ""},
		{"rfc3339", `"2026-11-18t11:06:40.5z"`, instant("2026-11-18T11:06:40.5Z"), ""},
		{"rfc3339", `"2026-11-18T11:06:40.1234569999999999999+05:30"`, instant("2026-11-18T05:36:40.123456Z"), ""},
		{"rfc3339", `"2026-11-18T11:06:40\u002d00:30"`, instant("2026-11-18T11:36:40Z"), ""},
		{"rfc3339", `"2000-01-01T00:59:59+01:00"`, time.Time{}, `"2000-01-01T00:59:59+01:00" is before 2000-01-01`},
		{"rfc3339", `"2026-11-23T12:00:00.123456789Z"`, ahead.Truncate(time.Microsecond), ""},
		{"rfc3339", `"2026-11-23T12:00:00.12345679Z"`, time.Time{}, `"2026-11-23T12:00:00.12345679Z" is more than 24 h after its receipt`},
		{"rfc3339", `"2026-02-29T00:00:00Z"`, time.Time{}, `"2026-02-29T00:00:00Z" is not an RFC 3339 time`},
		{"rfc3339", `"2026-02-28T00:00:60Z"`, time.Time{}, `"2026-02-28T00:00:60Z" is not an RFC 3339 time`},
		{"rfc3339", `"2026-02-28T00:00:00"`, time.Time{}, `"2026-02-28T00:00:00" is not an RFC 3339 time`},
		{"rfc3339", `""`, time.Time{}, `"" is not an RFC 3339 time`},
		{"arrival", "13", received.Truncate(time.Microsecond), ""},
		{"arrival", "null", received.Truncate(time.Microsecond), ""},
	}
	for _, test := range tests {
		t.Run(test.unit+" "+test.value, func(t *testing.T) {
			t.Parallel()
			d := newDecoder(t, func(c *Config) { c.TimeUnit = test.unit })
			b := decode(d, "telemetry/d", `{"metrics":{},"ts":`+test.value+`}`)
			if test.detail != "" {
				wantReject(t, b, BadTime, "/ts: "+test.detail)
				return
			}
			if got := wantReading(t, b).RecordedAt; got != test.want {
				t.Errorf("recorded at %v, want %v", got, test.want)
			}
		})
	}
	d := newDecoder(t, func(c *Config) { c.TimeUnit = UnitRFC3339 })
	wantReject(t, decode(d, "telemetry/d", prefix+`"seq":1}`), BadType, "/ts: "+good+" is a number, not an RFC 3339 string")
}
