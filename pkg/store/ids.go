package store

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
)

// A run is the ids first … first+n-1.
type run struct{ first, n int64 }

func (r run) last() int64 { return r.first + r.n - 1 }

// idBlocks hands out ids from blocks of telemetry_id_seq. A block's remainder serves the next batch.
type idBlocks struct {
	mu    sync.Mutex
	spare []run
	size  int64 // the sequence's increment; 0 until first asked
}

// take returns runs with n ids in all, drawing as many new blocks as the spare ids do not cover. The
// ids belong to the caller for good.
func (b *idBlocks) take(ctx context.Context, conn *pgx.Conn, n int64) ([]run, error) {
	runs, missing := b.takeSpare(n)
	if missing == 0 {
		return runs, nil
	}
	fresh, err := b.draw(ctx, conn, missing)
	if err != nil {
		b.put(runs)
		return nil, err
	}
	for i, r := range fresh {
		use := min(missing, r.n)
		if use > 0 {
			runs = appendRun(runs, run{r.first, use})
			missing -= use
		}
		if use < r.n {
			b.put(append([]run{{r.first + use, r.n - use}}, fresh[i+1:]...))
			break
		}
	}
	return runs, nil
}

func (b *idBlocks) takeSpare(n int64) (runs []run, missing int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n > 0 && len(b.spare) > 0 {
		r := &b.spare[0]
		use := min(n, r.n)
		runs = appendRun(runs, run{r.first, use})
		r.first, r.n, n = r.first+use, r.n-use, n-use
		if r.n == 0 {
			b.spare = b.spare[1:]
		}
	}
	return runs, n
}

func (b *idBlocks) put(runs []run) {
	b.mu.Lock()
	b.spare = append(b.spare, runs...)
	b.mu.Unlock()
}

func (b *idBlocks) draw(ctx context.Context, conn *pgx.Conn, n int64) ([]run, error) {
	size, err := b.blockSize(ctx, conn)
	if err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, `select nextval('telemetry_id_seq') from generate_series(1, $1)`, (n+size-1)/size)
	if err != nil {
		return nil, fmt.Errorf("draw ids: %w", err)
	}
	firsts, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("draw ids: %w", err)
	}
	runs := make([]run, 0, len(firsts))
	for _, f := range firsts {
		runs = append(runs, run{f, size})
	}
	return runs, nil
}

func (b *idBlocks) blockSize(ctx context.Context, conn *pgx.Conn) (int64, error) {
	b.mu.Lock()
	size := b.size
	b.mu.Unlock()
	if size > 0 {
		return size, nil
	}
	const q = `select seqincrement from pg_sequence where seqrelid = 'telemetry_id_seq'::regclass`
	if err := conn.QueryRow(ctx, q).Scan(&size); err != nil {
		return 0, fmt.Errorf("read increment of telemetry_id_seq: %w", err)
	}
	b.mu.Lock()
	b.size = size
	b.mu.Unlock()
	return size, nil
}

// appendRun adds r, joined to the last run where it continues it.
func appendRun(runs []run, r run) []run {
	if k := len(runs) - 1; k >= 0 && runs[k].first+runs[k].n == r.first {
		runs[k].n += r.n
		return runs
	}
	return append(runs, r)
}
