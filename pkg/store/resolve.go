package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Where the rows of a ledger line are.
const (
	InLive    = "live"    // telemetry
	InArchive = "archive" // telemetry_archive
	Nowhere   = "nowhere" // none is left
)

// A Resolution is what Resolve found of a ledger line, and what it did.
type Resolution struct {
	Line
	Processed bool
	SetAside  bool
	Where     string // one of InLive, InArchive, Nowhere
	Found     int    // rows with the line's ids
	Doubled   int    // of these, rows whose id another one before them has
	Stray     int    // of these, unprocessed rows of a processed line

	Count   int    // row_count as it is now; 0: the line was deleted
	Deleted bool   // no row was left for it
	Freed   bool   // the line was set aside or had failed tries, and is pending again
	Moved   []Line // lines that were made for rows that got ids of their own
}

// Changed says whether anything was, or has to be, changed.
func (r Resolution) Changed() bool {
	return r.Deleted || r.Freed || len(r.Moved) > 0 || r.Count != r.Rows
}

// ErrUnknownBatch is returned for a line that the ledger does not have.
var ErrUnknownBatch = errors.New("the ledger has no such batch")

// resolveLockTimeout bounds the wait for rows that somebody else changes at the moment.
const resolveLockTimeout = "2s"

// Resolve brings a ledger line and its rows together, in one transaction that locks these rows alone. The line counts what is
// there, and is pending again if it was set aside. A row whose id another one has, and an unprocessed row of a processed line,
// get an id and a line of their own. A line without rows is deleted. With dryRun it only says what it would do.
//
// Rows in the archive are handed on no more: there the count is corrected, and rows too many are an error.
func Resolve(ctx context.Context, owner *pgxpool.Pool, batchID int64, dryRun bool) (Resolution, error) {
	var r Resolution
	tx, err := owner.Begin(ctx)
	if err != nil {
		return r, fmt.Errorf("resolve batch %d: %w", batchID, err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after a commit there is nothing to roll back
	if err := resolve(ctx, tx, batchID, dryRun, &r); err != nil {
		return r, fmt.Errorf("resolve batch %d: %w", batchID, whoHolds(err))
	}
	if err := tx.Commit(ctx); err != nil {
		return r, fmt.Errorf("resolve batch %d: %w", batchID, err)
	}
	return r, nil
}

func whoHolds(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "55P03" {
		return fmt.Errorf("somebody holds the line or its rows for over %s, plenumctl doctor says who; nothing was changed: %w", resolveLockTimeout, err)
	}
	return err
}

func resolve(ctx context.Context, tx pgx.Tx, batchID int64, dryRun bool, r *Resolution) error {
	if _, err := tx.Exec(ctx, `select set_config('lock_timeout', $1, true)`, resolveLockTimeout); err != nil {
		return err
	}
	if err := r.readLine(ctx, tx, batchID); err != nil {
		return err
	}
	if err := r.shared(ctx, tx); err != nil {
		return err
	}
	rows, err := r.readRows(ctx, tx)
	if err != nil {
		return err
	}
	stay, move := r.sort(rows)
	r.Count = len(stay)
	if r.Count == 0 {
		gone, err := r.handedOn(ctx, tx)
		if err != nil {
			return err
		}
		r.Deleted = !gone
		if gone {
			r.Count = r.Rows // the day was dropped in time, and its lines follow
		}
	}
	if r.Where == InArchive && !r.Processed {
		return fmt.Errorf("its %d rows stand in the archive and were never marked, and from there nothing is handed on; insert what is to be handed on into telemetry again, delete it in telemetry_archive, and resolve the batch again",
			r.Found)
	}
	if r.Where == InArchive && len(move) > 0 {
		return fmt.Errorf("%d rows too many stand in the archive, from which nothing is handed on (the first: id %d of %s); insert what is to be handed on into telemetry again, delete it there, and resolve the batch again",
			len(move), move[0].id, r.Day.Format(time.DateOnly))
	}
	if dryRun {
		r.Moved = planned(move)
		return nil
	}
	if r.Moved, err = r.move(ctx, tx, move); err != nil {
		return err
	}
	return r.write(ctx, tx)
}

// readLine locks the line.
func (r *Resolution) readLine(ctx context.Context, tx pgx.Tx, batchID int64) error {
	const q = `select ` + lineColumns + `, processed_at is not null, set_aside_at is not null, attempts > 0 or set_aside_at is not null
		from telemetry_batch where batch_id = $1 for update`
	err := tx.QueryRow(ctx, q, batchID).Scan(&r.BatchID, &r.FirstID, &r.LastID, &r.Rows, &r.Day, &r.CreatedAt, &r.Position,
		&r.Processed, &r.SetAside, &r.Freed)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrUnknownBatch
	}
	r.Day = r.Day.UTC()
	if r.Processed {
		r.SetAside, r.Freed = false, false
	}
	return err
}

// shared refuses a line that has ids in common with another one of its day: both would hand the rows on, and no count of theirs is right.
func (r *Resolution) shared(ctx context.Context, tx pgx.Tx) error {
	const q = `select batch_id, source, greatest(first_id, $3), least(last_id, $4) from telemetry_batch
		where day = $1 and batch_id <> $2 and last_id >= $3 and first_id <= $4 order by batch_id limit 1`
	var other, first, last int64
	var source string
	err := tx.QueryRow(ctx, q, r.Day, r.BatchID, r.FirstID, r.LastID).Scan(&other, &source, &first, &last)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for lines with the same ids: %w", err)
	}
	return fmt.Errorf("batch %d (source %q) has the ids %d…%d too, so one of the two was written by hand: delete that line from telemetry_batch, then resolve the other",
		other, source, first, last)
}

// A placed row is one with the line's ids.
type placed struct {
	id        int64
	place     string // ctid, in the day's partition
	processed bool
}

// readRows locks the line's rows, by id and within an id by place, and says where they are.
func (r *Resolution) readRows(ctx context.Context, tx pgx.Tx) ([]placed, error) {
	const live = `select id, ctid::text, processed from telemetry where id between $1 and $2 and last_modified >= $3 and last_modified < $4
		order by id, ctid for update`
	const archive = `select id, ctid::text, processed from telemetry_archive where id between $1 and $2 and last_modified >= $3 and last_modified < $4
		order by id, ctid for update`
	inLive, err := r.query(ctx, tx, live)
	if err != nil {
		return nil, err
	}
	inArchive, err := r.query(ctx, tx, archive)
	switch {
	case err != nil:
		return nil, err
	case len(inLive) > 0 && len(inArchive) > 0:
		return nil, fmt.Errorf("%d of its rows are in telemetry and %d in telemetry_archive: move them to one of the two by hand, then resolve the batch again",
			len(inLive), len(inArchive))
	case len(inLive) > 0:
		r.Where = InLive
		return inLive, nil
	case len(inArchive) > 0:
		r.Where = InArchive
		return inArchive, nil
	}
	r.Where = Nowhere
	return nil, nil
}

func (r *Resolution) query(ctx context.Context, tx pgx.Tx, sql string) ([]placed, error) {
	from, to := r.day()
	rows, err := tx.Query(ctx, sql, r.FirstID, r.LastID, from, to)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (placed, error) {
		var p placed
		err := row.Scan(&p.id, &p.place, &p.processed)
		return p, err
	})
}

// sort returns the rows that stay with the line, and those that need ids of their own. One of each id stays. Of a processed line
// only processed rows have been handed on: they stay, those whose id stands twice too, as long as the line counts as many.
func (r *Resolution) sort(rows []placed) (stay, move []placed) {
	r.Found = len(rows)
	var doubled []placed
	ids := map[int64]bool{}
	for _, p := range rows {
		switch {
		case r.Processed && !p.processed:
			r.Stray++
			move = append(move, p)
		case ids[p.id]:
			doubled = append(doubled, p)
		default:
			ids[p.id] = true
			stay = append(stay, p)
		}
	}
	r.Doubled = len(doubled)
	if r.Processed {
		n := min(len(doubled), max(r.Rows-len(stay), 0))
		stay, doubled = append(stay, doubled[:n]...), doubled[n:]
	}
	return stay, append(move, doubled...)
}

// handedOn says whether a processed line without rows is of a day that was dropped when its time had come.
func (r *Resolution) handedOn(ctx context.Context, tx pgx.Tx) (bool, error) {
	if !r.Processed || r.Found > 0 {
		return false, nil
	}
	var horizon int64
	err := tx.QueryRow(ctx, `select position from feed_horizon`).Scan(&horizon)
	return r.Position <= horizon, err
}

// planned is what move would make, without ids.
func planned(move []placed) []Line {
	if len(move) == 0 {
		return nil
	}
	return []Line{{Rows: len(move)}}
}

// move gives each row a fresh id and makes lines of them, which are marked like any other.
func (r *Resolution) move(ctx context.Context, tx pgx.Tx, move []placed) (lines []Line, err error) {
	const update = `update telemetry t set id = n.id, processed = false from unnest($1::text[], $2::bigint[]) as n(place, id)
		where t.ctid = n.place::tid and t.last_modified >= $3 and t.last_modified < $4`
	const insert = `insert into telemetry_batch (first_id, last_id, row_count, day, source) values ($1, $2, $3, $4, 'resolve')
		returning ` + lineColumns
	if len(move) == 0 {
		return nil, nil
	}
	fresh, err := blocksOf(tx.Conn()).take(ctx, tx.Conn(), int64(len(move)))
	if err != nil {
		return nil, err
	}
	places := make([]string, len(move))
	for i, p := range move {
		places[i] = p.place
	}
	from, to := r.day()
	tag, err := tx.Exec(ctx, update, places, firstIDs(fresh, len(move)), from, to)
	if err != nil {
		return nil, fmt.Errorf("give %d rows ids of their own: %w", len(move), err)
	}
	if got := tag.RowsAffected(); got != int64(len(move)) {
		return nil, fmt.Errorf("give %d rows ids of their own: %d updated", len(move), got)
	}
	for _, f := range fresh {
		rows, err := tx.Query(ctx, insert, f.first, f.last(), f.n, r.Day)
		if err != nil {
			return nil, err
		}
		line, err := pgx.CollectExactlyOneRow(rows, scanLine)
		if err != nil {
			return nil, fmt.Errorf("insert a ledger line of %d rows: %w", f.n, err)
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// write makes the line count what stays with it.
func (r *Resolution) write(ctx context.Context, tx pgx.Tx) error {
	const q = `update telemetry_batch set row_count = $3, set_aside_at = null,
			attempts = case when processed_at is null then 0 else attempts end, detail = case when processed_at is null then null else detail end
		where batch_id = $1 and day = $2`
	const drop = `delete from telemetry_batch where batch_id = $1 and day = $2`
	var err error
	switch {
	case r.Deleted:
		_, err = tx.Exec(ctx, drop, r.BatchID, r.Day)
	case r.Count != r.Rows || r.Freed:
		_, err = tx.Exec(ctx, q, r.BatchID, r.Day, r.Count)
	}
	return err
}
