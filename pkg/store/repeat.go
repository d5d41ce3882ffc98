package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/telemetry"
)

// columns is a batch turned by 90 degrees, for unnest.
type columns struct {
	ids        []int64
	recordedAt []time.Time
	seqs       []*int64
	devices    []string
	kinds      []string
	payloads   []string
}

func turn(readings []telemetry.Reading, runs []run) columns {
	n := len(readings)
	c := columns{make([]int64, 0, n), make([]time.Time, n), make([]*int64, n), make([]string, n), make([]string, n), make([]string, n)}
	for _, r := range runs {
		for id := r.first; id <= r.last(); id++ {
			c.ids = append(c.ids, id)
		}
	}
	for i := range readings {
		r := &readings[i]
		c.recordedAt[i], c.devices[i], c.kinds[i], c.payloads[i] = r.RecordedAt, r.DeviceID, r.Kind, string(r.Metrics)
		if r.Seq != telemetry.NoSeq {
			c.seqs[i] = &r.Seq
		}
	}
	return c
}

func (c columns) args() []any {
	return []any{c.ids, c.recordedAt, c.seqs, c.devices, c.kinds, c.payloads}
}

type inserted struct {
	runs      []run
	outcome   telemetry.Outcome
	conflicts []telemetry.Reject
}

// insertNew stores the readings whose identity is new; an equal one already there makes a duplicate, one with
// another payload a conflict. ON CONFLICT without a target covers the unique index that only the leaf has. They are
// inserted in order of identity, so that two writers with the same ones wait for each other and do not deadlock.
func insertNew(ctx context.Context, tx pgx.Tx, readings []telemetry.Reading, runs []run) (inserted, error) {
	const q = `insert into telemetry (id, recorded_at, seq, device_id, kind, payload)
		select id, recorded_at, seq, device_id, kind, payload::jsonb
		from unnest($1::bigint[], $2::timestamptz[], $3::bigint[], $4::text[], $5::text[], $6::text[])
			with ordinality as r(id, recorded_at, seq, device_id, kind, payload, place)
		order by device_id, kind, recorded_at, seq, place
		on conflict do nothing
		returning id`
	c := turn(readings, runs)
	rows, err := tx.Query(ctx, q, c.args()...)
	if err != nil {
		return inserted{}, err
	}
	var in inserted
	done := make(map[int64]bool, len(readings))
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return in, err
		}
		done[id] = true
	}
	if err := rows.Err(); err != nil {
		return in, err
	}
	for _, id := range c.ids {
		if done[id] {
			in.runs = appendRun(in.runs, run{id, 1})
		}
	}
	in.outcome.Stored = len(done)
	return in, in.judgeRepeats(ctx, tx, readings, c, done)
}

// judgeRepeats looks up each reading that was not inserted: a lateral with a limit is a nested loop over the identity
// index, where a plain join may hash the whole day.
func (in *inserted) judgeRepeats(ctx context.Context, tx pgx.Tx, readings []telemetry.Reading, c columns, done map[int64]bool) error {
	const q = `select r.id, t.id, t.payload = r.payload::jsonb
		from unnest($1::bigint[], $2::timestamptz[], $3::bigint[], $4::text[], $5::text[], $6::text[])
			as r(id, recorded_at, seq, device_id, kind, payload)
		cross join lateral (select t.id, t.payload from telemetry t
			where t.device_id = r.device_id and t.kind = r.kind and t.recorded_at = r.recorded_at
				and t.seq is not distinct from r.seq and t.last_modified >= $7 and t.last_modified < $8
			limit 1) t`
	var repeats []telemetry.Reading
	var ids []run
	for i, id := range c.ids {
		if !done[id] {
			repeats = append(repeats, readings[i])
			ids = append(ids, run{id, 1})
		}
	}
	if len(repeats) == 0 {
		return nil
	}
	from, to, err := transactionDay(ctx, tx)
	if err != nil {
		return err
	}
	rows, err := tx.Query(ctx, q, append(turn(repeats, ids).args(), from, to)...)
	if err != nil {
		return err
	}
	defer rows.Close()
	index := make(map[int64]int, len(repeats))
	for i, r := range ids {
		index[r.first] = i
	}
	judged := 0
	for rows.Next() {
		var id, stored int64
		var equal bool
		if err := rows.Scan(&id, &stored, &equal); err != nil {
			return err
		}
		judged++
		if equal {
			in.outcome.Duplicate++
			continue
		}
		in.conflicts = append(in.conflicts, conflict(&repeats[index[id]], stored))
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if judged != len(repeats) {
		return fmt.Errorf("%d repeated readings match %d stored ones", len(repeats), judged)
	}
	return nil
}

func conflict(r *telemetry.Reading, stored int64) telemetry.Reject {
	seq := "none"
	if r.Seq != telemetry.NoSeq {
		seq = fmt.Sprint(r.Seq)
	}
	return r.Reject(telemetry.Conflict, fmt.Sprintf("row %d has the same identity and another payload: device_id %q, kind %q, recorded_at %s, seq %s",
		stored, r.DeviceID, r.Kind, r.RecordedAt.Format(time.RFC3339Nano), seq))
}

// transactionDay returns the bounds of the UTC day of the transaction's time.
func transactionDay(ctx context.Context, tx pgx.Tx) (from, to time.Time, err error) {
	var now time.Time
	if err := tx.QueryRow(ctx, `select now()`).Scan(&now); err != nil {
		return from, to, err
	}
	from = now.UTC().Truncate(24 * time.Hour)
	return from, from.Add(24 * time.Hour), nil
}
