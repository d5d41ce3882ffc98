package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Refusal is why a day may not leave its table.
type Refusal struct {
	Reason string // one of the words unprocessed, no_ledger_line, consumer, rows_present
	Detail string
}

func (r *Refusal) Error() string { return r.Detail }

// GuardLiveDay returns a *Refusal if the live table's leaf, which holds the day from from, may not leave it: a row
// is unprocessed, or has no ledger line, or a line is pending, or a required consumer has not passed the day. The
// caller holds a lock that keeps writers off the leaf. It scans the leaf once.
func GuardLiveDay(ctx context.Context, tx pgx.Tx, leaf pgx.Identifier, from time.Time) error {
	from = from.UTC() // pgx makes a date of what the zone shows
	q := `select count(*) filter (where not processed), count(*) from ` + leaf.Sanitize()
	var unprocessed, rows, counted, pending int64
	if err := tx.QueryRow(ctx, q).Scan(&unprocessed, &rows); err != nil {
		return fmt.Errorf("guard: count rows of %s: %w", leaf.Sanitize(), err)
	}
	const lines = `select coalesce(sum(row_count), 0), count(*) filter (where processed_at is null) from telemetry_batch where day = $1`
	if err := tx.QueryRow(ctx, lines, from).Scan(&counted, &pending); err != nil {
		return fmt.Errorf("guard: count ledger lines of %s: %w", from.Format(time.DateOnly), err)
	}
	switch {
	case unprocessed > 0 || pending > 0:
		return &Refusal{"unprocessed", fmt.Sprintf("%d rows and %d batches of %s are unprocessed", unprocessed, pending, from.Format(time.DateOnly))}
	case rows != counted:
		return &Refusal{"no_ledger_line", fmt.Sprintf("%s holds %d rows, the ledger counts %d", from.Format(time.DateOnly), rows, counted)}
	}
	return guardConsumers(ctx, tx, from)
}

// guardConsumers refuses while a required consumer has a position before the day's last one. Its lock, held until the
// day has gone, makes a consumer that is declared or sought at the same moment come before the guard or after the horizon.
func guardConsumers(ctx context.Context, tx pgx.Tx, day time.Time) error {
	const q = `select coalesce(string_agg(format('%s at %s', name, position), ', ' order by name), '')
		from feed_consumer where required and position < (select max(feed_position) from telemetry_batch where day = $1)`
	if _, err := tx.Exec(ctx, lockConsumers, lockRetention); err != nil {
		return fmt.Errorf("guard: lock the consumers: %w", err)
	}
	var behind string
	if err := tx.QueryRow(ctx, q, day).Scan(&behind); err != nil {
		return fmt.Errorf("guard: read required consumers: %w", err)
	}
	if behind != "" {
		return &Refusal{"consumer", fmt.Sprintf("required consumers have not passed %s: %s", day.Format(time.DateOnly), behind)}
	}
	return nil
}

// DropDay is what must go with the rows of a day that is dropped for good: it refuses while a required consumer has
// not passed the day, and records the horizon that consumers who stayed away are told of.
func DropDay(ctx context.Context, tx pgx.Tx, day time.Time) error {
	day = day.UTC() // pgx makes a date of what the zone shows
	if err := guardConsumers(ctx, tx, day); err != nil {
		return err
	}
	const q = `update feed_horizon set position = m.position, updated_at = now()
		from (select max(feed_position) as position from telemetry_batch where day = $1) m
		where feed_horizon.position < m.position`
	if _, err := tx.Exec(ctx, q, day); err != nil {
		return fmt.Errorf("record feed horizon: %w", err)
	}
	return nil
}

// GuardLedgerDay refuses while rows of the day can still be read or a line of it is pending.
func GuardLedgerDay(ctx context.Context, tx pgx.Tx, day time.Time) error {
	day = day.UTC() // pgx makes a date of what the zone shows
	const q = `select exists (select from telemetry_all where last_modified >= $1 and last_modified < $2),
		exists (select from telemetry_batch where day = $1::date and processed_at is null)`
	var rows, pending bool
	if err := tx.QueryRow(ctx, q, day, day.Add(24*time.Hour)).Scan(&rows, &pending); err != nil {
		return fmt.Errorf("guard: look for rows of %s: %w", day.Format(time.DateOnly), err)
	}
	switch {
	case pending:
		return &Refusal{"unprocessed", "batches of " + day.Format(time.DateOnly) + " are unprocessed"}
	case rows:
		return &Refusal{"rows_present", "rows of " + day.Format(time.DateOnly) + " are still there"}
	}
	return DropDay(ctx, tx, day)
}
