package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// latencySize is how long the path from publish to feed is watched.
type latencySize struct {
	rate          int // readings/s
	warm, seconds int // s; what is published while warm does not count
}

func (s latencySize) total() int { return s.rate * (s.warm + s.seconds) }

// delivery is one reading on its way. Its parts are measured by one clock, that of the machine.
type delivery struct {
	sent     time.Time // recorded_at: the publisher's clock, in whole milliseconds
	stored   time.Time // last_modified: when ingest's transaction began
	marked   time.Time // when syncjob gave the position, just before its commit
	received time.Time // when the consumer had the row
	id       int64
}

// latency publishes at the rate while ingest, syncjob and a consumer run, and returns the readings that count in the order in which
// they were published. A reading that comes twice or not at all ends the benchmark.
func (h *house) latency(s latencySize) []delivery {
	h.tb.Helper()
	d := h.database("latency")
	defer d.drop()
	h.idle("ingest", d, ingestEnv(h, d, "latency", loadPrefix)...) // makes the tables
	syncjob := h.start("syncjob", "PLENUM_DATABASE_URL="+d.url)
	ingest := h.start("ingest", ingestEnv(h, d, "latency", loadPrefix)...)
	h.await(100*time.Millisecond, d.daysAhead)
	all := make([]delivery, s.total())
	ctx, cancel := context.WithTimeout(h.ctx, time.Duration(s.warm+s.seconds)*time.Second+waitLimit)
	defer cancel()
	var consumed error
	var consuming sync.WaitGroup
	consuming.Go(func() {
		c := newConsumer(syncjob.url, "latency")
		c.wait = 20 * time.Second
		consumed = receive(ctx, c, all)
	})
	err := readings{prefix: loadPrefix, n: s.total(), rate: s.rate}.publish(ctx, h.broker.URL())
	consuming.Wait()
	h.check(err)
	h.check(consumed)
	d.addMarked(all)
	h.stop(ingest)
	h.stop(syncjob)
	return all[s.rate*s.warm:]
}

// receive reads until each of the readings has come.
func receive(ctx context.Context, c *consumer, all []delivery) error {
	for n := 0; n < len(all); {
		rows, err := c.page(ctx, func(line []byte) error {
			received := time.Now()
			var row struct {
				ID           int64
				Seq          int
				RecordedAt   time.Time `json:"recorded_at"`
				LastModified time.Time `json:"last_modified"`
			}
			if err := json.Unmarshal(line, &row); err != nil {
				return fmt.Errorf("%s: %w", line, err)
			}
			i := row.Seq - firstSeq
			if i < 0 || i >= len(all) || all[i].id != 0 {
				return fmt.Errorf("reading %d has come that was not sent, or a second time", row.Seq)
			}
			all[i] = delivery{sent: row.RecordedAt, stored: row.LastModified, received: received, id: row.ID}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%d of %d readings have come: %w", n, len(all), err)
		}
		n += rows
	}
	return nil
}

// addMarked takes the time of marking from the ledger.
func (d *database) addMarked(all []delivery) {
	d.h.tb.Helper()
	type line struct {
		First, Last int64
		Marked      time.Time
	}
	rows, err := d.conn.Query(d.h.ctx, "select first_id, last_id, processed_at from telemetry_batch order by first_id")
	d.h.check(err)
	lines, err := pgx.CollectRows(rows, pgx.RowToStructByPos[line])
	d.h.check(err)
	for i := range all {
		n, _ := slices.BinarySearchFunc(lines, all[i].id, func(l line, id int64) int { return int(l.Last - id) })
		if n == len(lines) || lines[n].First > all[i].id {
			d.h.tb.Fatalf("no line of the ledger has the id %d", all[i].id)
		}
		all[i].marked = lines[n].Marked
	}
}

// stages are the parts of a delivery's time, the whole first.
var stages = []struct {
	name string
	took func(delivery) time.Duration
}{
	{"publish to feed", func(d delivery) time.Duration { return d.received.Sub(d.sent) }},
	{"publish to the start of ingest's transaction", func(d delivery) time.Duration { return d.stored.Sub(d.sent) }},
	{"from there to the position", func(d delivery) time.Duration { return d.marked.Sub(d.stored) }},
	{"from there to the consumer", func(d delivery) time.Duration { return d.received.Sub(d.marked) }},
}
