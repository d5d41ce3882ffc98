package partman

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
)

// TableStatus is what the last round of a loop saw of one table, for readiness.
type TableStatus struct {
	Schema string `json:"schema"`
	Table  string `json:"table"`
	// At is the database's time of the look.
	At time.Time `json:"at"`
	// CoveredUntil is when inserts begin to fail; zero where that is never, or where no partitions are ever premade.
	CoveredUntil time.Time `json:"covered_until,omitzero"`
	Partitions   int       `json:"partitions"`
	// Paused is set while nothing of the table retires.
	Paused *Paused `json:"paused,omitempty"`
	// Findings are those of that look. With them, and renewed with each try, is the reason of each action that was
	// refused or failed and is still to be done, from its first try on, and of each round that came to no action at all.
	Findings []Finding `json:"findings"`
	// Faults holds, for each loop whose last round failed on this table, the error's text. Findings say the same.
	Faults map[Loop]string `json:"faults,omitempty"`
}

// Check looks at every table now, or at those named, and returns the findings, with the reason of each action that this
// manager tried in vain and that is still to be done. A table that cannot be looked at is an error; the others' findings
// come with it.
func (m *Manager) Check(ctx context.Context, tables ...string) ([]Finding, error) {
	var found []Finding
	err := m.each(ctx, tables, func(p Policy, s Snapshot) error {
		found = append(found, merge(Check(p, s, s.Now), m.unfinished(p, s))...)
		return nil
	})
	return found, err
}

// State is where a partition stands.
type State string

// The states of a partition.
const (
	Current    State = "current"
	Future     State = "future"
	Due        State = "missing" // to be created
	Kept       State = "kept"
	Expired    State = "expired"
	IsDetached State = "detached"
)

// Listed is one partition, for people.
type Listed struct {
	Schema    string    `json:"schema"`
	Table     string    `json:"table"`
	Partition string    `json:"partition"`
	From      time.Time `json:"from,omitzero"`
	To        time.Time `json:"to,omitzero"`
	State     State     `json:"state"`
	// Rows is an estimate, -1 before the first ANALYZE. Bytes includes indexes and TOAST; it is an estimate too where the
	// partition is locked just now.
	Rows  int64 `json:"rows"`
	Bytes int64 `json:"bytes"`
	// Held is the hold that keeps it; nil where none does.
	Held *Hold `json:"held,omitempty"`
	// Paused is set where nothing of its table retires.
	Paused *Paused `json:"paused,omitempty"`
	// BlockedBy would keep the next action on the partition from a lock just now, in transactions that have lasted for
	// Config.Pause; empty also where no action is due.
	BlockedBy []Blocker `json:"blocked_by,omitempty"`
}

// List returns all partitions of all tables, or of those named, by table: the attached ones by lower bound, the detached ones, those to be created.
func (m *Manager) List(ctx context.Context, tables ...string) ([]Listed, error) {
	var list []Listed
	err := m.each(ctx, tables, func(p Policy, s Snapshot) error {
		start := len(list)
		boundary, limited := Boundary(p, s.Now)
		var oids []uint32
		for _, leaf := range s.Partitions {
			state := Kept
			switch {
			case limited && leaf.expired(boundary):
				state = Expired
			case leaf.overlaps(s.Now, s.Now.Add(1)):
				state = Current
			case !leaf.OpenFrom && leaf.From.After(s.Now):
				state = Future
			}
			list = append(list, Listed{
				Schema: p.Schema, Table: p.Table, Partition: leaf.Name, From: leaf.From, To: leaf.To, State: state, Rows: leaf.Rows, Bytes: leaf.Bytes,
			})
			oids = append(oids, leaf.OID)
		}
		for _, d := range s.Detached {
			list = append(list, Listed{
				Schema: p.Schema, Table: p.Table, Partition: d.Name, From: d.From, To: d.To, State: IsDetached, Rows: -1, Bytes: d.Bytes,
			})
			oids = append(oids, d.OID)
		}
		var estimates []*int64
		for n := range list[start:] {
			l := &list[start+n]
			l.Held, l.Paused = s.Record.held(l.From, l.To), s.Record.Paused
			estimates = append(estimates, &l.Bytes)
		}
		if err := m.sizes(ctx, oids, estimates); err != nil {
			return err
		}
		var err error
		list, err = m.due(ctx, NewPlan(p, s, s.Now), list, start)
		return err
	})
	return list, err
}

// due adds, from start on, who is in the way of each partition's actions, and the partitions that are to be created.
func (m *Manager) due(ctx context.Context, plan Plan, list []Listed, start int) ([]Listed, error) {
	for _, a := range plan.Actions {
		blockers, err := m.blockedBy(ctx, a)
		if err != nil {
			return nil, err
		}
		if a.Kind == Create {
			list = append(list, Listed{
				Schema: a.Schema, Table: a.Table, Partition: a.Partition, From: a.From, To: a.To, State: Due, Rows: -1, BlockedBy: blockers,
			})
			continue
		}
		for n := start; n < len(list); n++ {
			if list[n].Partition == a.Partition && len(list[n].BlockedBy) == 0 {
				list[n].BlockedBy = blockers
			}
		}
	}
	return list, nil
}

// sizes replaces the estimates by the files' sizes. pg_total_relation_size takes ACCESS SHARE on each table, so it gives
// way to whoever holds one exclusively, and the estimates stay.
func (m *Manager) sizes(ctx context.Context, oids []uint32, estimates []*int64) error {
	err := pgx.BeginFunc(ctx, m.cfg.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("set local lock_timeout = '%dms'", m.cfg.LockTimeout.Milliseconds())); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, "select coalesce(pg_total_relation_size(id), 0) from unnest($1::oid[]) with ordinality t (id, n) order by n", oids)
		if err != nil {
			return err
		}
		bytes, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		for n := range bytes {
			*estimates[n] = bytes[n]
		}
		return nil
	})
	if sqlState(err) == lockNotAvailable {
		return nil
	}
	return err
}

// each inspects every table that has a policy, or those named. One that fails costs the others nothing.
func (m *Manager) each(ctx context.Context, tables []string, do func(Policy, Snapshot) error) error {
	policies, bad, err := allPolicies(ctx, m.cfg.Pool, m.cfg.Schema)
	if err != nil {
		return err
	}
	wanted := make(map[string]bool)
	for _, t := range tables {
		schema, name, err := ParseName(t, m.cfg.Schema)
		if err != nil {
			return err
		}
		wanted[Policy{Schema: schema, Table: name}.String()] = true
	}
	var faults []error
	for _, b := range bad {
		if len(tables) == 0 || wanted[b.policy().String()] {
			faults = append(faults, b)
		}
	}
	for _, p := range policies {
		if len(tables) > 0 && !wanted[p.String()] {
			continue
		}
		s, err := m.inspect(ctx, m.cfg.Pool, p)
		if err == nil {
			err = do(p, s)
		}
		if err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

func (m *Manager) inspect(ctx context.Context, db interface {
	Beginner
	DB
}, p Policy,
) (Snapshot, error) {
	taken := time.Now()
	s, err := Inspect(ctx, db, p)
	s.taken = taken
	var unfit *unfitError
	if errors.As(err, &unfit) {
		err = fmt.Errorf("%w; if it is not to be kept any more: plenumctl partitions unregister --table %s", err, ShellName(p.Schema, p.Table))
	}
	if err != nil {
		return s, err
	}
	s.Skew = s.Now.Sub(m.cfg.Host())
	s.Now = m.cfg.Now(s.Now)
	err = bounded(ctx, db, func(tx pgx.Tx) error {
		s.Record, err = readRecord(ctx, tx, m.cfg.Schema, p, false)
		return err
	})
	var column *columnError
	if errors.As(err, &column) {
		s.Record = Record{Schema: m.cfg.Schema, Fault: fmt.Sprintf("its row in partition_policy cannot be read, and nothing retires: %s; set that right by hand", oneLine(err))}
		err = nil
	}
	if err != nil {
		return s, fmt.Errorf("inspect table %q: %w", p.String(), err)
	}
	if s.MaxRetireBytes = m.cfg.MaxRetireBytes; s.MaxRetireBytes > 0 {
		err = m.measure(ctx, p, &s)
	}
	return s, err
}

// measure replaces the estimated sizes of what is past retention by those of the files.
func (m *Manager) measure(ctx context.Context, p Policy, s *Snapshot) error {
	boundary, limited := Boundary(p, s.Now)
	var oids []uint32
	var bytes []*int64
	for n, leaf := range s.Partitions {
		if limited && leaf.expired(boundary) {
			oids, bytes = append(oids, leaf.OID), append(bytes, &s.Partitions[n].Bytes)
		}
	}
	for n, d := range s.Detached {
		oids, bytes = append(oids, d.OID), append(bytes, &s.Detached[n].Bytes)
	}
	return m.sizes(ctx, oids, bytes)
}

// policy finds the policy of a table named as ParseName reads it, within Config.Schema.
func (m *Manager) policy(ctx context.Context, table string) (Policy, error) {
	policies, bad, err := allPolicies(ctx, m.cfg.Pool, m.cfg.Schema)
	if err != nil {
		return Policy{}, err
	}
	schema, name, err := ParseName(table, m.cfg.Schema)
	if err != nil {
		return Policy{}, err
	}
	for _, p := range policies {
		if p.Schema == schema && p.Table == name {
			return p, nil
		}
	}
	for _, b := range bad {
		if b.Schema == schema && b.Table == name {
			return Policy{}, b
		}
	}
	return Policy{}, fmt.Errorf("table %q: %w", table, ErrUnknownTable)
}

// label is the table's name in metrics.
func (m *Manager) label(p Policy) string {
	if p.Schema == m.cfg.Schema {
		return p.Table
	}
	return p.String()
}

// observeRefused sets how many partitions of the table the last round of retiring could not let go, by reason: the guard's
// words, "paused", "held", "size", "clock", "policy", "lock" or "error".
func (m *Manager) observeRefused(p Policy, s Snapshot, r Result, err error) {
	m.metrics.blocked.DeletePartialMatch(prometheus.Labels{"table": m.label(p)})
	for _, b := range r.Refused {
		if b.Action.Schema == p.Schema && b.Action.Table == p.Table {
			m.metrics.blocked.WithLabelValues(m.label(p), b.Blocked.Reason).Inc()
		}
	}
	// Of a hold that came while the round was at it, both know.
	for reason, n := range hindered(p, s, s.Now) {
		m.metrics.blocked.WithLabelValues(m.label(p), reason).Set(float64(n))
	}
	switch {
	case err == nil:
	case lockFault(err):
		m.metrics.blocked.WithLabelValues(m.label(p), "lock").Inc()
	default:
		m.metrics.blocked.WithLabelValues(m.label(p), "error").Inc()
	}
}
