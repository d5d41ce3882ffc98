package ingest

import (
	"context"
	"sync"
	"time"

	"plenum/pkg/telemetry"
)

// A Receipt belongs to one message. Done is called once, when the message is stored.
type Receipt interface{ Done() }

// batch is what one transaction stores, with the receipts of its messages.
type batch struct {
	telemetry.Batch
	receipts []Receipt
	bytes    int
	opened   time.Time
}

func (b *batch) rows() int { return len(b.Readings) + len(b.Rejects) }

func (b *batch) reset() {
	clear(b.Readings)
	clear(b.Rejects)
	clear(b.receipts)
	b.Readings, b.Rejects, b.receipts, b.bytes = b.Readings[:0], b.Rejects[:0], b.receipts[:0], 0
}

// queue is the open batch and the sealed ones before it.
type queue struct {
	rows, bytes int
	linger      time.Duration

	mu     sync.Mutex
	open   *batch
	sealed []*batch
	free   []*batch
	closed bool

	messages, received int64 // messages added, and their rows
	late               int64 // messages that came after close

	// A token for each batch begun and each sealed. One that finds no room is not missed: there is one for every
	// writer then, and a writer sleeps only after it has found nothing.
	wake chan struct{}
}

func newQueue(c Config) *queue {
	return &queue{rows: c.BatchRows, bytes: c.BatchBytes, linger: c.Linger, open: new(batch), wake: make(chan struct{}, c.Writers)}
}

// add decodes the message into the open batch, unless the queue is closed. Decoding under the lock keeps the
// rows of a message together and needs no copy.
func (q *queue) add(d *telemetry.Decoder, m telemetry.Message, r Receipt) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		q.late++
		return
	}
	b := q.open
	first, before := len(b.receipts) == 0, b.rows()
	d.Decode(m, &b.Batch)
	b.receipts = append(b.receipts, r)
	b.bytes += len(m.Payload) + len(m.Topic)
	q.messages++
	q.received += int64(b.rows() - before)
	if first {
		b.opened = time.Now() // not m.ReceivedAt, which need not be monotonic
	}
	if b.rows() >= q.rows || b.bytes >= q.bytes {
		q.seal()
		q.signal()
	} else if first {
		q.signal()
	}
}

func (q *queue) seal() {
	q.sealed = append(q.sealed, q.open)
	if k := len(q.free) - 1; k >= 0 {
		q.open, q.free = q.free[k], q.free[:k]
	} else {
		q.open = new(batch)
	}
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take waits for a batch. It returns nil when ctx ends, or when the queue is closed and empty.
func (q *queue) take(ctx context.Context) *batch {
	for {
		b, wait, done := q.next()
		if b != nil || done {
			return b
		}
		if !q.sleep(ctx, wait) {
			return nil
		}
	}
}

// next returns a batch that is due, or how long the open one has yet to linger (0: nothing is there), or
// that no batch will come.
func (q *queue) next() (b *batch, wait time.Duration, done bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.sealed) == 0 && len(q.open.receipts) > 0 {
		wait = q.linger - time.Since(q.open.opened)
		if wait > 0 && !q.closed {
			return nil, wait, false
		}
		q.seal()
	}
	if len(q.sealed) == 0 {
		return nil, 0, q.closed
	}
	b = q.sealed[0]
	q.sealed[0] = nil
	q.sealed = q.sealed[1:]
	return b, 0, false
}

func (q *queue) sleep(ctx context.Context, wait time.Duration) bool {
	var timer <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-q.wake:
	case <-timer:
	}
	return true
}

// recycle takes back a batch whose receipts are done.
func (q *queue) recycle(b *batch) {
	b.reset()
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.free) < cap(q.wake) {
		q.free = append(q.free, b)
	}
}

// close makes every writer return once the queue is empty.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	for range cap(q.wake) {
		q.signal()
	}
}
