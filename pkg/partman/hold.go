package partman

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Record is what partition_policy remembers of a table besides its policy.
type Record struct {
	// Schema is that of partition_policy; a table elsewhere is named with its own.
	Schema string
	// LastRun is the database's time at the end of the last round of retiring; zero before the first.
	LastRun time.Time
	// Pending waits for a person's word; nil where nothing does.
	Pending *Retention
	// Held are the holds, in the order in which they were set.
	Held []Hold
	// Paused is set while nothing of the table retires.
	Paused *Paused
	// Fault says that what waits and what is held cannot be read: nothing retires.
	Fault string

	found bool // there is a row of that table
}

// Hold keeps every partition that overlaps a range: it is not archived, detached or dropped until the hold is released.
type Hold struct {
	// From and To are the range in UTC, From included, To not.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// By, Reason and Since are for the person who finds it. Since is the database's time.
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
	// Rows is set where the hold is the manager's own: the rows of a moved day are being counted, or have become others.
	Rows *RowCount `json:"rows,omitempty"`
}

// RowCount is how many rows a day had before it moved to the archive, and has there.
type RowCount struct {
	// Table lost the partition and Archive has it, in one schema; Schema and Partition name the leaf.
	Table     string `json:"table"`
	Archive   string `json:"archive"`
	Schema    string `json:"schema"`
	Partition string `json:"partition"`
	Before    int64  `json:"before"`
	// After is nil until they have been counted.
	After *int64 `json:"after,omitempty"`
}

func (h Hold) String() string {
	s := fmt.Sprintf("held by %s since %s", h.By, h.Since.UTC().Format(time.RFC3339))
	if h.Reason != "" {
		s += ": " + h.Reason
	}
	return s
}

func (h Hold) counting(partition string) bool {
	return h.Rows != nil && h.Rows.After == nil && (partition == "" || h.Rows.Partition == partition)
}

// held returns the hold on what lies between two instants, nil if there is none.
func (r Record) held(from, to time.Time) *Hold {
	for n, h := range r.Held {
		if h.From.Before(to) && h.To.After(from) {
			return &r.Held[n]
		}
	}
	return nil
}

// hindrance is what of the snapshot keeps a partition, attached or detached, that is due: a pause, a hold, or its size.
func hindrance(s Snapshot, from, to time.Time, bytes int64) *Blocked {
	if p := s.Record.Paused; p != nil {
		return &Blocked{Reason: "paused", Detail: p.String()}
	}
	if h := s.Record.held(from, to); h != nil {
		return &Blocked{Reason: "held", Detail: h.String()}
	}
	if s.MaxRetireBytes > 0 && bytes > s.MaxRetireBytes {
		return &Blocked{Reason: "size", Detail: fmt.Sprintf("its %d bytes are more than one round may take, max_retire_bytes %d: raise that",
			bytes, s.MaxRetireBytes)}
	}
	return nil
}

// hindered counts what is due and stays, by reason.
func hindered(p Policy, s Snapshot, now time.Time) map[string]int {
	counts := make(map[string]int)
	fault := clockFault(p, s, now)
	count := func(from, to time.Time, bytes int64) {
		if fault != "" {
			counts["clock"]++
		} else if b := hindrance(s, from, to, bytes); b != nil {
			counts[b.Reason]++
		}
	}
	boundary, limited := Boundary(p, now)
	for _, leaf := range s.Partitions {
		if limited && leaf.expired(boundary) {
			count(leaf.From, leaf.To, leaf.Bytes)
		}
	}
	for _, d := range s.Detached {
		if p.drops(d, now) {
			count(d.From, d.To, d.Bytes)
		}
	}
	return counts
}

// Hold sets a hold on a range for a table, or for every table that has a policy where none is named. One of the same
// person on exactly this range is replaced. The range needs no partition yet. Since is set here, and By, if empty, to the database's role.
func (m *Manager) Hold(ctx context.Context, table string, h Hold) error {
	if !h.From.Before(h.To) {
		return fmt.Errorf("hold from %s to %s: the end must come after the start", h.From, h.To)
	}
	return m.editHolds(ctx, table, func(now time.Time, role string, held []Hold) []Hold {
		h.Since = now
		if h.By == "" {
			h.By = role
		}
		held = slices.DeleteFunc(held, func(o Hold) bool { return o.Rows == nil && o.By == h.By && o.From.Equal(h.From) && o.To.Equal(h.To) })
		return append(held, h)
	})
}

// Release ends every hold that lies within a range, the manager's own included, of a table or of all. It returns how many.
func (m *Manager) Release(ctx context.Context, table string, from, to time.Time) (released int, err error) {
	err = m.editHolds(ctx, table, func(_ time.Time, _ string, held []Hold) []Hold {
		return slices.DeleteFunc(held, func(h Hold) bool {
			within := !h.From.Before(from) && !h.To.After(to)
			if within {
				released++
			}
			return within
		})
	})
	return released, err
}

func (m *Manager) editHolds(ctx context.Context, table string, edit func(now time.Time, role string, held []Hold) []Hold) error {
	var tables []Policy
	if table == "" {
		var err error
		if tables, err = Policies(ctx, m.cfg.Pool, m.cfg.Schema); err != nil {
			return err
		}
	} else {
		p, err := m.policy(ctx, table)
		if err != nil {
			return err
		}
		tables = []Policy{p}
	}
	err := bounded(ctx, m.cfg.Pool, func(tx pgx.Tx) error {
		var now time.Time
		var role string
		if err := tx.QueryRow(ctx, "select date_trunc('second', now()), current_user").Scan(&now, &role); err != nil {
			return err
		}
		for _, p := range tables {
			r, err := readRecord(ctx, tx, m.cfg.Schema, p, true)
			if err != nil {
				return err
			}
			if err := writeHolds(ctx, tx, m.cfg.Schema, p.Schema, p.Table, edit(now.UTC(), role, slices.Clone(r.Held))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("change the holds in schema %q: %w", m.cfg.Schema, err)
	}
	return nil
}

const writeHoldsSQL = `update %s set held = $3 where (table_schema, table_name) = ($1, $2)`

func writeHolds(ctx context.Context, tx pgx.Tx, schema, tableSchema, table string, held []Hold) error {
	if held == nil {
		held = []Hold{}
	}
	text, err := json.Marshal(held)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, fmt.Sprintf(writeHoldsSQL, ident(schema, "partition_policy")), tableSchema, table, string(text))
	return err
}

// verifyWanted asks again, in the transaction that takes a partition away and with the policy's row locked: a pause, a hold,
// or a policy that keeps more, that was set since the plan was made wins, and one that is set later waits for the commit. So
// does a rename.
func (m *Manager) verifyWanted(ctx context.Context, tx pgx.Tx, a Action) error {
	p := Policy{Schema: a.Schema, Table: a.Table}
	r, err := readRecord(ctx, tx, m.cfg.Schema, p, true)
	if err != nil {
		return err
	}
	if r.Paused != nil {
		return &Blocked{Reason: "paused", Detail: r.Paused.String()}
	}
	for _, h := range r.Held {
		if h.From.Before(a.To) && h.To.After(a.From) && !(a.Kind == Move && h.counting(a.Partition)) {
			return &Blocked{Reason: "held", Detail: h.String()}
		}
	}
	list, _, err := readPolicies(ctx, tx, m.cfg.Schema, "where (table_schema, table_name) = ($1, $2)", a.Schema, a.Table)
	if err != nil {
		return err
	}
	if r.found && len(list) == 1 && a.wanted(list[0]) { // not found: renamed while this waited for its row
		return nil
	}
	return &Blocked{Reason: "policy", Detail: "the policy has changed since the plan was made"}
}

// wanted says that the policy, as it is now, lets the planned action happen.
func (a Action) wanted(p Policy) bool {
	if a.Kind == Drop {
		return p.drops(a.detached, a.now)
	}
	boundary, limited := Boundary(p, a.now)
	if !limited || a.To.After(boundary) {
		return false
	}
	return a.Kind == Detach && p.Expired == ExpiredDrop || a.Kind == Move && p.Expired == ExpiredArchive && p.ArchiveTable == a.archive
}
