package partman

import (
	"fmt"
	"strings"
	"time"
)

// Kind is what an action does.
type Kind string

// The kinds of action, a closed set.
const (
	Create  Kind = "create"  // make a partition and attach it
	Move    Kind = "archive" // move a partition to the archive
	Detach  Kind = "detach"  // take an expired partition from its parent; it is dropped later
	Drop    Kind = "drop"    // drop a detached partition whose grace is over
	Reindex Kind = "index"   // build, attach or remove an index of a leaf
	Storage Kind = "storage" // set a leaf's storage parameters
	Analyze Kind = "analyze" // gather the parent's statistics
	Count   Kind = "count"   // count again the rows of a day that has moved
)

// Kinds lists them all.
var Kinds = []Kind{Create, Move, Detach, Drop, Reindex, Storage, Analyze, Count}

// Hook names a step of an action that is code and not SQL.
type Hook string

// The hooks of an action.
const (
	HookPrepare  Hook = "prepare"  // Config.Prepare, outside any transaction
	HookGuard    Hook = "guard"    // Config.Guard, in the transaction and under its lock
	HookIndexes  Hook = "indexes"  // no index of the leaf is doubled, each of the parent's is attached
	HookReplica  Hook = "replica"  // the leaf's part of the parent's index becomes its replica identity
	HookDetached Hook = "detached" // the table is still the detached one, marked and attached to nothing
	HookCount    Hook = "count"    // the rows are counted, and a hold notes how many, until they have been counted again
	HookWanted   Hook = "wanted"   // no hold and no change of the policy since the plan was made
	HookRecount  Hook = "recount"  // the rows are counted again, outside any transaction
)

// Statement is one step of an action: SQL, or a hook.
type Statement struct {
	// Tx numbers the action's transactions from 1; 0 is a statement that runs outside of one, as CONCURRENTLY demands.
	Tx int `json:"tx"`
	// SQL is exactly what is sent; empty where Hook is set.
	SQL  string `json:"sql,omitempty"`
	Hook Hook   `json:"hook,omitempty"`
	// Lock is the strongest lock that the step takes on a relation, On the relations that it takes that one on, or a weaker one
	// that conflicts with itself, in order.
	Lock string   `json:"lock,omitempty"`
	On   []string `json:"on,omitempty"`
	// Why is for the person who reads the plan.
	Why string `json:"why"`
}

// Action is one change, complete in itself: after it, or after a crash anywhere in it, the next plan is right again.
type Action struct {
	Kind Kind `json:"kind"`
	// Schema and Table name the partitioned table, Partition the leaf; empty where the action is on the table.
	Schema     string      `json:"schema"`
	Table      string      `json:"table"`
	Partition  string      `json:"partition,omitempty"`
	From       time.Time   `json:"from,omitzero"`
	To         time.Time   `json:"to,omitzero"`
	Statements []Statement `json:"statements"`

	// leafSchema is the partition's own schema, which may differ from its parent's.
	leafSchema string
	// pastRetention is set for the repair of a leaf past retention: the retire loop does it, so that none repairs what another moves.
	pastRetention bool
	// required is set for the repair of an index that the policy says the table cannot do without.
	required bool
	// subject tells apart two actions of one kind on one partition.
	subject string
	// detached is the mark that a drop must find.
	detached Detached
	// archive is the table to which a move goes.
	archive string
	// bytes is the size of what leaves, and now the instant of the plan that says so.
	bytes int64
	now   time.Time
}

// Plan is what brings one table to its policy, in the order in which it is done.
type Plan struct {
	Schema  string    `json:"schema"`
	Table   string    `json:"table"`
	Now     time.Time `json:"now"`
	Actions []Action  `json:"actions"`
}

// NewPlan returns the statements that bring the table of s to p at the instant now. It is a pure function: bounds
// decide, never names, and now decides only by its step in UTC. Missing partitions come first, today's before all; then
// repairs; then detached partitions whose grace is over; then what is past retention, oldest first; then statistics.
func NewPlan(p Policy, s Snapshot, now time.Time) Plan {
	plan := Plan{Schema: p.Schema, Table: p.Table, Now: now.UTC()}
	names := newNames(s.Taken)
	plan.Actions = append(plan.Actions, planCreate(p, s, now, names)...)
	plan.Actions = append(plan.Actions, planHealth(p, s, now, names)...)
	plan.Actions = append(plan.Actions, planRetire(p, s, now, names)...)
	plan.Actions = append(plan.Actions, planAnalyze(p, s, now)...)
	return plan
}

// Limit returns the plan with at most n partitions dropped, archived or detached, the first. Other actions stay.
func (p Plan) Limit(n int) Plan {
	return p.limit(budget{partitions: n})
}

func (p Plan) limit(b budget) Plan {
	var kept []Action
	for _, a := range p.Actions {
		if b.takes(a) {
			kept = append(kept, a)
		}
	}
	p.Actions = kept
	return p
}

// budget is what one round may still take of a table.
type budget struct {
	partitions int
	// bytes counts only where it is limited.
	bytes   int64
	limited bool
}

func (c Config) budget() budget {
	return budget{c.MaxRetire, c.MaxRetireBytes, c.MaxRetireBytes > 0}
}

// takes says whether an action is within the budget, and takes it from there. After the first that is not none is: the
// oldest go first.
func (b *budget) takes(a Action) bool {
	if !a.Kind.retires() {
		return true
	}
	if b.partitions <= 0 || b.limited && a.bytes > b.bytes {
		b.partitions = 0
		return false
	}
	b.partitions--
	b.bytes -= a.bytes
	return true
}

func (k Kind) retires() bool { return k == Move || k == Detach || k == Drop }

// Loop is the one that carries out the action.
func (a Action) Loop() Loop {
	switch {
	case a.Kind == Create:
		return CreateLoop
	case a.Kind.retires() || a.Kind == Count || a.pastRetention:
		return RetireLoop
	default:
		return HealthLoop
	}
}

// key identifies an action across two plans of one table.
func (a Action) key() string {
	return fmt.Sprintf("%s %s.%s %s %s %d", a.Kind, a.Schema, a.Table, a.Partition, a.subject, a.From.Unix())
}

// same says that two plans mean the same action, statement by statement.
func (a Action) same(b Action) bool {
	return a.key() == b.key() && a.text() == b.text()
}

// String is the plan as `partitions plan` prints it: SQL, with comments that name locks and reasons.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "-- %s.%s at %s: %d actions\n", p.Schema, p.Table, p.Now.Format(time.RFC3339), len(p.Actions))
	for _, a := range p.Actions {
		b.WriteString("\n")
		b.WriteString(a.text())
	}
	return b.String()
}

func (a Action) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "-- %s %s", a.Kind, a.Schema+"."+a.Table)
	if a.Partition != "" {
		fmt.Fprintf(&b, " partition %s", a.Partition)
	}
	if !a.To.IsZero() {
		fmt.Fprintf(&b, " [%s, %s)", a.From.Format(time.RFC3339), a.To.Format(time.RFC3339))
	}
	b.WriteString("\n")
	tx := 0
	for _, s := range a.Statements {
		if tx != 0 && s.Tx != tx {
			b.WriteString("commit;\n")
		}
		if s.Tx != 0 && s.Tx != tx {
			b.WriteString("begin;\n")
		}
		tx = s.Tx
		s.write(&b)
	}
	if tx != 0 {
		b.WriteString("commit;\n")
	}
	return b.String()
}

func (s Statement) write(b *strings.Builder) {
	indent := ""
	if s.Tx != 0 {
		indent = "  "
	}
	fmt.Fprintf(b, "%s-- ", indent)
	if s.Lock != "" {
		on := strings.Join(s.On, ", ")
		if s.Tx == 0 && len(s.On) > 1 {
			on = s.On[0] + " and its partitions" // ANALYZE, in whatever number there are when it is done
		}
		fmt.Fprintf(b, "%s on %s: ", s.Lock, on)
	}
	b.WriteString(s.Why + "\n")
	if s.Hook != "" {
		fmt.Fprintf(b, "%s-- (%s)\n", indent, s.Hook)
		return
	}
	fmt.Fprintf(b, "%s%s;\n", indent, s.SQL)
}
