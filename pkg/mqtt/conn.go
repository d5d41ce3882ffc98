package mqtt

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

const (
	readBufferBytes = 64 << 10
	// drainTime bounds waiting for the broker to close its side after DISCONNECT.
	drainTime = 2 * time.Second
)

// conn is the net.Conn that paho reads and writes. Towards paho it is a buffered stream; on the way it checks each packet's
// announced length (guard.go), cuts a PUBLISH that is too long (cut.go), admits PUBLISH packets only as the window has room,
// and coalesces writes (writer.go).
//
// It is open, then finishing (nothing more is admitted or written, what is pending is flushed, the rest of the input is
// discarded until the broker closes) or ended.
type conn struct {
	net.Conn                // as dialled
	base      net.Conn      // below TLS and websocket: closing it never blocks
	maxPacket int           // bytes of a packet
	keep      int           // bytes of the payload of a PUBLISH that is longer
	filters   int           // in the one SUBSCRIBE packet
	keepAlive time.Duration // between two writes, at most
	patience  time.Duration // how long the window may stay full
	paused    <-chan struct{}
	window    *window
	stalled   func() // counts a stop of reading

	queue *ackQueue // set before the first Read

	// Reading: used by the one goroutine that reads.
	in        []byte
	from, to  int           // what of in was read and not handed out
	left      int           // bytes of the current packet not handed out
	skip      int           // bytes of the current packet to discard; then its last byte is not in left
	connacked bool          // the first packet was seen
	reads     atomic.Uint64 // of the socket, that brought something

	writer
}

func newConn(raw net.Conn) *conn {
	base := raw
	for {
		under, ok := base.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		base = under.NetConn()
	}
	return &conn{Conn: raw, base: base, keep: keptPayload, in: make([]byte, readBufferBytes), writer: newWriter()}
}

// Read hands out bytes of packets that were checked and admitted, and blocks while the window is full.
// After the end it returns why. That must not read like net.ErrClosed unless paho itself closed: paho takes
// that for its own doing and would not report the loss.
func (c *conn) Read(p []byte) (int, error) {
	if c.left == 0 {
		if err := c.nextPacket(); err != nil {
			return 0, c.stopReading(err)
		}
	}
	p = p[:min(len(p), c.left)]
	if c.from == c.to && len(p) >= len(c.in) {
		n, err := c.hear(p)
		c.left -= n
		if n == 0 && err != nil {
			return 0, c.stopReading(err)
		}
		return n, nil
	}
	if c.from == c.to {
		if err := c.fill(); err != nil {
			return 0, c.stopReading(err)
		}
	}
	n := copy(p, c.in[c.from:c.to])
	c.from += n
	c.left -= n
	return n, nil
}

// fill reads at least one byte into the buffer.
func (c *conn) fill() error {
	if c.from == c.to {
		c.from, c.to = 0, 0
	} else if c.to == len(c.in) {
		c.to = copy(c.in, c.in[c.from:c.to])
		c.from = 0
	}
	for {
		n, err := c.hear(c.in[c.to:])
		c.to += n
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// hear reads the socket, and gives up when nothing came for twice the keep-alive: by then a ping is without an answer. That
// paho waits for PINGRESP itself would not do: it may stand behind a long message, or behind many that storing holds up.
func (c *conn) hear(p []byte) (int, error) {
	silence := 2 * c.keepAlive
	if c.connacked {
		if err := c.SetReadDeadline(time.Now().Add(silence)); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.reads.Add(1)
	}
	if c.connacked && errors.Is(err, os.ErrDeadlineExceeded) {
		err = ended(reasonLost, "nothing heard from the broker for %s: %w", silence, err)
	}
	return n, err
}

// stopReading settles why reading ends. While finishing it first discards the input: closing a socket with unread input
// resets the connection, and the broker would lose the last acknowledgements.
func (c *conn) stopReading(err error) error {
	for errors.Is(err, errHalted) {
		if _, readErr := c.Conn.Read(c.in); readErr != nil {
			err = readErr
		}
	}
	switch e := (*endError)(nil); {
	case errors.As(err, &e):
	case errors.Is(err, io.EOF):
		err = ended(reasonLost, "closed by the broker: %w", err)
	default:
		err = ended(reasonLost, "read from the broker: %w", err)
	}
	c.end(err)
	return c.cause()
}

// SetDeadline bounds reading only, and nothing once the connection is finishing: the flusher bounds its writes itself.
func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline is net.Conn's, until the connection is finishing.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateOpen {
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

// SetWriteDeadline does nothing: a Write never blocks.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// Close is for paho.
func (c *conn) Close() error {
	c.end(net.ErrClosed)
	return nil
}

// finish ends the connection in good order: what is acknowledged and DISCONNECT are written, nothing after it
// (MQTT-3.14.4-2), and the connection is closed when the broker has closed its side, or after a bound. The session stays.
func (c *conn) finish(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateOpen {
		return
	}
	c.pending = append(c.pending, packetDisconnect, 0)
	c.beginFinishing(why)
	_ = c.Conn.SetReadDeadline(time.Now().Add(drainTime)) // a failure means that the connection is gone, which Read reports
}

// end ends the connection at once.
func (c *conn) end(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == stateEnded {
		return
	}
	if c.state == stateOpen {
		c.reason = why
		close(c.halt)
	}
	c.state = stateEnded
	close(c.ended)
	_ = c.base.Close() // its reason is told; that closing fails says nothing more
}

// fail ends the connection because of a write error. The broker may have said why before it closed (a TLS alert, a CONNACK):
// the reader gets a moment to find that.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateOpen {
		return
	}
	c.beginFinishing(err)
	_ = c.Conn.SetReadDeadline(time.Now().Add(drainTime)) // as in finish
}
