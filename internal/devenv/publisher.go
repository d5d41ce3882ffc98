package devenv

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// publisher sends readings over one MQTT connection at a time, and keeps each
// of QoS 1 until its PUBACK came. Paho's client is not used because it
// completes the token of a publication when it resends it after a reconnect
// (1.5.1, claimID), before the PUBACK. All methods but stats belong to one
// goroutine; a second one, per connection, reads the PUBACKs.
type publisher struct {
	broker   broker
	clientID string
	qos      byte
	free     chan uint16 // packet ids that are not in use
	link     *link
	order    uint64 // of the last publication

	mu       sync.Mutex
	window   []publication // by packet id; 0, which is none, serves QoS 0
	returned []uint16      // acknowledged packet ids that are not free yet
	counts   SimulateStats
	record   *bufio.Writer // nil: none
	failed   error         // of the record
}

// returnShare is the part of the window that is freed at a time, unless nothing
// is in flight: a full window would otherwise be refilled, and written to the
// connection, by one publication for each PUBACK.
const returnShare = 8

// publication is a packet that awaits its PUBACK. The packet belongs to the
// publisher's goroutine, the rest is under its lock.
type publication struct {
	packet   []byte
	order    uint64
	device   string
	seq      int64
	inFlight bool
}

func newPublisher(ctx context.Context, config SimulateConfig) (*publisher, error) {
	target, err := parseBroker(config.Broker)
	if err != nil {
		return nil, err
	}
	prefix := config.ClientID
	if prefix == "" {
		prefix = "plenum-simulate"
	}
	p := &publisher{
		broker: target,
		// Two clients of one id would evict each other.
		clientID: prefix + "-" + rand.Text()[:8],
		qos:      config.QoS,
		free:     make(chan uint16, config.MaxInFlight),
		window:   make([]publication, config.MaxInFlight+1),
	}
	if config.Record != nil {
		p.record = bufio.NewWriter(config.Record)
	}
	for id := range config.MaxInFlight {
		p.free <- uint16(id + 1)
	}
	if p.link, err = target.connect(ctx, p.clientID, p.acknowledged, p.caughtUp); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *publisher) stats() SimulateStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// lost is closed once the connection is gone.
func (p *publisher) lost() <-chan struct{} { return p.link.lost }

// release returns a packet id that was not used.
func (p *publisher) release(id uint16) {
	if id != 0 {
		p.free <- id
	}
}

// publish buffers the reading. An error of the connection shows in lost.
func (p *publisher) publish(id uint16, r reading) {
	p.order++
	slot := &p.window[id]
	p.mu.Lock()
	p.counts.Sent++
	slot.order, slot.device, slot.seq, slot.inFlight = p.order, r.device, r.seq, id != 0
	p.mu.Unlock()
	slot.packet = appendPublish(slot.packet[:0], p.qos, id, r)
	p.link.write(slot.packet)
}

func (p *publisher) flush() { p.link.flush() }

const topicPrefix = "telemetry/"

// appendPublish appends the PUBLISH packet of a reading.
func appendPublish(to []byte, qos byte, id uint16, r reading) []byte {
	return appendMessage(to, qos, id, Message{Topic: topicPrefix + r.device, Payload: r.payload})
}

// appendMessage appends a PUBLISH packet (MQTT 3.1.1, 3.3).
func appendMessage(to []byte, qos byte, id uint16, m Message) []byte {
	length := 2 + len(m.Topic) + len(m.Payload)
	if qos > 0 {
		length += 2
	}
	first := packets.Publish<<4 | qos<<1
	if m.Retain {
		first |= 1
	}
	to = append(to, first)
	for rest := length; ; {
		digit := byte(rest % 128)
		if rest /= 128; rest == 0 {
			to = append(to, digit)
			break
		}
		to = append(to, digit|128)
	}
	to = binary.BigEndian.AppendUint16(to, uint16(len(m.Topic)))
	to = append(to, m.Topic...)
	if qos > 0 {
		to = binary.BigEndian.AppendUint16(to, id)
	}
	return append(to, m.Payload...)
}

// acknowledged handles a PUBACK; the connection's reader calls it.
func (p *publisher) acknowledged(id uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if int(id) >= len(p.window) || !p.window[id].inFlight {
		return fmt.Errorf("the broker acknowledged packet %d, which was not in flight", id)
	}
	slot := &p.window[id]
	slot.inFlight = false
	p.counts.Acknowledged++
	if p.record != nil {
		line := append(p.record.AvailableBuffer(), slot.device...)
		line = append(line, ' ')
		line = append(strconv.AppendInt(line, slot.seq, 10), '\n')
		_, err := p.record.Write(line)
		p.failed = cmp.Or(p.failed, err)
	}
	p.returned = append(p.returned, id)
	if len(p.returned) >= cap(p.free)/returnShare || p.counts.Acknowledged == p.counts.Sent {
		for _, id := range p.returned {
			p.free <- id // never blocks: it has room for every id
		}
		p.returned = p.returned[:0]
	}
	return nil
}

// caughtUp writes the record out and lets PUBACKs gather, for a microsecond a
// packet of the window, 2 ms at most: a broker may send them one by one, and to
// be woken by each costs more than all else. The reader calls it before it
// waits.
func (p *publisher) caughtUp() {
	p.writeRecord()
	if pause := min(time.Duration(cap(p.free))*time.Microsecond, 2*time.Millisecond); pause >= 100*time.Microsecond {
		time.Sleep(pause)
	}
}

func (p *publisher) writeRecord() {
	if p.record == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = cmp.Or(p.failed, p.record.Flush())
}

// abandon gives the connection up and notes why.
func (p *publisher) abandon() {
	p.note(p.link.close())
}

func (p *publisher) note(lost error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts.Lost = lost
}

// reconnect tries once. On success it has sent what was not acknowledged, in
// the order of the first sending, marked as repeated.
func (p *publisher) reconnect(ctx context.Context) error {
	repeat := p.unacknowledged()
	next, err := p.broker.connect(ctx, p.clientID, p.acknowledged, p.caughtUp)
	if err != nil {
		p.note(err)
		return err
	}
	p.link = next
	p.mu.Lock()
	p.counts.Reconnects++
	p.counts.Lost = nil
	p.mu.Unlock()
	for _, packet := range repeat {
		next.write(packet)
	}
	next.flush()
	return nil
}

// unacknowledged returns the packets to repeat, with DUP set (MQTT 3.1.1,
// 3.3.1.1). There must be no connection.
func (p *publisher) unacknowledged() [][]byte {
	const dup = 1 << 3
	p.mu.Lock()
	defer p.mu.Unlock()
	var waiting []publication
	for _, slot := range p.window {
		if slot.inFlight {
			waiting = append(waiting, slot)
		}
	}
	slices.SortFunc(waiting, func(a, b publication) int { return cmp.Compare(a.order, b.order) })
	repeat := make([][]byte, 0, len(waiting))
	for _, slot := range waiting {
		slot.packet[0] |= dup
		repeat = append(repeat, slot.packet)
	}
	return repeat
}

// close says goodbye to the broker and ends the connection. It returns what
// went wrong with the record.
func (p *publisher) close() error {
	p.link.goodbye()
	p.writeRecord()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil {
		return fmt.Errorf("write the record of acknowledged readings: %w", p.failed)
	}
	return nil
}

// backOff is how long to wait after a failed attempt, the first being 0: from
// about 0.1 s to about 3 s, with jitter.
func backOff(attempt int) time.Duration {
	const first, last = 200 * time.Millisecond, 5 * time.Second
	limit := min(last, time.Duration(float64(first)*math.Pow(2, float64(min(attempt, 10)))))
	return limit/2 + mathrand.N(limit/2)
}
