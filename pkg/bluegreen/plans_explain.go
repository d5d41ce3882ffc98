package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"plenum/pkg/partman"
	"plenum/pkg/queryplan"
)

// An explainer explains statements as if a side were the active one. It has a connection of its own, which is closed at the end: what the
// planner runs of a statement, functions that say they are immutable, leaves nothing in a session that others get.
//
// On the passive side the statement's own text is explained: a temporary view, which is found before any table, has the name there, and
// the planner puts its table in its place. Renaming would lock the application out, and a name in a text may be
// a column's or an alias. Only a name with a schema is rewritten, to pg_temp. What a view cannot do is tried in other ways.
//
// Each plan is of a prepared statement, made without values: it is what a driver gets sooner or later, and all that pg_stat_statements
// has. No partition is pruned: which ones a statement touches is another matter each day, and an index is to be on all.
type explainer struct {
	m     *Migration
	conn  *pgx.Conn
	pairs []Pair
	sides map[Side]map[relationName]int // the pair that a table or partition is of
	count int
}

type (
	queryWay     = queryplan.Way
	relationName struct{ schema, name string }
)

// A reading is what a statement's plan on one side tells.
type reading struct {
	refused error
	touched map[int]bool // pairs
	bare    map[int]bool // pairs of which something is read without an index, or by BRIN
	needs   []need
	faults  []fault
}

type fault struct {
	queryplan.Fault
	pair int
}

// lacks says whether the leaf has not what blue has. Another index is as good where the one is there: the statistics may differ.
func (f fault) lacks(blue reading, n need) bool {
	if f.Cause != queryplan.NotChosen {
		return true
	}
	return n.way.Found && len(f.Scan.Conditions) == 0 && !blue.bare[f.pair]
}

// words say what is missing, and what to do.
func (f fault) words(p Pair, blue queryWay) (missing, do string) {
	leaf := qualified(f.Schema, f.Relation)
	switch f.Cause {
	case queryplan.Invalid:
		return fmt.Sprintf("the old table goes by index %s, and on partition %s the index %s is invalid", blue.Index, leaf, f.Index),
			"reindex index concurrently " + qualified(f.Schema, f.Index)
	case queryplan.NotChosen:
		return fmt.Sprintf("the old table goes by index %s, and on partition %s the index %s is of no use for it", blue.Index, leaf, f.Index),
			"compare both with \\d, then " + p.createIndex(blue.Definition)
	}
	return fmt.Sprintf("the old table goes by index %s, and partition %s has no index on %s", blue.Index, leaf, f.Column),
		p.createIndex(blue.Definition)
}

const sidesSQL = `
select n.nspname, c.relname from (select $1::oid union select relid from pg_partition_tree($1::oid)) r (oid)
  join pg_class c on c.oid = r.oid join pg_namespace n on n.oid = c.relnamespace`

func (m *Migration) explainer(ctx context.Context, pairs []Pair) (*explainer, error) {
	pooled, err := m.cfg.Pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	x := &explainer{m: m, conn: pooled.Hijack(), pairs: pairs, sides: map[Side]map[relationName]int{Blue: {}, Green: {}}}
	for i, p := range pairs {
		for side, of := range x.sides {
			rows, err := x.conn.Query(ctx, sidesSQL, p.oid(side))
			if err == nil {
				var r relationName
				_, err = pgx.ForEachRow(rows, []any{&r.schema, &r.name}, func() error { of[r] = i; return nil })
			}
			if err != nil {
				return nil, errors.Join(fmt.Errorf("read the partitions of %s: %w", p.table(side), err), x.close(ctx))
			}
		}
	}
	return x, nil
}

func (x *explainer) close(ctx context.Context) error {
	ending, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	return x.conn.Close(ending)
}

func (x *explainer) table(touched map[int]bool) string {
	for i, p := range x.pairs {
		if touched[i] {
			return partman.FormatName(p.Schema, p.Name)
		}
	}
	return ""
}

// onBlue reads what blue's plans go by: the one that the statistics speak for, and the one that is made where any index is preferred, as
// small tables are rightly read whole. Of that one an index counts that finds rows by a condition: it walks along any where there is none.
func (x *explainer) onBlue(ctx context.Context, s statement) (r reading, err error) {
	r.refused, err = x.on(ctx, s, Blue, func(tx pgx.Tx, explain explaining) error {
		usual, err := explain(ctx)
		if err != nil {
			return err
		}
		ways, err := queryplan.Ways(ctx, tx, usual)
		if err != nil {
			return err
		}
		if err := queryplan.AnyIndex(ctx, tx); err != nil {
			return err
		}
		plan, err := explain(ctx)
		if err != nil {
			return err
		}
		any, err := queryplan.Ways(ctx, tx, plan)
		if err != nil {
			return err
		}
		r.touched, r.bare, r.needs = x.touched(plan, Blue), map[int]bool{}, nil
		for n, w := range append(any, ways...) {
			i, ours := x.sides[Blue][relationName{w.Schema, w.Relation}]
			whole := w.Index == "" || w.BRIN
			switch {
			case !ours:
			case n < len(any) && (whole || !w.Found):
				r.bare[i] = true
			case !whole && !slices.ContainsFunc(r.needs, func(n need) bool { return n.pair == i && n.way.Column == w.Column }):
				r.needs = append(r.needs, need{i, w})
			}
		}
		return nil
	})
	return r, err
}

func (x *explainer) onGreen(ctx context.Context, s statement, needs []need) (r reading, err error) {
	var wanted []queryplan.Need
	for _, n := range needs {
		wanted = append(wanted, queryplan.Need{Table: x.pairs[n.pair].name(Green), Column: n.way.Column, Walked: n.way.Partial})
	}
	r.refused, err = x.on(ctx, s, Green, func(tx pgx.Tx, explain explaining) error {
		if err := queryplan.AnyIndex(ctx, tx); err != nil {
			return err
		}
		plan, err := explain(ctx)
		if err != nil {
			return err
		}
		faults, err := queryplan.Judge(ctx, tx, plan, wanted...)
		if err != nil {
			return err
		}
		r.touched, r.faults = x.touched(plan, Green), nil
		for _, f := range faults {
			if i, ours := x.sides[Green][relationName{f.Schema, f.Relation}]; ours {
				r.faults = append(r.faults, fault{f, i})
			}
		}
		return nil
	})
	return r, err
}

// touched are the pairs of which a side is in the plan.
func (x *explainer) touched(p queryplan.Plan, side Side) map[int]bool {
	found := make(map[int]bool)
	p.Root.Each(func(n *queryplan.Node) {
		if i, ours := x.sides[side][relationName{n.Schema, n.Relation}]; ours {
			found[i] = true
		}
	})
	return found
}

// explaining plans the statement anew.
type explaining func(context.Context) (queryplan.Plan, error)

// An attempt is one way to have the passive side in the statement.
type attempt struct {
	text string
	view string // columns of the temporary views; empty where there are none
	// merge says that the text names the passive side as MERGE's target.
	merge bool
}

// on calls do in a transaction that sees the side as the active one, reads only, and is rolled back. An error of the statement's own is
// returned as refused.
func (x *explainer) on(ctx context.Context, s statement, side Side, do func(pgx.Tx, explaining) error) (refused, err error) {
	mentions := s.mentions(x.pairs)
	for n, a := range x.attempts(s, side, mentions) {
		for range explainTries {
			if err = x.try(ctx, a, side, mentions, do); sqlState(err) != "55P03" {
				break
			}
		}
		var r refusal
		if !errors.As(err, &r) {
			return nil, err
		}
		if n == 0 || a.merge { // else it may be of what the attempt itself changed
			refused = r.error
		}
		if sqlState(r.error) == "57014" { // no other way takes less time
			break
		}
	}
	return refused, nil
}

// attempts are one on the active side. A temporary view has no ctid and the like of the table, unless it is made with them; and before
// PostgreSQL 17 it is no target of MERGE, which names its target in one place.
func (x *explainer) attempts(s statement, side Side, mentions []mention) []attempt {
	if side == x.pairs[0].Active {
		return []attempt{{text: s.text}}
	}
	list := []attempt{{text: s.moved(mentions, x.pairs), view: "*"}, {text: s.moved(mentions, x.pairs), view: "*, ctid, xmin, xmax, cmin, cmax, tableoid"}}
	if text, ok := s.merging(mentions, x.pairs, side); ok {
		list = append(list, attempt{text: text, view: "*", merge: true})
	}
	return list
}

// A refusal is an error that the statement is to blame for.
type refusal struct{ error }

// blame makes a refusal of an error of the server, but of those that another try may not have.
func blame(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch class := pg.Code[:2]; {
	case pg.Code == "57014": // its time is up
	case pg.Code == "55P03", class == "08", class == "40", class == "53", class == "57", class == "58":
		return err
	}
	return refusal{err}
}

// explainTries bounds how often the locks are asked for that planning takes. Only DDL is in their way, which others hold back as we do.
const explainTries = 5

// explainTimeout bounds the planning of one statement.
const explainTimeout = 5 * time.Second

// explainingSQL has unqualified names mean what they do to the application, as far as that is known.
const explainingSQL = `
select set_config('search_path', concat_ws(', ', 'pg_temp', $1::text, nullif(current_setting('search_path'), '')), true),
       set_config('lock_timeout', $2, true), set_config('statement_timeout', $3, true), set_config('plan_cache_mode', 'force_generic_plan', true),
       set_config('enable_partition_pruning', 'off', true), set_config('constraint_exclusion', 'off', true),
       set_config('standard_conforming_strings', 'on', true)`

func (x *explainer) try(ctx context.Context, a attempt, side Side, mentions []mention, do func(pgx.Tx, explaining) error) (err error) {
	tx, err := x.conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if rollback := tx.Rollback(context.WithoutCancel(ctx)); rollback != nil && err == nil {
			err = rollback
		}
	}()
	var schemas []string
	for _, p := range x.pairs {
		schemas = append(schemas, pgx.Identifier{p.Schema}.Sanitize())
	}
	ms := func(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }
	if _, err := tx.Exec(ctx, explainingSQL, strings.Join(schemas, ", "), ms(x.m.cfg.LockTimeout), ms(explainTimeout)); err != nil {
		return fmt.Errorf("prepare to explain: %w", err)
	}
	if a.view != "" {
		if err := x.overlay(ctx, tx, a, side, mentions); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, "set transaction read only"); err != nil {
		return fmt.Errorf("prepare to explain: %w", err)
	}
	return do(tx, func(ctx context.Context) (queryplan.Plan, error) { return x.explain(ctx, tx, a.text) })
}

// overlay has the names of the pairs' tables mean their passive sides.
func (x *explainer) overlay(ctx context.Context, tx pgx.Tx, a attempt, side Side, mentions []mention) error {
	views := make(map[string]int)
	for _, m := range mentions {
		p := x.pairs[m.pair]
		other, made := views[p.Name]
		switch {
		case !made:
		case other == m.pair:
			continue
		default:
			return refusal{fmt.Errorf("it names both %s and %s, which have one name: explain it by hand", x.pairs[other].table(x.pairs[other].Active), p.table(p.Active))}
		}
		views[p.Name] = m.pair
		_, err := tx.Exec(ctx, fmt.Sprintf("create temporary view %s as select %s from %s", pgx.Identifier{p.Name}.Sanitize(), a.view, p.table(side)))
		if sqlState(err) == "42501" {
			return fmt.Errorf("a temporary view is needed to explain on %s; grant temporary on database %s to %s: %w",
				p.table(side), pgx.Identifier{x.conn.Config().Database}.Sanitize(), pgx.Identifier{x.conn.Config().User}.Sanitize(), err)
		}
		if err != nil {
			return fmt.Errorf("put %s in the place of %s: %w", p.table(side), qualified(p.Schema, p.Name), err)
		}
	}
	return nil
}

// explain prepares the text, which is then one statement that has a plan, and explains it without values. With a value NULL each
// condition would be false.
func (x *explainer) explain(ctx context.Context, tx pgx.Tx, text string) (p queryplan.Plan, err error) {
	x.count++ // what is prepared outlives a rollback
	name := fmt.Sprintf("plenum_bluegreen_%d", x.count)
	// In the extended protocol, where a text that is two statements is refused.
	if _, err := tx.Conn().PgConn().ExecParams(ctx, "prepare "+name+" as\n"+text, nil, nil, nil, nil).Close(); err != nil {
		return p, blame(err)
	}
	var parameters int
	if err := tx.QueryRow(ctx, "select cardinality(parameter_types) from pg_prepared_statements where name = $1", name).Scan(&parameters); err != nil {
		return p, err
	}
	nulls := ""
	if parameters > 0 {
		nulls = "(" + strings.Repeat("null, ", parameters-1) + "null)"
	}
	if p, err = queryplan.Explain(ctx, tx, queryplan.Options{}, "execute "+name+nulls); err != nil {
		return p, blame(err)
	}
	_, err = tx.Exec(ctx, "deallocate "+name)
	return p, err
}
