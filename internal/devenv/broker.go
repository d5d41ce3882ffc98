package devenv

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	connectLimit = 10 * time.Second // to the CONNACK
	writeLimit   = 10 * time.Second // for the broker to take a full buffer
	linkBuffer   = 64 << 10         // bytes
)

// broker is where to publish.
type broker struct {
	address  string // host:port
	secure   bool
	username string
	password string
}

// parseBroker reads a broker's URL.
func parseBroker(text string) (broker, error) {
	parsed, err := url.Parse(text)
	if err != nil {
		// Its own message would repeat the URL, and a password in it.
		return broker{}, errors.New("broker: not a URL; want tcp://host:port or ssl://host:port")
	}
	b := broker{}
	port := "1883"
	switch parsed.Scheme {
	case "tcp", "mqtt":
	case "ssl", "tls", "mqtts":
		b.secure, port = true, "8883"
	default:
		return broker{}, fmt.Errorf("broker: %q, must be tcp://host:port or ssl://host:port", parsed.Redacted())
	}
	if parsed.Hostname() == "" {
		return broker{}, fmt.Errorf("broker: %q names no host", parsed.Redacted())
	}
	if parsed.Port() != "" {
		port = parsed.Port()
	}
	b.address = net.JoinHostPort(parsed.Hostname(), port)
	b.username = parsed.User.Username()
	b.password, _ = parsed.User.Password()
	return b, nil
}

// connect makes a connection with a clean session: only this program knows
// what it has to repeat. A goroutine reads PUBACKs until the connection ends.
func (b broker) connect(ctx context.Context, clientID string, acknowledged func(uint16) error, caughtUp func()) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	conn, err := b.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	in := bufio.NewReader(conn)
	unblock := context.AfterFunc(ctx, func() { conn.Close() }) // the handshake reports it
	err = b.handshake(conn, in, clientID)
	if !unblock() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		conn.Close() // the handshake's error is the one that counts
		return nil, fmt.Errorf("connect to the broker at %s: %w", b.address, err)
	}
	l := &link{
		conn: conn,
		out:  bufio.NewWriterSize(patientWriter{conn}, linkBuffer),
		lost: make(chan struct{}),
	}
	go l.read(in, acknowledged, caughtUp)
	return l, nil
}

func (b broker) dial(ctx context.Context) (net.Conn, error) {
	if b.secure {
		dialer := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12}}
		return dialer.DialContext(ctx, "tcp", b.address)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", b.address)
}

// handshake sends CONNECT and reads CONNACK. The keep-alive is off: TCP's own
// probes find a broker that vanished.
func (b broker) handshake(conn net.Conn, in *bufio.Reader, clientID string) error {
	connect := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	connect.ProtocolName, connect.ProtocolVersion = "MQTT", 4
	connect.CleanSession = true
	connect.ClientIdentifier = clientID
	connect.UsernameFlag, connect.Username = b.username != "", b.username
	connect.PasswordFlag, connect.Password = b.password != "", []byte(b.password)
	if err := connect.Write(conn); err != nil {
		return err
	}
	answer, err := packets.ReadPacket(in)
	if err != nil {
		return err
	}
	connack, ok := answer.(*packets.ConnackPacket)
	if !ok {
		return errors.New("unexpected " + answer.String())
	}
	if connack.ReturnCode != packets.Accepted {
		return errors.New(packets.ConnackReturnCodes[connack.ReturnCode])
	}
	return nil
}

// link is one connection to the broker.
type link struct {
	conn io.Closer
	out  *bufio.Writer
	lost chan struct{} // closed by the reader when it ends
	err  error         // why; read after lost
}

// write buffers; an error ends the connection, which shows in lost.
func (l *link) write(packet []byte) {
	if _, err := l.out.Write(packet); err != nil {
		l.conn.Close() // its error adds nothing to the one of the write
	}
}

func (l *link) flush() {
	if err := l.out.Flush(); err != nil {
		l.conn.Close() // as above
	}
}

// close ends the connection and its reader, and returns why it was lost.
func (l *link) close() error {
	l.conn.Close() // it may be closed already
	<-l.lost
	return l.err
}

// goodbye ends the connection as MQTT wants it (3.1.1, 3.14).
func (l *link) goodbye() {
	l.write([]byte{packets.Disconnect << 4, 0})
	l.flush()
	l.close() // the reader ends with the error that this causes
}

// read handles PUBACKs until the connection ends.
func (l *link) read(in *bufio.Reader, acknowledged func(uint16) error, caughtUp func()) {
	defer close(l.lost)
	defer l.conn.Close() // the reader's error is the one that counts
	for l.err == nil {
		if in.Buffered() == 0 {
			caughtUp()
		}
		var packet packets.ControlPacket
		if packet, l.err = packets.ReadPacket(in); l.err != nil {
			return
		}
		ack, ok := packet.(*packets.PubackPacket)
		if !ok {
			l.err = errors.New("unexpected " + packet.String())
			return
		}
		l.err = acknowledged(ack.MessageID)
	}
}

// patientWriter gives up on a peer that takes nothing for writeLimit.
type patientWriter struct{ net.Conn }

func (w patientWriter) Write(b []byte) (int, error) {
	if err := w.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return 0, err
	}
	return w.Conn.Write(b)
}
