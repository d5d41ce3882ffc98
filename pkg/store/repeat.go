package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/telemetry"
)

// maxClockLead is how far ahead a device's clock may be for its readings to be looked up in yesterday no longer than for
// that after midnight. One that is ahead by more is looked up for as long as it is.
const maxClockLead = time.Hour

// mayBeOfYesterday tells whether the reading can have been stored before the day of now. What the broker sends again it may have
// sent then, whatever the device's clock says.
func mayBeOfYesterday(r *telemetry.Reading, now time.Time) bool {
	return r.Redelivered || r.RecordedAt.Before(dayOf(now).Add(maxClockLead)) || r.RecordedAt.After(now.Add(maxClockLead))
}

// columns is readings turned by 90 degrees, for unnest.
type columns struct {
	recordedAt []time.Time
	seqs       []*int64
	devices    []string
	kinds      []string
	payloads   []string
}

func turn(readings []*telemetry.Reading) columns {
	n := len(readings)
	c := columns{make([]time.Time, n), make([]*int64, n), make([]string, n), make([]string, n), make([]string, n)}
	for i, r := range readings {
		c.recordedAt[i], c.devices[i], c.kinds[i], c.payloads[i] = r.RecordedAt, r.DeviceID, r.Kind, string(r.Metrics)
		if r.Seq != telemetry.NoSeq {
			c.seqs[i] = &r.Seq
		}
	}
	return c
}

func (c columns) args() []any { return []any{c.recordedAt, c.seqs, c.devices, c.kinds, c.payloads} }

// A match is a stored row of a reading's identity.
type match struct {
	id    int64
	equal bool // the payload too
}

const lookUpSQL = `select r.place - 1, t.id, t.payload = r.payload::jsonb
	from unnest($1::timestamptz[], $2::bigint[], $3::text[], $4::text[], $5::text[])
		with ordinality as r(recorded_at, seq, device_id, kind, payload, place)
	cross join lateral (
		select t.id, t.payload from telemetry t
		where t.device_id = r.device_id and t.kind = r.kind and t.recorded_at = r.recorded_at and t.seq = r.seq
			and t.last_modified >= $6 and t.last_modified < $7
		union all
		select t.id, t.payload from telemetry t
		where r.seq is null and t.device_id = r.device_id and t.kind = r.kind and t.recorded_at = r.recorded_at and t.seq is null
			and t.last_modified >= $6 and t.last_modified < $7
		limit 1) t`

// lookUp finds rows of the readings' identities with last_modified in [from, to), by the reading's place. A lateral with a
// limit is a nested loop over the identity indexes, where a plain join may hash whole days. A missing seq has a branch of its own,
// because IS NOT DISTINCT FROM is no index condition: a device whose clock stands still has a day of rows that differ in seq alone.
func lookUp(ctx context.Context, tx pgx.Tx, readings []*telemetry.Reading, from, to time.Time) (map[int]match, error) {
	if len(readings) == 0 {
		return nil, nil
	}
	rows, err := tx.Query(ctx, lookUpSQL, append(turn(readings).args(), from, to)...)
	if err != nil {
		return nil, readingError{err}
	}
	matches := map[int]match{}
	var place int
	var m match
	_, err = pgx.ForEachRow(rows, []any{&place, &m.id, &m.equal}, func() error {
		matches[place] = m
		return nil
	})
	if err != nil {
		return nil, readingError{err}
	}
	return matches, nil
}

// lookUpEarlier finds rows of the readings in the live days before that of now: of retained ones in all, of those that
// mayBeOfYesterday in yesterday. It asks nothing for all others.
func (w *Writer) lookUpEarlier(ctx context.Context, tx pgx.Tx, readings []telemetry.Reading, now time.Time) (map[*telemetry.Reading]match, error) {
	var ofYesterday, retained []*telemetry.Reading
	for i := range readings {
		switch r := &readings[i]; {
		case r.Retained:
			retained = append(retained, r)
		case mayBeOfYesterday(r, now):
			ofYesterday = append(ofYesterday, r)
		}
	}
	if len(ofYesterday)+len(retained) == 0 {
		return nil, nil
	}
	today := dayOf(now)
	yesterday := today.Add(-24 * time.Hour)
	if err := w.drain(ctx, tx, yesterday); err != nil {
		return nil, err
	}
	found := map[*telemetry.Reading]match{}
	for _, part := range []struct {
		readings []*telemetry.Reading
		from     time.Time
	}{{ofYesterday, yesterday}, {retained, time.Time{}}} {
		matches, err := lookUp(ctx, tx, part.readings, part.from, today)
		if err != nil {
			return nil, fmt.Errorf("look up readings in earlier days: %w", err)
		}
		for place, m := range matches {
			found[part.readings[place]] = m
		}
	}
	return found, nil
}

// checkEarlier returns errRepeats if one of the readings is stored in an earlier day.
func (w *Writer) checkEarlier(ctx context.Context, tx pgx.Tx, readings []telemetry.Reading, now time.Time) error {
	found, err := w.lookUpEarlier(ctx, tx, readings, now)
	if err == nil && len(found) > 0 {
		err = errRepeats
	}
	return err
}

// drain waits until no transaction of the day, which has ended, is under way any more: see book. It asks once a day.
func (w *Writer) drain(ctx context.Context, tx pgx.Tx, day time.Time) error {
	const q = `select pg_advisory_lock($1, n)::text, pg_advisory_unlock($1, n)::text from (select $2::date - date '2000-01-01' as n) d`
	if w.drained.Load() >= day.Unix() {
		return nil
	}
	if _, err := tx.Exec(ctx, q, lockDay, day); err != nil {
		return fmt.Errorf("wait for the transactions of %s: %w", day.Format(time.DateOnly), err)
	}
	w.drained.Store(day.Unix())
	return nil
}

type inserted struct {
	runs      []run
	outcome   telemetry.Outcome
	conflicts []telemetry.Reject
}

// judge counts a reading that is stored already.
func (in *inserted) judge(r *telemetry.Reading, m match) {
	if m.equal {
		in.outcome.Duplicate++
		return
	}
	in.outcome.Conflicts++
	in.conflicts = append(in.conflicts, conflict(r, m.id))
}

// insertNew stores the readings whose identity is new; an equal one already there makes a duplicate, one with
// another payload a conflict. runs hold an id for each.
func (w *Writer) insertNew(ctx context.Context, tx pgx.Tx, readings []telemetry.Reading, runs []run) (in inserted, err error) {
	now, err := transactionTime(ctx, tx)
	if err != nil {
		return in, err
	}
	earlier, err := w.lookUpEarlier(ctx, tx, readings, now)
	if err != nil {
		return in, err
	}
	var fresh []*telemetry.Reading
	for i := range readings {
		r := &readings[i]
		if m, found := earlier[r]; found {
			in.judge(r, m)
		} else {
			fresh = append(fresh, r)
		}
	}
	repeats, err := in.insertFresh(ctx, tx, fresh, runs)
	if err != nil {
		return in, err
	}
	matches, err := lookUp(ctx, tx, repeats, dayOf(now), dayOf(now).Add(24*time.Hour))
	if err != nil {
		return in, fmt.Errorf("look up repeated readings: %w", err)
	}
	for i, r := range repeats {
		m, found := matches[i]
		if !found {
			return in, readingError{errForeignIndex}
		}
		in.judge(r, m)
	}
	return in, nil
}

// insertFresh inserts what today's leaf has not, and returns what it has. ON CONFLICT without a target covers the unique
// index that only the leaf has. The readings go in in order of identity, so that two writers with the same ones wait for each other
// and do not deadlock.
func (in *inserted) insertFresh(ctx context.Context, tx pgx.Tx, readings []*telemetry.Reading, runs []run) (repeats []*telemetry.Reading, err error) {
	const q = `insert into telemetry (id, recorded_at, seq, device_id, kind, payload)
		select id, recorded_at, seq, device_id, kind, payload::jsonb
		from unnest($1::bigint[], $2::timestamptz[], $3::bigint[], $4::text[], $5::text[], $6::text[])
			with ordinality as r(id, recorded_at, seq, device_id, kind, payload, place)
		order by device_id, kind, recorded_at, seq, place
		on conflict do nothing
		returning id`
	if len(readings) == 0 {
		in.runs = nil
		return nil, nil
	}
	ids := firstIDs(runs, len(readings))
	rows, err := tx.Query(ctx, q, append([]any{ids}, turn(readings).args()...)...)
	if err != nil {
		return nil, readingError{err}
	}
	done := make(map[int64]bool, len(readings))
	var id int64
	if _, err := pgx.ForEachRow(rows, []any{&id}, func() error { done[id] = true; return nil }); err != nil {
		return nil, readingError{err}
	}
	in.outcome.Stored = len(done)
	for i, id := range ids {
		if done[id] {
			in.runs = appendRun(in.runs, run{id, 1})
		} else {
			repeats = append(repeats, readings[i])
		}
	}
	return repeats, nil
}

func conflict(r *telemetry.Reading, stored int64) telemetry.Reject {
	seq := "none"
	if r.Seq != telemetry.NoSeq {
		seq = fmt.Sprint(r.Seq)
	}
	return r.Reject(telemetry.Conflict, fmt.Sprintf("row %d has the same identity and another payload: device_id %q, kind %q, recorded_at %s, seq %s",
		stored, r.DeviceID, r.Kind, r.RecordedAt.Format(time.RFC3339Nano), seq))
}

// transactionTime is now(), the last_modified of the transaction's rows.
func transactionTime(ctx context.Context, tx pgx.Tx) (now time.Time, err error) {
	if err = tx.QueryRow(ctx, `select now()`).Scan(&now); err != nil {
		err = fmt.Errorf("read the transaction's time: %w", err)
	}
	return now, err
}
