package mqtt

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// DrainStats is what Drain did, also where it ended with an error.
type DrainStats struct {
	SessionPresent bool     // the broker had a session of the client id
	Unsubscribed   []string // filters that were kept for it
	Received       int      // messages handed over, redelivered ones included
	Ended          bool     // the broker has no session of the client id any more
}

// drainChecks is how often in the quiet time a drain looks whether something came.
const drainChecks = 10

// Drain empties and ends the session of a client id that no process uses any more. It connects with that id, unsubscribes from
// the filters kept for it, and delivers what the session holds. Once no message came and none was unacknowledged
// for the time of quiet, it disconnects, connects once more with a clean session, which ends the one before
// (MQTT-3.1.2-6), and has the client id forgotten, unless the broker had no session of it: another one may. Lost connections are made again, with back-off.
//
// When ctx ends before, that is the error: no session was ended, the broker keeps what is not acknowledged, and another Drain
// goes on from there. config's Filters, ShareGroup, ClientID and Connections are not used. The caller sees to it that nobody
// else connects with the client id. A subscription that is not among the kept filters cannot be left: as long as its messages
// come there is no quiet, and those that come after it are lost with the session. No metrics are registered.
func Drain(ctx context.Context, config Config, clientID string, sessions Sessions, handler Handler, quiet time.Duration, log *zap.Logger) (DrainStats, error) {
	config.ClientID, config.Connections, config.Filters, config.ShareGroup = clientID, 1, nil, ""
	faults := []error{config.validateConnection()}
	if err := checkClientID(clientID); err != nil {
		faults = append(faults, fmt.Errorf("client id: %w", err))
	}
	if quiet <= 0 {
		faults = append(faults, fmt.Errorf("quiet time %s: must be positive", quiet))
	}
	if err := errors.Join(faults...); err != nil {
		return DrainStats{}, fmt.Errorf("drain session: %w", err)
	}
	d := &drain{quiet: quiet, handler: handler}
	client, err := newClient(config, sessions, d.handle, log, prometheus.NewRegistry())
	if err != nil {
		return DrainStats{}, fmt.Errorf("drain session: %w", err)
	}
	d.connection = newConnection(client, clientID, nil)
	client.connections = []*connection{d.connection}
	err = d.run(ctx)
	d.stats.Received = int(d.received.Load())
	if err != nil {
		return d.stats, fmt.Errorf("drain session of client id %q: %w", clientID, err)
	}
	return d.stats, nil
}

// drain is one call of Drain.
type drain struct {
	connection *connection
	handler    Handler
	quiet      time.Duration
	connected  bool // at least once: SessionPresent is known
	received   atomic.Int64
	stats      DrainStats
}

func (d *drain) run(ctx context.Context) error {
	if err := d.connection.repeat(ctx, d.empty); err != nil {
		return err
	}
	if err := d.connection.repeat(ctx, d.end); err != nil {
		return err
	}
	d.stats.Ended = true
	d.connection.log.Info("MQTT session drained and ended", zap.Int64("messages", d.received.Load()), zap.Bool("session_present", d.stats.SessionPresent))
	if !d.stats.SessionPresent {
		return nil
	}
	return d.connection.remember(ctx, nil)
}

func (d *drain) handle(delivery Delivery) {
	d.received.Add(1)
	d.handler(delivery)
}

// empty is an epoch that ends when the session is quiet.
func (d *drain) empty(ctx context.Context, b broker) (established bool, err error) {
	kept, err := d.connection.recall(ctx)
	if err != nil {
		return false, err
	}
	err = d.connection.runEpoch(ctx, b, false, func(ctx context.Context, e *epoch, sessionPresent bool) error {
		if !d.connected {
			d.connected, d.stats.SessionPresent = true, sessionPresent
		}
		if sessionPresent && len(kept) > 0 {
			if err := e.unsubscribe(ctx, kept); err != nil {
				return err
			}
			d.stats.Unsubscribed = kept
		}
		e.setUp(b, nil, sessionPresent)
		established = true
		return d.awaitQuiet(ctx, e)
	})
	return established, err
}

// awaitQuiet returns errFinished once nothing came and nothing was held for the time of quiet, and the broker then answered
// without sending anything before its answer: silence alone may be a connection or a broker that stands still. What is held counts
// too: acknowledging it may be what lets the broker send the next.
func (d *drain) awaitQuiet(ctx context.Context, e *epoch) error {
	interval := max(d.quiet/drainChecks, time.Millisecond)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	since, seen := time.Now(), d.received.Load()
	for {
		select {
		case <-tick.C:
		case <-e.conn.halt:
			return e.conn.cause()
		case <-ctx.Done():
			return errStopped
		}
		if now := d.received.Load(); now != seen || e.window.used() > 0 {
			since, seen = time.Now(), now
		}
		if time.Since(since) < d.quiet+interval { // it may have ended only just before this look
			continue
		}
		// Packets of both directions keep their order, so the answer stands behind whatever the broker had to send.
		if err := e.await(ctx, e.client.Unsubscribe(probe), "UNSUBACK"); err != nil {
			return err
		}
		if d.received.Load() == seen && e.window.used() == 0 {
			return errFinished
		}
		since = time.Now()
	}
}

// probe is a filter that nobody subscribes to.
const probe = "plenum/drain/probe"

// end is an epoch that does nothing but ask for a clean session.
func (d *drain) end(ctx context.Context, b broker) (established bool, err error) {
	err = d.connection.runEpoch(ctx, b, true, func(context.Context, *epoch, bool) error { return errFinished })
	return false, err
}
