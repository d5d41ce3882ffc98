// Package kafka delivers pages of the feed to a Kafka topic, one record a row.
//
// The model. The key of a record is the row's device, so that a device's rows stay in order in one partition; the value
// is the row's JSON. The producer is idempotent and waits for all in-sync replicas; its client tries again by itself, for ever, under one
// producer id, so that a broker that was away gets each record once.
//
// What must hold:
//
//   - A page is delivered when each of its records has been acknowledged.
//   - A record that may still be on its way, or has been acknowledged, is not produced again when its page comes again
//     to the same Target. Only what has certainly failed is.
//   - A page elsewhere (a seek) gives up what is on its way first. A part of a page goes by what became of the whole.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"plenum/pkg/feed"
	"plenum/pkg/store"
)

// Target is one topic.
type Target struct {
	cfg     Config
	options []kgo.Opt
	trouble trouble

	mu              sync.Mutex
	client          *kgo.Client // nil until the first delivery, and after a reset
	generation      int         // of the client
	after, position int64       // the page that the records are of, or a part of it
	since           time.Time   // of the first record of that page
	records         map[int64]record
	changed         chan struct{} // a record's state has; holds one signal
}

// record is what has become of a row, by its id.
type record struct {
	state state
	err   error // of failed
}

type state int

const (
	pending state = iota // it may have been written
	acknowledged
	failed // it was not written
)

// New returns the Target of c, without connecting. What is wrong with c comes joined.
func New(c Config) (*Target, error) {
	t := &Target{cfg: c, records: map[int64]record{}, changed: make(chan struct{}, 1)}
	options, err := c.options()
	if err != nil {
		return nil, err
	}
	t.options = append(options, kgo.WithLogger(&t.trouble), kgo.WithHooks(&t.trouble))
	return t, nil
}

// Close ends the client. What is on its way may or may not be written.
func (t *Target) Close() error {
	t.mu.Lock()
	client := t.client
	t.client = nil
	t.generation++ // promises that come back belong to one that has ended
	clear(t.records)
	t.mu.Unlock()
	if client != nil {
		client.Close()
	}
	return nil
}

// elsewhere says whether the delivery is no part of the page that the records are of, or leaves some of them on their way.
func (t *Target) elsewhere(d feed.Delivery) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	under := 0
	for _, r := range t.records {
		if r.state == pending {
			under++
		}
	}
	for i := range d.Rows {
		if r, ok := t.records[d.Rows[i].ID]; ok && r.state == pending {
			under--
		}
	}
	return len(t.records) > 0 && (under > 0 || d.After < t.after || d.Position > t.position)
}

// Deliver produces what of the page has not been, and waits for the acknowledgements.
func (t *Target) Deliver(ctx context.Context, d feed.Delivery) error {
	ctx, cancel := context.WithTimeoutCause(ctx, t.cfg.Timeout, errSlow)
	defer cancel()
	records := make([]*kgo.Record, len(d.Rows))
	for i := range d.Rows {
		records[i] = t.record(d, &d.Rows[i])
		if n := size(records[i]); n > t.cfg.MaxMessageBytes {
			return &feed.RefusedError{Reason: fmt.Sprintf("the record of row %d has %d bytes, kafka.max_message_bytes is %d", d.Rows[i].ID, n, t.cfg.MaxMessageBytes)}
		}
	}
	if t.elsewhere(d) {
		_ = t.Close() // which never fails
	}
	if err := t.produce(d, records); err != nil {
		return err
	}
	for {
		missing, err := t.outcome(d)
		if missing == 0 {
			return err
		}
		select {
		case <-t.changed:
		case <-ctx.Done():
			return t.unanswered(ctx, missing)
		}
	}
}

var errSlow = errors.New("too slow")

func (t *Target) unanswered(ctx context.Context, missing int) error {
	if !errors.Is(context.Cause(ctx), errSlow) {
		return ctx.Err()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	err := fmt.Errorf("kafka topic %q: no acknowledgement of %d records since %s", t.cfg.Topic, missing, t.since.UTC().Format(time.RFC3339))
	if last := t.trouble.last(); last != "" {
		err = fmt.Errorf("%w: %s", err, last)
	}
	return err
}

// produce hands the client each record that is neither on its way nor acknowledged.
func (t *Target) produce(d feed.Delivery, records []*kgo.Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.records) == 0 {
		t.after, t.position, t.since = d.After, d.Position, time.Now()
	}
	if t.client == nil {
		client, err := kgo.NewClient(t.options...)
		if err != nil {
			return fmt.Errorf("kafka: %w", err)
		}
		t.client = client
	}
	generation := t.generation
	for i, r := range records {
		id := d.Rows[i].ID
		if known, ok := t.records[id]; ok && known.state != failed {
			continue
		}
		t.records[id] = record{}
		// No context of a delivery's: a record that is given up may be written all the same. The promise runs elsewhere.
		t.client.Produce(context.Background(), r, func(_ *kgo.Record, err error) { t.settle(generation, id, err) })
	}
	return nil
}

func (t *Target) settle(generation int, id int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if generation != t.generation {
		return
	}
	t.records[id] = record{acknowledged, nil}
	if err != nil {
		t.records[id] = record{failed, err}
	} else {
		t.trouble.clear()
	}
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// outcome returns how many records have no answer yet; when all have, what became of the page.
func (t *Target) outcome(d feed.Delivery) (missing int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range d.Rows {
		switch r := t.records[d.Rows[i].ID]; {
		case r.state == pending:
			missing++
		case r.state == failed && (err == nil || !refuses(r.err)): // what is only weather goes first
			err = r.err
		}
	}
	switch {
	case missing > 0:
		return missing, nil
	case err != nil:
		return 0, t.explain(err)
	}
	for i := range d.Rows {
		delete(t.records, d.Rows[i].ID)
	}
	return 0, nil
}

// refuses says whether the broker refuses the record itself.
func refuses(err error) bool {
	return errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge) || errors.Is(err, kerr.InvalidRecord)
}

func (t *Target) explain(err error) error {
	switch {
	case refuses(err):
		return &feed.RefusedError{Reason: fmt.Sprintf("kafka topic %q: %v", t.cfg.Topic, err)}
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		return fmt.Errorf("kafka topic %q does not exist; create it: kafka-topics.sh --bootstrap-server %s --create --topic %s --partitions N: %w",
			t.cfg.Topic, t.cfg.Brokers[0], t.cfg.Topic, err)
	}
	return fmt.Errorf("kafka topic %q: %w", t.cfg.Topic, err)
}

func (t *Target) record(d feed.Delivery, row *store.FeedRow) *kgo.Record {
	line := feed.AppendRow(nil, row)
	return &kgo.Record{
		Topic: t.cfg.Topic, Key: []byte(row.DeviceID), Value: line[:len(line)-1], // without the line feed
		Headers: []kgo.RecordHeader{
			{Key: "plenum-consumer", Value: []byte(d.Consumer)},
			{Key: "plenum-position", Value: strconv.AppendInt(nil, d.Position, 10)},
			{Key: "plenum-id", Value: strconv.AppendInt(nil, row.ID, 10)},
		},
	}
}

// size is at least what the record takes in a batch of its own.
func size(r *kgo.Record) int {
	const batchHeader, varints = 61, 40
	n := batchHeader + varints + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value) + 4
	}
	return n
}
