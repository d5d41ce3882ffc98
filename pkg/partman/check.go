package partman

import (
	"fmt"
	"slices"
	"time"
)

// Code names a kind of finding.
type Code string

// The codes of findings, a closed set.
const (
	NoCurrent       Code = "no_current"       // inserts fail now
	FewPremade      Code = "premake"          // fewer future partitions than the policy asks for
	Overlap         Code = "overlap"          // a range is both in the table and in its archive
	OddBounds       Code = "bounds"           // bounds that are not those of one step in UTC
	IndexMissing    Code = "index_missing"    // a declared index is missing on a leaf, or not attached
	IndexInvalid    Code = "index_invalid"    // an index of a leaf or of the parent is invalid
	WrongStorage    Code = "storage"          // a leaf's storage parameters differ from the policy
	DefaultPresent  Code = "default"          // there is a DEFAULT partition
	DetachUnended   Code = "detach_pending"   // a DETACH CONCURRENTLY was left unfinished
	NotATable       Code = "not_a_table"      // a partition that is partitioned itself, or foreign
	Leftover        Code = "detached"         // a former partition of ours should have been dropped
	Stray           Code = "stray"            // a table is named like a partition and is none
	PastRetention   Code = "past_retention"   // a partition should have gone, or cannot go
	ArchiveNotReady Code = "archive_mismatch" // the archive cannot take partitions of this table
	Missing         Code = "missing"          // a past step has no partition, between others
	ClockDoubt      Code = "clock"            // the database's clock cannot be right, so nothing retires
	Unconfirmed     Code = "unconfirmed"      // a policy that keeps less waits for a person's word
	RowsDiffer      Code = "rows"             // a day has other rows in the archive than it had in the table
	Waiting         Code = "waiting"          // an action waits for a session that is named; only a Manager knows of it
	Failed          Code = "failed"           // an action or a whole round failed; only a Manager knows of it
)

// Finding is one thing that is not as the policy wants it.
type Finding struct {
	Code      Code   `json:"code"`
	Schema    string `json:"schema"`
	Table     string `json:"table"`
	Partition string `json:"partition,omitempty"`
	Detail    string `json:"detail"`
	// Refused is the guard's last word on the partition, where that is why it stays. Detail says it, too.
	Refused *Blocked `json:"refused,omitempty"`
	// Blockers held the lock that the last try did not get. Detail names them, too.
	Blockers []Blocker `json:"blockers,omitempty"`
	// Broken is set where the table cannot do its work now: a row finds no partition. Anything else is a warning.
	Broken bool `json:"broken,omitempty"`
}

// String is the finding for a person who knows of which table it is: "telemetry_p20261114: ends before …", or the detail
// alone where no partition is meant.
func (f Finding) String() string {
	if f.Partition == "" {
		return f.Detail
	}
	return f.Partition + ": " + f.Detail
}

// overdue is how long a partition may be due to go, or to be dropped, before that is a finding. The retire loop has had a
// dozen rounds by then.
const overdue = time.Hour

// Check compares the table of s to p at the instant now. It is a pure function; no finding means all is well. What is
// due to leave is one only when it has been due for more than an hour, or when it is plain that it cannot leave.
func Check(p Policy, s Snapshot, now time.Time) []Finding {
	c := checker{p: p, s: s, now: now.UTC()}
	c.coverage()
	c.table()
	c.clock()
	c.pending()
	c.rows()
	for _, leaf := range s.Partitions {
		c.leaf(leaf)
		c.retention(leaf)
	}
	c.leftovers()
	return c.found
}

type checker struct {
	p     Policy
	s     Snapshot
	now   time.Time
	doubt bool // the clock cannot be right: what is due by it is not
	found []Finding
}

func (c *checker) add(code Code, partition, format string, args ...any) {
	c.found = append(c.found, Finding{
		Code: code, Schema: c.p.Schema, Table: c.p.Table, Partition: partition,
		Detail: fmt.Sprintf(format, args...), Broken: code == NoCurrent,
	})
}

// coverage finds steps without a partition: today's, the premade ones, and what is missing of the past that is kept.
func (c *checker) coverage() {
	if c.p.Premake < 0 {
		return
	}
	if Runway(c.s, c.now) == 0 {
		c.add(NoCurrent, "", "no partition takes a row of %s", c.p.Step.label(c.now))
	}
	past := past(c.p, c.s, c.now)
	for _, gap := range uncovered(past, c.s.Partitions) {
		c.add(Missing, "", "no partition for [%s, %s), and older ones are there", gap.from.Format(time.RFC3339), gap.to.Format(time.RFC3339))
	}
	ready := 0
	for _, r := range Expected(c.p, c.now)[1:] {
		if len(uncovered(span{r.From, r.To}, c.s.Partitions)) == 0 {
			ready++
		}
	}
	if ready < c.p.Premake {
		c.add(FewPremade, "", "%d future partitions of %d", ready, c.p.Premake)
	}
}

// table checks what belongs to the parent and to the pair of table and archive.
func (c *checker) table() {
	if c.s.Default != "" {
		c.add(DefaultPresent, c.s.Default, "a DEFAULT partition is scanned under an exclusive lock by each ATTACH")
	}
	for _, i := range c.s.Indexes {
		if !i.Valid {
			c.add(IndexInvalid, "", "the table's own index %q is invalid: not each leaf has its part", i.Name)
		}
	}
	for _, i := range c.p.lostByParent(c.s) {
		c.add(IndexMissing, "", "index %q of the policy is missing on the table itself", i.Name)
	}
	if c.s.ArchiveFault != "" {
		c.add(ArchiveNotReady, "", "the archive %q cannot be used: %s", c.p.ArchiveTable, c.s.ArchiveFault)
	}
	if c.s.Archive == nil {
		return
	}
	if c.s.Archive.KeyType != c.s.KeyType {
		c.add(ArchiveNotReady, "", "the key of archive %q is %q, the table's %q", c.p.ArchiveTable, c.s.Archive.KeyType, c.s.KeyType)
	}
	for _, leaf := range c.s.Partitions {
		for _, a := range c.s.Archive.Partitions {
			if !leaf.OpenFrom && !leaf.OpenTo && a.overlaps(leaf.From, leaf.To) {
				c.add(Overlap, leaf.Name, "%q of the archive covers a part of it", a.Name)
			}
		}
	}
}

func (c *checker) leaf(leaf Partition) {
	if leaf.OpenFrom || leaf.OpenTo || leaf.From != c.p.Step.floor(leaf.From) || leaf.To != c.p.Step.next(leaf.From, 1) {
		c.add(OddBounds, leaf.Name, "%s are not the bounds of one %s in UTC", leaf.bounds(), c.p.Step)
	}
	if leaf.Kind != "r" {
		c.add(NotATable, leaf.Name, "relkind %q is left alone", leaf.Kind)
		return
	}
	if leaf.DetachPending {
		c.add(DetachUnended, leaf.Name, "a DETACH CONCURRENTLY hides its rows; finish it with DETACH PARTITION … FINALIZE")
	}
	for _, d := range indexDrift(c.p, c.s, leaf) {
		c.index(leaf, d)
	}
	if wrong := wrongStorage(c.p, leaf); len(wrong) > 0 {
		c.add(WrongStorage, leaf.Name, "needs %s", settings(wrong))
	}
}

func (c *checker) index(leaf Partition, d drift) {
	var want string
	switch {
	case d.parent != nil:
		want = fmt.Sprintf("%q of the table", d.parent.Name)
	case d.policy != nil:
		want = fmt.Sprintf("%q of the policy", d.policy.Name)
	default:
		c.add(IndexInvalid, leaf.Name, "%q is invalid and was left behind", d.have.Name)
		return
	}
	switch {
	case d.have != nil && !d.have.Valid && d.have.Building:
		c.add(IndexInvalid, leaf.Name, "%q for index %s is being built", d.have.Name, want)
	case d.have != nil && !d.have.Valid:
		c.add(IndexInvalid, leaf.Name, "%q for index %s is invalid", d.have.Name, want)
	case d.have != nil:
		c.add(IndexMissing, leaf.Name, "%q is not attached to index %s", d.have.Name, want)
	default:
		c.add(IndexMissing, leaf.Name, "index %s is missing", want)
	}
	if c.p.requires(d) {
		last := &c.found[len(c.found)-1]
		last.Detail += "; statements that need it scan the whole partition until it is built, which begins at once"
	}
}

func (c *checker) retention(leaf Partition) {
	switch why := cannotRetire(c.p, c.s, leaf, c.now); {
	case why == notExpired, c.doubt:
	case why == "":
		if c.now.Sub(c.p.dueSince(leaf.To)) > overdue {
			c.add(PastRetention, leaf.Name, "%s", dueToGo(c.p, leaf.To, c.now))
		}
	default:
		c.add(PastRetention, leaf.Name, "%s; cannot go: %s", dueToGo(c.p, leaf.To, c.now), why)
	}
}

// dueToGo says of a partition past retention, which ends at to, since when it is.
func dueToGo(p Policy, to, now time.Time) string {
	boundary, _ := Boundary(p, now)
	return fmt.Sprintf("ends before %s and is due since %s", p.Step.label(boundary), p.dueSince(to).Format(time.RFC3339))
}

// dueToDrop says of a detached partition when its grace ended.
func dueToDrop(p Policy, d Detached) string {
	return fmt.Sprintf("detached at %s and due to be dropped since %s", d.At.Format(time.RFC3339), d.At.Add(p.grace()).Format(time.RFC3339))
}

func (c *checker) leftovers() {
	for _, d := range c.s.Detached {
		if c.doubt || c.now.Sub(d.At) < c.p.grace() {
			continue
		}
		if !c.p.drops(d, c.now) {
			c.add(Leftover, d.Name, "detached at %s and not dropped, since the retention keeps that day now: attach it again, or drop it by hand",
				d.At.Format(time.RFC3339))
			continue
		}
		if why := hindrance(c.s, d.From, d.To, d.Bytes); why != nil {
			c.add(Leftover, d.Name, "%s; cannot go: %s", dueToDrop(c.p, d), why.Detail)
		} else if c.now.Sub(d.At) > c.p.grace()+overdue {
			c.add(Leftover, d.Name, "%s", dueToDrop(c.p, d))
		}
	}
	for _, name := range slices.Sorted(slices.Values(c.s.Strays)) {
		c.add(Stray, name, "is named like a partition and is none, nor marked as a detached one")
	}
}

// Drift counts the leaves' indexes that are missing, invalid or not attached, and the parent's that are invalid.
func Drift(p Policy, s Snapshot) int {
	n := 0
	for _, leaf := range s.Partitions {
		if leaf.Kind == "r" {
			n += len(indexDrift(p, s, leaf))
		}
	}
	for _, i := range s.Indexes {
		if !i.Valid {
			n++
		}
	}
	return n + len(p.lostByParent(s))
}

func (p Partition) bounds() string {
	from, to := "MINVALUE", "MAXVALUE"
	if !p.OpenFrom {
		from = p.From.Format(time.RFC3339)
	}
	if !p.OpenTo {
		to = p.To.Format(time.RFC3339)
	}
	return "[" + from + ", " + to + ")"
}
