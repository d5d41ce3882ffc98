package partman

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// A clock that is wrong makes days look old. What it may be off by, before nothing is archived, detached or dropped:
const (
	// maxBack is how far it may lie before the last round: two servers of a failover.
	maxBack = 5 * time.Minute
	// maxAhead is how far it may lie after the last round. Whoever was away for longer says so, once.
	maxAhead = 48 * time.Hour
	// maxSkew is how far the database's clock and the host's may be apart.
	maxSkew = time.Hour
)

// acceptCommand ends a finding of the clock.
const acceptCommand = "plenumctl partitions apply --accept-clock"

// clockFault says what is wrong with the clock at now, empty if nothing is. Where nothing ever retires it does not matter.
func clockFault(p Policy, s Snapshot, now time.Time) string {
	if s.Record.Fault != "" {
		return s.Record.Fault
	}
	if p.Retention == 0 && len(s.Detached) == 0 {
		return ""
	}
	if fault := skewFault(s); fault != "" {
		return fault
	}
	last := s.Record.LastRun
	gap := now.Sub(last)
	switch {
	case last.IsZero() || gap >= -maxBack && gap <= maxAhead:
		return ""
	case gap < 0:
		return fmt.Sprintf("the database's clock shows %s, and the last round was at %s: it went back by %s. Nothing retires until it has "+
			"caught up. If it is right now: %s", now.UTC().Format(time.RFC3339), last.UTC().Format(time.RFC3339), (-gap).Round(time.Second), acceptCommand)
	default:
		return fmt.Sprintf("the database's clock shows %s, and the last round was at %s, %s before. Nothing retires. If the clock is right: %s",
			now.UTC().Format(time.RFC3339), last.UTC().Format(time.RFC3339), gap.Round(time.Second), acceptCommand)
	}
}

func skewFault(s Snapshot) string {
	if s.Skew.Abs() <= maxSkew {
		return ""
	}
	way := "ahead of"
	if s.Skew < 0 {
		way = "behind"
	}
	return fmt.Sprintf("the database's clock is %s %s this host's. Nothing retires until one of them has been set right",
		s.Skew.Abs().Round(time.Second), way)
}

// AcceptClock makes the database's clock of now the last round's: a person has found it right. It does not make two clocks
// agree that do not: that is an error.
func (m *Manager) AcceptClock(ctx context.Context, table string) error {
	p, err := m.policy(ctx, table)
	if err != nil {
		return err
	}
	s, err := m.inspect(ctx, m.cfg.Pool, p)
	if err != nil {
		return err
	}
	if fault := skewFault(s); fault != "" {
		return fmt.Errorf("accept the clock for table %q: %s", p.String(), fault)
	}
	return m.ran(ctx, p, s.Now)
}

// alive keeps the time of a round of all tables by a clock that no table doubts, for those too whose own round failed: that
// their table cannot be looked at says nothing of the clock.
func (m *Manager) alive(ctx context.Context, at time.Time) error {
	return bounded(ctx, m.cfg.Pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf("update %s set last_run = $1 where last_run < $1", ident(m.cfg.Schema, "partition_policy")), at)
		return err
	})
}

// complete keeps the time of a round that went through all that there was to retire. A clock in doubt is not written down.
func (m *Manager) complete(ctx context.Context, p Policy, s Snapshot) error {
	if s.Now.IsZero() || ctx.Err() != nil || clockFault(p, s, s.Now) != "" {
		return nil
	}
	return m.ran(ctx, p, s.Now)
}

const ranSQL = `update %s set last_run = $3 where (table_schema, table_name) = ($1, $2)`

func (m *Manager) ran(ctx context.Context, p Policy, at time.Time) error {
	err := bounded(ctx, m.cfg.Pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf(ranSQL, ident(m.cfg.Schema, "partition_policy")), p.Schema, p.Table, at)
		return err
	})
	if err != nil {
		return fmt.Errorf("write down the time of the round: %w", err)
	}
	return nil
}

func (c *checker) clock() {
	if fault := clockFault(c.p, c.s, c.now); fault != "" {
		c.doubt = true
		c.add(ClockDoubt, "", "%s", fault)
	}
}
