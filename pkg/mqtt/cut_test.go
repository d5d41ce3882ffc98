package mqtt

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// The longest topic and what is kept of the payload are a packet within any limit that is allowed.
const _ = uint(minMaxPacket - (longestHeader + 2 + maxStringBytes + 2 + keptPayload))

// chunks is a socket that hands out its bytes in pieces, and then its end.
type chunks struct {
	net.Conn
	left []byte
	size func() int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.left) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size())], c.left)
	c.left = c.left[n:]
	return n, nil
}

func (c *chunks) SetReadDeadline(time.Time) error { return nil }
func (c *chunks) Close() error                    { return nil }

func newCutting(in []byte, size func() int, maxPacket, keep int) *conn {
	c := newConn(&chunks{left: in, size: size})
	c.maxPacket, c.keep, c.keepAlive, c.connacked = maxPacket, keep, time.Minute, true
	c.window = newWindow(1<<20, 1<<40)
	c.stalled = func() {}
	c.queue = newAckQueue(c.window, new(acknowledged), func(time.Duration) {})
	return c
}

type message struct {
	Topic     string
	ID        uint16
	Flags     byte
	Payload   []byte
	Published int
}

// readAll reads messages as paho does, and pushes each once lag others were read after it.
func readAll(c *conn, lag int) (all []message, err error) {
	pushed := 0
	push := func(keep int) {
		for ; pushed < len(all)-keep; pushed++ {
			m := &all[pushed]
			size := 2 + len(m.Topic) + len(m.Payload)
			if m.Flags>>1&3 > 0 {
				size += 2
			}
			_, m.Published = c.queue.push(m.ID, m.Flags>>1&3, m.Topic, size, time.Now())
		}
	}
	for {
		packet, err := packets.ReadPacket(c)
		if err != nil {
			push(0)
			return all, err
		}
		if p, ok := packet.(*packets.PublishPacket); ok {
			flags := p.Qos << 1
			if p.Dup {
				flags |= 8
			}
			if p.Retain {
				flags |= 1
			}
			all = append(all, message{Topic: p.TopicName, ID: p.MessageID, Flags: flags, Payload: p.Payload})
			push(lag)
		}
	}
}

func encode(m message) []byte {
	var body []byte
	body = binary.BigEndian.AppendUint16(body, uint16(len(m.Topic)))
	body = append(body, m.Topic...)
	if m.Flags>>1&3 > 0 {
		body = binary.BigEndian.AppendUint16(body, m.ID)
	}
	body = append(body, m.Payload...)
	return append(appendHeader(nil, typePublish<<4|m.Flags, len(body)), body...)
}

// Messages of any size in reads of any size, with an end anywhere: those that came whole are read, the ones over the limit with
// the beginning of their payload and its length; and what is charged is what was read.
func TestCutsWhatIsOverTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit, keep = 1024, 100
		var wire []byte
		var want []message
		var ends []int
		for range rapid.IntRange(1, 12).Draw(t, "packets") {
			if rapid.IntRange(0, 4).Draw(t, "kind") == 0 {
				wire = append(wire, typePingresp<<4, 0)
				continue
			}
			m := message{
				Topic: string(bytes.Repeat([]byte("t"), rapid.SampledFrom([]int{0, 1, 7, 130, 900, 1019, 1100}).Draw(t, "topic"))),
				Flags: rapid.SampledFrom([]byte{0, 1, 2, 3, 4, 10, 11}).Draw(t, "flags"),
			}
			m.Payload = make([]byte, rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(850, 1100), rapid.IntRange(0, 70_000)).Draw(t, "payload"))
			for i := range m.Payload {
				m.Payload[i] = byte(len(want) + 7*i)
			}
			if m.Flags>>1&3 > 0 {
				m.ID = uint16(len(want) + 1)
			}
			packet := encode(m)
			wire = append(wire, packet...)
			if len(packet) > limit && len(m.Payload) > keep {
				m.Payload, m.Published = m.Payload[:keep], len(m.Payload)
			}
			want, ends = append(want, m), append(ends, len(wire))
		}
		whole := len(want)
		if rapid.Bool().Draw(t, "truncated") {
			wire = wire[:rapid.IntRange(0, len(wire)).Draw(t, "end")]
			for whole > 0 && ends[whole-1] > len(wire) {
				whole--
			}
		}
		most := rapid.SampledFrom([]int{1, 2, 3, 7, 1000, 1 << 20}).Draw(t, "most")
		chunk := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "chunks"), 0)) // a draw for each would take most of the time
		size := func() int { return 1 + chunk.IntN(most) }
		c := newCutting(wire, size, limit, keep)
		got, err := readAll(c, rapid.IntRange(0, 3).Draw(t, "lag"))
		if diff := cmp.Diff(want[:whole], got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("messages (-want +got):\n%s", diff)
		}
		if reasonOf(err, reasonDial) != reasonLost {
			t.Fatalf("the end is %v, want that the broker closed", err)
		}
		c.queue.end()
		held := 0
		for _, m := range got {
			held += len(encode(m)) - headerBytes(encode(m))
		}
		if c.window.used() != len(got) || c.window.bytes != held {
			t.Fatalf("window holds %d messages, %d bytes; %d and %d were read", c.window.used(), c.window.bytes, len(got), held)
		}
	})
}

func headerBytes(packet []byte) int {
	h, _, _ := parseHeader(packet)
	return h.bytes
}

func TestCutRefusesWhatIsNoMessage(t *testing.T) {
	t.Parallel()
	for name, packet := range map[string][]byte{
		"topic longer than the packet":              append(appendHeader(nil, 0x30, 2000), 0x07, 0xcf), // 1999
		"topic and packet id longer":                append(appendHeader(nil, 0x32, 2000), 0x07, 0xcd), // 1997
		"another type over the limit":               appendHeader(nil, typeSuback<<4, 2000),
		"longest header, longer topic":              append(appendHeader(nil, 0x34, 1100), 0xff, 0xff),
		"a packet id that is only half in the body": append(appendHeader(nil, 0x32, 2000), 0x07, 0xcd),
	} {
		c := newCutting(append(packet, make([]byte, 3000)...), func() int { return 1 }, 1024, 100)
		got, err := readAll(c, 0)
		if reasonOf(err, reasonDial) != reasonProtocol || len(got) > 0 {
			t.Errorf("%s: %d messages, error %v", name, len(got), err)
		}
	}
}

func FuzzCut(f *testing.F) {
	f.Add(encode(message{Topic: "a", Flags: 2, ID: 1, Payload: make([]byte, 2000)}), 1)
	f.Add(append(encode(message{Topic: "a", Payload: make([]byte, 1200)}), encode(message{Topic: "b", Payload: []byte("x")})...), 7)
	f.Fuzz(func(t *testing.T, wire []byte, most int) {
		const limit, keep = 1024, 100
		size := max(1, most%4096)
		c := newCutting(wire, func() int { return size }, limit, keep)
		c.filters = 1
		got, err := readAll(c, 1)
		if err == nil {
			t.Error("no error at the end")
		}
		for _, m := range got {
			if m.Published > 0 && (len(m.Payload) != keep || m.Published <= keep || m.Published > len(wire)) {
				t.Errorf("payload of %d bytes, published with %d of %d", len(m.Payload), m.Published, len(wire))
			}
		}
	})
}
