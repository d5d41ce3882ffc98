package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// A run is the ids first … first+n-1.
type run struct{ first, n int64 }

func (r run) last() int64 { return r.first + r.n - 1 }

// idBlocks hands out ids from blocks of telemetry_id_seq. A block's remainder serves the next batch. It belongs to
// one connection and goes with it: a server that lost its last seconds may hand out their blocks again.
type idBlocks struct {
	spare []run
	size  int64 // the sequence's increment; 0 until first asked
}

// blocksOf returns the connection's blocks.
func blocksOf(conn *pgx.Conn) *idBlocks {
	const key = "plenum.ids"
	data := conn.PgConn().CustomData()
	b, ok := data[key].(*idBlocks)
	if !ok {
		b = new(idBlocks)
		data[key] = b
	}
	return b
}

// take returns runs with n ids in all, drawing as many new blocks as the spare ids do not cover. The
// ids belong to the caller for good.
func (b *idBlocks) take(ctx context.Context, conn *pgx.Conn, n int64) ([]run, error) {
	have := int64(0)
	for _, r := range b.spare {
		have += r.n
	}
	if have < n {
		fresh, err := b.draw(ctx, conn, n-have)
		if err != nil {
			return nil, err
		}
		b.spare = append(b.spare, fresh...)
	}
	return b.takeSpare(n), nil
}

// takeSpare returns runs with n ids, which spare holds.
func (b *idBlocks) takeSpare(n int64) (runs []run) {
	for n > 0 {
		r := &b.spare[0]
		use := min(n, r.n)
		runs = appendRun(runs, run{r.first, use})
		r.first, r.n, n = r.first+use, r.n-use, n-use
		if r.n == 0 {
			b.spare = b.spare[1:]
		}
	}
	return runs
}

// draw returns new blocks with at least n ids.
func (b *idBlocks) draw(ctx context.Context, conn *pgx.Conn, n int64) ([]run, error) {
	if b.size == 0 {
		const q = `select seqincrement from pg_sequence where seqrelid = 'telemetry_id_seq'::regclass`
		if err := conn.QueryRow(ctx, q).Scan(&b.size); err != nil {
			return nil, fmt.Errorf("read increment of telemetry_id_seq: %w", err)
		}
	}
	const q = `select nextval('telemetry_id_seq') from generate_series(1, $1)`
	rows, err := conn.Query(ctx, q, (n+b.size-1)/b.size)
	if err != nil {
		return nil, fmt.Errorf("draw ids: %w", err)
	}
	runs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (run, error) {
		r := run{n: b.size}
		return r, row.Scan(&r.first)
	})
	if err != nil {
		return nil, fmt.Errorf("draw ids: %w", err)
	}
	return runs, nil
}

// appendRun adds r, joined to the last run where it continues it.
func appendRun(runs []run, r run) []run {
	if k := len(runs) - 1; k >= 0 && runs[k].first+runs[k].n == r.first {
		runs[k].n += r.n
		return runs
	}
	return append(runs, r)
}

// firstIDs returns the first n ids of the runs.
func firstIDs(runs []run, n int) []int64 {
	ids := make([]int64, 0, n)
	for _, r := range runs {
		for id := r.first; id <= r.last() && len(ids) < n; id++ {
			ids = append(ids, id)
		}
	}
	return ids
}
