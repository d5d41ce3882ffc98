package partman

// AssumeDirect has the manager believe that it has looked for a pooler and found none.
func (m *Manager) AssumeDirect() { m.examined = true }
