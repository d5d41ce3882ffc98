package partman

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// analyzeEvery is the least time between two ANALYZE of a parent, which autovacuum never does.
const analyzeEvery = 24 * time.Hour

// planHealth repairs leaves: indexes that are missing, invalid or not attached, and storage parameters. One action
// repairs one thing of one leaf, so that each is complete in itself.
func planHealth(p Policy, s Snapshot, now time.Time, names names) []Action {
	var actions []Action
	for _, leaf := range s.Partitions {
		if leaf.Kind != "r" || leaf.DetachPending {
			continue
		}
		repairs := repairIndexes(p, s, leaf, names)
		if wrong := wrongStorage(p, leaf); len(wrong) > 0 {
			repairs = append(repairs, storageAction(p, leaf, wrong))
		}
		boundary, limited := Boundary(p, now)
		for n := range repairs {
			repairs[n].pastRetention = limited && leaf.expired(boundary)
		}
		actions = append(actions, repairs...)
	}
	// Required ones first, those of the newest leaf before all: the next statements that need them are on it.
	slices.SortStableFunc(actions, func(a, b Action) int {
		switch {
		case a.required && b.required:
			return b.From.Compare(a.From)
		case a.required:
			return -1
		case b.required:
			return 1
		}
		return 0
	})
	actions = append(actions, declareOnParent(p, s)...)
	return append(actions, validateParents(p, s)...)
}

// declareOnParent makes the parent declare those of the policy's indexes that it has lost. The leaves' own are attached next.
func declareOnParent(p Policy, s Snapshot) []Action {
	var actions []Action
	for _, i := range p.lostByParent(s) {
		actions = append(actions, Action{
			Kind: Reindex, Schema: p.Schema, Table: p.Table, subject: "declare " + i.Name,
			Statements: []Statement{{
				Tx: 1, Lock: "SHARE", On: []string{p.String()},
				Why: "the policy wants the table itself to declare it; nothing is built, the partitions' own are attached next",
				// SHARE on the parent for an instant: writers queue behind it. The server picks a name that is free.
				SQL: i.sql("", "only "+ident(p.Schema, p.Table), false),
			}},
		})
	}
	return actions
}

// lostByParent lists the indexes that the parent should declare and does not.
func (p Policy) lostByParent(s Snapshot) []Index {
	return slices.DeleteFunc(slices.Clone(p.Indexes), func(i Index) bool { return !i.OnParent || i.among(s.Indexes) })
}

// requires says that one of the policy's required indexes is what the drift is about.
func (p Policy) requires(d drift) bool {
	return slices.ContainsFunc(p.Indexes, func(i Index) bool {
		return i.Required && (d.policy != nil && d.policy.Name == i.Name || d.parent != nil && i.matches(*d.parent)) &&
			(d.have == nil || !d.have.Valid)
	})
}

// drift lists what is wrong with the indexes of one leaf.
type drift struct {
	// parent is the index of the parent that the leaf lacks; nil where policy is set.
	parent *CatalogIndex
	policy *Index
	// have is the leaf's own index: to be attached if it is valid, else to be rebuilt (attached) or dropped (not attached).
	// Where it is all there is, a build or rebuild that failed left it behind, and another does its work.
	have *CatalogIndex
}

// indexDrift compares a leaf's indexes with those that its parent and its policy declare. Invalid indexes that match
// nothing declared are a person's own and not of our business.
func indexDrift(p Policy, s Snapshot, leaf Partition) []drift {
	var all []drift
	used := make(map[uint32]bool)
	for n := range s.Indexes {
		parent := &s.Indexes[n]
		if d, ok := parentDrift(parent, leaf, used); ok {
			all = append(all, d)
		}
	}
	for n := range p.Indexes {
		want := &p.Indexes[n]
		if want.among(s.Indexes) {
			continue
		}
		if d, ok := policyDrift(want, leaf, used); ok {
			all = append(all, d)
		}
	}
	return append(all, leftBehind(p, s, leaf, all)...)
}

// leftBehind lists the invalid indexes of which the leaf has a better one: REINDEX CONCURRENTLY leaves such, as …_ccnew.
func leftBehind(p Policy, s Snapshot, leaf Partition, known []drift) []drift {
	var all []drift
	for n := range leaf.Indexes {
		have := &leaf.Indexes[n]
		if have.Valid || have.Parent != 0 || slices.ContainsFunc(known, func(d drift) bool { return d.have == have }) {
			continue
		}
		declared := slices.ContainsFunc(s.Indexes, have.equals) ||
			slices.ContainsFunc(p.Indexes, func(i Index) bool { return i.matches(*have) })
		if declared {
			all = append(all, drift{have: have})
		}
	}
	return all
}

func (c CatalogIndex) equals(other CatalogIndex) bool {
	return c.Unique == other.Unique && c.Constraint == other.Constraint && c.Tail == other.Tail
}

func parentDrift(parent *CatalogIndex, leaf Partition, used map[uint32]bool) (drift, bool) {
	for n := range leaf.Indexes {
		have := &leaf.Indexes[n]
		if have.Parent == parent.OID {
			used[have.OID] = true
			return drift{parent: parent, have: have}, !have.Valid
		}
	}
	have := pick(leaf, used, parent.equals)
	return drift{parent: parent, have: have}, true
}

func policyDrift(want *Index, leaf Partition, used map[uint32]bool) (drift, bool) {
	have := pick(leaf, used, want.matches)
	return drift{policy: want, have: have}, have == nil || !have.Valid
}

// pick returns an unattached index of the leaf that fits, a valid one if there is one.
func pick(leaf Partition, used map[uint32]bool, fits func(CatalogIndex) bool) *CatalogIndex {
	var found *CatalogIndex
	for n := range leaf.Indexes {
		have := &leaf.Indexes[n]
		if used[have.OID] || have.Parent != 0 || !fits(*have) {
			continue
		}
		if found == nil || have.Valid && !found.Valid {
			found = have
		}
	}
	if found != nil && found.Valid {
		used[found.OID] = true
	}
	return found
}

func repairIndexes(p Policy, s Snapshot, leaf Partition, names names) []Action {
	var actions []Action
	for _, d := range indexDrift(p, s, leaf) {
		if d.have != nil && d.have.Building || d.parent != nil && d.parent.Constraint && d.have == nil {
			continue // someone is at work, or a constraint is missing, which is for a person
		}
		a := Action{Kind: Reindex, Schema: p.Schema, Table: p.Table, Partition: leaf.Name, From: leaf.From, To: leaf.To}
		a.subject, a.Statements = d.statements(leaf, names)
		a.required = p.requires(d)
		actions = append(actions, a)
	}
	return actions
}

func (d drift) statements(leaf Partition, names names) (subject string, list []Statement) {
	table, on := ident(leaf.Schema, leaf.Name), []string{leaf.Schema + "." + leaf.Name}
	add := func(tx int, lock, why, sql string) {
		list = append(list, Statement{Tx: tx, Lock: lock, On: on, Why: why, SQL: sql})
	}
	var name string
	switch {
	case d.parent == nil && d.policy == nil:
		// SHARE UPDATE EXCLUSIVE on the leaf; waits for those who may still use the index.
		add(0, "SHARE UPDATE EXCLUSIVE", "left behind by a build that failed; another index does its work",
			"drop index concurrently "+ident(d.have.Schema, d.have.Name))
		return "drop " + d.have.Name, list
	case d.have != nil && d.have.Valid:
		name = d.have.Name
	case d.have != nil && d.have.Parent != 0:
		// SHARE UPDATE EXCLUSIVE on the leaf for the length of the build; reads and writes go on.
		add(0, "SHARE UPDATE EXCLUSIVE", "an attached index is invalid", "reindex index concurrently "+ident(d.have.Schema, d.have.Name))
		return "rebuild " + d.have.Name, list
	default:
		if d.have != nil {
			// SHARE UPDATE EXCLUSIVE on the leaf; waits for those who may still use the index.
			add(0, "SHARE UPDATE EXCLUSIVE", "left invalid by a build that failed", "drop index concurrently "+ident(d.have.Schema, d.have.Name))
		}
		var sql string
		if d.policy != nil {
			name = names.free(leaf.Name + "_" + d.policy.Name)
			sql = d.policy.sql(name, table, true)
		} else {
			name = names.free(leaf.Name + "_" + indexWord(*d.parent))
			sql = createIndex(name, table, d.parent.Tail, d.parent.Unique, true)
		}
		// SHARE UPDATE EXCLUSIVE on the leaf for the length of the build; reads and writes go on.
		add(0, "SHARE UPDATE EXCLUSIVE", "a declared index is missing", sql)
	}
	if d.parent == nil {
		return "policy " + d.policy.Name, list
	}
	// ACCESS EXCLUSIVE on the leaf's index, SHARE UPDATE EXCLUSIVE on the parent's, ACCESS SHARE on the tables.
	on = []string{d.parent.Schema + "." + d.parent.Name, leaf.Schema + "." + name}
	add(1, "ACCESS EXCLUSIVE", "the parent's index takes it over, and is valid once each leaf's is attached",
		fmt.Sprintf("alter index %s attach partition %s", ident(d.parent.Schema, d.parent.Name), ident(leaf.Schema, name)))
	return "attach " + d.parent.Name, list
}

// indexWord is the end of an index's name, from its columns.
func indexWord(c CatalogIndex) string {
	word := strings.Trim(strings.Join(c.Columns, "_"), "_")
	if word == "" {
		word = "expr"
	}
	return word + "_idx"
}

// validateParents asks PostgreSQL to look again at a parent's index that stayed invalid although each leaf has its part:
// attaching what is attached already does it, in the releases that have that repair, and nothing in the others.
func validateParents(p Policy, s Snapshot) []Action {
	var actions []Action
	for _, i := range s.Indexes {
		leaf, ok := attachedEverywhere(i, s.Partitions)
		if i.Valid || !ok {
			continue
		}
		actions = append(actions, Action{
			Kind: Reindex, Schema: p.Schema, Table: p.Table, subject: "validate " + i.Name,
			Statements: []Statement{{
				Tx: 1, Lock: "ACCESS EXCLUSIVE", On: []string{i.Schema + "." + i.Name, leaf.Schema + "." + leaf.Name},
				Why: "each leaf has its part of this index, which is still marked invalid",
				// ACCESS EXCLUSIVE on the leaf's index, SHARE UPDATE EXCLUSIVE on the parent's.
				SQL: fmt.Sprintf("alter index %s attach partition %s", ident(i.Schema, i.Name), ident(leaf.Schema, leaf.Name)),
			}},
		})
	}
	return actions
}

// attachedEverywhere returns one of the index's parts, if each leaf has a valid one.
func attachedEverywhere(i CatalogIndex, partitions []Partition) (one CatalogIndex, ok bool) {
	for _, leaf := range partitions {
		found := false
		for _, have := range leaf.Indexes {
			if have.Parent == i.OID && have.Valid {
				one, found = have, true
			}
		}
		if !found {
			return CatalogIndex{}, false
		}
	}
	return one, len(partitions) > 0
}

// wrongStorage returns the parameters of the policy that the leaf has not.
func wrongStorage(p Policy, leaf Partition) map[string]string {
	wrong := make(map[string]string)
	for k, v := range p.Storage {
		if leaf.Options[k] != v {
			wrong[k] = v
		}
	}
	return wrong
}

func storageAction(p Policy, leaf Partition, wrong map[string]string) Action {
	return Action{
		Kind: Storage, Schema: p.Schema, Table: p.Table, Partition: leaf.Name, From: leaf.From, To: leaf.To,
		Statements: []Statement{{
			Tx: 1, Lock: "SHARE UPDATE EXCLUSIVE", On: []string{leaf.Schema + "." + leaf.Name},
			Why: "storage parameters differ from the policy",
			// SHARE UPDATE EXCLUSIVE on the leaf for an instant.
			SQL: fmt.Sprintf("alter table %s set (%s)", ident(leaf.Schema, leaf.Name), settings(wrong)),
		}},
	}
}

func planAnalyze(p Policy, s Snapshot, now time.Time) []Action {
	if now.Sub(s.Analyzed) < analyzeEvery || len(s.Partitions) == 0 {
		return nil
	}
	on := []string{p.String()}
	for _, leaf := range s.Partitions {
		on = append(on, leaf.Schema+"."+leaf.Name)
	}
	return []Action{{
		Kind: Analyze, Schema: p.Schema, Table: p.Table,
		Statements: []Statement{{
			Lock: "SHARE UPDATE EXCLUSIVE", On: on,
			Why: "the planner's figures of the parent, which autovacuum does not gather; one table after the other",
			// SHARE UPDATE EXCLUSIVE on the parent, then on each leaf, for the length of its sampling: outside of a transaction
			// each is given back before the next. No partition can be attached while the parent is sampled.
			SQL: "analyze " + ident(p.Schema, p.Table),
		}},
	}}
}
