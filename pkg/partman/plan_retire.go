package partman

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// boundsCheck is the helper constraint that proves a leaf's bounds to the archive's ATTACH.
const boundsCheck = "partman_bounds"

// markPrefix begins the comment that marks a detached partition as ours to drop.
const markPrefix = "partman detached "

// mark is what the comment says. It travels with the table through renames, dumps and restores, and is written in the
// transaction that detaches.
type mark struct {
	Schema string    `json:"schema"`
	Table  string    `json:"table"`
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	At     time.Time `json:"at"`
}

func (m mark) comment() string {
	text, err := json.Marshal(m)
	if err != nil { // only a year past 9999, which no bound of ours has
		return ""
	}
	return markPrefix + string(text)
}

// readMark returns false for a comment that is not exactly of ours.
func readMark(comment string) (m mark, ok bool) {
	text, found := strings.CutPrefix(comment, markPrefix)
	if !found || json.Unmarshal([]byte(text), &m) != nil {
		return mark{}, false
	}
	return m, m.comment() == comment
}

// planRetire lists what is still to be counted, the detached whose grace is over, then what is past retention, oldest first.
func planRetire(p Policy, s Snapshot, now time.Time, names names) []Action {
	actions := planCounts(p, s)
	if clockFault(p, s, now) != "" {
		return actions
	}
	retire := func(a Action, bytes int64) {
		a.bytes, a.now = bytes, now
		actions = append(actions, a)
	}
	for _, d := range s.Detached {
		if p.drops(d, now) && hindrance(s, d.From, d.To, d.Bytes) == nil {
			retire(dropAction(p, d), d.Bytes)
		}
	}
	for _, leaf := range s.Partitions {
		if cannotRetire(p, s, leaf, now) != "" {
			continue
		}
		if p.Expired == ExpiredArchive {
			retire(moveAction(p, s, leaf, names), leaf.Bytes)
		} else {
			retire(detachAction(p, leaf, now), leaf.Bytes)
		}
	}
	return actions
}

// drops says that the grace of a detached partition is over, and that the retention has not been raised since so as to keep it.
func (p Policy) drops(d Detached, now time.Time) bool {
	boundary, limited := Boundary(p, now)
	return limited && !d.To.After(boundary) && now.Sub(d.At) >= p.grace()
}

// notExpired is the reason of a partition that stays because it is young enough.
const notExpired = "not past retention"

// cannotRetire returns why a partition stays, empty if it goes. The current step's never goes, whatever the retention.
func cannotRetire(p Policy, s Snapshot, leaf Partition, now time.Time) string {
	boundary, ok := Boundary(p, now)
	if !ok || !leaf.expired(boundary) {
		return notExpired
	}
	if b := hindrance(s, leaf.From, leaf.To, leaf.Bytes); b != nil {
		return b.Detail
	}
	switch {
	case leaf.Kind != "r":
		return fmt.Sprintf("is no plain table (relkind %q)", leaf.Kind)
	case leaf.DetachPending:
		return "an unfinished DETACH CONCURRENTLY holds it; finish it with DETACH PARTITION … FINALIZE"
	case p.Expired != ExpiredArchive:
		return ""
	case s.Archive == nil:
		return fmt.Sprintf("the archive %q cannot be used: %s", p.ArchiveTable, s.ArchiveFault)
	case s.Archive.KeyType != s.KeyType:
		return fmt.Sprintf("the archive's key is %q, the table's %q", s.Archive.KeyType, s.KeyType)
	case s.Archive.Default != "":
		return fmt.Sprintf("the archive has the DEFAULT partition %q, which would be scanned under an exclusive lock", s.Archive.Default)
	}
	for _, a := range s.Archive.Partitions {
		if a.overlaps(leaf.From, leaf.To) {
			return fmt.Sprintf("the archive has these bounds already, in %q", a.Name)
		}
	}
	if i, ok := missingInArchive(s, leaf); ok && i.Constraint {
		return fmt.Sprintf("the archive's constraint index %q is missing on it", i.Name)
	}
	return ""
}

func missingInArchive(s Snapshot, leaf Partition) (CatalogIndex, bool) {
	for _, want := range s.Archive.Indexes {
		if !want.availableOn(leaf) {
			return want, true
		}
	}
	return CatalogIndex{}, false
}

// availableOn says that ATTACH would adopt an index of the leaf instead of building one.
func (c CatalogIndex) availableOn(leaf Partition) bool {
	for _, have := range leaf.Indexes {
		if have.Valid && have.equals(c) {
			return true
		}
	}
	return false
}

func moveAction(p Policy, s Snapshot, leaf Partition, names names) Action {
	a := Action{Kind: Move, Schema: p.Schema, Table: p.Table, Partition: leaf.Name, From: leaf.From, To: leaf.To, leafSchema: leaf.Schema, archive: p.ArchiveTable}
	live, name := p.String(), leaf.Schema+"."+leaf.Name
	archive := p.Schema + "." + p.ArchiveTable
	table := ident(leaf.Schema, leaf.Name)
	add := func(tx int, lock string, on []string, why, format string, args ...any) {
		a.Statements = append(a.Statements, Statement{Tx: tx, SQL: fmt.Sprintf(format, args...), Lock: lock, On: on, Why: why})
	}
	a.Statements = append(a.Statements, Statement{Hook: HookPrepare, Why: "whoever guards the rows gets ready"})
	for _, i := range s.Archive.Indexes {
		if !i.availableOn(leaf) {
			// SHARE UPDATE EXCLUSIVE on the leaf for the length of the build; reads and writes go on.
			add(0, "SHARE UPDATE EXCLUSIVE", []string{name}, "an index that the archive declares, so that ATTACH builds none", "%s",
				createIndex(names.free(leaf.Name+"_"+indexWord(i)), table, i.Tail, i.Unique, true))
		}
	}
	tx := 1
	if !leaf.Bounded {
		// ACCESS EXCLUSIVE on the leaf for an instant: NOT VALID reads no row.
		add(tx, "ACCESS EXCLUSIVE", []string{name}, "the bounds as a CHECK, so that the archive need not scan",
			"alter table %s add constraint %s check (%s) not valid", table, ident(boundsCheck), boundsExpression(p.Key, s.KeyType, leaf))
		tx++
	}
	if !leaf.BoundsValid {
		// SHARE UPDATE EXCLUSIVE on the leaf for a scan of it; reads and writes go on.
		add(tx, "SHARE UPDATE EXCLUSIVE", []string{name}, "the CHECK is proven, with one scan",
			"alter table %s validate constraint %s", table, ident(boundsCheck))
		tx++
	}
	// SHARE on the leaf until the end: late writes to this past day wait, reads go on.
	add(tx, "SHARE", []string{name}, "no row of this day changes from here on", "lock table %s in share mode", table)
	a.Statements = append(a.Statements, Statement{Tx: tx, Hook: HookGuard, Why: "may this day go?"},
		Statement{Tx: tx, Hook: HookCount, Why: "how many rows it has; a hold notes that"}, wanted(tx))
	// ACCESS EXCLUSIVE on the archive, the leaf and the table, until commit, some milliseconds later. The table comes
	// last: writers queue behind the request for it, and for no other.
	add(tx, "ACCESS EXCLUSIVE", []string{archive, name, live}, "the move is one step for every reader; the live table last",
		"lock table only %s, %s, only %s in access exclusive mode", ident(p.Schema, p.ArchiveTable), table, ident(p.Schema, p.Table))
	// ACCESS EXCLUSIVE on table and leaf, held already.
	add(tx, "ACCESS EXCLUSIVE", []string{live, name}, "leaves the live table",
		"alter table %s detach partition %s", ident(p.Schema, p.Table), table)
	// SHARE UPDATE EXCLUSIVE on the archive, ACCESS EXCLUSIVE on the leaf; more is held already.
	add(tx, "SHARE UPDATE EXCLUSIVE", []string{archive}, "enters the archive: no scan, no index build",
		"alter table %s attach partition %s %s", ident(p.Schema, p.ArchiveTable), table, s.KeyType.bounds(leaf.From, leaf.To))
	// ACCESS EXCLUSIVE on the leaf, held already.
	add(tx, "ACCESS EXCLUSIVE", []string{name}, "the partition's own bounds say the same now",
		"alter table %s drop constraint %s", table, ident(boundsCheck))
	a.Statements = append(a.Statements, recountStatement(leaf.Schema, leaf.Name))
	return a
}

// wanted is the last look before locks that others wait for.
func wanted(tx int) Statement {
	return Statement{Tx: tx, Hook: HookWanted, Why: "nobody holds it, and the policy is as it was"}
}

func boundsExpression(key string, k KeyType, leaf Partition) string {
	column := ident(key)
	return fmt.Sprintf("%s is not null and %s >= %s and %s < %s",
		column, column, k.literal(leaf.From), column, k.literal(leaf.To))
}

func detachAction(p Policy, leaf Partition, now time.Time) Action {
	a := Action{Kind: Detach, Schema: p.Schema, Table: p.Table, Partition: leaf.Name, From: leaf.From, To: leaf.To, leafSchema: leaf.Schema}
	table, name := ident(leaf.Schema, leaf.Name), leaf.Schema+"."+leaf.Name
	m := mark{Schema: p.Schema, Table: p.Table, From: leaf.From, To: leaf.To, At: now.UTC().Truncate(time.Microsecond)}
	a.Statements = []Statement{
		{Hook: HookPrepare, Why: "whoever guards the rows gets ready"},
		// SHARE on the leaf until the end: late writes to this past day wait, reads go on.
		{
			Tx: 1, Lock: "SHARE", On: []string{name}, Why: "no row of this day changes from here on",
			SQL: fmt.Sprintf("lock table %s in share mode", table),
		},
		{Tx: 1, Hook: HookGuard, Why: "may this day go?"},
		wanted(1),
		// ACCESS EXCLUSIVE on the leaf and the table, until commit. The table comes last: writers queue behind it only.
		{
			Tx: 1, Lock: "ACCESS EXCLUSIVE", On: []string{name, p.String()}, Why: "the live table last",
			SQL: fmt.Sprintf("lock table %s, only %s in access exclusive mode", table, ident(p.Schema, p.Table)),
		},
		// ACCESS EXCLUSIVE on table and leaf, held already.
		{
			Tx: 1, Lock: "ACCESS EXCLUSIVE", On: []string{p.String(), name}, Why: "leaves the table",
			SQL: fmt.Sprintf("alter table %s detach partition %s", ident(p.Schema, p.Table), table),
		},
		// SHARE UPDATE EXCLUSIVE on the leaf.
		{
			Tx: 1, Lock: "SHARE UPDATE EXCLUSIVE", On: []string{name},
			Why: fmt.Sprintf("the mark by which it is dropped, not before %s have passed", p.grace()),
			SQL: fmt.Sprintf("comment on table %s is %s", table, quote(m.comment())),
		},
	}
	return a
}

func dropAction(p Policy, d Detached) Action {
	table, name := ident(d.Schema, d.Name), d.Schema+"."+d.Name
	return Action{
		Kind: Drop, Schema: p.Schema, Table: p.Table, Partition: d.Name, From: d.From, To: d.To, detached: d,
		Statements: []Statement{
			// ACCESS EXCLUSIVE on a table that no other refers to.
			{
				Tx: 1, Lock: "ACCESS EXCLUSIVE", On: []string{name}, Why: "detached at " + d.At.UTC().Format(time.RFC3339) + ", its grace is over",
				SQL: fmt.Sprintf("lock table %s in access exclusive mode", table),
			},
			{Tx: 1, Hook: HookDetached, Why: "it is still that table, marked and attached to nothing"},
			wanted(1),
			{
				Tx: 1, Lock: "ACCESS EXCLUSIVE", On: []string{name}, Why: "gives the space back",
				SQL: fmt.Sprintf("drop table %s", table),
			},
		},
	}
}
