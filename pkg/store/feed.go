package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Querier is a pool, or a connection of one where several statements must ask one server.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// firstLines is how many ledger lines are asked for at first. Where they are so small that more are needed, the next
// question is sized by what came.
const firstLines = 2000

// FeedLines returns the processed lines behind position after, in position order: at least one if there is
// one, then more until they have maxRows rows, which the last one may exceed.
//
// Where no position behind after has been drawn, it says so without looking into each day's lines. A standby's sequence
// runs ahead: there it always looks.
func FeedLines(ctx context.Context, db Querier, after int64, maxRows int) ([]Line, error) {
	const drawn = `select coalesce(pg_sequence_last_value('telemetry_feed_position_seq'), 0)`
	var last int64
	if err := db.QueryRow(ctx, drawn).Scan(&last); err != nil {
		return nil, fmt.Errorf("read feed after %d: %w", after, err)
	}
	if last <= after {
		return nil, nil
	}
	var lines []Line
	for total, ask := 0, min(max(maxRows, 1), firstLines); ; {
		more, err := nextLines(ctx, db, after, ask)
		if err != nil {
			return nil, fmt.Errorf("read feed after %d: %w", after, err)
		}
		for i, l := range more {
			if total += l.Rows; total >= maxRows {
				return append(lines, more[:i+1]...), nil
			}
		}
		if lines = append(lines, more...); len(more) < ask {
			return lines, nil
		}
		after, ask = more[len(more)-1].Position, (maxRows-total)*len(lines)/total+1
	}
}

const feedLinesSQL = `select ` + lineColumns + ` from telemetry_batch where feed_position > $1 order by feed_position limit $2`

func nextLines(ctx context.Context, db Querier, after int64, n int) ([]Line, error) {
	rows, err := db.Query(ctx, feedLinesSQL, after, n)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanLine)
}

const feedBounds = `select position, greatest(position, (select coalesce(max(feed_position), 0) from telemetry_batch)) from feed_horizon`

// FeedBounds returns the highest position whose rows have been dropped and the highest one given, 0 where
// there is none.
func FeedBounds(ctx context.Context, pool *pgxpool.Pool) (horizon, head int64, err error) {
	if err := pool.QueryRow(ctx, feedBounds).Scan(&horizon, &head); err != nil {
		return 0, 0, fmt.Errorf("read feed bounds: %w", err)
	}
	return horizon, head, nil
}

// FeedHorizon returns the highest position whose rows have been dropped, 0 where there is none.
func FeedHorizon(ctx context.Context, db Querier) (int64, error) {
	var p int64
	if err := db.QueryRow(ctx, `select position from feed_horizon`).Scan(&p); err != nil {
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

// FeedHead returns the highest position that the server shows, 0 where there is none, and whether the server is a standby, to
// which no NOTIFY comes.
func FeedHead(ctx context.Context, pool *pgxpool.Pool) (head int64, standby bool, err error) {
	const q = `select coalesce(max(feed_position), 0), pg_is_in_recovery() from telemetry_batch`
	if err := pool.QueryRow(ctx, q).Scan(&head, &standby); err != nil {
		return 0, false, fmt.Errorf("read feed head: %w", err)
	}
	return head, standby, nil
}

// NotifyFeed wakes who waits for the feed in any process. It is not to be called in a transaction that does anything else: those
// that notify commit one by one.
func NotifyFeed(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := pool.Exec(ctx, `select pg_notify('plenum_feed', current_schema())`); err != nil {
		return fmt.Errorf("notify the feed's readers: %w", err)
	}
	return nil
}
