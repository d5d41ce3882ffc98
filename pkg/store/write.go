package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/pkg/telemetry"
)

// Writer stores batches. It is safe for concurrent use; each transaction is on a connection of its own.
type Writer struct {
	pool       *pgxpool.Pool
	source     string
	missingDay func(context.Context) error
	quarantine *Quarantine
	buffers    sync.Pool    // of *[]byte, for COPY
	lines      lineNumbers  // of ingest_account
	drained    atomic.Int64 // the day, as Unix time, of which no transaction is under way any more
}

// NewWriter returns a Writer whose ledger lines and account carry source; another process must not use it at the same
// time. missingDay is called when a row finds no partition; it makes today's.
func NewWriter(pool *pgxpool.Pool, source string, missingDay func(context.Context) error) *Writer {
	return &Writer{
		pool: pool, source: source, missingDay: missingDay, quarantine: &Quarantine{max: math.MaxInt64},
		buffers: sync.Pool{New: func() any { return new([]byte) }},
	}
}

// Bound makes the writer keep to q's bound; without it there is none. To be called before the first Write.
func (w *Writer) Bound(q *Quarantine) { w.quarantine = q }

// maxSplits bounds the halvings of one Write. A single refused row among 5000 takes 13.
const maxSplits = 256

// Write commits the batch: its readings, their ledger lines, its rejects; in one transaction, unless PostgreSQL
// refuses a row. Then it halves the batch until that row is alone, and quarantines it; maxSplits times, which then is an error.
//
// On error the outcome counts what was committed all the same, and b holds the rest, of which nothing is known to be
// stored: after a COMMIT without an answer it may be, and a second Write finds the readings as duplicates.
func (w *Writer) Write(ctx context.Context, b *telemetry.Batch) (telemetry.Outcome, error) {
	done, err := w.commit(ctx, unit{Batch: *b})
	if !causedByRow(err) {
		return done, err
	}
	rest := *b
	if done, err = w.split(ctx, &rest); err != nil {
		*b = rest
	}
	return done, err
}

// split stores b from its front, in parts that are halved while a row of them is refused, so that b is the rest at any time.
func (w *Writer) split(ctx context.Context, b *telemetry.Batch) (done telemetry.Outcome, err error) {
	out, err := w.commit(ctx, unit{Batch: telemetry.Batch{Rejects: b.Rejects}})
	if err != nil {
		return done, err
	}
	done.Add(out)
	b.Rejects = nil
	halve := func(n int) []int { return []int{n - n/2, n / 2} } // the first part is the last
	parts := halve(len(b.Readings))
	for splits := 1; len(b.Readings) > 0; {
		last := len(parts) - 1
		n := parts[last]
		parts = parts[:last]
		out, err := w.commit(ctx, unit{Batch: telemetry.Batch{Readings: b.Readings[:n]}})
		switch {
		case err == nil:
		case !causedByRow(err):
			return done, err
		case n > 1 && splits == maxSplits:
			return done, fmt.Errorf("refused rows are left after halving the batch %d times: %w", splits, err)
		case n > 1:
			splits++
			parts = append(parts, halve(n)...)
			continue
		default:
			if out, err = w.refuse(ctx, &b.Readings[0], err); err != nil {
				return done, err
			}
		}
		done.Add(out)
		b.Readings = b.Readings[n:]
	}
	return done, nil
}

// refuse quarantines a reading that PostgreSQL refused alone.
func (w *Writer) refuse(ctx context.Context, r *telemetry.Reading, why error) (telemetry.Outcome, error) {
	out, err := w.commit(ctx, unit{Batch: telemetry.Batch{Rejects: []telemetry.Reject{r.Reject(telemetry.RejectedByDatabase, refusal(why))}}})
	out.RejectedByDatabase = out.Quarantined
	return out, err
}

// refusal is what PostgreSQL said, for a person.
func refusal(why error) string {
	var pg *pgconn.PgError
	if !errors.As(why, &pg) {
		return errForeignIndex.Error()
	}
	text := fmt.Sprintf("PostgreSQL: %s (SQLSTATE %s)", pg.Message, pg.Code)
	if pg.Detail != "" && !strings.HasPrefix(pg.Detail, "Failing row contains") { // the row is at hand
		text += ": " + pg.Detail
	}
	return text
}

// errForeignIndex is a reading that was not inserted, although its identity is not stored.
var errForeignIndex = errors.New("meets a unique index that is not the identity's: somebody has added one to the table")

// readingError is an error of the statement that inserts readings.
type readingError struct{ error }

func (e readingError) Unwrap() error { return e.error }

// causedByRow tells what one of the readings brought about from all that comes of the state of the system: after it the
// same batch would fail for ever, after all else it may succeed later.
func causedByRow(err error) bool {
	var reading readingError
	if !errors.As(err, &reading) {
		return false
	}
	code, constraint := sqlState(err)
	switch code {
	case "":
		return errors.Is(err, errForeignIndex)
	case "23502", "54000", "54001":
		return true
	case "23514":
		return constraint != "" // without one: no partition takes the row
	}
	return strings.HasPrefix(code, "22")
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

// errRepeats is a batch that holds readings which an earlier day has.
var errRepeats = errors.New("readings of the batch are stored in an earlier day")

// meetsRepeats tells that the batch holds readings that are stored already (23505), or that another writer is
// storing at this moment in another order (40P01).
func meetsRepeats(err error) bool {
	code, _ := sqlState(err)
	return code == "23505" || code == "40P01" || errors.Is(err, errRepeats)
}
