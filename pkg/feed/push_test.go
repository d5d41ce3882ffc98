package feed_test

import (
	"bytes"
	"context"
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

// One round at a time, from a feed that has nothing yet.
func TestPushRounds(t *testing.T) {
	t.Parallel()
	d, r := newDatabase(t), newWebhook(t)
	p, err := feed.NewPusher(feed.PushConfig{Name: "a", Limit: 100, DeadLetterAfter: 1}, d.pool, d.feed, r.target(), zap.NewNop(), feed.NewPushMetrics(prometheus.NewRegistry()))
	if err != nil {
		t.Fatal(err)
	}
	round := func(want feed.Pushed) {
		t.Helper()
		if got, err := p.RunOnce(t.Context()); err != nil || got != want {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
	if _, err := p.RunOnce(t.Context()); err == nil {
		t.Error("a round without the consumer is no error")
	}
	d.read(feed.Request{Name: "a"}, 0, 0)
	if _, err := p.RunOnce(t.Context()); err == nil {
		t.Error("a round for a consumer that reads by itself is no error")
	}
	d.exec("update feed_consumer set target = 'test', failing_since = now(), delivering = 7")
	round(feed.Pushed{Idle: true})
	if s := d.state(); !s.FailingSince.IsZero() || s.Delivering != 0 {
		t.Errorf("it fails still: %+v", s)
	}
	round(feed.Pushed{Idle: true})
	d.add(2)
	round(feed.Pushed{Rows: 2})
	round(feed.Pushed{Idle: true})
	await(t, r, 1, 2)
}

// A consumer that read by itself and has the name of a pusher's goes on from where it stood.
func TestPushTakesOverAConsumer(t *testing.T) {
	t.Parallel()
	d, r := newDatabase(t), newWebhook(t)
	first := d.add(2)
	d.read(feed.Request{Name: "a"}, 0, 2)
	d.commit("a", first)
	d.add(1)
	p := d.push(&spy{Target: r.target()}, nil)
	await(t, r, 3)
	if p.logged("from now on") != 1 {
		t.Error("nobody is told")
	}
}

// Somebody else's commit would have the pusher skip rows; a seek, which forgets what is under way, moves it.
func TestOnlyThePusherCommits(t *testing.T) {
	t.Parallel()
	d, r := newDatabase(t), newWebhook(t)
	r.away(true)
	head := d.add(2, 1)
	d.push(&spy{Target: r.target()}, nil)
	d.awaitState("a failure", func(s store.PushState) bool { return !s.FailingSince.IsZero() })
	for _, position := range []int64{0, head} {
		var pushed *feed.PushedError
		if err := d.feed.Commit(t.Context(), "a", position); !errors.As(err, &pushed) || pushed.Target != "test" {
			t.Errorf("commit of %d: %v", position, err)
		}
	}
	if s := d.state(); s.Position != 0 || s.Delivering != head {
		t.Errorf("the consumer was moved: %+v", s)
	}
	r.away(false)
	await(t, r, 1, 2, 3)
	d.awaitPosition(head)
}

// Rows that were dropped before the target had them: the pusher waits for a person, and says what is wrong.
func TestPushBehindTheHorizon(t *testing.T) {
	t.Parallel()
	d, r := newDatabase(t), newWebhook(t)
	first := d.add(1)
	d.add(1)
	d.read(feed.Request{Name: "a"}, 0, 2)
	d.exec("update feed_horizon set position = $1", first)
	d.push(&spy{Target: r.target()}, nil)
	s := d.awaitState("a failure", func(s store.PushState) bool { return !s.FailingSince.IsZero() })
	if !strings.Contains(s.Detail, "have been dropped") {
		t.Errorf("detail %q", s.Detail)
	}
	d.exec("update feed_consumer set position = $1", first)
	await(t, r, 2)
	d.awaitState("no failure", func(s store.PushState) bool { return s.FailingSince.IsZero() })
}

func TestPushBeginsWhereItSays(t *testing.T) {
	t.Parallel()
	d, r := newDatabase(t), newWebhook(t)
	d.add(3)
	d.push(&spy{Target: r.target()}, func(c *feed.PushConfig) { c.From, c.Required, c.Target = "latest", true, "webhook" })
	s := d.awaitState("a consumer of target webhook", func(s store.PushState) bool { return s.Target == "webhook" })
	if !s.Required {
		t.Error("the consumer is not required")
	}
	d.add(2)
	await(t, r, 4, 5)
}

// Refusals are counted in the database: a crash between them does not begin anew.
func TestRefusalsOutliveAProcess(t *testing.T) {
	t.Parallel()
	d, r := newDatabase(t), newWebhook(t)
	head := d.add(2)
	r.refuse(func(int64) bool { return true })
	first := d.push(&spy{Target: r.target()}, func(c *feed.PushConfig) { c.DeadLetterAfter = 1000 })
	d.awaitState("five attempts", func(s store.PushState) bool { return s.Attempts >= 5 })
	first.stop()
	attempts := d.state().Attempts
	p := d.push(&spy{Target: r.target()}, func(c *feed.PushConfig) { c.DeadLetterAfter = attempts + 1 })
	d.awaitPosition(head)
	p.stop()
	if n := len(p.seen()); n != 1 {
		t.Errorf("%d deliveries after %d refusals, want 1 more", n, attempts)
	}
}

// A dead letter that is to be delivered once more waits while a page is cut: a target remembers what it took of that page, until it
// gets another.
func TestDeadLettersWaitForACutPage(t *testing.T) {
	t.Parallel()
	d, r := newDatabase(t), newWebhook(t)
	head := d.add(1, 1, 1, 1)
	r.refuse(func(seq int64) bool { return seq == 3 })
	seq := int64(99)
	d.exec("insert into feed_dead_letter (consumer, after_position, position, row_count, attempts, detail, body) values ('a', 0, 1, 1, 1, '', $1)",
		feed.AppendRows(nil, []store.FeedRow{{ID: 99, DeviceID: "a", Kind: "k", Seq: &seq, Payload: []byte("{}")}}))
	d.push(&spy{Target: r.target(), after: func(_ context.Context, sent feed.Delivery, err error) error {
		if len(sent.Rows) == 4 {
			d.exec("update feed_dead_letter set retry_at = now()")
		}
		return err
	}}, nil)
	await(t, r, 1, 2, 4, 99)
	d.awaitPosition(head)
}

// Who seeks need not wait for the end of a pause.
func TestSeekEndsAPause(t *testing.T) {
	t.Parallel()
	d, r := newDatabase(t), newWebhook(t)
	first := d.add(2)
	d.add(2)
	r.away(true)
	d.pushAt(&spy{Target: r.target()}, func(p *feed.Pusher) {
		p.Hasten(time.Millisecond)
		p.Tire()
	}, nil)
	d.awaitState("a failure", func(s store.PushState) bool { return !s.FailingSince.IsZero() })
	r.away(false)
	d.exec("update feed_consumer set position = $1, delivering = null where name = 'a'", first)
	await(t, r, 3, 4)
}
