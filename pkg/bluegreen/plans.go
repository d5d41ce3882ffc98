package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

// A PlanFinding is something that the statements' plans on both sides tell.
type PlanFinding struct {
	Table string `json:"table"` // schema.table, the active side's name
	// Statement is the text; empty where the finding is of the table alone.
	Statement string `json:"statement,omitempty"`
	// Leaves are the partitions of green that lack it; empty where it is not theirs.
	Leaves  []string `json:"leaves,omitempty"`
	Missing string   `json:"missing"` // what is missing or was found, in words
	Do      string   `json:"do"`
	Fatal   bool     `json:"fatal"` // stops a swap to green
}

func (f PlanFinding) String() string {
	text := f.Missing + "; " + f.Do
	if f.Statement != "" {
		text = fmt.Sprintf("%q: %s", shortened(f.Statement), text)
	}
	if f.Table != "" {
		text = f.Table + ": " + text
	}
	return text
}

// PlanError says that green would be slow, or would refuse a statement, where blue is and does not.
type PlanError struct{ Findings []PlanFinding } // the fatal ones

func (e *PlanError) Error() string {
	var all []string
	for _, f := range e.Findings[:min(3, len(e.Findings))] {
		all = append(all, f.String())
	}
	return fmt.Sprintf("%d findings in plans: %s", len(e.Findings), strings.Join(all, "; "))
}

// shortened is a statement on one line, cut.
func shortened(sql string) string {
	sql = strings.Join(strings.Fields(sql), " ")
	if cut := []rune(sql); len(cut) > 120 {
		return string(cut[:119]) + "…"
	}
	return sql
}

// Plans explains the application's statements on blue and on green, and runs none of them: those of the workload, which is remembered
// until the next one, or those remembered where it is nil; and of pg_stat_statements, where it is installed, those that take most of the
// time. A workload with a statement that the active side refuses is refused, and the one before stays.
func (m *Migration) Plans(ctx context.Context, workload []byte) ([]PlanFinding, error) {
	pairs, err := capturedPairs(ctx, m.cfg.Pool, m.cfg.Schema)
	if err != nil {
		return nil, err
	}
	var statements []statement
	if workload != nil {
		statements, err = parseWorkload(workload)
	} else {
		statements, err = m.remembered(ctx)
	}
	if err != nil {
		return nil, err
	}
	x, err := m.explainer(ctx, pairs)
	if err != nil {
		return nil, err
	}
	list, err := x.all(ctx, statements, workload != nil)
	if err == nil && workload != nil {
		err = m.remember(ctx, statements)
	}
	return list, errors.Join(err, x.close(ctx))
}

func (x *explainer) all(ctx context.Context, statements []statement, given bool) (list []PlanFinding, err error) {
	var refused []error
	for _, s := range statements {
		v, err := x.judge(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("explain %q: %w", shortened(s.text), err)
		}
		if v.refused != nil {
			refused = append(refused, fmt.Errorf("line %d, %q: %w", s.line, shortened(s.text), v.refused))
		}
		if given && len(refused) == namedRefusals {
			break // each may have taken all its time
		}
		list = append(list, v.list...)
	}
	if given && len(refused) > 0 {
		const what = "the workload was not taken: the active tables refuse its statements (SELECT, INSERT, UPDATE, DELETE and MERGE are explained, and none is run): %w"
		return nil, fmt.Errorf(what, errors.Join(refused...))
	}
	ids, err := x.ids(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := x.observed(ctx, statements)
	return append(append(ids, list...), seen...), err
}

// namedRefusals bounds the statements that a refused workload is told of.
const namedRefusals = 5

// plansAllow refuses a swap to green by what Plans finds.
func (m *Migration) plansAllow(ctx context.Context) error {
	list, err := m.Plans(ctx, nil)
	if err != nil {
		return err
	}
	if fatal := slices.DeleteFunc(list, func(f PlanFinding) bool { return !f.Fatal }); len(fatal) > 0 {
		return &PlanError{fatal}
	}
	return nil
}

// A verdict is what the plans of one statement tell.
type verdict struct {
	refused error // by the active side
	list    []PlanFinding
}

// need is an index that blue's plan goes by.
type need struct {
	pair int
	way  queryWay
}

func (x *explainer) judge(ctx context.Context, s statement) (v verdict, err error) {
	blue, err := x.onBlue(ctx, s)
	if err != nil {
		return v, err
	}
	var green reading
	if blue.refused == nil || x.pairs[0].Active == Green { // else nothing is to be compared, and it may have taken long
		if green, err = x.onGreen(ctx, s, blue.needs); err != nil {
			return v, err
		}
	}
	if v.refused = blue.refused; x.pairs[0].Active == Green {
		v.refused = green.refused
	}
	switch {
	case v.refused != nil:
		v.list = []PlanFinding{{
			Statement: s.text, Fatal: true, Missing: "it cannot be explained on the active table any more: " + v.refused.Error(),
			Do: "give a workload that fits: plenumctl bluegreen verify --workload FILE",
		}}
	case green.refused != nil:
		v.list = []PlanFinding{{
			Table: x.table(blue.touched), Statement: s.text, Fatal: true, Missing: "it cannot be explained with the new table in the place of the old one: " + green.refused.Error(),
			Do: "change the statement, or what it needs, before the swap",
		}}
	case blue.refused != nil:
		v.list = []PlanFinding{{Statement: s.text, Missing: "it cannot be explained with the old table in the place of the new one: " + blue.refused.Error(), Do: "see that a rollback does without it"}}
	default:
		v.list = x.compare(s, blue, green)
	}
	return v, nil
}

// throughDo: a plan through a plain view is the planner's for the table itself.
const throughDo = "name the table in the place of the view, as the view does; a plain view follows a swap"

// compare tells what blue's plan goes by and green's does not.
func (x *explainer) compare(s statement, blue, green reading) (list []PlanFinding) {
	tell := func(table, missing, do string, fatal bool) {
		list = append(list, PlanFinding{Table: table, Statement: s.text, Missing: missing, Do: do, Fatal: fatal})
	}
	switch {
	case len(blue.touched) > 0:
	case len(green.touched) > 0: // of a view that follows: what it reads is the active side
		tell(x.table(green.touched), "it reaches the new table through a view or a function, so that nothing was compared", throughDo, false)
	default:
		tell("", "it names no table of the migration, so that nothing was compared", "leave it out, or name the table", false)
	}
	for i, p := range x.pairs {
		name := partman.FormatName(p.Schema, p.Name)
		switch {
		case !blue.touched[i]:
		case s.only(p):
			tell(name, "it says ONLY, and the new table has no row but in its partitions", "take ONLY out of it", true)
		case !green.touched[i]:
			tell(name, "it reaches the old table through a view or a function, so that nothing was compared", throughDo, false)
		case blue.bare[i] && !slices.ContainsFunc(blue.needs, func(n need) bool { return n.pair == i }):
			tell(name, "both sides are read whole, or by a BRIN index", "nothing, if that is meant", false)
		}
	}
	return append(list, x.lacking(s, blue, green)...)
}

// lacking are green's leaves that are not read by an index that blue has for it: by which, and why.
func (x *explainer) lacking(s statement, blue, green reading) (list []PlanFinding) {
	slices.SortStableFunc(green.faults, func(a, b fault) int { return strings.Compare(a.Relation, b.Relation) })
	for _, f := range green.faults {
		n := slices.IndexFunc(blue.needs, func(n need) bool { return n.pair == f.pair && n.way.Column == f.Column })
		if n < 0 || !f.lacks(blue, blue.needs[n]) {
			continue
		}
		p := x.pairs[f.pair]
		found := PlanFinding{Table: partman.FormatName(p.Schema, p.Name), Statement: s.text, Leaves: []string{f.Relation}, Fatal: true}
		found.Missing, found.Do = f.words(p, blue.needs[n].way)
		same := slices.IndexFunc(list, func(l PlanFinding) bool { return l.Table == found.Table && l.Do == found.Do })
		switch {
		case same < 0:
			list = append(list, found)
		case !slices.Contains(list[same].Leaves, f.Relation):
			list[same].Leaves = append(list[same].Leaves, f.Relation)
		}
	}
	for n := range list {
		if more := len(list[n].Leaves) - 1; more > 0 {
			list[n].Missing += fmt.Sprintf(", and %d more partitions", more)
		}
	}
	return list
}

// createIndex is the statement that makes an index on green, and on its partitions.
func (p Pair) createIndex(definition string) string {
	if columns, usual := strings.CutPrefix(definition, "btree "); usual {
		definition = columns
	} else {
		definition = "using " + definition
	}
	text := fmt.Sprintf("create index on %s %s", p.table(Green), definition)
	if p.Active == Green {
		text += "; as that stops its writers meanwhile, make it on each partition first, concurrently"
	}
	return text
}

const leavesWithoutIDSQL = `
select c.relname from pg_partition_tree($1) r join pg_class c on c.oid = r.relid where r.isleaf and not exists (
	select from pg_index i join pg_class ic on ic.oid = i.indexrelid join pg_am am on am.oid = ic.relam
	       join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
	 where i.indrelid = c.oid and a.attname = $2 and i.indisvalid and i.indisready and i.indpred is null and am.amname in ('btree', 'hash'))
 order by c.relname`

// ids finds the leaves of green that have no index on the id: neither a drain nor the application finds a row there.
func (x *explainer) ids(ctx context.Context) (list []PlanFinding, err error) {
	for _, p := range x.pairs {
		rows, err := x.conn.Query(ctx, leavesWithoutIDSQL, p.Green, p.ID)
		if err != nil {
			return nil, fmt.Errorf("look for indexes of %s: %w", p.table(Green), err)
		}
		leaves, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, fmt.Errorf("look for indexes of %s: %w", p.table(Green), err)
		}
		if len(leaves) > 0 {
			list = append(list, PlanFinding{
				Table: partman.FormatName(p.Schema, p.Name), Leaves: leaves, Fatal: true,
				Missing: fmt.Sprintf("%d partitions, %s first, have no valid index on the id", len(leaves), leaves[0]),
				Do:      p.createIndex("btree (" + p.id() + ")"),
			})
		}
	}
	return list, nil
}
