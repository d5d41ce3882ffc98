package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// The bounds of what is taken from pg_stat_statements.
const (
	seenRead      = 1000 // statements whose text has a table's name, by total time
	seenExplained = 50   // of these, the application's that really name one
)

const extensionSQL = `select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace where extname = 'pg_stat_statements'`

const seenSQL = `
select coalesce(query, ''), userid = any($2::oid[])
  from %s.pg_stat_statements
 where dbid = (select oid from pg_database where datname = current_database())
   and (query is null or query = '<insufficient privilege>' or exists (select from unnest($1::text[]) n where strpos(lower(query), lower(n)) > 0))
 order by total_exec_time desc limit $3`

// trustedSQL are the roles whose functions may run with our rights in any case: what belongs to the tables does, when they are written.
const trustedSQL = `
select array_agg(oid) from pg_roles
 where rolsuper or rolname = current_user or oid in (select relowner from pg_class where oid = any($1::oid[]))`

// strangerSQL is a function of another role that the planner may run, when it is said to be immutable or stable.
const strangerSQL = `
select format('%s of %s', p.oid::regprocedure, pg_get_userbyid(p.proowner)) from pg_proc p
 where p.provolatile <> 'v' and p.proowner <> all ($1::oid[]) order by p.oid limit 1`

// observed judges what pg_stat_statements has of this database. Its texts have parameters in the place of values.
func (x *explainer) observed(ctx context.Context, known []statement) ([]PlanFinding, error) {
	var schema string
	switch err := x.conn.QueryRow(ctx, extensionSQL).Scan(&schema); {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look for pg_stat_statements: %w", err)
	}
	seen, left, err := x.readSeen(ctx, schema)
	if state := sqlState(err); state == "55000" || state == "42501" { // not loaded, or not ours to read
		return []PlanFinding{{Missing: "pg_stat_statements cannot be read: " + err.Error(), Do: "give the statements with plenumctl bluegreen verify --workload FILE"}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pg_stat_statements: %w", err)
	}
	var list []PlanFinding
	for _, s := range seen {
		if slices.ContainsFunc(known, func(k statement) bool { return k.text == s.text }) {
			continue
		}
		v, err := x.judge(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("explain %q of pg_stat_statements: %w", shortened(s.text), err)
		}
		if v.refused != nil {
			left.refused++
			left.example = fmt.Sprintf("%q: %v", shortened(s.text), v.refused)
			continue
		}
		list = append(list, v.list...)
	}
	return append(list, left.findings()...), nil
}

// leftOut counts what of pg_stat_statements was not explained, and why.
type leftOut struct {
	hidden, strangers, refused, rest int
	stranger, example                string
}

func (l leftOut) findings() (list []PlanFinding) {
	tell := func(count int, why string) {
		if count > 0 {
			list = append(list, PlanFinding{
				Missing: fmt.Sprintf("%d statements of pg_stat_statements were not explained: %s", count, why),
				Do:      "give such statements, with values, by plenumctl bluegreen verify --workload FILE",
			})
		}
	}
	tell(l.hidden, "their text is hidden from this role, or lost; pg_read_all_stats shows it")
	tell(l.strangers, "roles ran them that do not own the tables, and function "+l.stranger+" could run with the rights of this role in planning")
	tell(l.refused, "without values, or on the search path of this role, the active table refuses them, as "+l.example)
	tell(l.rest, fmt.Sprintf("the %d that take most of the time were", seenExplained))
	return list
}

// readSeen returns the application's statements that name a pair's table.
func (x *explainer) readSeen(ctx context.Context, schema string) (list []statement, left leftOut, err error) {
	var names []string
	var tables, trusted []uint32
	for _, p := range x.pairs {
		names, tables = append(names, p.Name), append(tables, p.Blue, p.Green)
	}
	if err := x.conn.QueryRow(ctx, trustedSQL, tables).Scan(&trusted); err != nil {
		return nil, left, err
	}
	if err := x.conn.QueryRow(ctx, strangerSQL, trusted).Scan(&left.stranger); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, left, err
	}
	rows, err := x.conn.Query(ctx, fmt.Sprintf(seenSQL, pgx.Identifier{schema}.Sanitize()), names, trusted, seenRead)
	if err != nil {
		return nil, left, err
	}
	var text string
	var trust bool
	_, err = pgx.ForEachRow(rows, []any{&text, &trust}, func() error {
		s := statement{text: text}
		var lexed error
		if s.tokens, lexed = lex(text); lexed == nil {
			s = s.castParameters()
		}
		switch {
		case text == "" || text == "<insufficient privilege>":
			left.hidden++
		case lexed != nil || !x.ofApplication(s) || slices.ContainsFunc(list, func(k statement) bool { return k.text == s.text }):
		case !trust && left.stranger != "":
			left.strangers++
		case len(list) == seenExplained:
			left.rest++
		default:
			list = append(list, s)
		}
		return nil
	})
	return list, left, err
}

// ofApplication says that the statement has a plan, names a pair's table, and neither a passive side nor what is this package's own.
// One of ours names the active side alone.
func (x *explainer) ofApplication(s statement) bool {
	if len(s.mentions(x.pairs)) == 0 || !slices.Contains([]string{"select", "insert", "update", "delete", "merge", "with", "values", "table"}, s.verb()) {
		return false
	}
	if strings.Contains(s.text, spanMark) {
		return false
	}
	ours := []string{}
	for _, p := range x.pairs {
		ours = append(ours, passiveName(p.Name, Blue), passiveName(p.Name, Green))
	}
	return !slices.ContainsFunc(s.tokens, func(t token) bool {
		return t.kind == identifier && (strings.HasPrefix(t.text, "bluegreen_") || slices.Contains(ours, t.text))
	})
}

// verb is the first word, also in parentheses.
func (s statement) verb() string {
	for _, t := range s.tokens {
		if !t.is("(") {
			return t.text
		}
	}
	return ""
}

// typed are the types whose constants are written as interval '1 hour'. PostgreSQL keeps that as interval $1, which is no SQL.
var typed = []string{"interval", "date", "time", "timetz", "timestamp", "timestamptz"}

// castParameters has $1::interval in the place of interval $1.
func (s statement) castParameters() statement {
	for n := len(s.tokens) - 1; n > 0; n-- {
		t, p := s.tokens[n-1], s.tokens[n]
		if p.kind == parameter && t.kind == identifier && !t.quoted && slices.Contains(typed, t.text) && (n == 1 || !s.tokens[n-2].is(".")) {
			s.text = s.text[:t.from] + p.text + "::" + t.text + s.text[p.to:]
		}
	}
	s.tokens, _ = lex(s.text) // as it was, but for these
	return s
}
