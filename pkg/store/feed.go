package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A FeedRow is one processed row as a consumer sees it.
type FeedRow struct {
	ID           int64
	DeviceID     string
	Kind         string
	Seq          *int64 // nil where the device sent none
	RecordedAt   time.Time
	LastModified time.Time
	Payload      []byte // a JSON object, as jsonb prints it
}

// An IncompleteError is a batch of which fewer or more rows can be read than it counts.
type IncompleteError struct {
	Position, BatchID int64
	Found, Want       int
}

func (e *IncompleteError) Error() string {
	return fmt.Sprintf("batch %d at position %d has %d rows, the ledger counts %d", e.BatchID, e.Position, e.Found, e.Want)
}

// FeedLines returns the processed lines behind position after, in position order: at least one if there is
// one, then more until they have maxRows rows, which the last one may exceed.
//
// Where no position behind after has been drawn, it says so without looking into each day's lines, which is what a
// waiting consumer's poll costs. A standby's sequence runs ahead: there it always looks.
func FeedLines(ctx context.Context, pool *pgxpool.Pool, after int64, maxRows int) ([]Line, error) {
	const q = `select ` + lineColumns + ` from telemetry_batch where feed_position > $1 order by feed_position limit $2`
	const drawn = `select coalesce(pg_sequence_last_value('telemetry_feed_position_seq'), 0)`
	var last int64
	if err := pool.QueryRow(ctx, drawn).Scan(&last); err != nil {
		return nil, fmt.Errorf("read feed after %d: %w", after, err)
	}
	if last <= after {
		return nil, nil
	}
	rows, err := pool.Query(ctx, q, after, min(max(maxRows, 1), maxLines))
	if err != nil {
		return nil, fmt.Errorf("read feed after %d: %w", after, err)
	}
	lines, err := pgx.CollectRows(rows, scanLine)
	if err != nil {
		return nil, fmt.Errorf("read feed after %d: %w", after, err)
	}
	total := 0
	for i, l := range lines {
		if total += l.Rows; total >= maxRows {
			return lines[:i+1], nil
		}
	}
	return lines, nil
}

// FeedRows returns the rows of lines, line by line and by id within a line. A line whose rows are not all
// there is an *IncompleteError.
func FeedRows(ctx context.Context, pool *pgxpool.Pool, lines []Line) ([]FeedRow, error) {
	var all []FeedRow
	for rest := lines; len(rest) > 0; {
		var day []Line
		day, rest = cutDay(rest)
		rows, err := feedDay(ctx, pool, day)
		if err != nil {
			return nil, err
		}
		for _, l := range day {
			own := between(rows, l.FirstID, l.LastID)
			if len(own) != l.Rows {
				return nil, &IncompleteError{l.Position, l.BatchID, len(own), l.Rows}
			}
			all = append(all, own...)
		}
	}
	return all, nil
}

// feedDay reads one day's rows, ordered by id. The day may have been moved to the archive since the lines
// were read: telemetry_all has it in either place.
func feedDay(ctx context.Context, pool *pgxpool.Pool, lines []Line) ([]FeedRow, error) {
	const q = `select id, device_id, kind, seq, recorded_at, last_modified, payload::text from telemetry_all
		where id = any($1) and last_modified >= $2 and last_modified < $3`
	var ids []int64
	for i := range lines {
		ids = lines[i].appendIDs(ids)
	}
	from, to := lines[0].day()
	rows, err := pool.Query(ctx, q, ids, from, to)
	if err != nil {
		return nil, fmt.Errorf("read rows of %s: %w", from.Format(time.DateOnly), err)
	}
	out, err := pgx.AppendRows(make([]FeedRow, 0, len(ids)), rows, scanFeedRow)
	if err != nil {
		return nil, fmt.Errorf("read rows of %s: %w", from.Format(time.DateOnly), err)
	}
	slices.SortFunc(out, func(a, b FeedRow) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

func scanFeedRow(row pgx.CollectableRow) (FeedRow, error) {
	var r FeedRow
	err := row.Scan(&r.ID, &r.DeviceID, &r.Kind, &r.Seq, &r.RecordedAt, &r.LastModified, &r.Payload)
	return r, err
}

// between returns the rows with first ≤ id ≤ last of rows sorted by id.
func between(rows []FeedRow, first, last int64) []FeedRow {
	byID := func(r FeedRow, id int64) int { return cmp.Compare(r.ID, id) }
	i, _ := slices.BinarySearchFunc(rows, first, byID)
	j, _ := slices.BinarySearchFunc(rows, last+1, byID)
	return rows[i:j]
}

// FeedBounds returns the highest position whose rows have been dropped and the highest one given, 0 where
// there is none.
func FeedBounds(ctx context.Context, pool *pgxpool.Pool) (horizon, head int64, err error) {
	const q = `select position, greatest(position, (select coalesce(max(feed_position), 0) from telemetry_batch)) from feed_horizon`
	if err := pool.QueryRow(ctx, q).Scan(&horizon, &head); err != nil {
		return 0, 0, fmt.Errorf("read feed bounds: %w", err)
	}
	return horizon, head, nil
}

// FeedHorizon returns the highest position whose rows have been dropped, 0 where there is none.
func FeedHorizon(ctx context.Context, pool *pgxpool.Pool) (int64, error) {
	var p int64
	if err := pool.QueryRow(ctx, `select position from feed_horizon`).Scan(&p); err != nil {
		return 0, fmt.Errorf("read feed horizon: %w", err)
	}
	return p, nil
}

// FeedPositionBefore returns the position behind which everything processed at t or later stands. It searches by
// halves, since times of processing ascend with positions as far as the server's clock does.
func FeedPositionBefore(ctx context.Context, pool *pgxpool.Pool, t time.Time) (int64, error) {
	const q = `select feed_position, processed_at < $2 from telemetry_batch where feed_position > $1 order by feed_position limit 1`
	low, high, err := FeedBounds(ctx, pool)
	if err != nil {
		return 0, err
	}
	for low < high {
		middle := low + (high-low)/2
		var next int64
		var earlier bool
		err := pool.QueryRow(ctx, q, middle, t).Scan(&next, &earlier)
		switch {
		case err != nil && !errors.Is(err, pgx.ErrNoRows):
			return 0, fmt.Errorf("find feed position of %s: %w", t.Format(time.RFC3339), err)
		case err == nil && earlier:
			low = next
		default:
			high = middle
		}
	}
	return low, nil
}

// A Consumer is a named reader's durable cursor.
type Consumer struct {
	Name      string
	Position  int64 // everything up to and with it has been committed by the consumer
	Required  bool  // retention waits for it
	UpdatedAt time.Time
}

// ReadConsumer returns the consumer, and false if there is none of that name.
func ReadConsumer(ctx context.Context, pool *pgxpool.Pool, name string) (Consumer, bool, error) {
	c := Consumer{Name: name}
	const q = `select position, required, updated_at from feed_consumer where name = $1`
	err := pool.QueryRow(ctx, q, name).Scan(&c.Position, &c.Required, &c.UpdatedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return c, false, nil
	}
	if err != nil {
		return c, false, fmt.Errorf("read consumer %q: %w", name, err)
	}
	return c, true, nil
}

// CreateConsumer creates the consumer at position; where it exists, it stays as it is.
func CreateConsumer(ctx context.Context, pool *pgxpool.Pool, name string, position int64) error {
	const q = `insert into feed_consumer (name, position) values ($1, $2) on conflict (name) do nothing`
	if _, err := pool.Exec(ctx, q, name, position); err != nil {
		return fmt.Errorf("create consumer %q: %w", name, err)
	}
	return nil
}

// AdvanceConsumer sets the consumer's position unless that would move it backwards, and returns false then.
func AdvanceConsumer(ctx context.Context, pool *pgxpool.Pool, name string, position int64) (bool, error) {
	const q = `update feed_consumer set position = $2, updated_at = now() where name = $1 and position <= $2`
	tag, err := pool.Exec(ctx, q, name, position)
	if err != nil {
		return false, fmt.Errorf("commit position %d of consumer %q: %w", position, name, err)
	}
	return tag.RowsAffected() == 1, nil
}

// ConsumerLag is how far a consumer is behind.
type ConsumerLag struct {
	Consumer
	Batches int64         // positions up to the head; a crash of the server may have left some of them empty
	Oldest  time.Duration // age since processing of the oldest batch it has not committed; 0 if none
}

// ConsumerLags returns every consumer by name with its lag.
func ConsumerLags(ctx context.Context, pool *pgxpool.Pool) ([]ConsumerLag, error) {
	const q = `with head as materialized (select coalesce(max(feed_position), 0) as position from telemetry_batch)
		select c.name, c.position, c.required, c.updated_at, greatest(head.position - c.position, 0),
			coalesce(extract(epoch from now() - (select b.processed_at from telemetry_batch b
				where b.feed_position > c.position and c.position < head.position order by b.feed_position limit 1)), 0)::float8
		from feed_consumer c, head order by c.name`
	rows, err := pool.Query(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("read consumers: %w", err)
	}
	lags, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (ConsumerLag, error) {
		var l ConsumerLag
		var age float64
		err := row.Scan(&l.Name, &l.Position, &l.Required, &l.UpdatedAt, &l.Batches, &age)
		l.Oldest = time.Duration(max(age, 0) * float64(time.Second))
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("read consumers: %w", err)
	}
	return lags, nil
}
