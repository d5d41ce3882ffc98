package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Advisory lock classes, the first key of the two-key form.
const (
	lockFeedPosition int32 = 0x504c0001
	lockReconcile    int32 = 0x504c0002
	lockDay          int32 = 0x504c0003 // the second key is the day
	lockRetention    int32 = 0x504c0004 // what required consumers still need: retiring a day, or declaring a consumer
)

// maxAttempts is how often a line is tried before it is set aside.
const maxAttempts = 3

// maxLines bounds the lines of one claim.
const maxLines = 2000

// Marker marks pending lines' rows as processed. It is safe for concurrent use, also by several processes:
// each claim takes lines that no other has.
type Marker struct {
	pool  *pgxpool.Pool
	live  liveSince
	lines atomic.Int64 // how many lines the next claim takes
	began time.Time
	// recent is until when claims look at the latest days only, as time since began: a host clock that is set back must not prolong it.
	recent atomic.Int64
}

// recentFor is for how long claims leave the older days' parts of the ledger alone, once a look at all live days has found
// nothing there.
const recentFor = time.Second

// NewMarker returns a Marker on pool.
func NewMarker(pool *pgxpool.Pool) *Marker {
	m := &Marker{pool: pool, began: time.Now()}
	m.lines.Store(1)
	return m
}

// Marked is what one transaction of Mark did.
type Marked struct {
	Lines    int
	Rows     int
	SetAside int // lines given up after their third mismatch
}

// A MismatchError is a mark that updated another number of rows than its lines count. It was rolled back.
type MismatchError struct {
	Day           time.Time
	Lines         int
	Updated, Want int
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("mark %d lines of %s: %d rows updated, the ledger counts %d",
		e.Lines, e.Day.Format(time.DateOnly), e.Updated, e.Want)
}

// Mark claims pending lines, oldest first, of about maxRows rows in all, sets processed on their rows and gives
// the lines feed positions, in one transaction. Lines that another transaction holds are passed over. Where the
// counts differ it marks the claimed lines one by one, so that only the faulty ones stay behind.
func (m *Marker) Mark(ctx context.Context, maxRows int) (Marked, error) {
	live, err := m.live.get(ctx, m.pool)
	if err != nil {
		return Marked{}, err
	}
	var claimed []Line
	err = pgx.BeginFunc(ctx, m.pool, func(tx pgx.Tx) error {
		if claimed, err = m.claim(ctx, tx, live, maxRows); err != nil {
			return err
		}
		return markLines(ctx, tx, claimed)
	})
	if mismatch := (*MismatchError)(nil); errors.As(err, &mismatch) {
		return m.markSingly(ctx, claimed)
	}
	if err != nil {
		return Marked{}, fmt.Errorf("mark batch: %w", err)
	}
	done := Marked{Lines: len(claimed)}
	for _, l := range claimed {
		done.Rows += l.Rows
	}
	m.adapt(done, maxRows)
	return done, nil
}

// adapt sizes the next claim by this one: lines beyond maxRows would be locked for nothing.
func (m *Marker) adapt(done Marked, maxRows int) {
	if done.Lines == 0 {
		return
	}
	want := int64(maxRows) * int64(done.Lines) / int64(done.Rows)
	m.lines.Store(max(1, min(want, 2*int64(done.Lines), maxLines)))
}

const claimSQL = `select ` + lineColumns + ` from telemetry_batch
	where processed_at is null and set_aside_at is null and day >= $1
	order by batch_id limit $2 for update skip locked`

// claim takes the oldest lines. As long as there are none of older days, it looks at the latest only: a look at each live day costs
// more than the marking.
func (m *Marker) claim(ctx context.Context, tx pgx.Tx, live liveDays, maxRows int) ([]Line, error) {
	now, latest := time.Since(m.began), live.latest()
	if int64(now) < m.recent.Load() {
		claimed, err := claim(ctx, tx, latest, m.lines.Load(), maxRows)
		if err != nil || len(claimed) > 0 {
			return claimed, err
		}
	}
	claimed, err := claim(ctx, tx, live.first, m.lines.Load(), maxRows)
	if !slices.ContainsFunc(claimed, func(l Line) bool { return l.Day.Before(latest) }) {
		m.recent.Store(int64(now + recentFor))
	}
	return claimed, err
}

func claim(ctx context.Context, tx pgx.Tx, since time.Time, lines int64, maxRows int) ([]Line, error) {
	rows, err := tx.Query(ctx, claimSQL, since, lines)
	if err != nil {
		return nil, err
	}
	claimed, err := pgx.CollectRows(rows, scanLine)
	if err != nil {
		return nil, err
	}
	total := 0
	for i, l := range claimed {
		if total += l.Rows; total > maxRows && i > 0 {
			return claimed[:i], nil
		}
	}
	return claimed, nil
}

func markLines(ctx context.Context, tx pgx.Tx, lines []Line) error {
	if len(lines) == 0 {
		return nil
	}
	for rest := lines; len(rest) > 0; {
		var day []Line
		day, rest = cutDay(rest)
		if err := markDay(ctx, tx, day); err != nil {
			return err
		}
	}
	return position(ctx, tx, lines)
}

// cutDay returns the leading lines of one day, and the others.
func cutDay(lines []Line) (day, rest []Line) {
	n := 1
	for n < len(lines) && lines[n].Day.Equal(lines[0].Day) {
		n++
	}
	return lines[:n], lines[n:]
}

// MarkSQL is the update the package exists for, of the rows with ids $1 in the day from $2 to $3: the day's bounds, not the
// batch's exact times, so that the planner takes the id index of one partition and no BRIN bitmap.
const MarkSQL = `update telemetry set processed = true where id = any($1) and last_modified >= $2 and last_modified < $3`

func markDay(ctx context.Context, tx pgx.Tx, lines []Line) error {
	var ids []int64
	want := 0
	for i := range lines {
		ids = lines[i].appendIDs(ids)
		want += lines[i].Rows
	}
	from, to := lines[0].day()
	tag, err := tx.Exec(ctx, MarkSQL, ids, from, to)
	if err != nil {
		return err
	}
	if got := int(tag.RowsAffected()); got != want {
		return &MismatchError{Day: from, Lines: len(lines), Updated: got, Want: want}
	}
	return nil
}

const positionSQL = `with p as materialized (
		select batch_id, nextval('telemetry_feed_position_seq') as position from unnest($1::bigint[]) as l(batch_id))
	update telemetry_batch b set processed_at = clock_timestamp(), feed_position = p.position, attempts = b.attempts + 1
	from p where b.batch_id = p.batch_id and b.processed_at is null and b.day >= $2 and b.day <= $3`

// position is the last statement before the commit. The lock is held until the commit is visible, so positions
// become visible in order, whatever else runs.
func position(ctx context.Context, tx pgx.Tx, lines []Line) error {
	ids := make([]int64, len(lines))
	first, last := lines[0].Day, lines[0].Day
	for i, l := range lines {
		ids[i] = l.BatchID
		if l.Day.Before(first) {
			first = l.Day
		}
		if l.Day.After(last) {
			last = l.Day
		}
	}
	if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1, hashtext(current_schema()))`, lockFeedPosition); err != nil {
		return err
	}
	tag, err := tx.Exec(ctx, positionSQL, ids, first, last)
	if err != nil {
		return err
	}
	if got := int(tag.RowsAffected()); got != len(lines) {
		return fmt.Errorf("position %d lines: %d updated", len(lines), got)
	}
	return nil
}

func (m *Marker) markSingly(ctx context.Context, lines []Line) (Marked, error) {
	var done Marked
	for _, l := range lines {
		one, err := m.markOne(ctx, l)
		done.Lines, done.Rows, done.SetAside = done.Lines+one.Lines, done.Rows+one.Rows, done.SetAside+one.SetAside
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// markOne marks one line if it is still pending, and counts an attempt against it if its rows differ.
func (m *Marker) markOne(ctx context.Context, l Line) (Marked, error) {
	const claimOne = `select ` + lineColumns + ` from telemetry_batch
		where batch_id = $1 and day = $2 and processed_at is null and set_aside_at is null for update skip locked`
	var done Marked
	err := pgx.BeginFunc(ctx, m.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, claimOne, l.BatchID, l.Day)
		if err != nil {
			return err
		}
		lines, err := pgx.CollectRows(rows, scanLine)
		if err != nil || len(lines) == 0 {
			return err
		}
		done = Marked{Lines: 1, Rows: lines[0].Rows}
		return markLines(ctx, tx, lines)
	})
	if mismatch := (*MismatchError)(nil); errors.As(err, &mismatch) {
		return m.countAttempt(ctx, l, mismatch)
	}
	if err != nil {
		return Marked{}, fmt.Errorf("mark batch %d: %w", l.BatchID, err)
	}
	return done, nil
}

func (m *Marker) countAttempt(ctx context.Context, l Line, mismatch *MismatchError) (Marked, error) {
	const q = `update telemetry_batch set attempts = attempts + 1, detail = $3,
			set_aside_at = case when attempts + 1 >= $4 then now() end
		where batch_id = $1 and day = $2 and processed_at is null and set_aside_at is null
		returning (set_aside_at is not null)::int`
	var done Marked
	err := m.pool.QueryRow(ctx, q, l.BatchID, l.Day, mismatch.Error(), maxAttempts).Scan(&done.SetAside)
	if errors.Is(err, pgx.ErrNoRows) {
		return Marked{}, nil
	}
	if err != nil {
		return Marked{}, fmt.Errorf("count attempt of batch %d: %w", l.BatchID, err)
	}
	return done, nil
}

// Pending is the state of the ledger's unprocessed part.
type Pending struct {
	Lines    int64
	SetAside int64
	Oldest   time.Duration // age of the oldest pending line that is not set aside; 0 if none
}

// Pending counts the pending lines.
func (m *Marker) Pending(ctx context.Context) (Pending, error) {
	const q = `select count(*) filter (where set_aside_at is null), count(*) filter (where set_aside_at is not null),
			coalesce(extract(epoch from now() - min(created_at) filter (where set_aside_at is null)), 0)::float8
		from telemetry_batch where processed_at is null and day >= $1`
	var p Pending
	live, err := m.live.get(ctx, m.pool)
	if err != nil {
		return p, err
	}
	var age float64
	if err := m.pool.QueryRow(ctx, q, live.first).Scan(&p.Lines, &p.SetAside, &age); err != nil {
		return p, fmt.Errorf("count pending batches: %w", err)
	}
	p.Oldest = time.Duration(max(age, 0) * float64(time.Second))
	return p, nil
}
