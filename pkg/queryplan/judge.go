package queryplan

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A Need is a column that an index has to find a table's rows by.
type Need struct {
	Table  string // of a partitioned table its own name; each partition in the plan must be served
	Column string // or the text of an expression, as pg_get_indexdef writes it
	// Walked takes partial indexes that lead with Column for enough, also where a scan has no condition on it: such an index holds
	// what is looked for and little else.
	Walked bool
}

// Cause is why a scan does not go by an index on the needed column.
type Cause string

// The causes.
const (
	NoIndex   Cause = "no index"   // none leads with the column
	Invalid   Cause = "invalid"    // those that do are invalid: a build that failed, or one under way
	NotChosen Cause = "not chosen" // a valid one does, and the planner took something else
	NoColumn  Cause = "no column"  // nothing in the statement asks for one by value
)

// A Fault is a scan that the needed column does not serve.
type Fault struct {
	Schema   string   `json:"schema"`
	Relation string   `json:"relation"`
	Column   string   `json:"column"`
	Cause    Cause    `json:"cause"`
	Index    string   `json:"index,omitempty"` // the index that is invalid, or was not chosen
	Scan     Scan     `json:"-"`
	Analyzed bool     `json:"-"`
	brin     []string // those of the scan's indexes that are
}

// String says it in words, as "sequential scan of telemetry_p20260606: no index on id (969,950 rows read to find 12)".
func (f Fault) String() string {
	text := fmt.Sprintf("%s of %s: %s", f.scan(), f.Relation, f.why())
	if f.Analyzed && f.Scan.Loops > 0 {
		text += fmt.Sprintf(" (%s rows read to find %s)", Thousands(f.Scan.RowsRead), Thousands(f.Scan.RowsFound))
	}
	return text
}

func (f Fault) why() string {
	switch f.Cause {
	case NoIndex:
		return "no index on " + f.Column
	case Invalid:
		return fmt.Sprintf("the index %s on %s is invalid", f.Index, f.Column)
	case NotChosen:
		return fmt.Sprintf("the index %s on %s was not chosen", f.Index, f.Column)
	}
	return "the statement names no value of a column"
}

func (f Fault) scan() string {
	if len(f.Scan.Conditions) == 0 {
		return strings.ToLower(strings.Replace(f.Scan.Type, "Seq ", "Sequential ", 1))
	}
	var names []string
	for _, c := range f.Scan.Conditions {
		name := "index " + c.Index
		if slices.Contains(f.brin, c.Index) {
			name = "BRIN " + name
		}
		names = append(names, name)
	}
	return "scan by " + strings.Join(names, ", ")
}

// index is what the catalog has of one.
type index struct {
	Name    string `json:"name"`
	Method  string `json:"method"`
	Leading string `json:"leading"` // column, or the text of an expression
	Valid   bool   `json:"valid"`
	Partial bool   `json:"partial"`

	Expression bool   `json:"expression"` // leads, and no column
	Definition string `json:"definition"` // from its method on, as create index takes it after using
}

// relation is what the catalog has of a relation in a plan.
type relation struct {
	root    string // the partitioned table above; its own name where there is none
	indexes []index
}

type name struct{ schema, relation string }

// readCatalog reads what the catalog has of the scanned relations.
func readCatalog(ctx context.Context, tx pgx.Tx, scans []Scan) (map[name]relation, error) {
	const q = `select n.nspname, c.relname, coalesce(r.relname, c.relname), coalesce((
			select json_agg(json_build_object('name', ic.relname, 'method', am.amname, 'leading', coalesce(a.attname, pg_catalog.pg_get_indexdef(ic.oid, 1, true)),
				'expression', a.attname is null, 'definition', substr(d, strpos(d, ' USING ' || am.amname || ' (') + 7), 'valid', i.indisvalid and i.indisready, 'partial', i.indpred is not null) order by i.indisvalid desc, i.indpred is not null, ic.relname)
			from pg_catalog.pg_index i join pg_catalog.pg_class ic on ic.oid = i.indexrelid join pg_catalog.pg_am am on am.oid = ic.relam
			left join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] and a.attnum > 0
			cross join pg_catalog.pg_get_indexdef(ic.oid) d
			where i.indrelid = c.oid), '[]')
		from unnest($1::text[], $2::text[]) as w(schema, relation)
		join pg_catalog.pg_namespace n on n.nspname = w.schema
		join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w.relation
		left join pg_catalog.pg_class r on r.oid = pg_catalog.pg_partition_root(c.oid)`
	var schemas, relations []string
	for _, s := range scans {
		schemas, relations = append(schemas, s.Schema), append(relations, s.Relation)
	}
	rows, err := tx.Query(ctx, q, pgx.QueryExecModeDescribeExec, schemas, relations)
	if err != nil {
		return nil, fmt.Errorf("read indexes of the plan's relations: %w", err)
	}
	found := map[name]relation{}
	var n name
	var r relation
	_, err = pgx.ForEachRow(rows, []any{&n.schema, &n.relation, &r.root, &r.indexes}, func() error {
		found[n] = r
		r.indexes = nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read indexes of the plan's relations: %w", err)
	}
	return found, nil
}

// Judge returns the faults of a plan that was made in tx. Of a table that has a need only that counts. Of others a sequential or
// BRIN scan is a fault, and the column is the one that its filter compares with a value.
func Judge(ctx context.Context, tx pgx.Tx, p Plan, needs ...Need) ([]Fault, error) {
	scans := p.Scans()
	if len(scans) == 0 {
		return nil, nil
	}
	catalog, err := readCatalog(ctx, tx, scans)
	if err != nil {
		return nil, err
	}
	var faults []Fault
	for _, s := range scans {
		r, known := catalog[name{s.Schema, s.Relation}]
		if !known {
			continue // a table that the transaction cannot see any more
		}
		for _, need := range needsOf(s, r, needs) {
			if f, bad := judge(s, r, need); bad {
				f.Analyzed = p.Analyzed
				faults = append(faults, f)
			}
		}
	}
	return faults, nil
}

// needsOf returns the needs that were stated for the scan's table, else the one that its filter shows.
func needsOf(s Scan, r relation, needs []Need) (own []Need) {
	for _, n := range needs {
		if n.Table == r.root {
			own = append(own, n)
		}
	}
	if len(own) == 0 && (len(s.Conditions) == 0 || byBRIN(s, r)) {
		own = []Need{{Table: r.root, Column: asked(s.Filter)}}
	}
	return own
}

func judge(s Scan, r relation, need Need) (Fault, bool) {
	if need.Column != "" && served(s, r, need) {
		return Fault{}, false
	}
	f := Fault{Schema: s.Schema, Relation: s.Relation, Column: need.Column, Cause: NoIndex, Scan: s, brin: brins(s, r)}
	if need.Column == "" {
		f.Cause = NoColumn
		return f, true
	}
	for _, i := range r.indexes { // the valid ones first
		if i.Leading != need.Column || i.Method == "brin" || i.Partial && !need.Walked {
			continue
		}
		f.Index, f.Cause = i.Name, Invalid
		if i.Valid {
			f.Cause = NotChosen
		}
		break
	}
	return f, true
}

// served says whether the scan finds its rows by an index on the column. Of the branches of an OR each must.
func served(s Scan, r relation, need Need) bool {
	one, branches := false, true
	for _, c := range s.Conditions {
		ok := serves(c, r, need)
		one = one || ok
		branches = branches && (ok || !c.Or)
	}
	return one && branches
}

func serves(c Condition, r relation, need Need) bool {
	n := slices.IndexFunc(r.indexes, func(i index) bool { return i.Name == c.Index })
	if n < 0 {
		return false
	}
	i := r.indexes[n]
	if i.Method == "brin" || i.Leading != need.Column {
		return false
	}
	return c.Cond != "" && (i.Expression || mentions(c.Cond, need.Column)) || c.Cond == "" && need.Walked && i.Partial
}

// byBRIN says whether there are rows that nothing but a BRIN index leads to. Of indexes that are combined by AND one better one will do.
func byBRIN(s Scan, r relation) bool {
	of := brins(s, r)
	return len(of) > 0 && !slices.ContainsFunc(s.Conditions, func(c Condition) bool { return !c.Or && !slices.Contains(of, c.Index) })
}

// brins are the scan's BRIN indexes.
func brins(s Scan, r relation) (names []string) {
	for _, i := range r.indexes {
		if i.Method == "brin" && slices.ContainsFunc(s.Conditions, func(c Condition) bool { return c.Index == i.Name }) {
			names = append(names, i.Name)
		}
	}
	return names
}

// mentions says whether a condition, as EXPLAIN prints it, names the column.
func mentions(cond, column string) bool {
	return slices.ContainsFunc(columnName.FindAllString(literals.ReplaceAllString(cond, ""), -1), func(c string) bool { return unquote(c) == column })
}

var (
	literals   = regexp.MustCompile(`'(?:[^']|'')*'(?:::[\w\[\]]+)?`)
	columnName = regexp.MustCompile(`"(?:[^"]|"")*"|[\p{L}_][\p{L}\p{N}_$]*`)
	// equality is a column beside = or = ANY, with or without its table's alias.
	equality = regexp.MustCompile(`(?:(?:"(?:[^"]|"")*"|[\p{L}_][\p{L}\p{N}_$]*)\.)?("(?:[^"]|"")*"|[\p{L}_][\p{L}\p{N}_$]*)(?:\)::\w+)? = `)
)

func unquote(c string) string {
	if strings.HasPrefix(c, `"`) {
		return strings.ReplaceAll(c[1:len(c)-1], `""`, `"`)
	}
	return c
}

// asked is the column that a filter compares with a value or a list of them; empty if there is none.
func asked(filter string) string {
	if m := equality.FindStringSubmatch(literals.ReplaceAllString(filter, "''")); m != nil {
		return unquote(m[1])
	}
	return ""
}

// Thousands is n with commas, as 969,950.
func Thousands(n int64) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
