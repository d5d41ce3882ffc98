package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"
)

// step is one for one pair, which becomes active on the other side.
type step struct {
	name string
	do   func(ctx context.Context, tx pgx.Tx, p Pair, to Side) error
}

// early is what a swap does for which nobody else waits: changes of tables of ours and of partman's, and the last turns of the drain, which are
// the shortest. These need no snapshot of their own: nobody writes the passive sides, and what is written to the active ones meanwhile has entries.
func (m *Migration) early(ctx context.Context, h *hold, pairs []Pair) error {
	err := h.steps(ctx, pairs, []step{{"disabled triggers", disableTriggers}, {"found names", m.findNames}, {"moved policies", m.movePolicies}, {"set active", m.setActive}})
	if err != nil {
		return err
	}
	for before, all := math.MaxInt, 0; all < before/2; before = all {
		if all, err = m.drainTails(ctx, h.tx, pairs, m.cfg.Batch); err != nil {
			return err
		}
	}
	m.cfg.Step("logs short")
	return nil
}

// exchange is the swap itself, under the locks. Each statement that a lock of its own would need has it by then, but on sequences.
func (m *Migration) exchange(ctx context.Context, h *hold, pairs []Pair) (drained int, err error) {
	if drained, err = m.drainTails(ctx, h.tx, pairs, m.cfg.Tail); err != nil {
		return 0, err
	}
	if err := h.check(ctx); err != nil {
		return 0, err
	}
	return drained, h.steps(ctx, pairs, []step{
		{"renamed tables", renaming},
		{"renamed names", m.renameNames},
		{"set triggers", m.setTriggers},
		{"gave sequences", giveSequences},
		{"moved publications", movePublications},
	})
}

func (h *hold) steps(ctx context.Context, pairs []Pair, list []step) error {
	for _, p := range ordered(pairs) {
		for _, s := range list {
			if err := s.do(ctx, h.tx, p, p.Active.other()); err != nil {
				return fmt.Errorf("table %s: %s: %w", p.table(p.Active), s.name, err)
			}
			h.m.cfg.Step(s.name)
			if err := h.inTime(); err != nil {
				return err
			}
		}
	}
	return nil
}

// drainTails drains logs that have at most so many entries each. It is errTail where one is longer, or refuses what shorten has to do first.
func (m *Migration) drainTails(ctx context.Context, tx pgx.Tx, pairs []Pair, most int) (drained int, err error) {
	for _, p := range ordered(pairs) {
		n, err := m.drainBatch(ctx, tx, p, most+1, most)
		if errors.Is(err, errRewritten) || refused(err) {
			err = fmt.Errorf("%w: %w", errTail, err)
		}
		if err != nil {
			return 0, err
		}
		drained += n
	}
	// What is deferred would be in the way of what alters the tables, or of the commit.
	if _, err := tx.Exec(ctx, "set constraints all immediate"); err != nil {
		if refused(err) {
			err = fmt.Errorf("%w: %w", errTail, err)
		}
		return 0, err
	}
	return drained, nil
}

const activeSQL = `
update %s set active = $2, copied = true, copy_relation = 0, copy_file = 0, copy_page = 0, swapped_at = clock_timestamp() where n = $1`

func (m *Migration) setActive(ctx context.Context, tx pgx.Tx, p Pair, to Side) error {
	_, err := tx.Exec(ctx, fmt.Sprintf(activeSQL, m.own("bluegreen_pair")), p.N, to)
	return err
}

func qualified(schema, name string) string { return pgx.Identifier{schema, name}.Sanitize() }

// run runs statements, which one message takes all of to the server.
func run(ctx context.Context, tx pgx.Tx, list ...string) error {
	sql := strings.Join(list, "; ")
	if sql == "" {
		return nil
	}
	if _, err := tx.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// renamed is the pair once the sides are exchanged.
func (p Pair) renamed(to Side) Pair {
	p.Active = to
	return p
}

func renameTables(ctx context.Context, tx pgx.Tx, p Pair, to Side) error {
	after := p.renamed(to)
	return run(ctx, tx,
		fmt.Sprintf("alter table %s rename to %s", p.table(p.Active), pgx.Identifier{after.name(p.Active)}.Sanitize()),
		fmt.Sprintf("alter table %s rename to %s", p.table(to), pgx.Identifier{p.Name}.Sanitize()))
}

// namesSQL finds both sides' objects.
const namesSQL = `
select n.kind, n.name, (select c.relname from pg_class c where c.oid = n.%[2]s), (select c.relname from pg_class c where c.oid = n.%[3]s)
  from %[1]s n where n.pair = $1 order by n.kind, n.name`

const lostSQL = `select name from %[1]s n where pair = $1 and kind = 'index' and not exists (select from pg_class where oid = n.%[2]s)`

const foundSQL = `
update %[1]s n set %[2]s = c.oid from pg_class c join pg_index x on x.indexrelid = c.oid
 where n.pair = $1 and n.kind = 'index' and n.name = $2 and x.indrelid = $3 and c.relname = $4`

// findNames finds the indexes that were made anew, as REINDEX CONCURRENTLY does: each by its name.
func (m *Migration) findNames(ctx context.Context, tx pgx.Tx, p Pair, to Side) error {
	for _, side := range []Side{p.Active, to} {
		rows, err := tx.Query(ctx, fmt.Sprintf(lostSQL, m.own("bluegreen_name"), side), p.N)
		if err != nil {
			return err
		}
		lost, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, name := range lost {
			called := name
			if side != p.Active {
				called = passiveName(name, side)
			}
			if _, err := tx.Exec(ctx, fmt.Sprintf(foundSQL, m.own("bluegreen_name"), side), p.N, name, p.oid(side), called); err != nil {
				return err
			}
		}
	}
	return nil
}

type follower struct {
	Kind, Name      string
	Active, Passive *string // what its sides' objects are called; nil where there is none
}

// renameNames exchanges the names of indexes and identity sequences. A sequence of the new active side goes on where the other is: no
// rollback undoes that, but a passive side's is never asked.
func (m *Migration) renameNames(ctx context.Context, tx pgx.Tx, p Pair, to Side) error {
	rows, err := tx.Query(ctx, fmt.Sprintf(namesSQL, m.own("bluegreen_name"), p.Active, to), p.N)
	if err != nil {
		return err
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[follower])
	if err != nil {
		return err
	}
	var sql []string
	for _, f := range list {
		sql = append(sql, f.exchange(p)...)
	}
	return run(ctx, tx, sql...)
}

// goOnSQL has a sequence go on where the other is. Who waits in nextval meanwhile has looked the name up before, and is given a value of the
// other one after the commit: once for each connection there can be, these are passed over, where an application may ask for values itself.
const goOnSQL = `
select setval(%s::regclass, least(q.seqmax, greatest(q.seqmin, s.last_value::numeric
         + case a.attidentity when 'd' then q.seqincrement::numeric * q.seqcache * current_setting('max_connections')::int else 0 end))::bigint, s.is_called)
  from %s s, pg_sequence q
  join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = q.seqrelid and d.refclassid = 'pg_class'::regclass and d.deptype = 'i'
  join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
 where q.seqrelid = %s::regclass`

// exchange is the statements that exchange the names of both.
func (f follower) exchange(p Pair) (list []string) {
	away := passiveName(f.Name, p.Active)
	rename := func(from, to string) {
		list = append(list, fmt.Sprintf("alter %s %s rename to %s", f.Kind, qualified(p.Schema, from), pgx.Identifier{to}.Sanitize()))
	}
	if f.Active != nil && *f.Active != away {
		rename(*f.Active, away)
	}
	if f.Passive == nil {
		return list
	}
	rename(*f.Passive, f.Name)
	if f.Kind == "sequence" && f.Active != nil {
		old := qualified(p.Schema, away)
		list = append(list, fmt.Sprintf(goOnSQL, literal(qualified(p.Schema, f.Name)), old, literal(old)))
	}
	return list
}

const rememberStatesSQL = `
insert into %s as t (pair, name, enabled)
select $1, tgname, tgenabled from pg_trigger where tgrelid = $2 and not tgisinternal and not starts_with(tgname, $3)
    on conflict (pair, name) do update set enabled = excluded.enabled`

const silenceSQL = `
select format('alter table %s disable trigger %I', $2::text, tgname) from pg_trigger
 where tgrelid = $1 and tgenabled <> 'D' and not tgisinternal and not starts_with(tgname, $3) order by tgname`

// disableTriggers disables those that somebody has made on the passive side, as on the other one.
func disableTriggers(ctx context.Context, tx pgx.Tx, p Pair, _ Side) error {
	passive := p.Active.other()
	return runListed(ctx, tx, silenceSQL, p.oid(passive), p.table(passive), triggerPrefix)
}

const reviveSQL = `
select format('alter table %%s %%s trigger %%I', $2::text,
         case t.enabled when 'O' then 'enable' when 'A' then 'enable always' when 'R' then 'enable replica' else 'disable' end, g.tgname)
  from pg_trigger g join %s t on t.pair = $4 and t.name = g.tgname
 where g.tgrelid = $1 and not g.tgisinternal and not starts_with(g.tgname, $3) order by g.tgname`

// setTriggers disables the application's triggers on what becomes passive, where its rows are written for the second time, and gives those
// on the new active side the state that they had.
func (m *Migration) setTriggers(ctx context.Context, tx pgx.Tx, p Pair, to Side) error {
	after := p.renamed(to)
	remembered := m.own("bluegreen_trigger")
	if _, err := tx.Exec(ctx, fmt.Sprintf(rememberStatesSQL, remembered), p.N, p.oid(p.Active), triggerPrefix); err != nil {
		return err
	}
	if err := runListed(ctx, tx, silenceSQL, p.oid(p.Active), after.table(p.Active), triggerPrefix); err != nil {
		return err
	}
	return revive(ctx, tx, after, to, remembered)
}

// revive gives the application's triggers of a side the state that they had when it was active.
func revive(ctx context.Context, tx pgx.Tx, p Pair, side Side, remembered string) error {
	return runListed(ctx, tx, fmt.Sprintf(reviveSQL, remembered), p.oid(side), p.table(side), triggerPrefix, p.N)
}

// runListed runs the statements that a query writes.
func runListed(ctx context.Context, tx pgx.Tx, query string, args ...any) error {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	return run(ctx, tx, list...)
}

const ownedSQL = `
select format('alter sequence %I.%I owned by %s.%I', n.nspname, s.relname, $2::text, a.attname)
  from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S' join pg_namespace n on n.oid = s.relnamespace
  join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
 where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = $1 and d.deptype = 'a'
 order by n.nspname, s.relname`

// giveSequences has the sequences of serial columns belong to the new active side: they would go with the old one. It is SHARE ROW
// EXCLUSIVE on each, for which who has called nextval without writing a row may be in the way.
func giveSequences(ctx context.Context, tx pgx.Tx, p Pair, to Side) error {
	return runListed(ctx, tx, ownedSQL, p.oid(p.Active), p.renamed(to).table(to))
}

const publicationsSQL = `
select sql from (
	select b.pubname, 1, format('alter publication %I drop table %s', b.pubname, $2::text)
	  from pg_publication_rel r join pg_publication b on b.oid = r.prpubid where r.prrelid = $1
	 union all
	select b.pubname, 2, format('alter publication %I add table %s', b.pubname, $3::text)
	       || coalesce(' (' || (select string_agg(quote_ident(a.attname), ', ' order by a.attnum) from pg_attribute a
	            where a.attrelid = r.prrelid and a.attnum = any (r.prattrs::int2[])) || ')', '')
	       || coalesce(' where (' || pg_get_expr(r.prqual, r.prrelid) || ')', '')
	  from pg_publication_rel r join pg_publication b on b.oid = r.prpubid where r.prrelid = $1
) t (publication, place, sql) order by publication, place`

// movePublications has the publications of the old active side publish the new one, with their columns and their filter.
func movePublications(ctx context.Context, tx pgx.Tx, p Pair, to Side) error {
	after := p.renamed(to)
	return runListed(ctx, tx, publicationsSQL, p.oid(p.Active), after.table(p.Active), after.table(to))
}
