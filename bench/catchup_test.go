package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// catchUpSize is how much a consumer that was away has to read.
type catchUpSize struct {
	days, rows  int   // rows in each; a multiple of each of lines
	lines       []int // rows of a ledger line: of one ledger after the other over the same rows
	parts       int   // of a pass at most, each of which gives a rate
	repetitions int   // of what it is compared with
}

// catchUp is one consumer's pass over all rows.
type catchUp struct {
	lineRows, limit int
	gzip            bool
	encoding        string
	rates           []int64 // rows/s of each part, of whole pages; what is left at the end is in none
	wire, text      int64   // bytes a row
}

// against is what a pass is compared with: another way to read the same rows.
type against struct {
	way   string
	rates []int64 // rows/s of each repetition
	text  int64   // bytes a row; 0 where nothing leaves the server
}

const (
	copyOrdered = "COPY (SELECT … ORDER BY last_modified) TO STDOUT"
	scanAll     = "sequential scan in the server"
)

const (
	defaultLimit = 1000 // what the feed takes without one
	greatLimit   = 100_000
)

// catchUps has consumers read rows that are stored and processed, from position 0.
func (h *house) catchUps(s catchUpSize) (passes []catchUp, compared []against) {
	h.tb.Helper()
	days := h.daysBeforeToday(s.days, s.rows)
	d := h.plenumDatabase("catchup", days)
	defer d.drop()
	d.makePayloads()
	d.exec("insert into telemetry (" + rowColumns + ") " + days.rowsSQL(0))
	d.exec("vacuum analyze telemetry")
	for n, lineRows := range s.lines {
		d.exec("truncate telemetry_batch, feed_consumer")
		d.exec(days.ledgerSQL(lineRows, true))
		d.exec(fmt.Sprintf("select setval('telemetry_feed_position_seq', %d)", days.total()/lineRows))
		d.exec("vacuum analyze telemetry_batch")
		d.exec("checkpoint")
		syncjob := h.start("syncjob", "PLENUM_DATABASE_URL="+d.url)
		pass := func(limit int, gzip bool) func() {
			return func() {
				c := newConsumer(syncjob.url, fmt.Sprintf("catchup-%d-%t", limit, gzip))
				if c.gzip = gzip; limit != defaultLimit {
					c.limit = limit
				}
				p, err := c.catchUp(h.ctx, days.total(), s.parts)
				h.check(err)
				p.lineRows, p.limit = lineRows, limit
				passes = append(passes, p)
			}
		}
		h.inTurn(n, pass(greatLimit, false), pass(greatLimit, true), pass(defaultLimit, false))
		h.stop(syncjob)
	}
	return passes, []against{d.compare(copyOrdered, days.total(), s.repetitions), d.compare(scanAll, days.total(), s.repetitions)}
}

// catchUp reads rows whose ids are 1 to rows, in that order: any other, one twice or one too few is an error.
func (c *consumer) catchUp(ctx context.Context, rows, parts int) (p catchUp, err error) {
	const none = 0
	last := int64(none)
	begin, before := time.Now(), last
	for last < int64(rows) {
		n, err := c.page(ctx, func(line []byte) error {
			id, err := rowID(line)
			if err == nil && id != last+1 {
				err = fmt.Errorf("row %d comes after row %d", id, last)
			}
			last = id
			return err
		})
		if err != nil {
			return p, err
		}
		if n == 0 {
			return p, fmt.Errorf("the feed ends after %d of %d rows", last, rows)
		}
		if last-before >= int64(rows/parts) {
			p.rates = append(p.rates, int64(float64(last-before)/time.Since(begin).Seconds()))
			begin, before = time.Now(), last
		}
	}
	if n, err := c.page(ctx, func(line []byte) error { return fmt.Errorf("a row too many: %s", line) }); err != nil || n != 0 {
		return p, errors.Join(err, fmt.Errorf("%d rows behind the last", n))
	}
	p.gzip, p.encoding = c.gzip, c.encoding
	p.wire, p.text = c.wire/int64(rows), c.text/int64(rows)
	return p, nil
}

// compare reads the rows in another way.
func (d *database) compare(way string, rows, repetitions int) (a against) {
	d.h.tb.Helper()
	d.exec("set max_parallel_workers_per_gather = 0") // as the feed's statements run
	a.way = way
	for range repetitions {
		begin := time.Now()
		switch way {
		case copyOrdered:
			var to discarded
			tag, err := d.conn.PgConn().CopyTo(d.h.ctx, &to,
				"copy (select id, device_id, kind, seq, recorded_at, last_modified, payload from telemetry order by last_modified) to stdout")
			d.h.check(err)
			if int(tag.RowsAffected()) != rows {
				d.h.tb.Fatalf("%s: %d of %d rows", way, tag.RowsAffected(), rows)
			}
			a.text = to.bytes / int64(rows)
		case scanAll:
			d.expect("select count(*) from telemetry where processed", rows)
		}
		a.rates = append(a.rates, int64(float64(rows)/time.Since(begin).Seconds()))
	}
	return a
}

// discarded counts what is written to it.
type discarded struct{ bytes int64 }

func (d *discarded) Write(p []byte) (int, error) {
	d.bytes += int64(len(p))
	return len(p), nil
}
