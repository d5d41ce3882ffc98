package bluegreen

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

// Difference is a day of which both sides have other rows, of ids that are in no log.
type Difference struct {
	Table string    `json:"table"` // schema.table, the active side's name
	Day   time.Time `json:"day"`   // UTC
	// Blue and Green are how many rows each has.
	Blue  int64 `json:"blue"`
	Green int64 `json:"green"`
	// Rows are the first that only one side has; of a row that is another there, both.
	Rows []OnlyRow `json:"rows"`
}

// OnlyRow is a row that one side has, and the other has not.
type OnlyRow struct {
	Side Side   `json:"side"`
	ID   string `json:"id"`
	Row  string `json:"row"` // as text
}

func (d Difference) String() string {
	var all []string
	for _, r := range d.Rows {
		all = append(all, fmt.Sprintf("only %s has %s", r.Side, r.Row))
	}
	return fmt.Sprintf("%s on %s: %d rows in blue, %d in green; %s", d.Table, d.Day.Format(time.DateOnly), d.Blue, d.Green, strings.Join(all, ", "))
}

// comparableSQL is a side's rows within the scope, without the ids that are in the log, or refused: those stop a swap by themselves.
const comparableSQL = `
select %[1]s from %[2]s t where %[3]s >= $1::timestamptz and %[3]s < $2::timestamptz
   and not exists (select from %[4]s l where l.id = t.%[5]s) and not exists (select from %[4]s l where l.id is null)
   and not exists (select from %[6]s s where s.pair = %[7]d and s.id = t.%[5]s::text)`

// daysSQL: keys are timestamptz or dates, and the session's zone is UTC. A plain t would be a column of that name.
const daysSQL = `
with b as (select (%[1]s::timestamptz at time zone 'UTC')::date as day, count(*) as rows, sum(hashtextextended((t.*)::text, 0)) as checksum from (%[2]s) t group by 1),
     g as (select (%[1]s::timestamptz at time zone 'UTC')::date as day, count(*) as rows, sum(hashtextextended((t.*)::text, 0)) as checksum from (%[3]s) t group by 1)
select day, coalesce(b.rows, 0), coalesce(g.rows, 0) from b full join g using (day)
 where (b.rows, b.checksum) is distinct from (g.rows, g.checksum) order by day`

const onlySQL = `
with b as (select %[1]s::text as id, (t.*)::text as row from (%[2]s) t), g as (select %[1]s::text as id, (t.*)::text as row from (%[3]s) t)
select * from (
	(select 'blue' as side, id, row from (select * from b except all select * from g) x order by 2, 3 limit 5)
	 union all
	(select 'green', id, row from (select * from g except all select * from b) x order by 2, 3 limit 5)
) x order by id, side limit 5`

// Verify compares both sides, day by day, in one snapshot, but for ids that are in the log or that the passive side refuses, of which
// Status tells. It reads each of them once, and writes nothing.
func (m *Migration) Verify(ctx context.Context) (list []Difference, err error) {
	pairs, err := capturedPairs(ctx, m.cfg.Pool, m.cfg.Schema)
	if err != nil {
		return nil, err
	}
	for _, p := range pairs {
		if err := m.placed(ctx, m.cfg.Pool, p); err != nil {
			return nil, err
		}
	}
	conn, err := m.cfg.Pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer conn.Release()
	err = m.snapshot(ctx, conn.Conn(), func(tx pgx.Tx) error {
		list = nil
		var tables []string
		for _, p := range ordered(pairs) {
			tables = append(tables, p.table(Blue), p.table(Green))
		}
		// A TRUNCATE empties a table in every snapshot: it comes before ours, or waits.
		if _, err := tx.Exec(ctx, "lock table "+strings.Join(tables, ", ")+" in access share mode"); err != nil {
			return fmt.Errorf("lock the tables for reading: %w", err)
		}
		if pairs, err = capturedPairs(ctx, tx, m.cfg.Schema); err != nil {
			return err
		}
		for _, p := range pairs {
			if !p.Cursor.Done {
				return fmt.Errorf("table %s is not copied completely: run sync first", p.table(p.Active))
			}
			found, err := m.compare(ctx, tx, p)
			if err != nil {
				return fmt.Errorf("compare %s with %s: %w", p.table(Blue), p.table(Green), err)
			}
			list = append(list, found...)
		}
		return nil
	})
	return list, err
}

func (m *Migration) comparable(p Pair, s Side) string {
	return fmt.Sprintf(comparableSQL, p.columns(), p.table(s), p.key(), m.logTable(p), p.id(), m.own("bluegreen_stuck"), p.N)
}

func (m *Migration) compare(ctx context.Context, tx pgx.Tx, p Pair) (list []Difference, err error) {
	blue, green := m.comparable(p, Blue), m.comparable(p, Green)
	key := p.key()
	rows, err := tx.Query(ctx, fmt.Sprintf(daysSQL, key, blue, green), p.Low, p.High)
	if err != nil {
		return nil, err
	}
	list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Difference, error) {
		d := Difference{Table: partman.FormatName(p.Schema, p.Name)}
		return d, row.Scan(&d.Day, &d.Blue, &d.Green)
	})
	if err != nil {
		return nil, err
	}
	for n := range list {
		if n == namedDays {
			break
		}
		d := &list[n]
		rows, err := tx.Query(ctx, fmt.Sprintf(onlySQL, p.id(), blue, green), d.Day, d.Day.AddDate(0, 0, 1))
		if err != nil {
			return nil, err
		}
		if d.Rows, err = pgx.CollectRows(rows, pgx.RowToStructByPos[OnlyRow]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// namedDays bounds the days whose rows are named: each is read again.
const namedDays = 10
