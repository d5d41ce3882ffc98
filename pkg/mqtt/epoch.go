package mqtt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"plenum/pkg/telemetry"
)

// subscribeRefused is SUBACK's return code for a failure (MQTT 3.9.3).
const subscribeRefused = 0x80

// epoch is one network connection: one paho client, one conn, one queue.
type epoch struct {
	*connection
	broker broker
	client paho.Client
	lost   chan error // paho's reason, once, after its goroutines have stopped

	// Set by open, which paho calls while it connects.
	dialErr error
	conn    *conn // nil if dialErr is not
	queue   *ackQueue
	settle  func() bool // to be called once connected: ctx ends no connection any more
}

// runEpoch connects, subscribes, and waits until the connection is lost or ctx ends. established says that every filter was granted.
func (c *connection) runEpoch(ctx context.Context, b broker) (established bool, err error) {
	e := &epoch{connection: c, broker: b, lost: make(chan error, 1)}
	present, err := e.connect(ctx)
	if err == nil {
		var warnings []string
		if warnings, err = e.subscribe(ctx); err == nil {
			c.setUp(b, warnings, present)
			established = true
		}
		err = e.wait(ctx, err)
	}
	if e.conn != nil {
		e.queue.end()
		e.conn.end(err)
		<-e.conn.flushed
	}
	if ctx.Err() != nil {
		return established, errStopped
	}
	return established, fmt.Errorf("broker %q: %w", b.name, err)
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
	o.SetCleanSession(false)
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
	o.SetPingTimeout(config.KeepAlive) // longer than the reader may stand still with the answer behind it
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
	c.patience = root.config.KeepAlive / 2
	c.paused = root.paused
	c.window = e.window
	c.stalled = root.metrics.stalled.Inc
	e.queue = newAckQueue(e.window, c, func(delay time.Duration) { root.metrics.ackDelay.Observe(delay.Seconds()) })
	c.queue = e.queue
	e.conn = c
	go c.flush()
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
	receipt := e.queue.push(m.MessageID(), m.Qos(), size, now)
	if receipt == nil {
		return
	}
	e.connection.client.metrics.received.Inc()
	e.connection.client.handler(Delivery{
		Message: telemetry.Message{Topic: m.Topic(), Payload: m.Payload(), QoS: m.Qos(), Retained: m.Retained(), ReceivedAt: now},
		Receipt: receipt,
	})
}

// subscribe asks for all filters and returns a warning for each granted with a lower QoS.
func (e *epoch) subscribe(ctx context.Context) (warnings []string, err error) {
	config := e.connection.client.config
	qos := config.qos()
	asked := make(map[string]byte, len(e.filters))
	for _, filter := range e.filters {
		asked[filter] = qos
	}
	token := e.client.SubscribeMultiple(asked, nil).(*paho.SubscribeToken)
	if err := e.awaitSuback(ctx, token.Done(), config.DialTimeout); err != nil {
		return nil, err
	}
	if err := token.Error(); err != nil {
		return nil, ended(reasonLost, "subscribe: %w", err)
	}
	granted := token.Result()
	var refused []string
	for _, filter := range e.filters {
		switch code := granted[filter]; {
		case code >= subscribeRefused:
			refused = append(refused, fmt.Sprintf("%q", filter))
		case code < qos:
			warnings = append(warnings, fmt.Sprintf("filter %q: QoS %d asked for, %d granted", filter, qos, code))
		}
	}
	if refused != nil {
		return nil, ended(reasonSubscribe, "subscription refused (SUBACK 0x80): %s", strings.Join(refused, ", "))
	}
	return warnings, nil
}

// awaitSuback gives up when nothing at all was read for the timeout: in a resumed session SUBACK may stand behind any number of
// messages, and these wait for room in the window, which has its own limit.
func (e *epoch) awaitSuback(ctx context.Context, done <-chan struct{}, timeout time.Duration) error {
	tick := time.NewTicker(timeout)
	defer tick.Stop()
	read := e.conn.packets.Load()
	for {
		select {
		case <-done:
			return nil
		case <-e.conn.halt:
			return e.conn.cause()
		case <-ctx.Done():
			return errStopped
		case <-tick.C:
			now := e.conn.packets.Load()
			if now == read && !e.window.awaited() {
				return ended(reasonSubscribe, "no SUBACK within %s", timeout)
			}
			read = now
		}
	}
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
