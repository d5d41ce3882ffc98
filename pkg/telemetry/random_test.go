package telemetry

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// Pieces of which random payloads are made: near enough to good ones that every rule decides some of them.
var (
	randomTopics = []string{
		"telemetry/d", "telemetry/d/fault", "telemetry/e", "t/d/x", "t/d/x/y", "a/b/fault", "telemetry//fault", "telemetry/d/",
		"telemetry", "$SYS/d/fault", "telemetry/d\x00", "telemetry/\xff", "telemetry/" + strings.Repeat("x", 257),
	}
	randomKeys = []string{
		`"ts"`, `"metrics"`, `"device_id"`, `"kind"`, `"seq"`, `"h"`, `"m"`, `"a/b"`, `"a\/b"`, `"~"`, `"0"`, `"1"`, `""`, `"t\u0073"`, `"h\u0000"`,
		`"se"`, `"seq "`, `"\ud83d\ude00"`,
	}
	randomScalars = []string{
		"1795000000123", "1795000000", "1795000000123456789", `"2026-11-18T11:06:40.123456789+05:30"`, `"2026-11-18t11:06:40Z"`,
		`"2026-02-30T11:06:40Z"`, "13", "-1", "1.5", "7226582400000", "0", "42", "-0", "9007199254740991", "9007199254740992", "1e3",
		"1e309", "1e-400", "0e-400", "0e-401", "5e-324", "true", "false", "null", "null", `""`, `"d"`, `"\u0064"`, `"fault"`, `"performance"`,
		`"x\u0000"`, `"\ud83d"`, `"\udE00"`, `"\ud83d\ude00"`, `"` + strings.Repeat("é", 33) + `"`, "01", "1.", "nul", `"\x"`, "\"\x1f\"",
	}
	randomSpaces = []string{"", "", "", "", " ", "\n\t", "\r"}
)

type randomJSON struct {
	*rand.Rand
	b strings.Builder
}

func (r *randomJSON) pick(from []string) { r.b.WriteString(from[r.IntN(len(from))]) }

func (r *randomJSON) value(depth int) {
	r.pick(randomSpaces)
	switch n := r.IntN(8); {
	case n < 2 && depth < 4:
		r.object(depth, r.IntN(3))
	case n == 2 && depth < 4:
		r.list("[", "]", r.IntN(4), func(int) { r.value(depth + 1) })
	default:
		r.pick(randomScalars)
	}
	r.pick(randomSpaces)
}

// object writes an object of extra random members, and at the top mostly also those that make a reading.
func (r *randomJSON) object(depth, extra int) {
	var members []string
	if depth == 0 && r.IntN(10) > 0 {
		members = []string{
			`"ts":1795000000123`, `"metrics":{"device_id":"d"}`, `"h":[{"ts":1795000000123456789},1]`, `"m":[{}]`, `"device_id":"d"`,
		}
		r.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	}
	r.list("{", "}", len(members)+extra, func(i int) {
		if i < len(members) {
			r.b.WriteString(members[i])
			return
		}
		r.pick(randomSpaces)
		r.pick(randomKeys)
		r.b.WriteString(":")
		r.value(depth + 1)
	})
}

func (r *randomJSON) list(begin, end string, n int, item func(int)) {
	r.b.WriteString(begin)
	for i := range n {
		if i > 0 {
			r.b.WriteString(",")
		}
		item(i)
	}
	r.b.WriteString(end)
}

func TestDecodeRandomAgainstReference(t *testing.T) {
	t.Parallel()
	configs := fuzzConfigs()
	count := map[Code]int{}
	for seed := range uint64(5_000) {
		r := &randomJSON{Rand: rand.New(rand.NewPCG(seed, 0))}
		if r.IntN(4) > 0 {
			r.object(0, r.IntN(3))
		} else {
			r.list("[", "]", r.IntN(4), func(int) { r.object(0, r.IntN(3)) })
		}
		topic := randomTopics[0]
		if r.IntN(2) == 0 {
			topic = randomTopics[r.IntN(len(randomTopics))]
		}
		c := configs[r.IntN(len(configs))]
		m := Message{Topic: topic, Payload: []byte(r.b.String()), ReceivedAt: received}
		var got Batch
		newDecoder(t, func(to *Config) { *to = c }).Decode(m, &got)
		checkBatch(t, got)
		checkReference(t, c, m, got)
		if t.Failed() {
			t.Fatalf("seed %d, %+v, topic %q, payload %s", seed, c, m.Topic, m.Payload)
		}
		count[""] += len(got.Readings)
		for _, reject := range got.Rejects {
			count[reject.Code]++
		}
	}
	for _, code := range []Code{"", TooLarge, NotJSON, MissingField, BadType, BadValue, BadTime, DeviceMismatch, TopicMismatch} {
		if count[code] < 10 {
			t.Errorf("%d of code %q: the pieces no longer reach it", count[code], code)
		}
	}
	t.Logf("%v", count)
}
