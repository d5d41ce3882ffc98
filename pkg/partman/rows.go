package partman

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The rows of a day that moves to the archive are counted twice: in the transaction of the move, under its SHARE lock,
// where only late writes to that day wait, and once it is committed, under nothing but the ACCESS SHARE of a query. In
// between the first count stands as a hold in partition_policy, written by the move's own transaction: whatever a crash
// leaves, the second count is planned from there, and until it agrees nothing takes the day out of the archive. A count of a
// million rows, 0.4 GB, took 0.1 s; the exclusive locks are asked for after it.

// recountWhy is the reason of the second count.
const recountWhy = "has the archive as many rows of this day as the table had?"

// countRows counts the rows of the partition that moves, and writes that down as a hold for table and archive.
func (m *Manager) countRows(ctx context.Context, tx pgx.Tx, a Action) error {
	count := RowCount{Table: a.Table, Archive: a.archive, Schema: a.leafSchema, Partition: a.Partition}
	var now time.Time
	err := tx.QueryRow(ctx, "select count(*), clock_timestamp() from "+ident(a.leafSchema, a.Partition)).Scan(&count.Before, &now)
	if err != nil {
		return err
	}
	h := Hold{From: a.From, To: a.To, By: "partman", Reason: "its rows are being counted", Since: now.UTC().Truncate(time.Second), Rows: &count}
	text, err := json.Marshal([]Hold{h})
	if err != nil {
		return err
	}
	const sql = `update %s set held = held || $1::jsonb where table_schema = $2 and table_name = any ($3)`
	_, err = tx.Exec(ctx, fmt.Sprintf(sql, ident(m.cfg.Schema, "partition_policy")), string(text), a.Schema, []string{a.Table, a.archive})
	return err
}

// recountRows counts them again, in the archive. As many as before end the hold; another number stays in it until a
// person releases the day.
func (m *Manager) recountRows(ctx context.Context, conn *pgxpool.Conn, a Action) error {
	var n int64
	if err := conn.QueryRow(ctx, "select count(*) from "+ident(a.leafSchema, a.Partition)).Scan(&n); err != nil {
		return fmt.Errorf("count the rows of %q in the archive: %w", a.Partition, err)
	}
	var wrong *RowCount
	err := bounded(ctx, conn, func(tx pgx.Tx) error {
		for _, table := range []string{a.Table, a.archive} {
			r, err := readRecord(ctx, tx, m.cfg.Schema, Policy{Schema: a.Schema, Table: table}, true)
			if err != nil {
				return err
			}
			held := slices.DeleteFunc(r.Held, func(h Hold) bool { return h.counting(a.Partition) && h.Rows.Before == n })
			for i := range held {
				if h := &held[i]; h.counting(a.Partition) {
					h.Rows.After, wrong = &n, h.Rows
					h.Reason = h.Rows.String()
				}
			}
			if err := writeHolds(ctx, tx, m.cfg.Schema, a.Schema, table, held); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && wrong != nil {
		err = fmt.Errorf("partition %q: %s", a.Partition, wrong)
	}
	return err
}

func (c RowCount) String() string {
	if c.After == nil {
		return fmt.Sprintf("%d rows in %q before the move", c.Before, c.Table)
	}
	return fmt.Sprintf("%d rows in %q before the move, %d in %q after it", c.Before, c.Table, *c.After, c.Archive)
}

// planCounts lists the second counts that a crash, or an error, left to do.
func planCounts(p Policy, s Snapshot) []Action {
	var actions []Action
	for _, h := range s.Record.Held {
		if !h.counting("") || h.Rows.Table != p.Table {
			continue
		}
		actions = append(actions, Action{
			Kind: Count, Schema: p.Schema, Table: p.Table, Partition: h.Rows.Partition, From: h.From, To: h.To,
			leafSchema: h.Rows.Schema, archive: h.Rows.Archive,
			Statements: []Statement{recountStatement(h.Rows.Schema, h.Rows.Partition)},
		})
	}
	return actions
}

// recountStatement takes ACCESS SHARE on the leaf for the length of the count.
func recountStatement(schema, leaf string) Statement {
	return Statement{Hook: HookRecount, Lock: "ACCESS SHARE", On: []string{schema + "." + leaf}, Why: recountWhy}
}

// rows finds the days of which the second count differed.
func (c *checker) rows() {
	for _, h := range c.s.Record.Held {
		if h.Rows != nil && h.Rows.After != nil && h.Rows.Table == c.p.Table {
			c.add(RowsDiffer, h.Rows.Partition, "%s; the day is held. Once that is understood: plenumctl partitions release %s",
				h.Rows, c.p.Step.label(h.From))
		}
	}
}
