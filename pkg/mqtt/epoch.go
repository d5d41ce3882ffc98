package mqtt

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"go.uber.org/zap"

	"plenum/pkg/telemetry"
)

// subscribeRefused is SUBACK's return code for a failure (MQTT 3.9.3).
const subscribeRefused = 0x80

// epoch is one network connection: one paho client, one conn, one queue.
type epoch struct {
	*connection
	broker  broker
	clean   bool // asks for a clean session, which ends the one before (MQTT-3.1.2-6)
	client  paho.Client
	lost    chan error    // paho's reason, once, after its goroutines have stopped
	watched chan struct{} // closed when stalls are no longer watched for

	// Set by open, which paho calls while it connects.
	dialErr error
	conn    *conn // nil if dialErr is not
	queue   *ackQueue
	settle  func() bool // to be called once connected: ctx ends no connection any more
}

// runEpoch connects, does work, and waits until the connection is lost or ctx ends. An error of work ends it in good order;
// errFinished then means that it was there until then. The error is never nil.
func (c *connection) runEpoch(ctx context.Context, b broker, clean bool, work func(ctx context.Context, e *epoch, sessionPresent bool) error) error {
	e := &epoch{connection: c, broker: b, clean: clean, lost: make(chan error, 1), watched: make(chan struct{})}
	sessionPresent, err := e.connect(ctx)
	if err == nil {
		err = e.wait(ctx, work(ctx, e, sessionPresent))
	}
	if e.conn != nil {
		e.queue.end()
		e.conn.end(err)
		<-e.conn.flushed
		<-e.watched
	}
	switch {
	case errors.Is(err, errFinished):
		return err
	case ctx.Err() != nil:
		return errStopped
	}
	return fmt.Errorf("broker %q: %w", b.name, err)
}

// connect dials and waits for CONNACK. After an error paho holds nothing.
func (e *epoch) connect(ctx context.Context) (sessionPresent bool, err error) {
	e.client = paho.NewClient(e.options(ctx))
	token := e.client.Connect().(*paho.ConnectToken)
	<-token.Done()
	if e.conn == nil {
		return false, ended(reasonDial, "connect: %w", e.dialErr)
	}
	e.settle()
	if token.Error() == nil {
		return token.SessionPresent(), nil
	}
	err = token.Error()
	if cause := e.conn.cause(); cause != nil && !errors.Is(cause, net.ErrClosed) {
		err = cause
	}
	if reasonOf(err, reasonLost) == reasonLost {
		err = ended(reasonDial, "no CONNACK: %w", err)
	}
	return false, err
}

// options are for a client of one connection. MQTT 3.1.1 is asked for by number: by default paho answers any refusal with a
// second attempt in MQTT 3.1.
func (e *epoch) options(ctx context.Context) *paho.ClientOptions {
	config := e.connection.client.config
	o := paho.NewClientOptions()
	o.Servers = []*url.URL{{Scheme: "plenum", Host: e.broker.address}} // for paho's count only: open dials
	o.SetProtocolVersion(4)
	o.SetClientID(e.id)
	o.SetUsername(config.Username)
	o.SetPassword(config.Password)
	if e.broker.username != "" {
		o.SetUsername(e.broker.username)
		o.SetPassword(e.broker.password)
	}
	o.SetCleanSession(e.clean)
	o.SetAutoReconnect(false)
	o.SetConnectRetry(false)
	o.SetOrderMatters(true)
	o.SetAutoAckDisabled(true)
	o.SetStore(noStore{})
	o.SetDefaultPublishHandler(e.deliver)
	o.SetConnectionLostHandler(func(_ paho.Client, err error) { e.lost <- err })
	o.SetConnectTimeout(2 * config.DialTimeout) // from before the dial, which takes at most half of it, to CONNACK
	o.SetWriteTimeout(subscribeSendTimeout)
	o.SetKeepAlive(config.KeepAlive)
	o.SetPingTimeout(math.MaxInt64) // conn.hear finds a broker that is gone
	o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) { return e.open(ctx) })
	return o
}

// subscribeSendTimeout bounds how long paho's Subscribe tries to hand over its packet when the connection is lost under it.
const subscribeSendTimeout = 5 * time.Second

func (e *epoch) open(ctx context.Context) (net.Conn, error) {
	root := e.connection.client
	raw, err := root.dialer.dial(ctx, e.broker)
	if err != nil {
		e.dialErr = err
		return nil, err
	}
	c := newConn(raw)
	c.maxPacket = root.config.MaxPacketBytes
	c.filters = len(e.filters)
	c.keepAlive = root.config.KeepAlive
	c.patience = root.config.KeepAlive / 2
	c.paused = root.paused
	c.window = e.window
	c.stalled = root.metrics.stalled.Inc
	e.queue = newAckQueue(e.window, c, func(delay time.Duration) { root.metrics.ackDelay.Observe(delay.Seconds()) })
	c.queue = e.queue
	e.conn = c
	e.track(e.queue)
	go c.flush()
	go func() {
		defer close(e.watched)
		watchStalls(e.queue, root.config.StallAfter, e.log.With(zap.String("broker", e.broker.name)), c.ended)
	}()
	e.settle = context.AfterFunc(ctx, func() { c.end(errStopped) })
	return c, nil
}

// deliver is paho's handler, called in order of receipt.
func (e *epoch) deliver(_ paho.Client, m paho.Message) {
	size := 2 + len(m.Topic()) + len(m.Payload()) // the remaining length of its PUBLISH packet, MQTT 3.3
	if m.Qos() > 0 {
		size += 2
	}
	now := time.Now().UTC()
	receipt, published := e.queue.push(m.MessageID(), m.Qos(), m.Topic(), size, now)
	if receipt == nil {
		return
	}
	e.connection.client.metrics.received.Inc()
	e.connection.client.handler(Delivery{
		Message: telemetry.Message{
			Topic: m.Topic(), Payload: m.Payload(), QoS: m.Qos(), Retained: m.Retained(), ReceivedAt: now, Length: published,
			Redelivered: m.Duplicate(),
		},
		Receipt: receipt,
	})
}

// wait returns why the epoch ended, after paho's goroutines have stopped. With err it is finished at once, for that reason.
func (e *epoch) wait(ctx context.Context, err error) error {
	if err != nil {
		e.conn.finish(err)
	}
	var lost error
	select {
	case lost = <-e.lost:
	case <-ctx.Done():
		e.conn.finish(errStopped)
		select {
		case lost = <-e.lost:
		case <-e.connection.client.killed:
			e.conn.end(errStopped)
			lost = <-e.lost
		}
	}
	// What ended the connection on our side, unless it was paho that closed it.
	if cause := e.conn.cause(); cause != nil && !errors.Is(cause, net.ErrClosed) {
		return cause
	}
	return ended(reasonLost, "%w", lost)
}

// noStore keeps nothing. paho's store is for messages that it sends, of which there are none, and for incoming ones, which it never
// reads back: after a reconnect it discards them, and the broker delivers them again (MQTT-4.4.0-1).
type noStore struct{}

func (noStore) Open()                             {}
func (noStore) Close()                            {}
func (noStore) Put(string, packets.ControlPacket) {}
func (noStore) Get(string) packets.ControlPacket  { return nil }
func (noStore) All() []string                     { return nil }
func (noStore) Del(string)                        {}
func (noStore) Reset()                            {}
