package partman

import "context"

// AssumeDirect has the manager believe that it has looked for a pooler and found none.
func (m *Manager) AssumeDirect() { m.examined = true }

// Inspect looks at a table, and Observe keeps what was seen.
func (m *Manager) Inspect(ctx context.Context, p Policy) (Snapshot, error) {
	return m.inspect(ctx, m.cfg.Pool, p)
}

func (m *Manager) Observe(p Policy, s Snapshot) { m.observe(p, s) }

// Look looks once, as Run does each LookEvery.
func (m *Manager) Look(ctx context.Context) error { return m.look(ctx) }
