package endtoend

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

// hostile is a message that somebody may send, and what becomes of it.
type hostile struct {
	name   string
	topic  string
	code   string // of its one line in quarantine; "": it is stored
	make   func(seq int) string
	stored string // device of the row, where it is stored
}

// field is a reading with other fields, or one of them replaced.
func field(format string) func(int) string {
	return func(seq int) string { return strings.ReplaceAll(format, "SEQ", strconv.Itoa(seq)) }
}

func text(s string) func(int) string { return func(int) string { return s } }

// garbage is random bytes that are no UTF-8.
func garbage(seq int) string {
	for random := rand.New(rand.NewPCG(uint64(seq), 1)); ; {
		b := make([]byte, 1+random.IntN(2000))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		if !utf8.Valid(b) {
			return string(b)
		}
	}
}

func hostiles(now time.Time) []hostile {
	ts := strconv.FormatInt(now.UnixMilli(), 10)
	reading := func(rest string) func(int) string { return field(`{"ts":` + ts + `,"seq":SEQ,` + rest + `}`) }
	metric := func(value string) func(int) string { return reading(`"metrics":{"a":` + value + `}`) }
	deep := strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)
	good := metric("1")
	all := []hostile{
		{name: "random bytes", code: "not_utf8", make: garbage},
		{name: "invalid UTF-8 in a string", code: "not_utf8", make: metric("\"\xff\"")},
		{name: "empty", code: "not_json", make: text("")},
		{name: "truncated", code: "not_json", make: field(`{"ts":` + ts + `,"seq":SEQ,"metrics":{"a":`)},
		{name: "raw NUL", code: "not_json", make: metric("\"\x00\"")},
		{name: "two values", code: "not_json", make: text("{}{}")},
		{name: "empty array", code: "missing_field", make: text("[]")},
		{name: "empty object", code: "missing_field", make: text("{}")},
		{name: "100,000 numbers", code: "bad_type", make: text("[5" + strings.Repeat(",5", 99_999) + "]")},
		{name: "a number", code: "bad_type", make: text("5")},
		{name: "depth 20,000", code: "bad_value", make: metric(deep)},
		{name: "escaped NUL", code: "bad_value", make: metric(`"\u0000"`)},
		{name: "lone surrogate", code: "bad_value", make: metric(`"\ud800"`)},
		{name: "1e400000", code: "bad_value", make: metric("1e400000")},
		{name: "long device id", code: "bad_value", make: reading(`"metrics":{},"device_id":"` + strings.Repeat("x", 300) + `"`)},
		{name: "1970", code: "bad_time", make: field(`{"ts":13,"seq":SEQ,"metrics":{}}`)},
		{name: "2199", code: "bad_time", make: field(`{"ts":7226582400000,"seq":SEQ,"metrics":{}}`)},
		{name: "other device", code: "device_mismatch", make: reading(`"metrics":{},"device_id":"somebody else"`)},
		{name: "300 KB", code: "too_large", make: metric(`"` + strings.Repeat("x", 300_000) + `"`)},
		{name: "empty level", topic: "telemetry//x", code: "topic_mismatch", make: good},
		{name: "other kind", topic: "telemetry/hostile/fault", code: "topic_mismatch", make: reading(`"metrics":{},"kind":"performance"`)},
		{name: "topic of 60 kB", topic: "telemetry/" + strings.Repeat("x", 60_000), code: "bad_value", make: good},
		{name: "wrong depth", topic: "telemetry/a/b/c", code: "missing_field", make: good},
		{name: "another payload", code: "conflict", make: func(seq int) string { return field(`{"ts":` + ts + `,"metrics":{"a":SEQ}}`)(seq + 1) }},
		{name: "wrong depth that names its device", topic: "telemetry/a/b/c", make: reading(`"metrics":{},"device_id":"deep"`), stored: "deep"},
		{name: "duplicate keys", topic: "telemetry/twice", make: reading(`"metrics":{"a":1},"ts":13,"metrics":{"b":1,"b":2},"ts":` + ts), stored: "twice"},
	}
	for i := range all {
		if all[i].topic == "" {
			all[i].topic = "telemetry/hostile"
		}
	}
	return all
}

// windows is how many of its windows ingest may take in memory: what one holds is there as packets, batches, columns and
// protocol messages, each with the collector's head-room.
const windows = 32

// TestHostile sends what no decent device would, a good reading after each: every one ends in quarantine under its code, every
// good one is stored, ingest stays up and within its memory, also while many wait that the database does not take.
func TestHostile(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.plain = true
	const window = 1 << 20
	ingest := s.ingest("PLENUM_MQTT_TOPICS=telemetry/{device_id},telemetry/{device_id}/{kind},telemetry/+/+/+/#",
		fmt.Sprint("PLENUM_MQTT_WINDOW_BYTES=", window), fmt.Sprint("PLENUM_INGEST_BATCH_BYTES=", window/4)).awaitReady()
	now := time.Now()
	s.send(devenv.Message{Topic: "telemetry/hostile", Payload: fmt.Appendf(nil, `{"ts":%d,"metrics":{"a":0}}`, now.UnixMilli())})
	cases := hostiles(now)
	rounds, flood := size(10), size(100)
	n := rounds * len(cases)
	before := s.rate(now, 0, n, func(int) []devenv.Message { return nil })
	base := ingest.peakMemory()
	bytes := 0
	during := s.rate(now, n, n, func(i int) []devenv.Message {
		c := cases[i%len(cases)]
		m := devenv.Message{Topic: c.topic, Payload: []byte(c.make(i / len(cases)))}
		bytes += len(m.Topic) + len(m.Payload)
		return []devenv.Message{m}
	})
	s.flood(flood)
	after := s.rate(now, 2*n, n, func(int) []devenv.Message { return nil })
	peak := ingest.peakMemory()
	if err := ingest.ready(200); err != nil {
		t.Error(err)
	}
	codes, rows := map[string]int{"too_large": flood}, map[string]int{"good": 3 * n, "hostile": 1}
	for _, c := range cases {
		if c.code != "" {
			codes[c.code] += rounds
		} else {
			rows[c.stored] += rounds
		}
	}
	for code, n := range codes {
		devtest.Eventually(t, func() error {
			if got := ingest.metric(fmt.Sprintf("plenum_ingest_rejects_total{code=%q}", code)); int(got) != n {
				return fmt.Errorf("the metric counts %v of %s, %d were sent", got, code, n)
			}
			return nil
		})
	}
	s.balanced(ingest)
	s.codes(codes)
	s.rowsOf(rows)
	if n := s.count(`telemetry where device_id = 'twice' and payload <> '{"b": 2}'`); n != 0 {
		t.Errorf("%d readings with duplicate keys have not the last value", n)
	}
	if bound := base + windows*window; peak > bound {
		t.Errorf("ingest took up to %d MiB, more than %d: what it took before and %d windows", peak>>20, bound>>20, windows)
	}
	figure(t, "hostile payloads: %d kinds, %d messages, each quarantined under its code or stored, a good reading after each stored; good readings a second: "+
		"%.0f before, %.0f among them, each beside one of %d kB on the average, %.0f after; ingest took up to %d MiB before and %d MiB after, with a window of %d MiB and %d messages of 300 kB waiting",
		len(cases), n, before, during, bytes/n/1000, after, base>>20, peak>>20, window>>20, flood)
}

// flood sends messages that are too large while the quarantine cannot be written, and waits until they are in it.
func (s *system) flood(n int) {
	s.t.Helper()
	had := s.count("telemetry_quarantine")
	release := s.hold("lock table telemetry_quarantine in access exclusive mode")
	large := make([]byte, 300_000)
	for range n {
		s.send(devenv.Message{Topic: "telemetry/flood", Payload: large})
	}
	release()
	devtest.Eventually(s.t, func() error {
		if got := s.count("telemetry_quarantine"); got < had+n {
			return fmt.Errorf("%d messages are in quarantine of %d", got, had+n)
		}
		return nil
	})
}

// peakMemory is the largest resident size that the process has had, in bytes.
func (p *process) peakMemory() int {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	line, _, _ := strings.Cut(rest, "kB")
	kib, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		p.t.Fatal(err)
	}
	return kib << 10
}

// send publishes in order.
func (s *system) send(messages ...devenv.Message) {
	s.t.Helper()
	if err := devenv.Publish(s.t.Context(), s.broker.URL(), messages...); err != nil {
		s.t.Fatal(err)
	}
}

// rate sends n good readings from first up, each after what before gives, and returns how many a second were stored.
func (s *system) rate(now time.Time, first, n int, before func(i int) []devenv.Message) float64 {
	s.t.Helper()
	start := time.Now()
	for i := 0; i < n; {
		var some []devenv.Message
		for ; i < n && len(some) < 1000; i++ {
			payload := fmt.Appendf(nil, `{"ts":%d,"seq":%d,"metrics":{"a":1}}`, now.UnixMilli(), first+i)
			some = append(append(some, before(i)...), devenv.Message{Topic: "telemetry/good", Payload: payload})
		}
		s.send(some...)
	}
	devtest.Eventually(s.t, func() error {
		if got := s.count("telemetry where device_id = 'good'"); got < first+n {
			return fmt.Errorf("%d good readings are stored of %d", got, first+n)
		}
		return nil
	})
	return float64(n) / time.Since(start).Seconds()
}

type counted struct {
	Name string
	N    int
}

func tally(counts []counted) map[string]int {
	m := map[string]int{}
	for _, c := range counts {
		m[c.Name] = c.N
	}
	return m
}

// codes finds as many lines in quarantine of each code, and no others.
func (s *system) codes(want map[string]int) {
	s.t.Helper()
	if got := tally(list[counted](s, "select code, count(*)::int from telemetry_quarantine group by code")); !maps.Equal(got, want) {
		s.t.Errorf("quarantine has %v, want %v", got, want)
	}
}

// rowsOf finds as many rows of each device, and no others.
func (s *system) rowsOf(want map[string]int) {
	s.t.Helper()
	if got := tally(list[counted](s, "select device_id, count(*)::int from telemetry group by device_id")); !maps.Equal(got, want) {
		s.t.Errorf("telemetry has rows of %v, want %v", got, want)
	}
}

// TestHugeMessage sends 10 MB in one message, between good readings: it is quarantined as too large, and the connection
// goes on.
func TestHugeMessage(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	_, broker := s.proxies()
	ingest := s.ingest(s.through(nil, broker)...).awaitReady()
	huge := devenv.Message{Topic: "telemetry/huge", Payload: slices.Repeat([]byte("0123456789"), 1_000_000)}
	var messages []devenv.Message
	for seq := range 10 {
		small := fmt.Appendf(nil, `{"ts":%d,"seq":%d,"metrics":{"a":1}}`, time.Now().UnixMilli(), seq)
		messages = append(messages, devenv.Message{Topic: "telemetry/good", Payload: small})
		if seq == 4 {
			messages = append(messages, huge)
		}
	}
	connections := broker.accepted.Load()
	s.send(messages...)
	s.awaitRows(10)
	if again := broker.accepted.Load() - connections; again != 0 {
		t.Errorf("ingest connected again %d times", again)
	}
	s.balanced(ingest)
	s.codes(map[string]int{"too_large": 1})
	s.rowsOf(map[string]int{"good": 10})
	figure(t, "a message of 10 MB between good readings: quarantined once as too_large, the readings stored, over one connection")
}

// TestOverlap subscribes to the same messages twice: the broker sends them twice, and each reading is in one row.
func TestOverlap(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.broker = devtest.Mosquitto(t, "allow_duplicate_messages true")
	_, broker := s.proxies()
	ingest := s.ingest(append(s.through(nil, broker), "PLENUM_MQTT_TOPICS=telemetry/{device_id},telemetry/#")...).awaitReady()
	n := size(1000)
	p := s.simulate("--devices", "5", "--total", strconv.Itoa(n))
	p.wait()
	s.storedOnce(p)
	devtest.Eventually(t, func() error {
		if got := broker.publishes.Load(); got < int64(2*n) {
			return fmt.Errorf("the broker has sent %d messages of %d", got, 2*n)
		}
		return nil
	})
	s.balanced(ingest)
	s.storedOnce(p)
	s.unquarantined()
	figure(t, "subscriptions that overlap: the broker sent each of %d readings twice, each is in one row", n)
}
