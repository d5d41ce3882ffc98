package telemetry

import (
	"bytes"
	"strings"
	"testing"
)

func nested(n int, inside string) string {
	return strings.Repeat("[", n) + inside + strings.Repeat("]", n)
}

var hostilePayloads = []struct {
	name, payload string
	code          Code
	detail        string
}{
	{"empty", "", NotJSON, "payload: empty"},
	{"blank", " \n", NotJSON, "payload: ends at offset 2, where more must follow"},
	{"random bytes", "\x8f\x02\xfe", NotUTF8, "payload: byte 0x8f at offset 0 is not UTF-8"},
	{"invalid UTF-8", prefix + "\"a\":\"é\xff\"}", NotUTF8, "payload: byte 0xff at offset 40 is not UTF-8"},
	{"surrogate in UTF-8", "\"\xed\xa0\x80\"", NotUTF8, "payload: byte 0xed at offset 1 is not UTF-8"},
	{"byte order mark", "\ufeff{}", NotJSON, `payload: '\ufeff' at offset 0 is not JSON`},
	{"raw NUL", "{\"a\x00\":1}", NotJSON, `payload: '\x00' at offset 3 is not JSON`},
	{"truncated", prefix, NotJSON, "payload: ends at offset 33, where more must follow"},
	{"two values", "{} {}", NotJSON, "payload: '{' at offset 3 is not JSON"},
	{"leading zero", `{"ts":01}`, NotJSON, "payload: '1' at offset 7 is not JSON"},
	{"300 KB", prefix + `"a":"` + strings.Repeat("x", 300_000) + `"}`, TooLarge, "payload: 300040 bytes is more than 262144"},
	{"empty array", " [ ] ", MissingField, "payload: an array without elements"},
	{"empty object", "{}", MissingField, "/ts: missing"},
	{"null", "null", BadType, "payload: null is null, not an object"},
	{"100,000 numbers", "[" + strings.Repeat("5,", 99_999) + "5]", BadType, "100000 of 100000 elements rejected, first: element 0: 5 is a number, not an object"},
	{"depth 20,000, open", strings.Repeat("[", 20_000), NotJSON, "payload: ends at offset 20000, where more must follow"},
	{"depth 130,000, open", strings.Repeat(`{"":`, 32_500) + strings.Repeat("[", 97_500), NotJSON, "payload: ends at offset 227500, where more must follow"},
	{"depth 20,000, crossed", nested(20_000, "{]"), NotJSON, "payload: ']' at offset 20001 is not JSON"},
	{"depth 20,000", nested(20_000, ""), BadValue, "element 0: " + strings.Repeat("/0", 32) + mark + ": " + strings.Repeat("[", 64) + mark + " is nested deeper than 64"},
	{"depth 130,000", nested(130_000, ""), BadValue, "element 0: " + strings.Repeat("/0", 32) + mark + ": " + strings.Repeat("[", 64) + mark + " is nested deeper than 64"},
	{"mixed depth 20,000", strings.Repeat(`{"a":[`, 10_000) + strings.Repeat("]}", 10_000), BadValue, "/a/0/a/0/a/0/a/0/a/0/a/0/a/0/a/0/a/0/a/0/a/0/a/0/a/0/a/0/a/0/a/0" + mark + ": " + strings.Repeat(`{"a":[`, 10) + `{"a"` + mark + " is nested deeper than 64"},
	{"depth 65", `{"metrics":{"a":` + nested(63, "") + "}}", BadValue, "/metrics/a" + strings.Repeat("/0", 27) + mark + ": [] is nested deeper than 64"},
	{"depth 64", `{"metrics":{"a":` + nested(62, "") + "}}", MissingField, "/ts: missing"},
	{"an array's element of depth 64", nested(65, ""), BadType, "element 0: " + strings.Repeat("[", 64) + mark + " is an array, not an object"},
	{"NUL", `{"metrics":{"a":[1,"b\u0000"]}}`, BadValue, `/metrics/a/1: "b\u0000" has \u0000, which PostgreSQL cannot keep`},
	{"NUL in a key", `{"metrics":{"a\u0000":1}}`, BadValue, `/metrics: key "a\u0000" has \u0000, which PostgreSQL cannot keep`},
	{"NUL in a top key", `{"a\u0000":1}`, BadValue, `payload: key "a\u0000" has \u0000, which PostgreSQL cannot keep`},
	{"NUL in a string element", `["\u0000"]`, BadValue, `element 0: "\u0000" has \u0000, which PostgreSQL cannot keep`},
	{"lone high surrogate", `{"a/b~":"\ud83dx"}`, BadValue, `/a~1b~0: "\ud83dx" has half a surrogate pair`},
	{"lone low surrogate", `{"a":"\uDE00"}`, BadValue, `/a: "\uDE00" has half a surrogate pair`},
	{"two high surrogates", `{"a":"\ud83d\ud83d\ude00"}`, BadValue, `/a: "\ud83d\ud83d\ude00" has half a surrogate pair`},
	{"first fault counts", `{"a":1e999,"b":"\u0000"}`, BadValue, "/a: 1e999 has an exponent beyond 400"},
	{"a replaced duplicate's fault", `{"metrics":1e309,"metrics":{}}`, BadValue, "/metrics: 1e309 is beyond what a float64 can hold"},
	{"1e400000", `{"a":1e400000}`, BadValue, "/a: 1e400000 has an exponent beyond 400"},
	{"0e-400000", `{"a":-0E-400000}`, BadValue, "/a: -0E-400000 has an exponent beyond 400"},
	{"1e401", `{"a":0e401}`, BadValue, "/a: 0e401 has an exponent beyond 400"},
	{"0e400", `{"a":[0e400,0e+00400,0.0E-0400]}`, MissingField, "/ts: missing"},
	{"largest double", `{"a":[1.7976931348623157e308,5e-324,-1e0000000308]}`, MissingField, "/ts: missing"},
	{"past the largest double", `{"a":-1.7976931348623159e308}`, BadValue, "/a: -1.7976931348623159e308 is beyond what a float64 can hold"},
	{"underflow", `{"a":2e-324}`, BadValue, "/a: 2e-324 is nearer to zero than a float64 can be"},
	{"long underflow", `{"a":0.` + strings.Repeat("0", 400) + `1}`, BadValue, "/a: 0." + strings.Repeat("0", 62) + mark + " is nearer to zero than a float64 can be"},
	{"long integer", `{"a":` + strings.Repeat("9", 309) + `}`, BadValue, "/a: " + strings.Repeat("9", 64) + mark + " is beyond what a float64 can hold"},
	{"number of 2049 bytes", `{"a":0.` + strings.Repeat("0", 2047) + `}`, BadValue, "/a: 0." + strings.Repeat("0", 62) + mark + " is a number of more than 2048 bytes"},
	{"number of 2048 bytes", `{"a":0.` + strings.Repeat("0", 2046) + `}`, MissingField, "/ts: missing"},
	{"1970", `{"ts":13,"metrics":{}}`, BadTime, "/ts: 13 is before 2000-01-01"},
	{"2199", `{"ts":7226582400000,"metrics":{}}`, BadTime, "/ts: 7226582400000 is more than 24 h after its receipt"},
	{"wrong device", prefix + `"device_id":"e"}`, DeviceMismatch, `/device_id: "e" differs from the topic's "d"`},
	{"device id of 300 bytes", prefix + `"device_id":"` + strings.Repeat("é", 150) + `"}`, BadValue, `/device_id: "` + strings.Repeat("é", 31) + mark + " is longer than 256 bytes"},
}

func TestDecodeHostilePayloads(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, nil)
	for _, test := range hostilePayloads {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := decode(d, "telemetry/d", test.payload)
			wantReject(t, b, test.code, test.detail)
			want := test.payload
			if strings.HasPrefix(test.detail, "element 0: ") {
				want = want[1 : len(want)-1]
			}
			if !bytes.Equal(b.Rejects[0].Raw, []byte(want)) {
				t.Errorf("raw is %.80q, want %.80q", b.Rejects[0].Raw, want)
			}
		})
	}
}
