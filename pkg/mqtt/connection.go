package mqtt

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	firstBackoff = 250 * time.Millisecond
	// stableAfter is how long a connection must have been up for the back-off to begin anew.
	stableAfter = 10 * time.Second
)

// connection is one client id: a loop that makes an epoch after the other.
type connection struct {
	client  *Client
	id      string
	filters []string
	window  *window
	log     *zap.Logger
	joined  chan struct{} // closed when every filter was granted for the first time

	mu     sync.Mutex
	status ConnectionStatus
	queues []*ackQueue // of the last epoch, and before it of those that have messages that are not done
}

// newConnection makes a connection with filters in the form of SUBSCRIBE.
func newConnection(c *Client, id string, filters []string) *connection {
	return &connection{
		client: c, id: id, filters: filters,
		window: newWindow(c.config.WindowMessages, c.config.WindowBytes),
		log:    c.log.With(zap.String("client_id", id)),
		joined: make(chan struct{}),
		status: ConnectionStatus{ClientID: id, Since: time.Now().UTC()},
	}
}

// repeat makes epochs until one has finished, which is no error, or ctx ends, or, after a pause, until the epoch that is up has
// ended. Brokers are tried in turn; after each round of them without success it backs off.
func (c *connection) repeat(ctx context.Context, epoch func(context.Context, broker) (established bool, err error)) error {
	attempt, at := 0, 0
	var last error
	for {
		if c.window.halfEmpty(ctx) != nil || c.client.isPaused() {
			return stopped(ctx, last)
		}
		b := c.client.brokers[at%len(c.client.brokers)]
		started := time.Now()
		established, err := epoch(ctx, b)
		c.setDown(b, err)
		if errors.Is(err, errFinished) {
			return nil
		}
		if ctx.Err() != nil || c.client.isPaused() {
			return stopped(ctx, last)
		}
		last = err
		why := reasonOf(err, reasonLost)
		c.client.metrics.reconnects.WithLabelValues(string(why)).Inc()
		if !established && why != reasonSession { // which is not the broker's fault
			at++
		}
		if time.Since(started) > stableAfter && established {
			attempt = 0
		}
		if established || why == reasonSession || at%len(c.client.brokers) == 0 {
			if !sleep(ctx, backoff(attempt, c.client.config.MaxBackoff)) {
				return stopped(ctx, last)
			}
			attempt++
		}
	}
}

// stopped is why epochs are no longer repeated, with what ended the last one.
func stopped(ctx context.Context, last error) error {
	why := errStopped
	if ctx.Err() != nil {
		why = context.Cause(ctx)
	}
	return errors.Join(why, last)
}

// receive is an epoch that receives what the filters match, until it ends.
func (c *connection) receive(ctx context.Context, b broker) (established bool, err error) {
	kept, err := c.recall(ctx)
	if err != nil {
		return false, err
	}
	err = c.runEpoch(ctx, b, false, func(ctx context.Context, e *epoch, sessionPresent bool) error {
		warnings, err := e.join(ctx, kept)
		if err != nil {
			return err
		}
		c.setUp(b, warnings, sessionPresent)
		established = true
		return e.leave(ctx, kept, sessionPresent)
	})
	return established, err
}

// backoff is full jitter: a uniform share of a bound that doubles with each attempt, up to limit.
func backoff(attempt int, limit time.Duration) time.Duration {
	bound := min(firstBackoff<<min(attempt, 20), limit)
	return rand.N(bound + 1)
}

// sleep returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *Client) isPaused() bool {
	select {
	case <-c.paused:
		return true
	default:
		return false
	}
}

func (c *connection) current() ConnectionStatus {
	stalled := c.stalled()
	c.mu.Lock()
	defer c.mu.Unlock()
	status := c.status
	status.Warnings = append([]string(nil), status.Warnings...)
	status.Unacked = c.window.used()
	status.Stalled = stalled
	return status
}

func (c *connection) setUp(b broker, warnings []string, sessionPresent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Broker, c.status.Connected, c.status.Since = b.name, true, time.Now().UTC()
	c.status.Warnings = warnings
	closeOnce(c.joined)
	c.log.Info("connected to MQTT broker", zap.String("broker", b.name), zap.Bool("session_present", sessionPresent),
		zap.Strings("filters", c.filters))
	if len(warnings) > 0 {
		c.log.Warn("MQTT subscriptions granted with a lower QoS", zap.String("broker", b.name), zap.Strings("warnings", warnings))
	}
}

// setDown records why an epoch ended. It logs when that is news: an end of what was up, or another error than the last.
func (c *connection) setDown(b broker, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.status
	c.status.Broker, c.status.Connected, c.status.Warnings = b.name, false, nil
	if was.Connected {
		c.status.Since = time.Now().UTC()
	}
	if errors.Is(err, errStopped) || errors.Is(err, errFinished) {
		c.log.Info("disconnected from MQTT broker", zap.String("broker", b.name))
		return
	}
	c.status.LastError = err.Error()
	if !was.Connected && was.LastError == c.status.LastError {
		return
	}
	level := zap.WarnLevel
	switch reasonOf(err, reasonLost) {
	case reasonSubscribe, reasonRefused, reasonProtocol:
		level = zap.ErrorLevel // no retry heals it unless someone changes something
	}
	c.log.Log(level, "MQTT connection ended", zap.String("broker", b.name), zap.Int("unacked", c.window.used()), zap.Error(err))
}
