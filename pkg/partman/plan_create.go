package partman

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Range is the half-open range of one step, in UTC.
type Range struct{ From, To time.Time }

// Expected returns the ranges that must exist at now: the current step, then the premade ones.
func Expected(p Policy, now time.Time) []Range {
	var all []Range
	today := p.Step.floor(now)
	for i := 0; i <= p.Premake; i++ {
		all = append(all, Range{p.Step.next(today, i), p.Step.next(today, i+1)})
	}
	return all
}

// Boundary is the instant before which everything is past retention: a partition goes when its upper bound is not
// after it. ok is false where the policy keeps all.
func Boundary(p Policy, now time.Time) (boundary time.Time, ok bool) {
	if p.Retention <= 0 {
		return time.Time{}, false
	}
	return p.Step.next(p.Step.floor(now), 1-p.Retention), true
}

// dueSince is when the boundary passed to, the upper bound of a partition. Only where the policy has a retention.
func (p Policy) dueSince(to time.Time) time.Time {
	reached := p.Step.floor(to)
	if reached.Before(to) {
		reached = p.Step.next(reached, 1)
	}
	return p.Step.next(reached, p.Retention-1)
}

// planCreate fills what is missing of the current step and the premade ones. Where a partition with other bounds
// covers a part of a step, only the rest is created: rows must land.
func planCreate(p Policy, s Snapshot, now time.Time, names names) []Action {
	var actions []Action
	for _, r := range Expected(p, now) {
		for _, gap := range uncovered(span{r.From, r.To}, s.Partitions) {
			actions = append(actions, createAction(p, s, gap, names))
		}
	}
	past := past(p, s, now)
	for from := past.from; from.Before(past.to); from = p.Step.next(p.Step.floor(from), 1) {
		for _, gap := range uncovered(span{from, p.Step.next(p.Step.floor(from), 1)}, s.Partitions) {
			actions = append(actions, createAction(p, s, gap, names))
		}
	}
	return actions
}

// past is what should be covered before the current step: from the oldest partition on, as far as the retention goes. A
// part without one is from days without a run. Rows hardly come for it; but who reads a day, or puts one back, expects its
// partition. It is empty where all is kept: nobody can tell a gap there from the way the table was begun.
func past(p Policy, s Snapshot, now time.Time) span {
	from, limited := Boundary(p, now)
	if !limited || p.Premake == NoPremake || len(s.Partitions) == 0 || s.Default != "" {
		return span{}
	}
	if oldest := s.Partitions[0]; !oldest.OpenFrom && oldest.From.After(from) {
		from = oldest.From
	}
	return span{from, p.Step.floor(now)}
}

func createAction(p Policy, s Snapshot, r span, names names) Action {
	name := names.free(p.leafName(r.from))
	leaf, parent := ident(p.Schema, name), ident(p.Schema, p.Table)
	a := Action{Kind: Create, Schema: p.Schema, Table: p.Table, Partition: name, From: r.from, To: r.to}
	add := func(lock string, on []string, why, sql string) {
		a.Statements = append(a.Statements, Statement{Tx: 1, SQL: sql, Lock: lock, On: on, Why: why})
	}
	// ACCESS SHARE on the parent, until the end of the transaction; the leaf is visible to nobody else.
	add("ACCESS SHARE", []string{p.String()}, "the leaf, with everything that LIKE carries",
		fmt.Sprintf("create table %s (like %s including all excluding identity)%s%s", leaf, parent, with(p.Storage), s.Traits.in()))
	if s.Owner != s.User && s.CanOwn {
		// ACCESS EXCLUSIVE on the leaf, which nobody else sees yet.
		add("", nil, "the leaf belongs to the parent's owner", fmt.Sprintf("alter table %s owner to %s", leaf, ident(s.Owner)))
	}
	s.Traits.give(leaf, func(why, sql string) { add("", nil, why, sql) })
	for _, i := range p.Indexes {
		if i.among(s.Indexes) {
			continue
		}
		// SHARE on the leaf, which nobody else sees yet.
		add("", nil, "an index that only leaves have", i.sql(names.free(name+"_"+i.Name), leaf, false))
	}
	if s.Default != "" {
		// ACCESS EXCLUSIVE on the DEFAULT partition, which ATTACH would take.
		add("ACCESS EXCLUSIVE", []string{s.DefaultSchema + "." + s.Default}, "ATTACH would take it; by itself, so that whoever is in the way is found",
			fmt.Sprintf("lock table %s in access exclusive mode", ident(s.DefaultSchema, s.Default)))
	}
	// SHARE UPDATE EXCLUSIVE on the parent, so that reads and writes go on; ACCESS EXCLUSIVE on the leaf. PARTITION OF
	// would take ACCESS EXCLUSIVE on the parent (PostgreSQL, ALTER TABLE … ATTACH PARTITION).
	why := "from here on rows land in it"
	on := []string{p.String()}
	if s.Default != "" {
		why += "; the DEFAULT partition is locked ACCESS EXCLUSIVE and scanned"
	}
	if len(s.Traits.References) > 0 {
		why += "; SHARE ROW EXCLUSIVE on " + strings.Join(s.Traits.References, ", ") + ", which foreign keys refer to: writes there wait for the commit"
	}
	add("SHARE UPDATE EXCLUSIVE", on, why,
		fmt.Sprintf("alter table %s attach partition %s %s", parent, leaf, s.KeyType.bounds(r.from, r.to)))
	if s.Traits.ReplicaIndex != "" {
		a.Statements = append(a.Statements, Statement{
			Tx: 1, Hook: HookReplica,
			Why: "its part of index " + s.Traits.ReplicaIndex + " becomes its replica identity",
		})
	}
	a.Statements = append(a.Statements, Statement{
		Tx: 1, Hook: HookIndexes,
		Why: "each index of the parent is attached, none is doubled",
	})
	return a
}

// with is the storage clause of a new leaf, sorted so that a plan is always the same text.
func with(storage map[string]string) string {
	if len(storage) == 0 {
		return ""
	}
	return " with (" + settings(storage) + ")"
}

func settings(storage map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(storage)) {
		parts = append(parts, k+" = "+quote(storage[k]))
	}
	return strings.Join(parts, ", ")
}

// among says that one of the indexes does what i asks for.
func (i Index) among(all []CatalogIndex) bool {
	return slices.ContainsFunc(all, i.matches)
}

func (i Index) matches(c CatalogIndex) bool {
	return c.Plain && c.Unique == i.Unique && c.NullsNotDistinct == i.NullsNotDistinct &&
		c.Method == i.method() && slices.Equal(c.Columns, i.Columns)
}

// sql is the statement that builds the index; table is quoted already.
func (i Index) sql(name, table string, concurrently bool) string {
	columns := make([]string, len(i.Columns))
	for n, c := range i.Columns {
		columns[n] = ident(c)
	}
	tail := fmt.Sprintf("using %s (%s)", i.method(), strings.Join(columns, ", "))
	if i.NullsNotDistinct {
		tail += " nulls not distinct"
	}
	return createIndex(name, table, tail, i.Unique, concurrently)
}

func createIndex(name, table, tail string, unique, concurrently bool) string {
	sql := "create "
	if unique {
		sql += "unique "
	}
	sql += "index "
	if concurrently {
		sql += "concurrently "
	}
	if name != "" {
		sql += ident(name) + " "
	}
	return sql + "on " + table + " " + tail
}
