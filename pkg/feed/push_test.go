package feed_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/zap"

	"plenum/pkg/feed"
	"plenum/pkg/store"
)

func TestPushConfigFaults(t *testing.T) {
	t.Parallel()
	good := feed.PushConfig{Name: "a", Limit: 1, DeadLetterAfter: 1}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*feed.PushConfig){
		"name: ": func(c *feed.PushConfig) { c.Name = "a/b" }, "from: ": func(c *feed.PushConfig) { c.From = "soon" },
		"limit: 0 ": func(c *feed.PushConfig) { c.Limit = 0 }, "limit: 10001 ": func(c *feed.PushConfig) { c.Limit = 10_001 },
		"dead_letter_after: 0 ": func(c *feed.PushConfig) { c.DeadLetterAfter = 0 }, "dead_letter_after: 1001 ": func(c *feed.PushConfig) { c.DeadLetterAfter = 1001 },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v: want %q", err, want)
		}
	}
}

// A pause is below a bound that doubles up to a cap, and as long as the target asks for, up to another.
func TestPushBackoff(t *testing.T) {
	t.Parallel()
	pusher := func() *feed.Pusher {
		p, err := feed.NewPusher(feed.PushConfig{Name: "a", Limit: 1, DeadLetterAfter: 1}, nil, nil, nil, zap.NewNop(), feed.NewPushMetrics(prometheus.NewRegistry()))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	away := errors.New("away")
	longest := make([]time.Duration, 40)
	for range 200 {
		p := pusher()
		for i := range longest {
			longest[i] = max(longest[i], p.Backoff(away))
		}
	}
	for i, got := range longest {
		bound := min(500*time.Millisecond<<min(i, 20), time.Minute)
		if got > bound || got < bound/2 {
			t.Errorf("pause %d: up to %s in 200 tries, want up to %s", i, got, bound)
		}
	}
	p := pusher()
	if got := p.Backoff(&feed.LaterError{After: 7 * time.Second, Err: away}); got != 7*time.Second {
		t.Errorf("asked for 7s: %s", got)
	}
	if got := p.Backoff(&feed.LaterError{After: 7 * time.Hour, Err: away}); got != 10*time.Minute {
		t.Errorf("asked for 7h: %s", got)
	}
}

// What a dead letter keeps is sent again byte for byte.
func TestDeadLetterBodies(t *testing.T) {
	t.Parallel()
	seq := int64(1 << 53)
	at := time.Date(2026, 11, 22, 21, 44, 24, 864_000_100, time.UTC)
	rows := []store.FeedRow{
		{ID: 1, DeviceID: "a", Kind: "k", Seq: &seq, RecordedAt: at, LastModified: at.Add(time.Hour), Payload: []byte(`{"n": 12345678901234567890.10, "s": "ü\u2028<>&", "o": {"a": [1,  2]}}`)},
		{ID: 2, DeviceID: "\"\\\n<é>\u2028", Kind: "", RecordedAt: at.Truncate(time.Second), LastModified: at, Payload: []byte(`{}`)},
	}
	body := feed.AppendRows(nil, rows)
	again, err := feed.ParseRows(body)
	if err != nil {
		t.Fatal(err)
	}
	if got := feed.AppendRows(nil, again); !bytes.Equal(got, body) || len(again) != 2 {
		t.Errorf("%s\nbecame\n%s", body, got)
	}
	if _, err := feed.ParseRows([]byte(`{"id":1}` + "\nnonsense")); err == nil {
		t.Error("nonsense was read")
	}
}

func TestDeadLetterGauge(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	reg := prometheus.NewPedanticRegistry()
	m := feed.NewPushMetrics(reg)
	want := func(want map[string]float64) {
		t.Helper()
		if err := m.CountDeadLetters(t.Context(), d.pool); err != nil {
			t.Fatal(err)
		}
		got := gauges(t, reg, "plenum_feed_dead_letters")
		for consumer, n := range want {
			if have, there := got[consumer]; !there || have != n {
				t.Errorf("%s has %v, want %v", consumer, have, n)
			}
		}
		if len(got) != len(want) {
			t.Errorf("gauges %v, want %v", got, want)
		}
	}
	want(map[string]float64{})
	d.exec("insert into feed_consumer (name, position, target) values ('reads', 0, null), ('pushed', 0, 'kafka')")
	d.exec("insert into feed_dead_letter (consumer, after_position, position, row_count, attempts, detail, body) values ('gone', 0, 1, 1, 1, '', ''), ('gone', 1, 2, 1, 1, '', '')")
	want(map[string]float64{"gone": 2, "pushed": 0})
	d.exec("delete from feed_dead_letter where after_position = 1")
	want(map[string]float64{"gone": 1, "pushed": 0})
	d.exec("delete from feed_dead_letter")
	want(map[string]float64{"pushed": 0})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
