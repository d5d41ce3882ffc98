package partman

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"
)

// seen is what a manager remembers of one table, under its mutex.
type seen struct {
	// last is the last look, which was at taken; its findings are as Check made them.
	last  TableStatus
	taken time.Time
	// unfinished says of each action that the last try refused or failed why, by Action.key, until no plan asks for it.
	unfinished map[string]vain
	tries      int // in vain, so far
	// waiting holds the actions that other sessions hold up, by Action.key.
	waiting map[string]*waiting
	// missing lists the required indexes that the last look of Run did not find.
	missing []string
	// rounds says the same of each loop whose last round came to no action at all.
	rounds map[Loop]Finding
}

// vain is why an action was refused or failed, and the number of that try among the table's.
type vain struct {
	finding Finding
	try     int
}

// table returns what is remembered of the policy's table. The caller holds the mutex.
func (m *Manager) table(p Policy) *seen {
	t := m.seen[p.String()]
	if t == nil {
		t = &seen{
			last:       TableStatus{Schema: p.Schema, Table: p.Table, Faults: make(map[Loop]string)},
			unfinished: make(map[string]vain), waiting: make(map[string]*waiting), rounds: make(map[Loop]Finding),
		}
		m.seen[p.String()] = t
	}
	return t
}

// Status returns what the last rounds saw, ordered by table. It asks nothing of the database. It is empty before the first round.
func (m *Manager) Status() []TableStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []TableStatus
	for _, t := range m.seen {
		st := t.last
		st.Findings = append(merge(st.Findings, t.reasons()), t.waits()...)
		for _, loop := range slices.Sorted(maps.Keys(t.rounds)) {
			st.Findings = append(st.Findings, t.rounds[loop])
		}
		if f, blind := m.blind(t); blind && !slices.ContainsFunc(st.Findings, func(g Finding) bool { return g.Code == NoCurrent }) {
			st.Findings = append(st.Findings, f)
		}
		st.Faults = maps.Clone(st.Faults)
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b TableStatus) int { return strings.Compare(a.Schema+"."+a.Table, b.Schema+"."+b.Table) })
	return list
}

// observe keeps what a look at the catalog showed, unless a later one has been kept: each loop looks for itself.
func (m *Manager) observe(p Policy, s Snapshot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.table(p)
	if s.taken.Before(t.taken) {
		return
	}
	t.taken = s.taken
	st := TableStatus{Schema: p.Schema, Table: p.Table, At: s.Now, Partitions: len(s.Partitions), Paused: s.Record.Paused, Findings: Check(p, s, s.Now)}
	label := m.label(p)
	m.metrics.partitions.WithLabelValues(label).Set(float64(len(s.Partitions)))
	m.metrics.drift.WithLabelValues(label).Set(float64(Drift(p, s)))
	m.metrics.paused.WithLabelValues(label).Set(s.Record.pausedFor(s.Now).Seconds())
	if p.Premake != NoPremake {
		st.CoveredUntil = CoveredUntil(s, s.Now)
		m.metrics.runway.WithLabelValues(label).Set(Runway(s, s.Now).Seconds())
	}
	st.Faults = t.last.Faults
	t.last = st
	m.settle(p, s, t)
	m.measureWaiting(p, t)
}

// observeFault keeps or clears a loop's last error on a table. unacted is the part of it that is of no action.
func (m *Manager) observeFault(p Policy, loop Loop, err, unacted error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.table(p)
	delete(t.last.Faults, loop)
	delete(t.rounds, loop)
	if err != nil {
		t.last.Faults[loop] = err.Error()
	}
	if unacted != nil {
		if until := t.last.CoveredUntil; !until.IsZero() {
			m.metrics.runway.WithLabelValues(m.label(p)).Set(max(0, until.Sub(m.now())).Seconds())
		}
		t.rounds[loop] = Finding{
			Code: Failed, Schema: p.Schema, Table: p.Table,
			Detail: string(loop) + " round failed: " + oneLine(unacted),
		}
	}
}

// observeNone keeps, for every table, why a round came to none of them.
func (m *Manager) observeNone(loop Loop, err error) {
	m.mu.Lock()
	var all []Policy
	for _, t := range m.seen {
		all = append(all, Policy{Schema: t.last.Schema, Table: t.last.Table})
	}
	m.mu.Unlock()
	for _, p := range all {
		m.observeFault(p, loop, err, err)
	}
}

// now is the database's time as this host's clock has it, for what the database cannot be asked.
func (m *Manager) now() time.Time { return m.cfg.Now(m.cfg.Host()).UTC() }

// blind is the finding of a table that cannot be looked at any more and whose last known partition has ended.
func (m *Manager) blind(t *seen) (f Finding, found bool) {
	until := t.last.CoveredUntil
	if len(t.rounds) == 0 || until.IsZero() || m.now().Before(until) {
		return f, false
	}
	return Finding{
		Code: NoCurrent, Schema: t.last.Schema, Table: t.last.Table, Broken: true,
		Detail: "no partition takes a row, as far as is known: the last look was at " + t.last.At.Format(time.RFC3339),
	}, true
}

// observeAction keeps why an action was refused or failed, or forgets it where it was done. news says that this was not known.
func (m *Manager) observeAction(p Policy, now time.Time, a Action, err error) (news bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.table(p)
	if w := t.waiting[a.key()]; w != nil && (!lockFault(err) || w.statement.Tx == 0) {
		m.waitsNoMore(p, t, a.key())
	}
	if err == nil {
		delete(t.unfinished, a.key())
		return false
	}
	t.tries++
	before := t.unfinished[a.key()].finding
	v := vain{reason(p, now, a, err), t.tries}
	t.unfinished[a.key()] = v
	return ages.ReplaceAllString(before.Detail, "") != ages.ReplaceAllString(v.finding.Detail, "")
}

// reason is the finding of an action that was tried in vain.
func reason(p Policy, now time.Time, a Action, err error) Finding {
	f := Finding{Code: Failed, Schema: p.Schema, Table: p.Table, Partition: a.Partition, Detail: string(a.Kind) + " "}
	switch a.Kind {
	case Move, Detach:
		f.Code, f.Detail = PastRetention, dueToGo(p, a.To, now)+"; "
	case Drop:
		f.Code, f.Detail = Leftover, dueToDrop(p, a.detached)+"; "
	}
	if errors.As(err, &f.Refused) {
		f.Detail += "refused: " + oneLine(f.Refused)
		return f
	}
	var lock *LockError
	if errors.As(err, &lock) {
		f.Blockers = lock.Blockers
	}
	f.Detail += "failed: " + oneLine(err)
	return f
}

// oneLine is an error's text on one line; errors that were joined have several.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// unfinished returns the reasons of the actions that were tried in vain and that the snapshot still asks for.
func (m *Manager) unfinished(p Policy, s Snapshot) []Finding {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.seen[p.String()]
	if t == nil {
		return nil
	}
	m.settle(p, s, t)
	return append(t.reasons(), t.waits()...)
}

// settle forgets the actions that are planned no more: another instance has done them, or nobody need.
// The caller holds the mutex.
func (m *Manager) settle(p Policy, s Snapshot, t *seen) {
	if len(t.unfinished)+len(t.waiting) == 0 {
		return
	}
	planned := make(map[string]bool)
	for _, a := range NewPlan(p, s, s.Now).Actions {
		planned[a.key()] = true
	}
	maps.DeleteFunc(t.unfinished, func(key string, _ vain) bool { return !planned[key] })
	for key := range t.waiting {
		if !planned[key] {
			m.waitsNoMore(p, t, key)
		}
	}
}

// waits returns the findings of the actions that are held up at the moment.
func (t *seen) waits() []Finding {
	var list []Finding
	for _, w := range t.waiting {
		if len(w.blockers) > 0 {
			list = append(list, w.finding())
		}
	}
	slices.SortFunc(list, func(a, b Finding) int { return strings.Compare(a.String(), b.String()) })
	return list
}

func (t *seen) reasons() []Finding {
	var list []Finding
	for _, v := range t.unfinished {
		list = append(list, v.finding)
	}
	slices.SortFunc(list, func(a, b Finding) int { return strings.Compare(a.String(), b.String()) })
	return list
}

// merge adds reasons to findings. One takes the place of the finding that says the same of that partition without a reason.
func merge(found, reasons []Finding) []Finding {
	found = slices.Clone(found)
	for _, r := range reasons {
		n := slices.IndexFunc(found, func(f Finding) bool { return f.Code == r.Code && f.Partition == r.Partition })
		if n < 0 || r.Code == Failed || r.Code == Waiting {
			found = append(found, r)
			continue
		}
		found[n] = r
	}
	return found
}

// forget drops memory and metrics of tables that have no policy any more, not even a bad one.
func (m *Manager) forget(policies []Policy, bad []*PolicyError) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, t := range m.seen {
		if slices.ContainsFunc(policies, func(p Policy) bool { return p.String() == name }) ||
			slices.ContainsFunc(bad, func(b *PolicyError) bool { return b.policy().String() == name }) {
			continue
		}
		delete(m.seen, name)
		m.metrics.forget(m.label(Policy{Schema: t.last.Schema, Table: t.last.Table}))
	}
}
