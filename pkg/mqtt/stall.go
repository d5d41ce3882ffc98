package mqtt

import (
	"strings"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
)

// Stall is a message that holds up the acknowledgements of its connection, because they leave in the order of receipt.
type Stall struct {
	Topic      string    // its first 256 bytes
	ReceivedAt time.Time // UTC
	Waiting    int       // messages received after it, none of which can be acknowledged
}

const (
	shownTopicBytes = 256
	// stallChecks is how often in the limit a connection looks at its oldest message.
	stallChecks = 4
)

// held is the oldest message of a queue that is not done, as it was at a moment.
type held struct {
	receipt *Receipt // nil: there is none
	topic   string
	id      uint16
	size    int // bytes of its packet
	at      time.Time
	age     time.Duration
	waiting int // messages behind it
}

// held returns what holds up the acknowledgements now. After the end that is nothing.
func (q *ackQueue) held() held {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return held{}
	}
	r := q.oldest() // never done: a done one is acknowledged at once
	if r == nil {
		return held{}
	}
	at := q.start.Add(r.at)
	return held{
		receipt: r, topic: shownTopic(r.topic), id: r.id, size: int(r.size),
		at: at, age: time.Since(at), waiting: q.pushed - q.acknowledged - 1,
	}
}

// oldestAge is the age of the oldest message that is not acknowledged or, after the end, not done; false if there is none.
func (q *ackQueue) oldestAge() (time.Duration, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var r *Receipt
	if !q.ended {
		r = q.oldest()
	} else if len(q.left) > 0 {
		r = q.left[0]
	}
	if r == nil {
		return 0, false
	}
	return time.Since(q.start) - r.at, true
}

// shownTopic is a topic for people: cut to 256 bytes, and UTF-8.
func shownTopic(topic string) string {
	if len(topic) > shownTopicBytes {
		topic = topic[:shownTopicBytes]
		for i := 1; i <= utf8.UTFMax; i++ { // no half of a character
			if utf8.RuneStart(topic[len(topic)-i]) {
				if !utf8.FullRuneInString(topic[len(topic)-i:]) {
					topic = topic[:len(topic)-i]
				}
				break
			}
		}
	}
	return strings.ToValidUTF8(topic, "?")
}

// watchStalls logs each message that holds up the queue for longer than limit, once, and once that it does no more, until
// ended is closed. It only looks now and then: a message costs nothing.
func watchStalls(q *ackQueue, limit time.Duration, log *zap.Logger, ended <-chan struct{}) {
	tick := time.NewTicker(max(limit/stallChecks, time.Millisecond))
	defer tick.Stop()
	var named held
	for {
		select {
		case <-tick.C:
		case <-ended:
			if named.receipt != nil {
				log.Info("the connection of a message that held up acknowledgements has ended", named.fields()...)
			}
			return
		}
		now := q.held()
		if named.receipt != nil {
			named.age = time.Since(named.at)
			if named.receipt == now.receipt {
				continue
			}
			log.Info("a message no longer holds up the acknowledgements of its connection", named.fields()...)
			named = held{}
		}
		if now.receipt != nil && now.age > limit {
			log.Warn("a message holds up the acknowledgements of its connection", now.fields()...)
			named = now
		}
	}
}

func (h held) fields() []zap.Field {
	return []zap.Field{
		zap.String("topic", h.topic), zap.Uint16("packet_id", h.id), zap.Time("received_at", h.at.UTC()),
		zap.Duration("age", h.age), zap.Int("bytes", h.size), zap.Int("waiting", h.waiting),
	}
}

// stalled returns what holds up the connection for longer than the limit, nil if nothing does.
func (c *connection) stalled() *Stall {
	c.mu.Lock()
	queues := c.queues
	c.mu.Unlock()
	if len(queues) == 0 {
		return nil
	}
	h := queues[len(queues)-1].held()
	if h.receipt == nil || h.age <= c.client.config.StallAfter {
		return nil
	}
	return &Stall{Topic: h.topic, ReceivedAt: h.at.UTC(), Waiting: h.waiting}
}

// oldestUnacked is the age of the oldest message that is not acknowledged or, of an ended epoch, not done; 0 if there is none.
func (c *connection) oldestUnacked() time.Duration {
	c.mu.Lock()
	queues := c.queues
	c.mu.Unlock()
	var oldest time.Duration
	for _, q := range queues {
		if age, ok := q.oldestAge(); ok {
			oldest = max(oldest, age)
		}
	}
	return oldest
}

// track adds the queue of a new epoch, and drops those of ended ones whose messages are all done. The window bounds how many
// are kept: each holds a message.
func (c *connection) track(q *ackQueue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var queues []*ackQueue // a new slice: the readers of the old one hold no lock
	for _, ended := range c.queues {
		if _, ok := ended.oldestAge(); ok {
			queues = append(queues, ended)
		}
	}
	c.queues = append(queues, q)
}
