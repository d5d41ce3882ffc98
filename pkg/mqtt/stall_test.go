package mqtt

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

const (
	logHolds   = "a message holds up the acknowledgements of its connection"
	logGoesOn  = "a message no longer holds up the acknowledgements of its connection"
	logHasGone = "the connection of a message that held up acknowledgements has ended"
)

func TestStalledMessageIsNamedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		w := newWindow(100, 1<<20)
		q := newAckQueue(w, new(acknowledged), func(time.Duration) {})
		ended := make(chan struct{})
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			watchStalls(q, time.Minute, zap.New(core), ended)
		}()
		push := func(id uint16, topic string) *Receipt {
			w.reserve(10)
			q.expect(10, 0)
			r, _ := q.push(id, 1, topic, 10, time.Now())
			return r
		}
		expect := func(when string, want ...string) []observer.LoggedEntry {
			t.Helper()
			synctest.Wait()
			entries := logs.TakeAll()
			var got []string
			for _, e := range entries {
				got = append(got, e.Message)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, logged (-want +got):\n%s", when, diff)
			}
			return entries
		}

		time.Sleep(10 * time.Minute)
		first, second, third := push(1, strings.Repeat("é", 200)), push(2, "b"), push(3, "c")
		second.Done()
		received := time.Now()
		time.Sleep(time.Minute)
		expect("within the limit")
		time.Sleep(time.Minute)
		holds := expect("over the limit", logHolds)[0]
		if holds.Level != zapcore.WarnLevel {
			t.Errorf("logged as %s", holds.Level)
		}
		age, _ := holds.ContextMap()["age"].(time.Duration)
		if age <= time.Minute || age > 90*time.Second {
			t.Errorf("named after %s", age)
		}
		fields := holds.ContextMap()
		delete(fields, "age")
		want := map[string]any{
			"topic": strings.Repeat("é", 128), "packet_id": uint16(1), "received_at": received.UTC(), "bytes": int64(10), "waiting": int64(2),
		}
		if diff := cmp.Diff(want, fields); diff != "" {
			t.Errorf("fields (-want +got):\n%s", diff)
		}
		time.Sleep(time.Hour)
		expect("much later")

		first.Done() // the third is the oldest now, and has been for longer than the limit
		time.Sleep(time.Minute)
		if after := expect("after Done", logGoesOn, logHolds)[1].ContextMap(); after["topic"] != "c" || after["waiting"] != int64(0) {
			t.Errorf("named next: %v", after)
		}
		third.Done()
		time.Sleep(time.Minute)
		expect("after all are done", logGoesOn)

		push(4, "d")
		time.Sleep(2 * time.Minute)
		expect("another", logHolds)
		close(ended)
		<-watched
		expect("at the end", logHasGone)
	})
}

func TestOldestAgeSpansEpochs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		config := Config{StallAfter: time.Minute}.withDefaults()
		c := newConnection(&Client{config: config, log: zap.NewNop()}, "c-0", nil)
		begin := func() *ackQueue {
			q := newAckQueue(c.window, new(acknowledged), func(time.Duration) {})
			c.track(q)
			return q
		}
		push := func(q *ackQueue) *Receipt {
			c.window.reserve(10)
			q.expect(10, 0)
			r, _ := q.push(1, 1, "t", 10, time.Now())
			return r
		}
		check := func(when string, oldest time.Duration, stall *Stall) {
			t.Helper()
			if got := c.oldestUnacked(); got != oldest {
				t.Errorf("%s: oldest is %s old, want %s", when, got, oldest)
			}
			if diff := cmp.Diff(stall, c.current().Stalled); diff != "" {
				t.Errorf("%s: stalled (-want +got):\n%s", when, diff)
			}
		}
		check("before any", 0, nil)
		q := begin()
		check("without messages", 0, nil)
		start := time.Now().UTC()
		a, b := push(q), push(q)
		time.Sleep(time.Minute)
		check("at the limit", time.Minute, nil)
		time.Sleep(time.Second)
		check("over the limit", time.Minute+time.Second, &Stall{Topic: "t", ReceivedAt: start, Waiting: 1})
		q.end()
		check("after the end", time.Minute+time.Second, nil)
		next := begin()
		d := push(next)
		time.Sleep(time.Second)
		b.Done()
		check("with a done one behind it", time.Minute+2*time.Second, nil)
		a.Done()
		check("only the new epoch's", time.Second, nil)
		next.end()
		begin()
		if len(c.queues) != 2 {
			t.Errorf("%d queues, want the one with a message and the new", len(c.queues))
		}
		d.Done()
		check("none", 0, nil)
	})
}

func TestShownTopic(t *testing.T) {
	t.Parallel()
	for topic, want := range map[string]string{
		"a/b":                            "a/b",
		strings.Repeat("x", 256):         strings.Repeat("x", 256),
		strings.Repeat("x", 300):         strings.Repeat("x", 256),
		"x" + strings.Repeat("é", 200):   "x" + strings.Repeat("é", 127),
		"xyz" + strings.Repeat("😀", 100): "xyz" + strings.Repeat("😀", 63),
		"\xff\xfea":                      "?a",
		strings.Repeat("\x80", 300):      "?",
	} {
		if got := shownTopic(topic); got != want || !utf8.ValidString(got) {
			t.Errorf("%q is shown as %q, want %q", topic, got, want)
		}
	}
}
