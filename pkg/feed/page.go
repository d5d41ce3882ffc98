package feed

import (
	"context"
	"fmt"
	"math"

	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/pkg/store"
)

// A page is read in pieces of so many rows at first, and is cut where its payloads have so many bytes: what it takes in memory
// is about that, 150 bytes a row, and the last batch.
const (
	firstPiece = 2000
	pageBytes  = 64 << 20
)

// page is what stands behind the consumer's position, where rows are read.
func (f *Feed) page(ctx context.Context, c store.Consumer, limit int) (Page, error) {
	return readPage(ctx, f.read, c, limit, math.MaxInt64)
}

// readPage reads rows up to and with position last. It reads everything from one server, of the several that pool may reach, and the
// horizon after the rows: rows that were dropped while it read make it fail, not skip. A standby's horizon is that of the rows it
// still shows.
func readPage(ctx context.Context, pool *pgxpool.Pool, c store.Consumer, limit int, last int64) (Page, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return Page{}, fmt.Errorf("read feed after %d: %w", c.Position, err)
	}
	defer conn.Release()
	lines, err := store.FeedLines(ctx, conn, c.Position, limit)
	if err != nil {
		return Page{}, err
	}
	for len(lines) > 0 && lines[len(lines)-1].Position > last {
		lines = lines[:len(lines)-1]
	}
	page, rowsErr := fill(ctx, conn, c.Position, lines)
	horizon, err := store.FeedHorizon(ctx, conn)
	if err != nil {
		return Page{}, err
	}
	if c.Position < horizon {
		return Page{}, &GoneError{c.Name, c.Position, horizon}
	}
	return page, rowsErr
}

// fill reads the rows of lines, up to the bytes that a page may have.
func fill(ctx context.Context, db store.Querier, after int64, lines []store.Line) (Page, error) {
	page, bytes, ask := Page{Position: after}, 0, firstPiece
	for len(lines) > 0 && bytes < pageBytes {
		n := cut(lines, ask)
		rows, err := store.FeedRows(ctx, db, lines[:n])
		if err != nil {
			return Page{}, err
		}
		for i := range rows {
			bytes += len(rows[i].Payload)
		}
		page.Position, lines = lines[n-1].Position, lines[n:]
		if page.Rows == nil {
			page.Rows = rows
		} else {
			page.Rows = append(page.Rows, rows...)
		}
		ask = max(1, (pageBytes-bytes)/(bytes/len(page.Rows)+1))
	}
	return page, nil
}

// cut returns how many of lines have n rows, one at least.
func cut(lines []store.Line, n int) int {
	for i, l := range lines {
		if n -= l.Rows; n < 0 {
			return max(i, 1)
		}
	}
	return len(lines)
}
