package partman

import (
	"slices"
	"time"
)

// KeyType is the type of a partition key that this package keeps.
type KeyType string

// The types of a partition key. A timestamp without time zone is refused: it names no instant.
const (
	TimestampTZ KeyType = "timestamp with time zone"
	Date        KeyType = "date"
)

// Snapshot is what the catalog said of one table at one moment. The pure functions of this package decide from it alone.
type Snapshot struct {
	// Now is the database's clock when the snapshot was taken.
	Now time.Time
	// taken is from when by this process's clock, which does not go back: of two snapshots the later one counts.
	taken time.Time
	// KeyType is the type of the partition key.
	KeyType KeyType
	// Owner owns the table; User is who asked; CanOwn says that User may give a new table to Owner.
	Owner, User string
	CanOwn      bool
	// Partitions are ordered by their lower bound; a DEFAULT partition is not among them.
	Partitions []Partition
	// Default is the name of the DEFAULT partition, empty where there is none, and DefaultSchema its schema.
	Default, DefaultSchema string
	// Indexes are those that the partitioned table itself declares.
	Indexes []CatalogIndex
	// Traits are what a new leaf is given besides.
	Traits Traits
	// Archive describes the table that Policy.ArchiveTable names; nil where it names none, or one that cannot be used, of which
	// ArchiveFault says why.
	Archive      *Archive
	ArchiveFault string
	// Detached are partitions of this table that were detached by this package and wait to be dropped.
	Detached []Detached
	// Strays are tables named like partitions of this one that are none and carry no mark of ours, of whichever table.
	// They are reported, never touched.
	Strays []string
	// Taken holds the names of the schema's relations and types that begin like the names of partitions.
	Taken []string
	// Analyzed is when the parent was last analyzed; zero if never, as far as the statistics know.
	Analyzed time.Time
	// Record is what partition_policy remembers of the table. A Manager sets it, and what follows; Inspect does not.
	Record Record
	// Skew is by how much the database's clock was ahead of this host's.
	Skew time.Duration
	// MaxRetireBytes is Config's; 0 where there is no limit. Bytes of what is due are measured then, and no estimates.
	MaxRetireBytes int64
}

// Archive is what is known of the table that takes expired partitions.
type Archive struct {
	KeyType    KeyType
	Partitions []Partition
	Indexes    []CatalogIndex
	Default    string
}

// Partition is one leaf, as the catalog has it.
type Partition struct {
	Schema, Name string
	OID          uint32
	// From and To are the bounds in UTC, From included, To not. OpenFrom and OpenTo say that one is MINVALUE, MAXVALUE
	// or infinite; its time is zero then.
	From, To         time.Time
	OpenFrom, OpenTo bool
	// Kind is pg_class.relkind: "r" for a table; others are reported and left alone.
	Kind string
	// DetachPending is set where a DETACH … CONCURRENTLY was left unfinished.
	DetachPending bool
	// Rows and Bytes are estimates from the statistics; Rows is -1 before the first ANALYZE. Bytes includes indexes and TOAST.
	Rows, Bytes int64
	Indexes     []CatalogIndex
	// Options are the storage parameters that are set.
	Options map[string]string
	// Bounded and BoundsValid tell of the helper CHECK that lets the archive take the leaf without a scan.
	Bounded, BoundsValid bool
}

// CatalogIndex is an index of the parent or of a leaf.
type CatalogIndex struct {
	OID          uint32
	Schema, Name string
	// Parent is the OID of the partitioned index that this one is attached to, 0 if none.
	Parent uint32
	Valid  bool
	// Building is set while a session is at work on an index of this table.
	Building bool
	// Constraint is set where the index belongs to a constraint.
	Constraint       bool
	Unique           bool
	NullsNotDistinct bool
	Method           string
	// Columns are names; an expression's is empty.
	Columns []string
	// Plain is set where there is no predicate, expression, included column, or operator class, collation or order but the default.
	Plain bool
	// Tail is the definition after the table's name: "USING btree (id)".
	Tail string
}

// Detached is a former partition that waits for its grace to end.
type Detached struct {
	Schema, Name string
	OID          uint32
	From, To     time.Time
	// At is the database's time when it was detached.
	At time.Time
	// Bytes is an estimate.
	Bytes int64
	// Comment is the mark itself; a drop happens only while it is unchanged.
	Comment string
}

// CoveredUntil returns the end of the contiguous coverage that begins at now: the time at which inserts begin to fail.
// It returns now where no partition takes a row of now, and the zero time where the coverage has no end.
func CoveredUntil(s Snapshot, now time.Time) time.Time {
	if s.Default != "" {
		return time.Time{}
	}
	until := now.UTC()
	for _, p := range s.Partitions {
		if p.DetachPending || !p.OpenFrom && p.From.After(until) {
			continue
		}
		if p.OpenTo {
			return time.Time{}
		}
		if p.To.After(until) {
			until = p.To
		}
	}
	return until
}

// endless is the runway of a table whose coverage has no end.
const endless = time.Duration(1<<63 - 1)

// Runway is the time from now until inserts would fail for want of a partition; 0 means that they fail already.
func Runway(s Snapshot, now time.Time) time.Duration {
	until := CoveredUntil(s, now)
	if until.IsZero() {
		return endless
	}
	return until.Sub(now)
}

// span is a half-open range of the key.
type span struct{ from, to time.Time }

// uncovered returns the parts of want that no partition holds, in order.
func uncovered(want span, partitions []Partition) []span {
	if !want.from.Before(want.to) {
		return nil
	}
	left := []span{want}
	for _, p := range partitions {
		var rest []span
		for _, s := range left {
			rest = append(rest, s.minus(p)...)
		}
		left = rest
	}
	slices.SortFunc(left, func(a, b span) int { return a.from.Compare(b.from) })
	return left
}

func (s span) minus(p Partition) []span {
	if !p.overlaps(s.from, s.to) {
		return []span{s}
	}
	var rest []span
	if !p.OpenFrom && p.From.After(s.from) {
		rest = append(rest, span{s.from, p.From})
	}
	if !p.OpenTo && p.To.Before(s.to) {
		rest = append(rest, span{p.To, s.to})
	}
	return rest
}

func (p Partition) overlaps(from, to time.Time) bool {
	return (p.OpenFrom || p.From.Before(to)) && (p.OpenTo || p.To.After(from))
}

// expired says that the whole partition lies before the boundary.
func (p Partition) expired(boundary time.Time) bool {
	return !p.OpenFrom && !p.OpenTo && !p.To.After(boundary)
}
