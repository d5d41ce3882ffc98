package queryplan

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A Node is one node of a plan. Figures per loop are averages over its loops.
type Node struct {
	Type            string  `json:"Node Type"`
	Parent          string  `json:"Parent Relationship"` // what it is to the node above: Outer, InitPlan, …
	Schema          string  `json:"Schema"`
	Relation        string  `json:"Relation Name"`
	Alias           string  `json:"Alias"`
	Index           string  `json:"Index Name"`
	IndexCond       string  `json:"Index Cond"`
	RecheckCond     string  `json:"Recheck Cond"`
	Filter          string  `json:"Filter"`
	Disabled        bool    `json:"Disabled"` // since PostgreSQL 18: chosen although a setting rules it out
	EstimatedRows   float64 `json:"Plan Rows"`
	Rows            float64 `json:"Actual Rows"` // per loop, whole before PostgreSQL 18
	Loops           float64 `json:"Actual Loops"`
	Time            float64 `json:"Actual Total Time"` // ms per loop
	RemovedByFilter float64 `json:"Rows Removed by Filter"`
	RemovedByCheck  float64 `json:"Rows Removed by Index Recheck"`
	SubplansRemoved int     `json:"Subplans Removed"` // partitions left out when the statement began to run
	SharedHit       int64   `json:"Shared Hit Blocks"`
	SharedRead      int64   `json:"Shared Read Blocks"`
	WALBytes        float64 `json:"WAL Bytes"`
	Plans           []Node  `json:"Plans"`
}

// A Plan is the answer to one EXPLAIN.
type Plan struct {
	Root          Node    `json:"Plan"`
	PlanningTime  float64 `json:"Planning Time"`  // ms
	ExecutionTime float64 `json:"Execution Time"` // ms; 0 unless analyzed
	Analyzed      bool    `json:"-"`
}

// Options is what Explain does beside planning.
type Options struct {
	// Analyze runs the statement, and counts rows, time, buffers and WAL.
	Analyze bool
}

// Explain explains the statement in tx. An error of the server is wrapped as it is.
func Explain(ctx context.Context, tx pgx.Tx, o Options, sql string, args ...any) (Plan, error) {
	options := "format json, verbose"
	if o.Analyze {
		options += ", analyze, buffers, wal"
	}
	var answer []byte
	args = append([]any{pgx.QueryExecModeDescribeExec}, args...)
	if err := tx.QueryRow(ctx, "explain ("+options+")\n"+sql, args...).Scan(&answer); err != nil {
		return Plan{}, fmt.Errorf("explain: %w", err)
	}
	p, err := Parse(answer)
	if err != nil {
		return Plan{}, err
	}
	p.Analyzed = o.Analyze
	return p, nil
}

// mergeCounts are members that PostgreSQL puts into the array of the tables that MERGE changes, where JSON has no members.
var mergeCounts = regexp.MustCompile(`,\s*"Tuples (?:Inserted|Updated|Deleted|Skipped)": [0-9.]+`)

// Parse reads what EXPLAIN (FORMAT JSON) of one statement answers.
func Parse(answer []byte) (Plan, error) {
	var plans []Plan
	if err := json.Unmarshal(mergeCounts.ReplaceAll(answer, nil), &plans); err != nil {
		return Plan{}, fmt.Errorf("read the plan: %w", err)
	}
	if len(plans) != 1 || plans[0].Root.Type == "" {
		return Plan{}, fmt.Errorf("read the plan: %d plans, want one of a statement that has one", len(plans))
	}
	return plans[0], nil
}

// Indexed makes the planner of the rest of the transaction prefer any index to a sequential or bitmap scan, and a nested loop
// with an index inside to joins that read their input whole.
func Indexed(ctx context.Context, tx pgx.Tx) error {
	const q = `select set_config(s, 'off', true) from unnest('{enable_seqscan, enable_bitmapscan, enable_hashjoin, enable_mergejoin}'::text[]) s`
	if _, err := tx.Exec(ctx, q); err != nil {
		return fmt.Errorf("rule out sequential scans: %w", err)
	}
	return nil
}

// AnyIndex is Indexed with bitmap scans, which are all that an index of a kind as GIN has. A BRIN index is chosen where nothing else is.
func AnyIndex(ctx context.Context, tx pgx.Tx) error {
	if err := Indexed(ctx, tx); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "set local enable_bitmapscan = on"); err != nil {
		return fmt.Errorf("allow bitmap scans: %w", err)
	}
	return nil
}

// Each calls f for the node and every one below.
func (n *Node) Each(f func(*Node)) {
	f(n)
	for i := range n.Plans {
		n.Plans[i].Each(f)
	}
}

// total is rows, or time, of all loops.
func (n *Node) total(perLoop float64) float64 { return perLoop * n.Loops }

// RowsFound is how many rows a node gave to the one above.
func (n *Node) RowsFound() int64 { return int64(math.Round(n.total(n.Rows))) }

// RowsRead is how many rows a scan looked at.
func (n *Node) RowsRead() int64 {
	return int64(math.Round(n.total(n.Rows + n.RemovedByFilter + n.RemovedByCheck)))
}

// isModify says that the node changes a table's rows.
func (n *Node) isModify() bool { return n.Type == "ModifyTable" }

// Estimated is the number of rows that the planner expects the statement to change, or to return where it changes none.
func (p *Plan) Estimated() float64 {
	return p.effect(func(n *Node) float64 { return n.EstimatedRows })
}

// Matched is the number of rows that the analyzed statement changed, or returned where it changes none.
func (p *Plan) Matched() int64 {
	return int64(p.effect(func(n *Node) float64 { return float64(n.RowsFound()) }))
}

// effect sums up what the inputs of nodes that change rows give them, also within WITH; without such a node what the root gives.
func (p *Plan) effect(rows func(*Node) float64) (sum float64) {
	modifies := false
	p.Root.Each(func(n *Node) {
		if !n.isModify() {
			return
		}
		modifies = true
		for i := range n.Plans {
			if n.Plans[i].Parent == "Outer" || n.Plans[i].Parent == "Member" {
				sum += rows(&n.Plans[i])
			}
		}
	})
	if !modifies {
		return rows(&p.Root)
	}
	return sum
}

// Modifies says whether the statement changes rows.
func (p *Plan) Modifies() (changes bool) {
	p.Root.Each(func(n *Node) { changes = changes || n.isModify() })
	return changes
}

// SubplansRemoved is how many partitions were left out when the statement began to run, beside those that were in planning.
func (p *Plan) SubplansRemoved() (sum int) {
	p.Root.Each(func(n *Node) { sum += n.SubplansRemoved })
	return sum
}

// WALBytes is what the statement wrote to the log.
func (p *Plan) WALBytes() int64 { return int64(p.Root.WALBytes) }

// A Scan is how one node reads a relation.
type Scan struct {
	Schema, Relation string
	Type             string // of the node, such as Seq Scan
	Conditions       []Condition
	Filter           string
	RowsRead         int64 // looked at, by all loops; 0 unless analyzed
	RowsFound        int64 // of these, what the scan gave on
	Loops            int64 // 0 where the node never ran, or the plan is not analyzed
	SharedHit        int64 // buffers
	SharedRead       int64
	Time             float64 // ms
}

// A Condition is one use of an index. A bitmap scan may have several, and rows found by any of them where Or is set.
type Condition struct {
	Index, Cond string
	Or          bool
}

// Scans lists the plan's scans of relations, in the order of the tree.
func (p *Plan) Scans() []Scan {
	var scans []Scan
	p.Root.Each(func(n *Node) {
		if n.Relation == "" || n.isModify() || n.Type == "LockRows" {
			return
		}
		s := Scan{
			Schema: n.Schema, Relation: n.Relation, Type: n.Type, Filter: n.Filter, RowsRead: n.RowsRead(), RowsFound: n.RowsFound(),
			Loops: int64(n.Loops), SharedHit: n.SharedHit, SharedRead: n.SharedRead, Time: n.total(n.Time),
		}
		if n.Index != "" {
			s.Conditions = []Condition{{Index: n.Index, Cond: n.IndexCond}}
		} else {
			s.Conditions = bitmap(n.Plans, false)
		}
		scans = append(scans, s)
	})
	return scans
}

// bitmap gathers the index uses below a bitmap heap scan.
func bitmap(nodes []Node, or bool) (list []Condition) {
	for i := range nodes {
		switch n := &nodes[i]; {
		case n.Type == "Bitmap Index Scan":
			list = append(list, Condition{n.Index, n.IndexCond, or})
		case strings.HasPrefix(n.Type, "Bitmap"):
			list = append(list, bitmap(n.Plans, or || n.Type == "BitmapOr")...)
		}
	}
	return list
}
