package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// lineNumbers gives each transaction under way a line of its own in ingest_account, the lowest that is free.
type lineNumbers struct {
	mu    sync.Mutex
	taken []bool
}

func (l *lineNumbers) take() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, taken := range l.taken {
		if !taken {
			l.taken[i] = true
			return i
		}
	}
	l.taken = append(l.taken, true)
	return len(l.taken) - 1
}

func (l *lineNumbers) give(line int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken[line] = false
}

// Account is what became of every row received by a source, over all its processes: Received = Stored + Duplicate +
// Quarantined, in rows.
type Account struct {
	Received, Stored, Duplicate, Quarantined int64
	Since                                    time.Time // zero: nothing yet
}

// ReadAccount reads the account of a source, such as an MQTT client id.
func ReadAccount(ctx context.Context, pool *pgxpool.Pool, source string) (a Account, err error) {
	const q = `select coalesce(sum(received), 0)::bigint, coalesce(sum(stored), 0)::bigint, coalesce(sum(duplicate), 0)::bigint,
			coalesce(sum(quarantined), 0)::bigint, min(since)
		from ingest_account where source = $1`
	var since *time.Time
	if err := pool.QueryRow(ctx, q, source).Scan(&a.Received, &a.Stored, &a.Duplicate, &a.Quarantined, &since); err != nil {
		return a, fmt.Errorf("read the account of %q: %w", source, err)
	}
	if since != nil {
		a.Since = since.UTC()
	}
	return a, nil
}
