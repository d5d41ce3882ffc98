package partman

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Paused says that nothing of a table retires: no partition is archived, detached or dropped, until somebody resumes it.
// Creating, repairs, and the second count of a day that has moved go on, and so does [LastRun].
type Paused struct {
	// Since is the database's time; of one paused again by the same, that of the first.
	Since time.Time `json:"since"`
	// By and Reason are for the person who finds it.
	By     string `json:"by"`
	Reason string `json:"reason,omitempty"`
}

func (p Paused) String() string {
	s := fmt.Sprintf("retiring is paused by %s since %s", p.By, p.Since.UTC().Format(time.RFC3339))
	if p.Reason != "" {
		s += ": " + p.Reason
	}
	return s
}

// ErrPaused is returned by Pause and Resume where another has paused the table: one must not end the other's pause.
var ErrPaused = errors.New("paused by another")

const pauseSQL = `
update %s set paused_at = coalesce(paused_at, date_trunc('second', now())), paused_by = $3, paused_reason = $4
 where (table_schema, table_name) = ($1, $2)`

// Pause ends the retiring of a table until Resume. It waits for the commit of what is leaving just now, a second at most:
// once it has returned nothing leaves. Paused again by the same, only the reason is replaced; paused by another it is ErrPaused,
// and stays that one's. By, if empty, is the database's role.
func Pause(ctx context.Context, db DB, schema, tableSchema, table, by, reason string) error {
	err := editPause(ctx, db, schema, tableSchema, table, func(tx pgx.Tx, p *Paused) error {
		if by == "" {
			if err := tx.QueryRow(ctx, "select current_user").Scan(&by); err != nil {
				return err
			}
		}
		if p != nil && p.By != by {
			return fmt.Errorf("%w: %s", ErrPaused, p)
		}
		_, err := tx.Exec(ctx, fmt.Sprintf(pauseSQL, ident(schema, "partition_policy")), tableSchema, table, by, reason)
		return err
	})
	if err != nil {
		return fmt.Errorf("pause the retiring of table %q: %w", tableSchema+"."+table, err)
	}
	return nil
}

const resumeSQL = `
update %s set paused_at = null, paused_by = null, paused_reason = null where (table_schema, table_name) = ($1, $2)`

// Resume ends the pause that by has set; whose ever it is where by is empty. A table that is not paused is left as it is. The
// pause of another is ErrPaused, and stays.
func Resume(ctx context.Context, db DB, schema, tableSchema, table, by string) error {
	err := editPause(ctx, db, schema, tableSchema, table, func(tx pgx.Tx, p *Paused) error {
		if p == nil {
			return nil
		}
		if by != "" && p.By != by {
			return fmt.Errorf("%w: %s", ErrPaused, p)
		}
		_, err := tx.Exec(ctx, fmt.Sprintf(resumeSQL, ident(schema, "partition_policy")), tableSchema, table)
		return err
	})
	if err != nil {
		return fmt.Errorf("resume the retiring of table %q: %w", tableSchema+"."+table, err)
	}
	return nil
}

// editPause calls edit with the pause of a table that has a policy, nil if there is none, and the policy's row locked.
func editPause(ctx context.Context, db DB, schema, tableSchema, table string, edit func(pgx.Tx, *Paused) error) error {
	return bounded(ctx, db, func(tx pgx.Tx) error {
		r, err := readRecord(ctx, tx, schema, Policy{Schema: tableSchema, Table: table}, true)
		if err != nil {
			return err
		}
		if !r.found {
			return ErrUnknownTable
		}
		return edit(tx, r.Paused)
	})
}

// LastRun returns when the last round of retiring of a table ended, by the database's clock; zero before the first. It goes
// on while the table is paused: a time long ago says that no manager keeps the table.
func LastRun(ctx context.Context, db DB, schema, tableSchema, table string) (last time.Time, err error) {
	err = bounded(ctx, db, func(tx pgx.Tx) error {
		r, err := readRecord(ctx, tx, schema, Policy{Schema: tableSchema, Table: table}, false)
		if err != nil {
			return err
		}
		if !r.found {
			return fmt.Errorf("last round of table %q: %w", tableSchema+"."+table, ErrUnknownTable)
		}
		last = r.LastRun
		return nil
	})
	return last, err
}

// pausedFor is for the metric: 0 where the table is not paused.
func (r Record) pausedFor(now time.Time) time.Duration {
	if r.Paused == nil {
		return 0
	}
	return max(0, now.Sub(r.Paused.Since))
}
