package mqtt

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"go.uber.org/zap"
)

// Sessions remembers what the broker's session of each client id may be subscribed to, over restarts: MQTT 3.1.1 cannot ask
// the broker. A filter is in the form of SUBSCRIBE, "$share/group/filter" where a group is used. An error ends the
// connection, and it is tried again.
type Sessions interface {
	// Filters returns what Keep was given last; none for a client id that is not known.
	Filters(ctx context.Context, clientID string) ([]string, error)
	// Keep replaces the filters. With none it forgets the client id.
	Keep(ctx context.Context, clientID string, filters []string) error
}

// noSessions remembers nothing.
type noSessions struct{}

func (noSessions) Filters(context.Context, string) ([]string, error) { return nil, nil }
func (noSessions) Keep(context.Context, string, []string) error      { return nil }

// recall returns what the session may be subscribed to, each filter once.
func (c *connection) recall(ctx context.Context) ([]string, error) {
	bounded, cancel := context.WithTimeout(ctx, c.client.config.DialTimeout)
	defer cancel()
	kept, err := c.client.sessions.Filters(bounded, c.id)
	if ctx.Err() != nil {
		return nil, errStopped
	}
	if err != nil {
		return nil, ended(reasonSession, "read the filters kept for client id %q: %w", c.id, err)
	}
	return slices.Compact(slices.Sorted(slices.Values(kept))), nil
}

// remember keeps filters, at best before the broker hears of them.
func (c *connection) remember(ctx context.Context, filters []string) error {
	bounded, cancel := context.WithTimeout(ctx, c.client.config.DialTimeout)
	defer cancel()
	if err := c.client.sessions.Keep(bounded, c.id, slices.Sorted(slices.Values(filters))); err != nil {
		return ended(reasonSession, "keep %d filters for client id %q: %w", len(filters), c.id, err)
	}
	return nil
}

// without returns what of filters is not in others.
func without(filters, others []string) []string {
	return slices.DeleteFunc(slices.Clone(filters), func(f string) bool { return slices.Contains(others, f) })
}

// join makes the wanted filters part of the session. kept is what it may have been subscribed to before, and covers, with what
// is wanted, the broker's state until leave has been through: the next start is right wherever this one is killed.
func (e *epoch) join(ctx context.Context, kept []string) (warnings []string, err error) {
	if fresh := without(e.filters, kept); len(fresh) > 0 {
		if err := e.remember(ctx, append(fresh, kept...)); err != nil {
			return nil, err
		}
	}
	return e.subscribe(ctx)
}

// leave unsubscribes from what was kept and is not wanted, after the wanted filters were granted: between the two, a message
// that both match would not be queued. A filter that another connection has taken over stays until that one has it.
func (e *epoch) leave(ctx context.Context, kept []string, sessionPresent bool) error {
	stale := without(kept, e.filters)
	if len(stale) == 0 {
		return nil
	}
	if sessionPresent {
		for _, other := range e.connection.client.connections {
			if other == e.connection || len(without(stale, other.filters)) == len(stale) {
				continue
			}
			select {
			case <-other.joined:
			case <-e.conn.halt:
				return e.conn.cause()
			case <-ctx.Done():
				return errStopped
			}
		}
		if err := e.unsubscribe(ctx, stale); err != nil {
			return err
		}
	}
	return e.remember(ctx, e.filters)
}

// subscribe asks for all filters and returns a warning for each granted with a lower QoS.
func (e *epoch) subscribe(ctx context.Context) (warnings []string, err error) {
	qos := e.connection.client.config.qos()
	asked := make(map[string]byte, len(e.filters))
	for _, filter := range e.filters {
		asked[filter] = qos
	}
	token := e.client.SubscribeMultiple(asked, nil).(*paho.SubscribeToken)
	if err := e.await(ctx, token, "SUBACK"); err != nil {
		return nil, err
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

// unsubscribeBytes bounds the filters of one UNSUBSCRIBE packet, unless one alone is longer: a broker ends the connection over a
// packet past its own limit, at each connect again.
const unsubscribeBytes = 4096

// unsubscribe leaves filters. The broker answers also for those that it does not know (MQTT-3.10.4-5). What it has queued
// for them already still comes, and is delivered.
func (e *epoch) unsubscribe(ctx context.Context, filters []string) error {
	for rest := filters; len(rest) > 0; {
		n, bytes := 1, len(rest[0])
		for n < len(rest) && bytes+len(rest[n]) <= unsubscribeBytes {
			bytes += len(rest[n])
			n++
		}
		if err := e.await(ctx, e.client.Unsubscribe(rest[:n]...), "UNSUBACK"); err != nil {
			return err
		}
		rest = rest[n:]
	}
	e.log.Info("unsubscribed from MQTT filters of earlier", zap.String("broker", e.broker.name), zap.Strings("filters", filters))
	return nil
}

// await waits for an answer to SUBSCRIBE or UNSUBSCRIBE. It gives up when nothing at all was read for the dial timeout: in a
// resumed session the answer may stand behind any number of messages, and these wait for room in the window, which has
// its own limit.
func (e *epoch) await(ctx context.Context, token paho.Token, answer string) error {
	timeout := e.connection.client.config.DialTimeout
	tick := time.NewTicker(timeout)
	defer tick.Stop()
	read := e.conn.reads.Load()
	for {
		select {
		case <-token.Done():
			if err := token.Error(); err != nil {
				return ended(reasonLost, "wait for %s: %w", answer, err)
			}
			return nil
		case <-e.conn.halt:
			return e.conn.cause()
		case <-ctx.Done():
			return errStopped
		case <-tick.C:
			now := e.conn.reads.Load()
			if now == read && !e.window.awaited() {
				return ended(reasonSubscribe, "no %s within %s", answer, timeout)
			}
			read = now
		}
	}
}
