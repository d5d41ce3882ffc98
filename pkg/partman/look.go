package partman

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
)

// lookout looks, more often than any loop has its turn, at the two things that cannot wait for one: whether a required index
// is gone, and who holds up an action that is tried again in the next round. An error is not told: the loops meet it too.
func (m *Manager) lookout(ctx context.Context) {
	for wait(ctx, m.cfg.LookEvery) == nil {
		_ = m.look(ctx)
	}
}

func (m *Manager) look(ctx context.Context) error {
	policies, err := Policies(ctx, m.cfg.Pool, m.cfg.Schema)
	if err != nil {
		return err
	}
	var faults []error
	for _, p := range policies {
		faults = append(faults, m.lookAtRequired(ctx, p), m.lookAtWaiting(ctx, p))
	}
	return errors.Join(faults...)
}

// lookAtRequired finds leaves that lack a required index, or have got it back, and wakes the loops that repair them. Those
// that it has found already are the loops' business: a build that fails each time is not begun each Config.LookEvery.
func (m *Manager) lookAtRequired(ctx context.Context, p Policy) error {
	missing, err := m.missingRequired(ctx, p)
	if err != nil {
		return err
	}
	m.mu.Lock()
	before := m.table(p).missing
	m.mu.Unlock()
	if slices.Equal(missing, before) {
		return nil
	}
	s, err := m.inspect(ctx, m.cfg.Pool, p)
	if err != nil {
		return err // the next look finds it again
	}
	m.mu.Lock()
	m.table(p).missing = missing
	m.mu.Unlock()
	m.observe(p, s)
	for _, a := range NewPlan(p, s, s.Now).Actions {
		if a.required {
			m.wake(a.Loop())
		}
	}
	return nil
}

// requiredSQL lists the leaves that have no valid index of a method, unique or not, on exactly the columns.
const requiredSQL = `
select c.oid::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
 where i.inhparent = to_regclass($1) and c.relkind = 'r' and not i.inhdetachpending and not exists (
       select from pg_index x join pg_class n on n.oid = x.indexrelid join pg_am am on am.oid = n.relam
        where x.indrelid = c.oid and x.indisvalid and x.indislive and x.indisunique = $2 and am.amname = $3
          and x.indpred is null and x.indexprs is null and x.indnatts = cardinality($4::text[])
          and (select array_agg(a.attname::text order by k.pos) from unnest(x.indkey) with ordinality k (num, pos)
                 join pg_attribute a on a.attrelid = x.indrelid and a.attnum = k.num) = $4::text[])
 order by 1`

// missingRequired lists, by index, the leaves that lack it.
func (m *Manager) missingRequired(ctx context.Context, p Policy) ([]string, error) {
	var missing []string
	for _, i := range p.Indexes {
		if !i.Required {
			continue
		}
		rows, err := m.cfg.Pool.Query(ctx, requiredSQL, ident(p.Schema, p.Table), i.Unique, i.method(), i.Columns)
		if err != nil {
			return nil, err
		}
		leaves, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, err
		}
		for _, leaf := range leaves {
			missing = append(missing, i.Name+" of "+leaf)
		}
	}
	return missing, nil
}

// lookAtWaiting asks again who holds up the actions that did not get their locks.
func (m *Manager) lookAtWaiting(ctx context.Context, p Policy) error {
	m.mu.Lock()
	var all []waiting
	for _, w := range m.table(p).waiting {
		if w.statement.Tx != 0 { // others are watched by whoever runs them
			all = append(all, *w)
		}
	}
	m.mu.Unlock()
	for _, w := range all {
		blockers, err := m.blockedBy(ctx, w.action)
		if err != nil {
			return err
		}
		m.stillWaits(p, w, blockers)
	}
	return nil
}

// stillWaits is waits, for an action that may have been done meanwhile.
func (m *Manager) stillWaits(p Policy, w waiting, blockers []Blocker) {
	m.mu.Lock()
	there := m.table(p).waiting[w.action.key()] != nil
	m.mu.Unlock()
	if there {
		m.waits(p, w.action, w.statement, blockers)
	}
}
