package partman

import "context"

// AssumeDirect has the manager believe that it has looked for a pooler and found none.
func (m *Manager) AssumeDirect() { m.examined = true }

// Look looks once, as Run does each LookEvery.
func (m *Manager) Look(ctx context.Context) error { return m.look(ctx) }
