package mqtt

import (
	"sync"
	"time"
)

// First bytes of the packets that acknowledge a message (MQTT 3.4, 3.5). QoS 2 is not subscribed to, but a session that another
// program left behind may hold such messages; PUBREC after storing them, and paho's PUBCOMP, let them through.
const (
	packetPuback = 0x40
	packetPubrec = 0x50
)

// Receipt is the handle by which a delivered message is acknowledged.
type Receipt struct {
	queue *ackQueue
	topic string        // until it is acknowledged
	at    time.Duration // of receipt, since queue.start
	size  int32         // in the window
	id    uint16        // packet identifier
	kind  byte          // first byte of the acknowledging packet, 0 for QoS 0
	done  bool
}

// Done says that the message is stored. Its PUBACK leaves when all messages received before it on the same connection are done
// too. Calls after the first do nothing; after the connection has ended it only makes room in the window, and the broker
// delivers the message again. It never blocks, and any goroutine may call it.
func (r *Receipt) Done() { r.queue.done(r) }

// acknowledger takes acknowledgement packets to the broker. It says whether they are the first since it last wrote.
type acknowledger interface {
	acknowledge(packets []byte) (first bool)
}

const receiptsPerBlock = 256

// receiptBlock holds receipts in order of receipt, so that a message costs no allocation of its own for the queue.
type receiptBlock struct {
	receipts [receiptsPerBlock]Receipt
	next     *receiptBlock
}

// ackQueue is an epoch's messages in order of receipt, from the first that is not done to the last. MQTT-4.6.0-2 asks for
// acknowledgements in the order of receipt, so only its done prefix is acknowledged.
type ackQueue struct {
	start   time.Time
	window  *window
	out     acknowledger
	observe func(delay time.Duration)

	mu           sync.Mutex
	head, tail   *receiptBlock
	first, next  int // index in head of the oldest receipt, in tail of the one to come
	admitted     int // messages, by the reader
	pushed       int // messages, of them
	acknowledged int // messages, of them
	expectedSize int // bytes that were admitted and are not pushed yet
	cuts         []cutMessage
	ended        bool
	left         []*Receipt // after the end: what was not done, in order; its head is not done
	scratch      []byte
}

// cutMessage is one that was admitted, and not pushed yet, with only the beginning of its payload.
type cutMessage struct {
	nth       int // of the admitted
	published int // bytes of its payload
}

func newAckQueue(w *window, out acknowledger, observe func(time.Duration)) *ackQueue {
	block := new(receiptBlock)
	return &ackQueue{start: time.Now(), window: w, out: out, observe: observe, head: block, tail: block}
}

// expect notes a message whose room was reserved and which push will bring, in order, unless the epoch ends first. published
// is the length of its payload if it was cut, else 0: paho has no place to carry it.
func (q *ackQueue) expect(size, published int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.admitted++
	q.expectedSize += size
	if published > 0 {
		q.cuts = append(q.cuts, cutMessage{nth: q.admitted, published: published})
	}
}

// push appends a message, and returns what expect was told of its payload's length; nil after the end.
func (q *ackQueue) push(id uint16, qos byte, topic string, size int, at time.Time) (r *Receipt, published int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return nil, 0
	}
	if q.next == receiptsPerBlock {
		q.tail.next = new(receiptBlock)
		q.tail, q.next = q.tail.next, 0
	}
	r = &q.tail.receipts[q.next]
	q.next++
	q.pushed++
	q.expectedSize -= size
	if len(q.cuts) > 0 && q.cuts[0].nth == q.pushed {
		published = q.cuts[0].published
		q.cuts = q.cuts[1:]
	}
	*r = Receipt{queue: q, topic: topic, at: at.Sub(q.start), size: int32(size), id: id}
	switch qos {
	case 1:
		r.kind = packetPuback
	case 2:
		r.kind = packetPubrec
	}
	return r, published
}

// oldest is the receipt at the head, nil if there is none. The caller holds mu.
func (q *ackQueue) oldest() *Receipt {
	if q.first == receiptsPerBlock {
		if q.head == q.tail {
			return nil
		}
		q.head, q.first = q.head.next, 0
	}
	if q.head == q.tail && q.first == q.next {
		return nil
	}
	return &q.head.receipts[q.first]
}

func (q *ackQueue) done(r *Receipt) {
	q.mu.Lock()
	if r.done {
		q.mu.Unlock()
		return
	}
	r.done = true
	if q.ended {
		for len(q.left) > 0 && q.left[0].done {
			q.left = q.left[1:]
		}
		q.mu.Unlock()
		q.window.release(1, int(r.size))
		return
	}
	messages, bytes := 0, 0
	packets := q.scratch[:0]
	for r := q.oldest(); r != nil && r.done; r = q.oldest() {
		if r.kind != 0 {
			packets = append(packets, r.kind, 2, byte(r.id>>8), byte(r.id))
		}
		messages++
		bytes += int(r.size)
		r.topic = "" // its block may live as long as the last of its receipts
		q.first++
	}
	q.acknowledged += messages
	q.scratch = packets
	// Under mu, for the order. One observation a write: a clock and a histogram per message would cost as much as the queue.
	if len(packets) > 0 && q.out.acknowledge(packets) {
		q.observe(time.Since(q.start) - r.at)
	}
	q.mu.Unlock()
	if messages > 0 {
		q.window.release(messages, bytes)
	}
}

// end makes every receipt a no-op towards the broker, and gives back the room of what will never be pushed and of what is
// done behind a message that is not. Receipts that are not done keep their room until they are.
func (q *ackQueue) end() {
	q.mu.Lock()
	if q.ended {
		q.mu.Unlock()
		return
	}
	q.ended = true
	messages, bytes := q.admitted-q.pushed, q.expectedSize
	for r := q.oldest(); r != nil; r = q.oldest() {
		if r.done {
			messages++
			bytes += int(r.size)
		} else {
			q.left = append(q.left, r)
		}
		q.first++
	}
	for block := q.head; block != nil; { // what is left keeps its own block only
		next := block.next
		block.next = nil
		block = next
	}
	q.head, q.tail, q.cuts, q.scratch = nil, nil, nil, nil
	q.mu.Unlock()
	q.window.release(messages, bytes)
}
