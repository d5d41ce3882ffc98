package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Line is one line of the ledger: the rows first_id … last_id of one UTC day.
type Line struct {
	BatchID   int64
	FirstID   int64
	LastID    int64
	Rows      int
	Day       time.Time // midnight UTC
	CreatedAt time.Time
	Position  int64 // feed position; 0 while pending
}

// day returns the bounds that leave one partition of telemetry in a plan.
func (l *Line) day() (from, to time.Time) { return l.Day, l.Day.Add(24 * time.Hour) }

func (l *Line) appendIDs(ids []int64) []int64 {
	for id := l.FirstID; id <= l.LastID; id++ {
		ids = append(ids, id)
	}
	return ids
}

const lineColumns = `batch_id, first_id, last_id, row_count, day, created_at, coalesce(feed_position, 0)`

func scanLine(row pgx.CollectableRow) (Line, error) {
	var l Line
	err := row.Scan(&l.BatchID, &l.FirstID, &l.LastID, &l.Rows, &l.Day, &l.CreatedAt, &l.Position)
	l.Day = l.Day.UTC()
	return l, err
}

// liveDays are the first day that telemetry has a partition for, and the database's today. Lines before the first have left
// the live table, which only processed ones do; as a constant in a statement it prunes the archive's share of the ledger.
type liveDays struct{ first, today time.Time }

// latest is the first day that a transaction which is being written may have drawn its rows' day from.
func (d liveDays) latest() time.Time {
	if yesterday := d.today.AddDate(0, 0, -1); yesterday.After(d.first) {
		return yesterday
	}
	return d.first
}

// liveSince caches liveDays: a day that has just begun is later than what it says, which leaves out nothing.
type liveSince struct {
	mu    sync.Mutex
	days  liveDays
	asked time.Time
}

const liveSinceAge = time.Minute

func (c *liveSince) get(ctx context.Context, pool *pgxpool.Pool) (liveDays, error) {
	const q = `select coalesce(min((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\)'))[1]::timestamptz), now()), now()
		from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'telemetry'::regclass`
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.asked) < liveSinceAge {
		return c.days, nil
	}
	var first, now time.Time
	if err := pool.QueryRow(ctx, q).Scan(&first, &now); err != nil {
		return liveDays{}, fmt.Errorf("read first live day: %w", err)
	}
	c.days, c.asked = liveDays{first.UTC().Truncate(24 * time.Hour), now.UTC().Truncate(24 * time.Hour)}, time.Now()
	return c.days, nil
}
