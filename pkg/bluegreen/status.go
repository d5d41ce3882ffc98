package bluegreen

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

// Status is where a migration stands.
type Status struct {
	Active Side          `json:"active"`
	Tables []TableStatus `json:"tables"`
	// Next are the commands that can be given now, the most likely one first.
	Next []string `json:"next"`
	// Blocked is what stops a swap to the other side, apart from what only verify finds.
	Blocked []string `json:"blocked"`
	// Rollback is what a swap to the other side would cost now.
	Rollback Cost `json:"rollback"`
}

// Cost of a swap: what has to be drained first, for which nobody waits.
type Cost struct {
	Entries int64         `json:"entries"` // of the logs, about
	Drain   time.Duration `json:"drain"`   // about, in ns
	// Locked bounds the time for which others are held up, in ns.
	Locked time.Duration `json:"locked"`
}

// TableStatus is that of one pair.
type TableStatus struct {
	Table     string     `json:"table"` // schema.table
	Passive   string     `json:"passive"`
	Low       time.Time  `json:"low"` // green's scope is [low, high)
	High      time.Time  `json:"high"`
	Copied    bool       `json:"copied"`
	Rows      int64      `json:"rows"`    // copied so far
	Total     int64      `json:"total"`   // of the active side, as the last ANALYZE found
	Entries   int64      `json:"entries"` // in the log, about
	Stuck     []Stuck    `json:"stuck"`   // the first ids that the passive side refuses
	SwappedAt *time.Time `json:"swapped_at"`

	aside []string
}

// Status looks, without a lock, and writes nothing.
func (m *Migration) Status(ctx context.Context) (s Status, err error) {
	lost := false // a side is not where it was
	err = m.reading(ctx, func(tx pgx.Tx) error {
		pairs, err := capturedPairs(ctx, tx, m.cfg.Schema)
		if err != nil {
			return err
		}
		s.Active = pairs[0].Active
		for _, p := range pairs {
			t, err := m.tableStatus(ctx, tx, p)
			if err != nil {
				return err
			}
			s.Tables = append(s.Tables, t)
			s.Rollback.Entries += t.Entries
			s.Blocked = append(s.Blocked, t.Blocked()...)
			if err := m.placed(ctx, tx, p); err != nil {
				s.Blocked, lost = append(s.Blocked, err.Error()), true
				continue
			}
			fault, err := m.drift(ctx, tx, p)
			if err != nil {
				return err
			}
			if fault != "" {
				s.Blocked = append(s.Blocked, fault)
			}
			if p.Active == Green {
				continue
			}
			if fault, err = m.kept(ctx, tx, p); err != nil {
				return err
			}
			if fault != "" {
				s.Blocked = append(s.Blocked, fault)
			}
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	s.Rollback.Drain, s.Rollback.Locked = drainTime(s.Rollback.Entries), m.cfg.Budget
	if s.Active == Blue && !lost {
		found, err := m.Findings(ctx)
		if err != nil {
			return s, err
		}
		for _, f := range Unaccepted(found) {
			s.Blocked = append(s.Blocked, fmt.Sprintf("%s is not accepted: %s", f.Name, f.What))
		}
	}
	s.Next = s.next()
	return s, nil
}

// Tables is the part of Status that takes no time.
func (m *Migration) Tables(ctx context.Context) (list []TableStatus, err error) {
	err = m.reading(ctx, func(tx pgx.Tx) error {
		pairs, err := capturedPairs(ctx, tx, m.cfg.Schema)
		for _, p := range pairs {
			t, err := m.tableStatus(ctx, tx, p)
			if err != nil {
				return err
			}
			list = append(list, t)
		}
		return err
	})
	return list, err
}

func (m *Migration) tableStatus(ctx context.Context, tx pgx.Tx, p Pair) (t TableStatus, err error) {
	t = TableStatus{
		Table: partman.FormatName(p.Schema, p.Name), Passive: partman.FormatName(p.Schema, p.name(p.Active.other())), Low: p.Low, High: p.High,
		Copied: p.Cursor.Done, Rows: p.Cursor.Rows, aside: m.aside(p),
	}
	if t.Entries, err = m.entries(ctx, tx, p); err != nil {
		return t, err
	}
	if t.Stuck, err = m.stuck(ctx, tx, p); err != nil {
		return t, fmt.Errorf("look for what table %s refuses: %w", t.Passive, err)
	}
	if err = tx.QueryRow(ctx, totalSQL, p.oid(p.Active)).Scan(&t.Total); err != nil {
		return t, fmt.Errorf("look at the size of table %s: %w", t.Table, err)
	}
	err = tx.QueryRow(ctx, fmt.Sprintf("select swapped_at from %s where n = $1", m.own("bluegreen_pair")), p.N).Scan(&t.SwappedAt)
	return t, err
}

// Blocked is what stops a swap of this table, of what the status tells.
func (t TableStatus) Blocked() (list []string) {
	if !t.Copied {
		list = append(list, fmt.Sprintf("%s is not copied completely", t.Table))
	}
	for _, s := range t.Stuck {
		list = append(list, fmt.Sprintf("%s refuses %s", t.Passive, s))
	}
	if len(t.Stuck) > 0 {
		list = append(list, "or keep these rows apart, and put them right later: "+strings.Join(t.aside, "; "))
	}
	return list
}

// next are names of plenumctl's commands.
func (s Status) next() []string {
	copied := true
	for _, t := range s.Tables {
		copied = copied && t.Copied
	}
	switch {
	case s.Active == Green && len(s.Blocked) > 0:
		return []string{"sync", "finish"}
	case s.Active == Green:
		return []string{"rollback", "sync", "verify", "finish"}
	case !copied:
		return []string{"sync", "abort"}
	case len(s.Blocked) > 0:
		return []string{"init --accept", "sync", "verify", "abort"}
	}
	return []string{"swap", "sync", "verify", "abort"}
}
