package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Reconcile writes ledger lines for the rows with last_modified in [from, to) that have none, which is what
// rows inserted by hand lack: one line per contiguous run of ids, or several of 5000 rows where it is longer. from
// and to lie in one UTC day. It returns the number of rows found; where another reconcile is running, none.
//
// It reads the window's rows and the day's lines in one statement, so in one snapshot: a row of a transaction
// that ingest has yet to commit is in neither.
func Reconcile(ctx context.Context, pool *pgxpool.Pool, from, to time.Time) (int64, error) {
	var n int64
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
		n, err = reconcile(ctx, tx, from, to)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("reconcile %s to %s: %w", from.Format(time.RFC3339), to.Format(time.RFC3339), err)
	}
	return n, nil
}

// reconcile subtracts the day's lines from the window's ids as multiranges, which merge what is contiguous. Ids are
// grouped by 5000 first: a day's rows one by one would not fit into a multirange, while those of ingest fill
// nearly all their groups without a hole.
func reconcile(ctx context.Context, tx pgx.Tx, from, to time.Time) (int64, error) {
	const tryLock = `select pg_try_advisory_xact_lock($1, hashtext(current_schema()))`
	const q = `with groups as materialized (
			select id / 5000 as g, min(id) as first, max(id) as last, count(*) > max(id) - min(id) as whole
			from telemetry where last_modified >= $1 and last_modified < $2 group by id / 5000
		), present as (
			select range_agg(r) as ids from (
				select int8range(first, last, '[]') as r from groups where whole
				union all
				select int8range(t.id, t.id, '[]') from telemetry t join groups on g = t.id / 5000 and not whole
				where t.last_modified >= $1 and t.last_modified < $2) r
		), covered as (
			select range_agg(int8range(first_id, last_id, '[]')) as ids from telemetry_batch
			where day = $3 and last_id >= (select min(first) from groups) and first_id <= (select max(last) from groups)
		), missing as (
			select unnest(present.ids - coalesce(covered.ids, '{}')) as r from present, covered
		), lines as (
			insert into telemetry_batch (first_id, last_id, row_count, day, source)
			select first, least(first + 5000, upper(r)) - 1, least(first + 5000, upper(r)) - first, $3, 'reconcile'
			from missing, generate_series(lower(r), upper(r) - 1, 5000) as first
			returning row_count
		)
		select coalesce(sum(row_count), 0) from lines`
	var locked bool
	if err := tx.QueryRow(ctx, tryLock, lockReconcile).Scan(&locked); err != nil || !locked {
		return 0, err
	}
	var n int64
	err := tx.QueryRow(ctx, q, from, to, from.UTC().Truncate(24*time.Hour)).Scan(&n)
	return n, err
}

// Now returns the database's time, the clock of partitions.
func Now(ctx context.Context, pool *pgxpool.Pool) (time.Time, error) {
	var t time.Time
	if err := pool.QueryRow(ctx, `select now()`).Scan(&t); err != nil {
		return t, fmt.Errorf("read database time: %w", err)
	}
	return t.UTC(), nil
}
