package mqtt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"plenum/pkg/telemetry"
)

// Delivery is one message and the receipt by which it is acknowledged. The payload is the receiver's to keep.
type Delivery struct {
	telemetry.Message
	Receipt *Receipt
}

// Handler takes a delivery. It must not block: what is delivered and not done is bounded by the window, so it can be kept.
// It is called in the order of receipt per connection, and concurrently across connections.
type Handler func(Delivery)

// ConnectionStatus is one connection as it is now.
type ConnectionStatus struct {
	ClientID  string
	Broker    string    // URL without user name and password: the one connected to, or tried last
	Connected bool      // up, with every filter granted
	Since     time.Time // of Connected's last change, UTC
	Unacked   int       // messages read and not acknowledged; of ended connections, not yet stored
	LastError string    // why it is not connected, or was not before
	Warnings  []string  // of this connection: filters granted with a lower QoS
	Stalled   *Stall    // the message that holds up acknowledgements for longer than Config.StallAfter; nil: none
}

// Client holds the configured connections. Its methods may be called from any goroutine.
type Client struct {
	config      Config
	brokers     []broker
	dialer      dialer
	sessions    Sessions
	handler     Handler
	log         *zap.Logger
	metrics     *metrics
	connections []*connection

	paused   chan struct{} // closed by Pause: nothing more is read
	stopping chan struct{} // closed by Close: connections finish
	killed   chan struct{} // closed when Close may not wait any longer: connections end
	done     chan struct{} // closed when Run has returned

	mu      sync.Mutex
	running bool
	closed  bool
}

// New checks the configuration, loads the TLS files and registers the metrics. It connects to nothing; Run does. Without
// sessions, nil, filters that are no longer wanted stay subscribed to.
func New(config Config, sessions Sessions, handler Handler, log *zap.Logger, reg prometheus.Registerer) (*Client, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	c, err := newClient(config, sessions, handler, log, reg)
	if err != nil {
		return nil, err
	}
	for n := range c.config.Connections {
		c.connections = append(c.connections, newConnection(c, clientID(c.config.ClientID, n), c.config.filtersOf(n)))
	}
	return c, nil
}

// newClient makes a client without connections of a checked configuration.
func newClient(config Config, sessions Sessions, handler Handler, log *zap.Logger, reg prometheus.Registerer) (*Client, error) {
	config = config.withDefaults()
	tlsConfig, err := loadTLS(config)
	if err != nil {
		return nil, err
	}
	if sessions == nil {
		sessions = noSessions{}
	}
	c := &Client{
		config: config, sessions: sessions, handler: handler, log: log,
		dialer: dialer{tls: tlsConfig, caFile: config.CAFile, timeout: config.DialTimeout},
		paused: make(chan struct{}), stopping: make(chan struct{}), killed: make(chan struct{}), done: make(chan struct{}),
	}
	for _, raw := range config.Brokers {
		b, err := parseBroker(raw)
		if err != nil {
			return nil, fmt.Errorf("mqtt.brokers: %w", err)
		}
		c.brokers = append(c.brokers, b)
	}
	if c.metrics, err = newMetrics(reg, c); err != nil {
		return nil, err
	}
	return c, nil
}

// Run connects, and keeps connected, until Close or the end of ctx; then what is done has been acknowledged, as far as the
// broker could be reached, and no goroutine is left. It may be called once.
func (c *Client) Run(ctx context.Context) error {
	c.mu.Lock()
	if c.running || c.closed {
		defer c.mu.Unlock()
		if c.running {
			return errors.New("run MQTT client: already running")
		}
		return nil
	}
	c.running = true
	c.mu.Unlock()
	defer close(c.done)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-c.stopping:
			cancel()
		case <-ctx.Done():
		}
	})
	for _, conn := range c.connections {
		wg.Go(func() { _ = conn.repeat(ctx, conn.receive) }) // it ends with ctx, or paused
	}
	wg.Wait()
	return nil
}

// Pause stops intake on all connections for good. Acknowledgements still leave. A handful of messages that were read already
// are still delivered; a connection that is lost from now on is not made again.
func (c *Client) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	closeOnce(c.paused)
}

// Close acknowledges what is done so far, disconnects, and waits until Run has returned. Messages that are not done are
// delivered again to the next client with this client id. When ctx ends first, connections are cut, and that is an error.
func (c *Client) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	running := c.running
	closeOnce(c.paused)
	closeOnce(c.stopping)
	c.mu.Unlock()
	if !running {
		return nil
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	closeOnce(c.killed)
	c.mu.Unlock()
	return fmt.Errorf("close MQTT client: connections cut before they were finished: %w", context.Cause(ctx))
}

// closeOnce closes a channel that is not closed yet. The caller holds the lock under which it is closed.
func closeOnce(ch chan struct{}) {
	select {
	case <-ch:
	default:
		close(ch)
	}
}

// Status describes each connection, in order of their numbers.
func (c *Client) Status() []ConnectionStatus {
	all := make([]ConnectionStatus, len(c.connections))
	for i, conn := range c.connections {
		all[i] = conn.current()
	}
	return all
}

// Unacked is the number of messages read and not acknowledged; of ended connections, those not yet stored.
func (c *Client) Unacked() int {
	n := 0
	for _, conn := range c.connections {
		n += conn.window.used()
	}
	return n
}

func (c *Client) connected() int {
	n := 0
	for _, conn := range c.connections {
		if conn.current().Connected {
			n++
		}
	}
	return n
}

func (c *Client) stalled() int {
	n := 0
	for _, conn := range c.connections {
		if conn.stalled() != nil {
			n++
		}
	}
	return n
}

func (c *Client) oldestUnacked() time.Duration {
	var oldest time.Duration
	for _, conn := range c.connections {
		oldest = max(oldest, conn.oldestUnacked())
	}
	return oldest
}
