package partman

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The steps: a partition for each UTC day, or for each hour of it. A key of type date has days only.
const (
	Day  Step = "day"
	Hour Step = "hour"
)

// Step is the width of one partition. In UTC every day has 24 hours, and every hour 60 minutes.
type Step string

func (s Step) width() time.Duration {
	if s == Hour {
		return time.Hour
	}
	return 24 * time.Hour
}

// next returns the start of the n-th step after the one that begins at t.
func (s Step) next(t time.Time, n int) time.Time { return t.Add(time.Duration(n) * s.width()) }

// floor returns the start of the step that holds t, in UTC: Truncate counts from a midnight.
func (s Step) floor(t time.Time) time.Time { return t.UTC().Truncate(s.width()) }

// suffix is the part of a partition's name that tells its start to a person.
func (s Step) suffix(t time.Time) string {
	if s == Hour {
		return t.UTC().Format("20060102_15")
	}
	return t.UTC().Format("20060102")
}

// label is a step's start for a person.
func (s Step) label(t time.Time) string {
	if s == Hour {
		return t.UTC().Format("2006-01-02T15Z")
	}
	return t.UTC().Format(time.DateOnly)
}

// What becomes of a partition that is past its policy's retention.
const (
	ExpiredArchive = "archive" // moved to Policy.ArchiveTable
	ExpiredDrop    = "drop"    // detached, and dropped after Policy.Grace
)

// DefaultGrace is the time between detaching a partition and dropping it, where the policy names none.
const DefaultGrace = 24 * time.Hour

// NoPremake as Policy.Premake says that partitions are never created, only moved in.
const NoPremake = -1

const maxPremake = 366

// Policy says how one range-partitioned table is kept. The type of the key (timestamptz or date) is not part of it:
// it is read from the catalog.
type Policy struct {
	// Schema and Table name the partitioned table.
	Schema string `json:"schema"`
	Table  string `json:"table"`
	// Key is the table's only partition column.
	Key string `json:"key"`
	// Step is the width of a partition.
	Step Step `json:"step"`
	// Premake is the number of partitions kept ready after the current one; NoPremake creates none at all.
	Premake int `json:"premake"`
	// Retention is the number of partitions kept, the current one included: 8 is today and the seven days before.
	// 0 keeps all.
	Retention int `json:"retention"`
	// Expired is what becomes of older ones: ExpiredArchive or ExpiredDrop. Empty only where Retention is 0.
	Expired string `json:"expired,omitempty"`
	// ArchiveTable is the partitioned table, in the same schema, to which expired partitions move.
	ArchiveTable string `json:"archive_table,omitempty"`
	// Grace is how long a detached partition stays before it is dropped; 0 is DefaultGrace.
	Grace time.Duration `json:"grace,omitempty"`
	// Indexes are those that each leaf has, whatever its parent declares.
	Indexes []Index `json:"indexes,omitempty"`
	// Storage holds the leaves' storage parameters, which LIKE does not carry: fillfactor, autovacuum_….
	Storage map[string]string `json:"storage,omitempty"`
}

// Index is an index of each leaf: one that the partitioned parent cannot declare, such as a unique one without the partition
// key, or one that must be there even if somebody takes it from the parent.
type Index struct {
	// Name is the suffix after the leaf's name and an underscore.
	Name string `json:"name"`
	// Unique and NullsNotDistinct are the index's clauses of those names.
	Unique           bool `json:"unique,omitempty"`
	NullsNotDistinct bool `json:"nulls_not_distinct,omitempty"`
	// Method is the access method; empty is btree.
	Method string `json:"method,omitempty"`
	// Columns are plain column names, in order.
	Columns []string `json:"columns"`
	// OnParent is set where the parent is to declare it too, for those who read its definition. Not for a unique one.
	OnParent bool `json:"on_parent,omitempty"`
	// Required is set where the table's statements cannot do without it: a leaf that lacks it is a finding within
	// Config.LookEvery, and its repair begins at once and before all others.
	Required bool `json:"required,omitempty"`
}

func (i Index) method() string {
	if i.Method == "" {
		return "btree"
	}
	return i.Method
}

// String is "schema.table".
func (p Policy) String() string { return p.Schema + "." + p.Table }

// Equal says that two policies are the same, field by field; an empty list is the same as none.
func (p Policy) Equal(q Policy) bool { return reflect.DeepEqual(p.bare(), q.bare()) }

func (p Policy) bare() Policy {
	if len(p.Indexes) == 0 {
		p.Indexes = nil
	}
	if len(p.Storage) == 0 {
		p.Storage = nil
	}
	return p
}

func (p Policy) grace() time.Duration {
	if p.Grace <= 0 {
		return DefaultGrace
	}
	return p.Grace
}

var (
	storageKey   = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	storageValue = regexp.MustCompile(`^[A-Za-z0-9._+-]+$`)
	word         = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
)

// Validate returns all faults of the policy, joined, each naming the table, the field and its value.
func (p Policy) Validate() error {
	var faults []error
	bad := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("policy of %q: %s", p.String(), fmt.Sprintf(format, args...)))
	}
	for _, f := range []struct{ name, value string }{{"schema", p.Schema}, {"table", p.Table}, {"key", p.Key}} {
		if f.value == "" || len(f.value) > maxName || strings.ContainsRune(f.value, 0) {
			bad("%s %q: an identifier of 1 to %d bytes is needed", f.name, f.value, maxName)
		}
	}
	if p.Step != Day && p.Step != Hour {
		bad("step %q: %q or %q is needed", p.Step, Day, Hour)
	}
	if p.Premake < NoPremake || p.Premake > maxPremake {
		bad("premake %d: %d to %d is possible", p.Premake, NoPremake, maxPremake)
	}
	if p.Retention < 0 {
		bad("retention %d: 0 or more is possible", p.Retention)
	}
	if p.Grace < 0 {
		bad("grace %s: must not be negative", p.Grace)
	}
	p.validateExpired(bad)
	p.validateIndexes(bad)
	for k, v := range p.Storage {
		if !storageKey.MatchString(k) || !storageValue.MatchString(v) {
			bad("storage %s=%q: not a storage parameter", k, v)
		}
	}
	return errors.Join(faults...)
}

// fitsKey refuses hours of a key that has none.
func (p Policy) fitsKey(k KeyType) error {
	if k == Date && p.Step != Day {
		return fmt.Errorf("step %q: key %q of table %q is a date: only %q is possible", p.Step, p.Key, p.String(), Day)
	}
	return nil
}

func (p Policy) validateExpired(bad func(string, ...any)) {
	switch p.Expired {
	case ExpiredArchive:
		if p.ArchiveTable == "" || p.ArchiveTable == p.Table {
			bad("archive table %q: another table is needed where expired is %q", p.ArchiveTable, ExpiredArchive)
		}
	case ExpiredDrop, "":
		if p.ArchiveTable != "" {
			bad("archive table %q: is only for expired %q, which is %q", p.ArchiveTable, ExpiredArchive, p.Expired)
		}
		if p.Expired == "" && p.Retention > 0 {
			bad("expired %q: %q or %q is needed where retention is %d", p.Expired, ExpiredArchive, ExpiredDrop, p.Retention)
		}
	default:
		bad("expired %q: %q or %q is needed", p.Expired, ExpiredArchive, ExpiredDrop)
	}
}

func (p Policy) validateIndexes(bad func(string, ...any)) {
	var names []string
	for _, i := range p.Indexes {
		if !word.MatchString(i.Name) || len(i.Name) > 20 {
			bad("index %q: a name of at most 20 lower-case letters, digits and underscores is needed", i.Name)
		}
		if slices.Contains(names, i.Name) {
			bad("index %q: is named twice", i.Name)
		}
		names = append(names, i.Name)
		if !word.MatchString(i.method()) {
			bad("index %q: method %q is no access method", i.Name, i.Method)
		}
		if len(i.Columns) == 0 || slices.Contains(i.Columns, "") {
			bad("index %q: columns %q: one or more names are needed", i.Name, i.Columns)
		}
		if i.NullsNotDistinct && !i.Unique {
			bad("index %q: nulls not distinct is only for a unique index", i.Name)
		}
		if i.OnParent && i.Unique {
			bad("index %q: on_parent is not for a unique index, which would need the partition key", i.Name)
		}
	}
}
