package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/pkg/telemetry"
)

// Writer stores batches. It is safe for concurrent use; each Write is one transaction on a connection of its own.
type Writer struct {
	pool       *pgxpool.Pool
	source     string
	missingDay func(context.Context) error
	quarantine *Quarantine
	buffers    sync.Pool // of *[]byte, for COPY
}

// NewWriter returns a Writer whose ledger lines carry source. missingDay is called when a row finds no
// partition; it makes today's.
func NewWriter(pool *pgxpool.Pool, source string, missingDay func(context.Context) error) *Writer {
	return &Writer{
		pool: pool, source: source, missingDay: missingDay, quarantine: &Quarantine{max: math.MaxInt64},
		buffers: sync.Pool{New: func() any { return new([]byte) }},
	}
}

// Bound makes the writer keep to q's bound; without it there is none. To be called before the first Write.
func (w *Writer) Bound(q *Quarantine) { w.quarantine = q }

// Write commits the batch: its readings, their ledger lines, its rejects. On error nothing of it is known to
// be stored: after a COMMIT without an answer it may be, and a second Write finds the readings as duplicates.
func (w *Writer) Write(ctx context.Context, b *telemetry.Batch) (telemetry.Outcome, error) {
	repeats, asked := false, false
	for {
		out, err := w.tryWrite(ctx, b, repeats)
		switch {
		case isNoPartition(err) && !asked:
			asked = true
			if err := w.missingDay(ctx); err != nil {
				return telemetry.Outcome{}, fmt.Errorf("no partition takes the rows: %w", err)
			}
		case meetsRepeats(err) && !repeats:
			repeats = true
		default:
			return out, err
		}
	}
}

func (w *Writer) tryWrite(ctx context.Context, b *telemetry.Batch, repeats bool) (out telemetry.Outcome, err error) {
	conn, err := w.pool.Acquire(ctx)
	if err != nil {
		return out, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer conn.Release()
	var runs []run
	if len(b.Readings) > 0 {
		if runs, err = blocksOf(conn.Conn()).take(ctx, conn.Conn(), int64(len(b.Readings))); err != nil {
			return out, err
		}
	}
	var added quarantined
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		out, added, err = w.insert(ctx, tx, b, runs, repeats)
		return err
	})
	if err != nil {
		return telemetry.Outcome{}, fmt.Errorf("store %d readings and %d rejects: %w", len(b.Readings), len(b.Rejects), err)
	}
	w.quarantine.committed(added)
	return out, nil
}

func (w *Writer) insert(ctx context.Context, tx pgx.Tx, b *telemetry.Batch, runs []run, repeats bool) (out telemetry.Outcome, added quarantined, err error) {
	out = telemetry.Outcome{Stored: len(b.Readings)}
	rejects := b.Rejects
	switch {
	case len(b.Readings) == 0:
	case repeats:
		fresh, err := insertNew(ctx, tx, b.Readings, runs)
		if err != nil {
			return out, added, err
		}
		runs, out = fresh.runs, fresh.outcome
		rejects = append(rejects[:len(rejects):len(rejects)], fresh.conflicts...)
	default:
		if err := w.copyIn(ctx, tx.Conn().PgConn(), b.Readings, runs); err != nil {
			return out, added, err
		}
	}
	if err := insertLines(ctx, tx, runs, w.source); err != nil {
		return out, added, err
	}
	out.Quarantined = len(rejects)
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

// insertLines writes the ledger. now() is the transaction's time, as in the rows' last_modified, so the
// line's day is the rows' partition.
func insertLines(ctx context.Context, tx pgx.Tx, runs []run, source string) error {
	if len(runs) == 0 {
		return nil
	}
	const q = `insert into telemetry_batch (first_id, last_id, row_count, day, source)
		select first, first + n - 1, n, (now() at time zone 'UTC')::date, $3
		from unnest($1::bigint[], $2::bigint[]) as r(first, n)`
	firsts, ns := make([]int64, len(runs)), make([]int64, len(runs))
	for i, r := range runs {
		firsts[i], ns[i] = r.first, r.n
	}
	_, err := tx.Exec(ctx, q, firsts, ns, source)
	return err
}

func sqlState(err error) (code, constraint string) {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code, pg.ConstraintName
	}
	return "", ""
}

// isNoPartition tells "no partition of relation found for row" (23514 without a constraint) from a CHECK.
func isNoPartition(err error) bool {
	code, constraint := sqlState(err)
	return code == "23514" && constraint == ""
}

// meetsRepeats tells that the batch holds readings that are stored already (23505), or that another writer is
// storing at this moment in another order (40P01).
func meetsRepeats(err error) bool {
	code, _ := sqlState(err)
	return code == "23505" || code == "40P01"
}
