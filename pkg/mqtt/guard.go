package mqtt

import (
	"errors"
	"time"
)

// Packet types, MQTT table 2.1, as the high half of the first byte.
const (
	typeConnack    = 2
	typePublish    = 3
	typePubrel     = 6
	typeSuback     = 9
	typeUnsuback   = 11
	typePingresp   = 13
	longestHeader  = 5 // a fixed header: type and flags, up to four bytes of length
	connackPacket  = 4 // bytes of a CONNACK
	subackOverhead = 2 // bytes of a SUBACK's body before its return codes
	unsubackBody   = 2 // bytes of an UNSUBACK's body
)

// errHalted says that the connection is finishing or has ended, so that nothing more is handed out.
var errHalted = errors.New("reading has stopped")

// header is a fixed header (MQTT 2.2).
type header struct {
	kind, flags     byte
	bytes           int // of the header itself
	remainingLength int
	published       int // bytes of the payload of a PUBLISH that was cut; 0: it is whole
}

// parseHeader reads the fixed header at the start of in; complete is false when bytes of it are missing.
func parseHeader(in []byte) (h header, complete bool, err error) {
	for i := 1; i < len(in) && i < longestHeader; i++ {
		h.remainingLength |= int(in[i]&0x7f) << (7 * (i - 1))
		if in[i] < 0x80 {
			h.kind, h.flags, h.bytes = in[0]>>4, in[0]&0x0f, i+1
			return h, true, nil
		}
	}
	if len(in) >= longestHeader {
		return h, false, ended(reasonProtocol, "malformed packet length: more than four bytes (MQTT 2.2.3)")
	}
	return h, false, nil
}

// nextPacket reads a packet's fixed header, judges it, and admits the packet: paho gets to see the header, and
// allocates what it announces, only after that.
func (c *conn) nextPacket() error {
	if c.skip > 0 {
		return c.discard()
	}
	var h header
	for {
		var complete bool
		var err error
		if h, complete, err = parseHeader(c.in[c.from:c.to]); err != nil {
			return err
		}
		if complete {
			break
		}
		if err := c.fill(); err != nil {
			return err
		}
	}
	select {
	case <-c.halt:
		return errHalted
	default:
	}
	if h.bytes+h.remainingLength > c.maxPacket {
		var err error
		if h, err = c.cut(h); err != nil {
			return err
		}
	}
	if err := c.judge(h); err != nil {
		return err
	}
	c.left = h.bytes + h.remainingLength
	if h.published > 0 {
		c.left-- // the last byte follows after discard
	}
	return nil
}

func (c *conn) judge(h header) error {
	if !c.connacked {
		return c.judgeConnack(h)
	}
	switch h.kind {
	case typePublish:
		if h.flags>>1&3 == 3 {
			return ended(reasonProtocol, "PUBLISH with QoS 3 (MQTT-3.3.1-4)")
		}
		return c.admit(h)
	case typeSuback:
		// paho indexes its filters by the return codes' positions.
		if codes := h.remainingLength - subackOverhead; codes != c.filters {
			return ended(reasonProtocol, "SUBACK with %d return codes for %d filters (MQTT-3.8.4-5)", codes, c.filters)
		}
		return nil
	case typeUnsuback:
		if h.remainingLength != unsubackBody {
			return ended(reasonProtocol, "UNSUBACK of %d bytes (MQTT 3.11)", h.remainingLength)
		}
		return nil
	case typePubrel, typePingresp:
		return nil
	}
	return ended(reasonProtocol, "unexpected packet of type %d", h.kind)
}

// judgeConnack looks at the return code itself: paho takes a reserved one for success.
func (c *conn) judgeConnack(h header) error {
	if h.kind != typeConnack || h.bytes+h.remainingLength != connackPacket {
		return ended(reasonProtocol, "the first packet is not a CONNACK (MQTT-3.2.0-1)")
	}
	for c.to-c.from < connackPacket {
		if err := c.fill(); err != nil {
			return err
		}
	}
	if code := c.in[c.from+connackPacket-1]; code != 0 {
		return refusal(code)
	}
	c.connacked = true
	return nil
}

// admit waits until the window has room for a PUBLISH packet, in bytes after its fixed header. If that takes longer than
// patience the connection is finished: the broker is not heard meanwhile.
func (c *conn) admit(h header) error {
	select {
	case <-c.paused:
		<-c.halt
		return errHalted
	default:
	}
	if !c.window.reserve(h.remainingLength) {
		if err := c.await(h.remainingLength); err != nil {
			return err
		}
	}
	c.queue.expect(h.remainingLength, h.published)
	return nil
}

func (c *conn) await(size int) error {
	c.stalled()
	patience := time.NewTimer(c.patience)
	defer patience.Stop()
	for {
		select {
		case <-c.window.room:
			if c.window.reserve(size) {
				return nil
			}
		case <-c.paused:
			<-c.halt
			return errHalted
		case <-c.halt:
			return errHalted
		case <-patience.C:
			c.finish(ended(reasonWindow, "window full for %s: %d messages are not acknowledged", c.patience, c.window.used()))
			return errHalted
		}
	}
}
