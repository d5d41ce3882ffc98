package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/telemetry"
)

// A Statement is one that runs all day, with arguments as it gets them. An index must find its rows.
type Statement struct {
	Name  string // one of StatementNames
	SQL   string // the constant that the program runs
	Args  []any
	Needs []StatementNeed
}

// A StatementNeed is the column that each partition of the table has to be found by.
type StatementNeed struct {
	Table, Column string
	Partial       bool // the index is partial, and may be walked from its beginning
}

// StatementNames are those of Statements: a closed set.
var StatementNames = []string{"claim", "mark", "position", "duplicates", "feed_lines", "feed_rows", "feed_run"}

// Statements lists the statements that run all day, those on a day of telemetry for each of the live days, which ascend.
func Statements(days []time.Time) []Statement {
	if len(days) == 0 {
		return nil
	}
	ledger := func(column string) []StatementNeed { return []StatementNeed{{"telemetry_batch", column, true}} }
	ids := make([]int64, 50)
	for i := range ids {
		ids[i] = int64(i)
	}
	first, last := days[0], days[len(days)-1]
	list := []Statement{
		{"claim", claimSQL, []any{first, int64(10)}, ledger("batch_id")},
		{"position", positionSQL, []any{ids[:10], first, last}, ledger("batch_id")},
		{"feed_lines", feedLinesSQL, []any{int64(1), int64(100)}, ledger("feed_position")},
	}
	reading := turn([]*telemetry.Reading{{DeviceID: "d", Kind: "k", RecordedAt: last, Metrics: []byte("{}")}}).args()
	byID := []StatementNeed{{"telemetry", "id", false}, {"telemetry_archive", "id", false}}
	for _, from := range days {
		to := from.Add(24 * time.Hour)
		list = append(list,
			Statement{"mark", MarkSQL, []any{ids, from, to}, []StatementNeed{{"telemetry", "id", false}}},
			Statement{"duplicates", lookUpSQL, append(reading[:len(reading):len(reading)], from, to), []StatementNeed{{"telemetry", "device_id", false}}},
			Statement{"feed_rows", feedIDs, []any{ids, from, to}, byID},
			Statement{"feed_run", feedRun, []any{int64(0), int64(5000), from, to}, byID},
		)
	}
	return list
}

// LiveDays returns the days that telemetry has a partition for, ascending.
func LiveDays(ctx context.Context, tx pgx.Tx) ([]time.Time, error) {
	const q = `select d from (select (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\)'))[1]::timestamptz as d
		from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'telemetry'::regclass) p
		where d is not null order by d`
	rows, err := tx.Query(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("list live days: %w", err)
	}
	days, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (time.Time, error) {
		var t time.Time
		err := row.Scan(&t)
		return t.UTC(), err
	})
	if err != nil {
		return nil, fmt.Errorf("list live days: %w", err)
	}
	return days, nil
}
