package bluegreen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// The bounds of a workload.
const (
	maxWorkload   = 1 << 20 // bytes of a file
	maxStatements = 500
)

// A statement is one of the application's.
type statement struct {
	text   string
	line   int // where it begins in its file; 0 where it is of none
	tokens []token
}

// parseWorkload splits a file of statements that end with a semicolon. What each is the server decides: a statement that was split
// wrongly is one that it refuses. There is no library for this that is kept and needs no C: the server's own parser is C.
func parseWorkload(file []byte) ([]statement, error) {
	switch {
	case len(file) > maxWorkload:
		return nil, fmt.Errorf("the workload has %d bytes, more than %d: keep one statement of each form", len(file), maxWorkload)
	case !utf8.Valid(file) || bytes.IndexByte(file, 0) >= 0:
		return nil, errors.New("the workload is no text in UTF-8")
	}
	sql := strings.TrimPrefix(string(file), "\ufeff")
	tokens, err := lex(sql)
	if err != nil {
		return nil, fmt.Errorf("the workload, %w", err)
	}
	if err := refuseVariables(sql, tokens); err != nil {
		return nil, fmt.Errorf("the workload, %w", err)
	}
	list := split(sql, tokens, maxStatements+1)
	switch {
	case len(list) == 0:
		return nil, errors.New("the workload has no statement")
	case len(list) > maxStatements:
		return nil, fmt.Errorf("the workload has more than %d statements: keep one of each form", maxStatements)
	}
	return list, nil
}

// split returns no more than some.
func split(sql string, tokens []token, most int) (list []statement) {
	begin := 0
	add := func(end int) {
		if end > begin && len(list) < most {
			from, to := tokens[begin].from, tokens[end-1].to
			s := statement{text: sql[from:to], line: lineAt(sql, from)}
			for _, t := range tokens[begin:end] {
				t.from, t.to = t.from-from, t.to-from
				s.tokens = append(s.tokens, t)
			}
			list = append(list, s)
		}
		begin = end + 1
	}
	for n, t := range tokens {
		if t.is(";") {
			add(n)
		}
	}
	add(len(tokens))
	return list
}

// refuseVariables names what has no value: a parameter, a variable of psql, a command of it.
func refuseVariables(sql string, tokens []token) error {
	depth := 0 // of brackets: within them a colon is a slice's
	for n, t := range tokens {
		var what string
		switch {
		case t.is("["):
			depth++
		case t.is("]"):
			depth--
		case t.is(";"):
			depth = 0
		case t.kind == parameter:
			what = "parameter " + t.text
		case t.is(`\`):
			return fmt.Errorf("line %d: commands of psql are not run here: leave the line out", lineAt(sql, t.from))
		case t.is(":") && depth == 0 && n+1 < len(tokens) && tokens[n+1].from == t.to && tokens[n+1].kind != symbol:
			what = "variable " + sql[t.from:tokens[n+1].to]
		}
		if what != "" {
			return fmt.Errorf("line %d: %s has no value: write one of the application's in its place, as where id = any('{7,8,9}')", lineAt(sql, t.from), what)
		}
	}
	return nil
}

func lineAt(sql string, at int) int { return 1 + strings.Count(sql[:at], "\n") }

// A mention is a place where a statement names a pair's table.
type mention struct {
	pair      int
	qualified bool // with its schema
	from, to  int
}

// mentions finds the places. A name without a schema is the first pair's that has it, as the schemas of the pairs lead the search
// path. A column that is called like a table is taken for it, which does no harm.
func (s statement) mentions(pairs []Pair) (list []mention) {
	for n, t := range s.tokens {
		if t.kind != identifier {
			continue
		}
		m := mention{from: t.from, to: t.to}
		if n > 1 && s.tokens[n-1].is(".") {
			if s.tokens[n-2].kind != identifier {
				continue
			}
			schema := s.tokens[n-2]
			m.qualified, m.from = true, schema.from
			m.pair = slices.IndexFunc(pairs, func(p Pair) bool { return p.Schema == schema.text && p.Name == t.text })
		} else {
			m.pair = slices.IndexFunc(pairs, func(p Pair) bool { return p.Name == t.text })
		}
		if m.pair >= 0 {
			list = append(list, m)
		}
	}
	return list
}

// only says that the statement leaves out partitions of a pair that it names.
func (s statement) only(p Pair) bool {
	for n, t := range s.tokens {
		if t.kind != identifier || t.text != "only" || t.quoted {
			continue
		}
		for _, t := range s.tokens[n+1 : min(n+5, len(s.tokens))] { // only schema.table, only (table)
			if t.kind == identifier && t.text == p.Name {
				return true
			}
			if t.kind != identifier && !t.is(".") && !t.is("(") {
				break
			}
		}
	}
	return false
}

// moved is the text with each table that is named with its schema in pg_temp.
func (s statement) moved(mentions []mention, pairs []Pair) string {
	text := s.text
	for _, m := range slices.Backward(mentions) {
		if m.qualified {
			text = text[:m.from] + "pg_temp." + pgx.Identifier{pairs[m.pair].Name}.Sanitize() + text[m.to:]
		}
	}
	return text
}

// merging is the text with the target of MERGE called what it is on the side, under the name that it has in the statement.
func (s statement) merging(mentions []mention, pairs []Pair, side Side) (text string, ok bool) {
	for n := 0; n+3 < len(s.tokens); n++ {
		if s.tokens[n].text != "merge" || s.tokens[n+1].text != "into" {
			continue
		}
		at := slices.IndexFunc(mentions, func(m mention) bool { return m.from == s.tokens[n+2].from })
		if at < 0 {
			return "", false
		}
		target, p := mentions[at], pairs[mentions[at].pair]
		place := p.table(side)
		after := slices.IndexFunc(s.tokens, func(t token) bool { return t.from >= target.to })
		if after >= 0 && s.tokens[after].text == "using" && !s.tokens[after].quoted {
			place += " as " + pgx.Identifier{p.Name}.Sanitize()
		}
		before, rest := s, s
		before.text, rest.text = s.text[:target.from], s.text[target.to:]
		later := slices.Clone(mentions[at+1:])
		for i := range later {
			later[i].from, later[i].to = later[i].from-target.to, later[i].to-target.to
		}
		return before.moved(mentions[:at], pairs) + place + rest.moved(later, pairs), true
	}
	return "", false
}

// workloadSQL: the table is made by the first workload, and goes with the migration.
const workloadSQL = `
create table if not exists %[1]s (n integer primary key, line integer not null, statement text not null);
delete from %[1]s`

// remember keeps the statements for the next call, in the place of those that were there.
func (m *Migration) remember(ctx context.Context, list []statement) error {
	err := pgx.BeginFunc(ctx, m.cfg.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock(hashtextextended('plenum bluegreen workload ' || $1, 0))", m.cfg.Schema); err != nil {
			return err
		}
		if _, err := readPairs(ctx, tx, m.cfg.Schema); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, fmt.Sprintf(workloadSQL, m.own("bluegreen_workload"))); err != nil {
			return err
		}
		_, err := tx.CopyFrom(ctx, pgx.Identifier{m.cfg.Schema, "bluegreen_workload"}, []string{"n", "line", "statement"},
			pgx.CopyFromSlice(len(list), func(n int) ([]any, error) { return []any{n + 1, list[n].line, list[n].text}, nil }))
		return err
	})
	if err != nil {
		return fmt.Errorf("remember the workload: %w", err)
	}
	return nil
}

func (m *Migration) remembered(ctx context.Context) (list []statement, err error) {
	var there bool
	if err := m.cfg.Pool.QueryRow(ctx, "select to_regclass($1) is not null", m.own("bluegreen_workload")).Scan(&there); err != nil || !there {
		return nil, err
	}
	rows, err := m.cfg.Pool.Query(ctx, fmt.Sprintf("select line, statement from %s order by n", m.own("bluegreen_workload")))
	if err != nil {
		return nil, fmt.Errorf("read the workload: %w", err)
	}
	var s statement
	_, err = pgx.ForEachRow(rows, []any{&s.line, &s.text}, func() error {
		if s.tokens, err = lex(s.text); err == nil {
			list = append(list, s)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the workload: %w", err)
	}
	return list, nil
}
