package partman

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Retention is the part of a policy that says what leaves the table, and when. Where a new one keeps less than the one in
// force, it waits for a person's word: a typing error must not cost a day.
type Retention struct {
	Step         Step          `json:"step"`
	Retention    int           `json:"retention"`
	Expired      string        `json:"expired"`
	ArchiveTable string        `json:"archive_table,omitempty"`
	Grace        time.Duration `json:"grace_ns"`
}

// ErrNothingPending is returned by Confirm where no retention waits.
var ErrNothingPending = errors.New("no retention of this table waits for confirmation")

func (p Policy) retention() Retention {
	return Retention{p.Step, p.Retention, p.Expired, p.ArchiveTable, p.Grace}
}

// with returns the policy with another retention; nil leaves it as it is.
func (p Policy) with(r *Retention) Policy {
	if r != nil {
		p.Step, p.Retention, p.Expired, p.ArchiveTable, p.Grace = r.Step, r.Retention, r.Expired, r.ArchiveTable, r.Grace
	}
	return p
}

func (r Retention) String() string {
	if r.Retention == 0 {
		return "all kept"
	}
	text := fmt.Sprintf("%d %ss, then %s", r.Retention, r.Step, r.Expired)
	if r.Expired == ExpiredDrop {
		text += fmt.Sprintf(" after %s", Policy{Grace: r.Grace}.grace())
	}
	return text
}

// keeping returns next with as much of p's retention as keeps more: the number, what becomes of the expired, the grace.
func (p Policy) keeping(next Policy) Policy {
	for _, at := range []time.Time{ // the first and the last instant of every step: in between a day keeps less than its hours, or more
		time.Date(2028, 12, 31, 0, 0, 0, 0, time.UTC), time.Date(2028, 12, 31, 23, 59, 59, 0, time.UTC),
	} {
		before, limited := Boundary(p, at)
		after, limits := Boundary(next, at)
		if limits && (!limited || after.After(before)) {
			next.Step, next.Retention = p.Step, p.Retention
		}
	}
	if p.Expired == ExpiredArchive && next.Expired == ExpiredDrop {
		next.Expired, next.ArchiveTable = p.Expired, p.ArchiveTable
	}
	if next.grace() < p.grace() {
		next.Grace = p.Grace
	}
	return next
}

// Confirm puts the retention that waits in force, and returns it with the one that it replaces.
func (m *Manager) Confirm(ctx context.Context, table string) (before, after Retention, err error) {
	p, err := m.policy(ctx, table)
	if err != nil {
		return before, after, err
	}
	err = bounded(ctx, m.cfg.Pool, func(tx pgx.Tx) error {
		r, err := readRecord(ctx, tx, m.cfg.Schema, p, true)
		if err != nil {
			return err
		}
		if r.Pending == nil {
			return ErrNothingPending
		}
		list, _, err := readPolicies(ctx, tx, m.cfg.Schema, "where (table_schema, table_name) = ($1, $2)", p.Schema, p.Table)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return fmt.Errorf("%w: its row in partition_policy has become none", ErrUnknownTable)
		}
		before, after = list[0].retention(), *r.Pending
		confirmed := list[0].with(r.Pending)
		if err := confirmed.Validate(); err != nil {
			return err
		}
		return writePolicy(ctx, tx, m.cfg.Schema, confirmed, nil)
	})
	if err != nil {
		return before, after, fmt.Errorf("confirm the retention of table %q: %w", p.String(), err)
	}
	return before, after, nil
}

// named is the table as a command takes it: with its schema where that is not partition_policy's.
func (r Record) named(p Policy) string {
	if r.Schema == p.Schema || r.Schema == "" {
		return shellQuote(formatPart(p.Table))
	}
	return ShellName(p.Schema, p.Table)
}

func (c *checker) pending() {
	if w := c.s.Record.Pending; w != nil {
		c.add(Unconfirmed, "", "the policy wants %s, which keeps less than what is in force, %s: plenumctl partitions apply --confirm-retention --table %s",
			w, c.p.retention(), c.s.Record.named(c.p))
	}
}
