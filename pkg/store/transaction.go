package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"plenum/pkg/telemetry"
)

// unit is what one transaction stores.
type unit struct {
	telemetry.Batch
	repeats  bool  // some of the readings are stored already
	replayOf int64 // line of the quarantine that it comes from; 0: none
}

// maxTries bounds the transactions of one commit: a missing partition, repeats and the end of a day cost one each.
const maxTries = 5

// commit stores u in one transaction, again where that was rolled back for a reason that is known.
func (w *Writer) commit(ctx context.Context, u unit) (out telemetry.Outcome, err error) {
	if len(u.Readings)+len(u.Rejects) == 0 {
		return out, nil
	}
	line := w.lines.take()
	defer w.lines.give(line)
	asked := false
	for range maxTries {
		out, err = w.try(ctx, u, line)
		switch {
		case isNoPartition(err) && !asked:
			asked = true
			if err := w.missingDay(ctx); err != nil {
				return telemetry.Outcome{}, fmt.Errorf("no partition takes the rows: %w", err)
			}
		case meetsRepeats(err) && !u.repeats:
			u.repeats = true
		case errors.Is(err, errDayEnded):
		default:
			return out, err
		}
	}
	return out, err
}

// try is one transaction. With ErrNothingStored the outcome is what it would have been.
func (w *Writer) try(ctx context.Context, u unit, line int) (out telemetry.Outcome, err error) {
	conn, err := w.pool.Acquire(ctx)
	if err != nil {
		return out, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer conn.Release()
	var runs []run
	if len(u.Readings) > 0 {
		if runs, err = blocksOf(conn.Conn()).take(ctx, conn.Conn(), int64(len(u.Readings))); err != nil {
			return out, err
		}
	}
	var added quarantined
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		out, added, err = w.insert(ctx, tx, u, runs, line)
		return err
	})
	switch {
	case errors.Is(err, ErrNothingStored):
		return out, err
	case err != nil:
		return telemetry.Outcome{}, fmt.Errorf("store %d readings and %d rejects: %w", len(u.Readings), len(u.Rejects), err)
	}
	w.quarantine.committed(added)
	return out, nil
}

func (w *Writer) insert(ctx context.Context, tx pgx.Tx, u unit, runs []run, line int) (out telemetry.Outcome, added quarantined, err error) {
	if u.replayOf != 0 {
		if err := markReplayed(ctx, tx, u.replayOf); err != nil {
			return out, added, err
		}
	}
	in := inserted{runs: runs, outcome: telemetry.Outcome{Stored: len(u.Readings)}}
	switch {
	case len(u.Readings) == 0:
	case u.repeats:
		if in, err = w.insertNew(ctx, tx, u.Readings, runs); err != nil {
			return out, added, err
		}
	default:
		if err := w.copyIn(ctx, tx.Conn().PgConn(), u.Readings, runs); err != nil {
			return out, added, readingError{err}
		}
	}
	out = in.outcome
	rejects := append(u.Rejects[:len(u.Rejects):len(u.Rejects)], in.conflicts...)
	out.Quarantined = len(rejects)
	if u.replayOf != 0 && out.Stored+out.Duplicate == 0 {
		return out, added, ErrNothingStored
	}
	now, err := w.book(ctx, tx, in.runs, out, line)
	if err != nil {
		return out, added, err
	}
	if !u.repeats {
		if err := w.checkEarlier(ctx, tx, u.Readings, now); err != nil {
			return out, added, err
		}
	}
	added, err = w.quarantine.insert(ctx, tx, rejects)
	return out, added, err
}

func (w *Writer) copyIn(ctx context.Context, conn *pgconn.PgConn, readings []telemetry.Reading, runs []run) error {
	buf := w.buffers.Get().(*[]byte)
	defer w.buffers.Put(buf)
	*buf = appendCopy((*buf)[:0], readings, runs)
	_, err := conn.CopyFrom(ctx, bytes.NewReader(*buf), copyTelemetry)
	return err
}

// errDayEnded is a transaction whose rows are of a day that ended before it had taken the day's lock.
var errDayEnded = errors.New("the day has ended while the transaction was under way")

// book writes the ledger and the account, and returns the transaction's time. now() is also the rows' last_modified, so
// the lines' day is the rows' partition.
//
// It takes the day's lock, shared, and then reads the clock: from midnight on no transaction of the day passes here, and one
// that has passed holds the lock until it is visible. That is what drain waits for.
func (w *Writer) book(ctx context.Context, tx pgx.Tx, runs []run, out telemetry.Outcome, line int) (now time.Time, err error) {
	const q = `with ledger as (
			insert into telemetry_batch (first_id, last_id, row_count, day, source)
			select first, first + n - 1, n, (now() at time zone 'UTC')::date, $3
			from unnest($1::bigint[], $2::bigint[]) as r(first, n)
		), account as (
			insert into ingest_account as a (source, writer, received, stored, duplicate, quarantined)
			values ($3, $4, $5, $6, $7, $8)
			on conflict (source, writer) do update set received = a.received + excluded.received, stored = a.stored + excluded.stored,
				duplicate = a.duplicate + excluded.duplicate, quarantined = a.quarantined + excluded.quarantined, updated_at = now()
		)
		select pg_advisory_xact_lock_shared($9, (now() at time zone 'UTC')::date - date '2000-01-01')::text, now(), clock_timestamp()`
	firsts, ns := make([]int64, len(runs)), make([]int64, len(runs))
	for i, r := range runs {
		firsts[i], ns[i] = r.first, r.n
	}
	received := out.Stored + out.Duplicate + out.Quarantined
	var clock time.Time
	err = tx.QueryRow(ctx, q, firsts, ns, w.source, line, received, out.Stored, out.Duplicate, out.Quarantined, lockDay).
		Scan(nil, &now, &clock)
	switch {
	case err != nil:
		return now, fmt.Errorf("write the ledger: %w", err)
	case !dayOf(clock).Equal(dayOf(now)):
		return now, errDayEnded
	}
	if w.drained.Load() >= dayOf(now).Unix() { // the clock was set back over midnight: the day is not over yet
		w.drained.Store(0)
	}
	return now, nil
}

// dayOf is the midnight that begins t's UTC day.
func dayOf(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }
