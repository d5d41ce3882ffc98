package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A SetAsideLine is a ledger line that was given up after three tries.
type SetAsideLine struct {
	Line
	Since  time.Time
	Source string
	Detail string // of the last try
	Found  int    // rows with its ids, at the moment
}

// SetAside lists the first limit lines that are set aside.
func SetAside(ctx context.Context, pool *pgxpool.Pool, limit int) ([]SetAsideLine, error) {
	const q = `select batch_id, first_id, last_id, row_count, day, created_at, set_aside_at, source, coalesce(detail, ''), (
			select count(*) from telemetry_all t where t.id between b.first_id and b.last_id
				and t.last_modified >= b.day::timestamp at time zone 'UTC' and t.last_modified < (b.day + 1)::timestamp at time zone 'UTC')
		from telemetry_batch b where processed_at is null and set_aside_at is not null order by batch_id limit $1`
	rows, err := pool.Query(ctx, q, limit)
	if err != nil {
		return nil, fmt.Errorf("list batches that are set aside: %w", err)
	}
	lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (SetAsideLine, error) {
		var l SetAsideLine
		err := row.Scan(&l.BatchID, &l.FirstID, &l.LastID, &l.Rows, &l.Day, &l.CreatedAt, &l.Since, &l.Source, &l.Detail, &l.Found)
		l.Day = l.Day.UTC()
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("list batches that are set aside: %w", err)
	}
	return lines, nil
}
