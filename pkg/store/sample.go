package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Sample is a batch to try statements on: rows of several days.
type Sample struct {
	Days    []SampleDay
	Pending bool // of lines that are not processed yet, which the transaction has locked: the worker passes over them
}

// SampleDay is a sample's share of one day.
type SampleDay struct {
	From, To time.Time
	IDs      []int64
	Times    []time.Time // last_modified of each
}

// IDs are those of all days.
func (s *Sample) IDs() (ids []int64) {
	for _, d := range s.Days {
		ids = append(ids, d.IDs...)
	}
	return ids
}

// Times are the first and the last last_modified; zero where there are no rows.
func (s *Sample) Times() (first, last time.Time) {
	for _, d := range s.Days {
		for _, t := range d.Times {
			if first.IsZero() || t.Before(first) {
				first = t
			}
			if t.After(last) {
				last = t
			}
		}
	}
	return first, last
}

// TakeSample takes up to n rows, about as many of each live day, of the lines that were processed last. Where none is processed yet,
// it locks pending ones that nobody else has, until tx ends.
func TakeSample(ctx context.Context, tx pgx.Tx, n int) (Sample, error) {
	const processed = `select ` + lineColumns + ` from telemetry_batch where day = $1 and feed_position is not null order by feed_position desc limit $2`
	const pending = `select ` + lineColumns + ` from telemetry_batch where day = $1 and processed_at is null and set_aside_at is null
		order by batch_id limit $2 for update skip locked`
	days, err := LiveDays(ctx, tx)
	if err != nil {
		return Sample{}, err
	}
	for _, q := range []string{processed, pending} {
		s := Sample{Pending: q == pending}
		for _, from := range days {
			d, err := sampleDay(ctx, tx, q, from, n)
			if err != nil {
				return s, fmt.Errorf("choose rows of %s: %w", from.Format(time.DateOnly), err)
			}
			if len(d.IDs) > 0 {
				s.Days = append(s.Days, d)
			}
		}
		if s.cut(n); len(s.Days) > 0 {
			return s, nil
		}
	}
	return Sample{}, nil
}

// sampleDay returns the latest rows, n at most, of a day's lines.
func sampleDay(ctx context.Context, tx pgx.Tx, lines string, from time.Time, n int) (SampleDay, error) {
	const q = `select id, last_modified from telemetry where id = any($1) and last_modified >= $2 and last_modified < $3 order by id desc limit $4`
	d := SampleDay{From: from, To: from.Add(24 * time.Hour)}
	rows, err := tx.Query(ctx, lines, from, n)
	if err != nil {
		return d, err
	}
	chosen, err := pgx.CollectRows(rows, scanLine)
	if err != nil {
		return d, err
	}
	var ids []int64
	for _, l := range chosen {
		ids = l.appendIDs(ids)
		if len(ids) >= n {
			break
		}
	}
	if len(ids) == 0 {
		return d, nil
	}
	if rows, err = tx.Query(ctx, q, ids, d.From, d.To, n); err != nil {
		return d, err
	}
	var id int64
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &at}, func() error {
		d.IDs, d.Times = append(d.IDs, id), append(d.Times, at.UTC())
		return nil
	})
	return d, err
}

// cut leaves n rows, as evenly spread over the days as can be.
func (s *Sample) cut(n int) {
	have := make([]int, len(s.Days))
	for left, progress := n, true; left > 0 && progress; {
		progress = false
		for i := range s.Days {
			if left > 0 && have[i] < len(s.Days[i].IDs) {
				have[i], left, progress = have[i]+1, left-1, true
			}
		}
	}
	for i := range s.Days {
		d := &s.Days[i]
		d.IDs, d.Times = d.IDs[:have[i]], d.Times[:have[i]]
	}
	s.Days = slices.DeleteFunc(s.Days, func(d SampleDay) bool { return len(d.IDs) == 0 })
}

// A Variant is a way to write the marking update. It gets the ids, and where Daily is set, once a day, the day's bounds.
type Variant struct {
	Name  string
	SQL   string
	Daily bool
	Exact bool // gets the first and the last last_modified of the rows
	Bare  bool // gets nothing
}

// MarkVariants are the live statement, and others that were tried in its place.
var MarkVariants = []Variant{
	{Name: "live: a statement a day, with the day's bounds", SQL: MarkSQL, Daily: true},
	{Name: "by id alone", SQL: `update telemetry set processed = true where id = any($1)`},
	{Name: "by id within 8 days", SQL: `update telemetry set processed = true where id = any($1) and last_modified >= now() - interval '8 days'`},
	{Name: "by id within 1 day", SQL: `update telemetry set processed = true where id = any($1) and last_modified >= now() - interval '1 day'`},
	{
		Name: "by id within the batch's exact times", Exact: true,
		SQL: `update telemetry set processed = true where id = any($1) and last_modified >= $2 and last_modified <= $3`,
	},
}
