package mqtt

import "encoding/binary"

// keptPayload is how much of the payload is delivered of a PUBLISH packet that is over the limit. With the longest topic it is
// within minMaxPacket.
const keptPayload = 64 << 10

// cut makes a PUBLISH packet that is over the limit one that ends after the beginning of its payload. Ending the connection
// instead would help nobody: the broker delivers the message again on the next one (MQTT-4.4.0-1), and everything
// behind it waits for ever. The fixed header is rewritten in the buffer; the new one is not longer, since its number is smaller.
func (c *conn) cut(h header) (header, error) {
	size := h.bytes + h.remainingLength
	if h.kind != typePublish {
		return h, ended(reasonProtocol, "packet of type %d and %d bytes refused: over the limit of %d", h.kind, size, c.maxPacket)
	}
	for c.to-c.from < h.bytes+2 {
		if err := c.fill(); err != nil {
			return h, err
		}
	}
	topic := int(binary.BigEndian.Uint16(c.in[c.from+h.bytes:]))
	before := 2 + topic // bytes of the packet between fixed header and payload, MQTT 3.3.2
	if h.flags>>1&3 > 0 {
		before += 2
	}
	payload := h.remainingLength - before
	if payload < 0 {
		return h, ended(reasonProtocol, "PUBLISH of %d bytes with a topic of %d (MQTT 3.3.2)", size, topic)
	}
	if payload <= c.keep {
		return h, nil
	}
	first := c.in[c.from]
	c.skip = payload - c.keep
	h.published, h.remainingLength = payload, before+c.keep
	packet := appendHeader(make([]byte, 0, longestHeader), first, h.remainingLength)
	c.from += h.bytes - len(packet)
	copy(c.in[c.from:], packet)
	h.bytes = len(packet)
	return h, nil
}

// appendHeader appends a fixed header (MQTT 2.2.3).
func appendHeader(to []byte, first byte, remainingLength int) []byte {
	to = append(to, first)
	for ; remainingLength >= 0x80; remainingLength >>= 7 {
		to = append(to, byte(remainingLength)|0x80)
	}
	return append(to, byte(remainingLength))
}

// discard reads the rest of a cut packet, all but whose last byte is handed out by now, and then lets that byte follow:
// a message is delivered, and may be acknowledged, only once the broker has sent all of it.
func (c *conn) discard() error {
	for c.from == c.to {
		if err := c.fill(); err != nil {
			return err
		}
	}
	last := c.in[c.from]
	c.from++
	for c.skip > 0 {
		if c.from == c.to {
			select {
			case <-c.halt:
				return errHalted
			default:
			}
			if err := c.fill(); err != nil {
				return err
			}
		}
		n := min(c.skip, c.to-c.from)
		c.from += n
		c.skip -= n
	}
	c.from--
	c.in[c.from] = last
	c.left = 1
	return nil
}
