package mqtt_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// tap is a TCP proxy before a broker that records what passes, and can cut it.
type tap struct {
	listener net.Listener
	broker   string
	wg       sync.WaitGroup

	mu        sync.Mutex
	conns     []net.Conn
	published []uint16 // packet identifiers of QoS 1 messages, as the broker sent them
	acked     []uint16 // packet identifiers of PUBACKs, as the client sent them
	last      string   // the client's last packet
	kinds     []string // of the client's packets, but for PUBACKs and pings
	accepted  int      // connections
	// cutAt ends a connection where it is true, before the packet passes or, with after, once it has.
	cutAt func(kind string) (cut, after bool)
	mute  string // packets of this kind do not pass
}

func newTap(tb testing.TB, broker string) *tap {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	_, address, _ := strings.Cut(broker, "://")
	p := &tap{listener: listener, broker: address}
	p.wg.Go(p.accept)
	tb.Cleanup(func() { p.close(tb) })
	return p
}

// close ends the proxy; more than once does nothing.
func (p *tap) close(tb testing.TB) {
	if err := p.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		tb.Error(err)
	}
	p.cut()
	p.wg.Wait()
}

func (p *tap) url() string { return "tcp://" + p.listener.Addr().String() }

func (p *tap) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		broker, err := net.Dial("tcp", p.broker)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, broker)
		p.accepted++
		p.mu.Unlock()
		p.wg.Go(func() { p.forward(client, broker, p.fromClient) })
		p.wg.Go(func() { p.forward(broker, client, p.fromBroker) })
	}
}

// forward copies packets until either side ends, then ends both.
func (p *tap) forward(from, to net.Conn, record func(packets.ControlPacket)) {
	for {
		packet, err := packets.ReadPacket(from)
		if err != nil {
			break
		}
		record(packet)
		if p.muted(packet) {
			continue
		}
		cut, after := p.cuts(packet)
		if cut && !after || packet.Write(to) != nil || cut {
			break
		}
	}
	_ = errors.Join(from.Close(), to.Close())
}

// kind is a packet's name, such as SUBSCRIBE.
func kind(packet packets.ControlPacket) string {
	name, _, _ := strings.Cut(packet.String(), ":")
	return name
}

func (p *tap) muted(packet packets.ControlPacket) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mute != "" && p.mute == kind(packet)
}

func (p *tap) cuts(packet packets.ControlPacket) (cut, after bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cutAt == nil {
		return false, false
	}
	return p.cutAt(kind(packet))
}

// sent is the kinds of the packets that clients sent, in order, but for PUBACKs and pings.
func (p *tap) sent() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.kinds...)
}

func (p *tap) fromClient(packet packets.ControlPacket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = packet.String()
	if ack, ok := packet.(*packets.PubackPacket); ok {
		p.acked = append(p.acked, ack.MessageID)
	} else if name := kind(packet); name != "PINGREQ" {
		p.kinds = append(p.kinds, name)
	}
}

func (p *tap) fromBroker(packet packets.ControlPacket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if message, ok := packet.(*packets.PublishPacket); ok && message.Qos == 1 {
		p.published = append(p.published, message.MessageID)
	}
}

// cut ends all connections.
func (p *tap) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.conns {
		_ = conn.Close()
	}
	p.conns = nil
}

// connections is how many were made.
func (p *tap) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

func (p *tap) seen() (published, acked []uint16, last string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]uint16(nil), p.published...), append([]uint16(nil), p.acked...), p.last
}

// scripted is a broker that plays a script on each connection, for answers that no real one gives on demand.
func scripted(tb testing.TB, script func(conn net.Conn)) (url string) {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			script(conn)
			_ = conn.Close()
		}
	})
	tb.Cleanup(func() {
		if err := listener.Close(); err != nil {
			tb.Error(err)
		}
		wg.Wait()
	})
	return "tcp://" + listener.Addr().String()
}

// answer reads a packet and writes another.
func answer(conn net.Conn, packet ...byte) {
	if _, err := packets.ReadPacket(conn); err == nil {
		_, _ = conn.Write(packet)
	}
}

// untilClosed reads until the other side closes.
func untilClosed(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

var (
	connack    = []byte{0x20, 2, 0, 0}
	subackQoS1 = []byte{0x90, 3, 0, 1, 1}
)
