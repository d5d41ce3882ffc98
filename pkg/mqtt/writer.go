package mqtt

import (
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	packetPingreq    = 0xc0
	packetDisconnect = 0xe0
	// maxPending bounds what waits for the broker to read: acknowledgements of four bytes, and paho's small packets.
	maxPending = 1 << 20
	// flushDelay is how long an acknowledgement waits for others to leave in the same write.
	flushDelay = time.Millisecond
	// flushBytes leave at once.
	flushBytes = 16 << 10
	// writeTimeout bounds one write to a broker that does not read.
	writeTimeout = 10 * time.Second
)

type connState int

const (
	stateOpen connState = iota
	stateFinishing
	stateEnded
)

// writer is the writing half of conn: Write and acknowledge append to a buffer, flush writes all of it at once. Packets never
// interleave, since paho writes each with one call of Write. The halves of conn share its state.
type writer struct {
	wake    chan struct{} // there is something to write
	hurry   chan struct{} // it must not wait for more
	halt    chan struct{} // closed when no longer open
	ended   chan struct{} // closed when ended
	flushed chan struct{} // closed when flush has returned

	mu      sync.Mutex
	state   connState
	reason  error // why it is no longer open
	pending []byte
	spare   []byte // the buffer of the last write
	acks    bool   // pending holds acknowledgements
}

func newWriter() writer {
	return writer{
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
		halt: make(chan struct{}), ended: make(chan struct{}), flushed: make(chan struct{}),
	}
}

// cause is why the connection is no longer open.
func (w *writer) cause() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reason
}

// beginFinishing leaves the open state. The caller holds mu.
func (w *writer) beginFinishing(why error) {
	w.state = stateFinishing
	w.reason = why
	close(w.halt)
	signal(w.wake)
	signal(w.hurry)
}

// Write takes one packet of paho's. It does not block; that the broker could not be written to shows in a later call.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateOpen {
		return 0, c.reason
	}
	if !c.append(p) {
		return 0, c.reason
	}
	signal(c.wake)
	signal(c.hurry)
	return len(p), nil
}

// acknowledge takes whole packets that acknowledge messages, and says whether they are the first since the last flush.
func (c *conn) acknowledge(packets []byte) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateOpen || !c.append(packets) {
		return false
	}
	first = !c.acks
	c.acks = true
	if first {
		signal(c.wake)
	}
	if len(c.pending) >= flushBytes {
		signal(c.hurry)
	}
	return first
}

// append adds to what is pending; if that is too much it begins to finish instead. The caller holds mu.
func (c *conn) append(p []byte) bool {
	if len(c.pending)+len(p) > maxPending {
		c.beginFinishing(ended(reasonLost, "the broker does not read: %d bytes are waiting", len(c.pending)))
		_ = c.Conn.SetReadDeadline(time.Now().Add(drainTime)) // as in finish
		return false
	}
	c.pending = append(c.pending, p...)
	return true
}

// flush writes what is pending until the connection has ended. When nothing was written for the keep-alive it sends PINGREQ:
// paho sends none while it waits for a PINGRESP, however far behind that stands, and the broker would end the connection
// (MQTT-3.1.2-24).
func (c *conn) flush() {
	defer close(c.flushed)
	delay := time.NewTimer(0)
	defer delay.Stop()
	idle := time.NewTimer(c.keepAlive)
	defer idle.Stop()
	for {
		select {
		case <-c.wake:
		case <-idle.C:
			_, _ = c.Write([]byte{packetPingreq, 0}) // an error is that of an end already under way
		case <-c.ended:
			return
		}
		idle.Reset(c.keepAlive)
		delay.Reset(flushDelay)
		select {
		case <-delay.C:
		case <-c.hurry:
		case <-c.ended:
			return
		}
		if err := c.writePending(); err != nil {
			c.fail(ended(reasonLost, "write to the broker: %w", err))
		}
	}
}

func (c *conn) writePending() error {
	c.mu.Lock()
	out := c.pending
	if len(out) > 0 { // else the two buffers would become one
		c.pending, c.spare, c.acks = c.spare[:0], nil, false
	}
	c.mu.Unlock()
	if len(out) == 0 {
		return nil
	}
	if err := c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	_, err := c.Conn.Write(out)
	c.mu.Lock()
	c.spare = out
	c.mu.Unlock()
	return err
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

var _ net.Conn = (*conn)(nil)
