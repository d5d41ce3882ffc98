package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	payloadBytes = 250 // of a message
	jsonbBytes   = 202 // that its metrics take in a row
	devices      = 50
	firstSeq     = 100_000_000_000 // as many digits for every reading
	inFlight     = 10_000          // readings without a PUBACK
	pace         = 5 * time.Millisecond
	writeBuffer  = 64 << 10
	pubackBytes  = 4
)

// readings are what a publisher sends: to prefix/cmp-00001 … in turn, QoS 1.
type readings struct {
	prefix string
	first  int // number of the first, for seq
	n      int
	rate   int // readings/s; 0: as fast as the broker takes them
}

// publish sends the readings to the broker at tcp://address and returns when all are acknowledged. It writes packets itself, so
// that publishing takes little of the processors that are being measured.
func (r readings) publish(ctx context.Context, url string) error {
	conn, in, err := connect(ctx, strings.TrimPrefix(url, "tcp://"))
	if err != nil {
		return fmt.Errorf("publish %d readings: %w", r.n, err)
	}
	defer conn.Close() // everything is acknowledged, or the error is another
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	p := publication{readings: r, out: bufio.NewWriterSize(conn, writeBuffer), progress: make(chan struct{}, 1), failed: make(chan error, 1)}
	go p.readAcks(in)
	if err := p.send(); err != nil {
		return fmt.Errorf("publish %d readings: %w", r.n, err)
	}
	return nil
}

func connect(ctx context.Context, address string) (net.Conn, *bufio.Reader, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, nil, err
	}
	hello := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	hello.ProtocolName, hello.ProtocolVersion, hello.CleanSession = "MQTT", 4, true
	hello.ClientIdentifier = "bench-publisher"
	in := bufio.NewReader(conn)
	err = hello.Write(conn)
	if err == nil {
		var answer packets.ControlPacket
		if answer, err = packets.ReadPacket(in); err == nil {
			if ack, ok := answer.(*packets.ConnackPacket); !ok || ack.ReturnCode != packets.Accepted {
				err = fmt.Errorf("the broker answers %s", answer)
			}
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, in, nil
}

// publication is a running publish.
type publication struct {
	readings
	out      *bufio.Writer
	acked    atomic.Int64
	progress chan struct{} // holds a token after acked has grown
	failed   chan error
}

func (p *publication) readAcks(in io.Reader) {
	var packet [pubackBytes]byte
	for range p.n {
		if _, err := io.ReadFull(in, packet[:]); err != nil {
			p.failed <- err
			return
		}
		if packet[0] != packets.Puback<<4 {
			p.failed <- fmt.Errorf("the broker sends a packet of type %d", packet[0]>>4)
			return
		}
		p.acked.Add(1)
		select {
		case p.progress <- struct{}{}:
		default:
		}
	}
}

func (p *publication) send() error {
	random := rand.New(rand.NewPCG(1, uint64(p.first)))
	tick := time.NewTicker(pace)
	defer tick.Stop()
	start := time.Now()
	var packet []byte
	for i := range p.n {
		if err := p.room(i, start, tick.C); err != nil {
			return err
		}
		packet = p.appendPacket(packet[:0], i, random)
		if _, err := p.out.Write(packet); err != nil {
			return err
		}
	}
	return p.await(p.n)
}

// room waits until reading i is due and few enough are in flight.
func (p *publication) room(i int, start time.Time, tick <-chan time.Time) error {
	for p.rate > 0 && time.Since(start) < time.Duration(i)*time.Second/time.Duration(p.rate) {
		if err := p.out.Flush(); err != nil {
			return err
		}
		<-tick
	}
	if i < inFlight {
		return nil
	}
	return p.await(i - inFlight)
}

// await waits until n readings are acknowledged.
func (p *publication) await(n int) error {
	if p.acked.Load() >= int64(n) {
		return nil
	}
	if err := p.out.Flush(); err != nil {
		return err
	}
	for p.acked.Load() < int64(n) {
		select {
		case <-p.progress:
		case err := <-p.failed:
			return fmt.Errorf("after %d PUBACKs: %w", p.acked.Load(), err)
		}
	}
	return nil
}

// appendPacket appends the PUBLISH packet of reading i (MQTT 3.1.1, 3.3).
func (p *publication) appendPacket(to []byte, i int, random *rand.Rand) []byte {
	const qos1 = 1 << 1
	device := fmt.Sprintf("cmp-%05d", i%devices+1)
	topic := p.prefix + "/" + device
	length := 2 + len(topic) + 2 + payloadBytes
	to = append(to, packets.Publish<<4|qos1)
	to = binary.AppendUvarint(to, uint64(length)) // the same encoding as MQTT's
	to = binary.BigEndian.AppendUint16(to, uint16(len(topic)))
	to = append(to, topic...)
	to = binary.BigEndian.AppendUint16(to, uint16(i%65535+1))
	return appendPayload(to, device, p.first+i, random)
}

// appendPayload appends payloadBytes of JSON.
func appendPayload(to []byte, device string, n int, random *rand.Rand) []byte {
	to = append(to, `{"v":2,"ts":`...)
	to = strconv.AppendInt(to, time.Now().UnixMilli(), 10)
	to = append(to, `,"seq":`...)
	to = strconv.AppendInt(to, int64(firstSeq+n), 10)
	to = append(to, `,"kind":"parameters","device_id":"`...)
	to = append(to, device...)
	to = append(to, `","metrics":{"state":"loaded","program":"night shift, economical"`...)
	for _, m := range metrics {
		to = append(to, m.name...)
		to = strconv.AppendInt(to, int64(m.low+random.IntN(m.high-m.low)), 10)
		k := len(to) - m.decimals
		to = append(to, 0)
		copy(to[k+1:], to[k:])
		to[k] = '.'
	}
	return append(to, "}}"...)
}

// metrics are numbers that always have as many digits.
var metrics = []struct {
	name                string
	low, high, decimals int
}{
	{`,"pressure_bar":`, 6800, 7600, 3},
	{`,"motor_current_a":`, 3200, 6900, 2},
	{`,"discharge_temp_c":`, 7200, 9400, 2},
	{`,"running_hours":`, 10_000_000, 19_999_999, 3},
}

func TestPayloadBytes(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	for n := range 1000 {
		payload := appendPayload(nil, "cmp-00001", n, random)
		if len(payload) != payloadBytes || !json.Valid(payload) {
			t.Fatalf("%d bytes, not %d of JSON: %s", len(payload), payloadBytes, payload)
		}
	}
}
