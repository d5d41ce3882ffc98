package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

const takeSQL = `
with taken as (
	delete from %[1]s where ctid = any (array (select ctid from %[1]s order by seq limit $1)) returning id, key
)
select (select count(*) from taken), exists (select from taken where id is null), coalesce(array_agg(id::text), '{}'), coalesce(array_agg(key::text), '{}'),
       coalesce(array_agg(id::text) filter (where (key >= $2::timestamptz and key < $3::timestamptz) is not true), '{}')
  from (select distinct id, key from taken where id is not null) d`

// plannedSQL: planned for what its arrays hold, a statement takes as long to plan as to execute, and would rather read whole partitions.
const plannedSQL = "set local plan_cache_mode = force_generic_plan; set local enable_seqscan = off"

// drainBatch takes entries off the log and makes the passive side's rows of their ids and keys what the active side has. The caller's
// transaction has one snapshot, or holds the lock on the passive side. It is errRewritten where the active side was truncated, and errTail where there are
// more entries than most.
func (m *Migration) drainBatch(ctx context.Context, tx pgx.Tx, p Pair, limit, most int) (taken int, err error) {
	if _, err := tx.Exec(ctx, plannedSQL); err != nil {
		return 0, err
	}
	var truncated bool
	var e entries
	var outside []string // ids that had or have a key out of the scope
	if err := tx.QueryRow(ctx, fmt.Sprintf(takeSQL, m.logTable(p)), limit, p.Low, p.High).Scan(&taken, &truncated, &e.ids, &e.keys, &outside); err != nil {
		return 0, fmt.Errorf("take entries off the log: %w", err)
	}
	m.cfg.Step("entries taken")
	if truncated {
		return 0, errRewritten
	}
	if taken > most {
		return 0, errTail
	}
	if len(e.ids) == 0 {
		return taken, nil
	}
	if p.strict && len(outside) > 0 {
		if err := m.strays(ctx, tx, p, outside); err != nil {
			return 0, err
		}
	}
	return taken, m.apply(ctx, tx, p, e)
}

// entries of the log are where rows are, or were: an id and a key each. Of other keys the rows of an id are the same on both sides.
type entries struct {
	ids  []string
	keys []*string // nil is a row without one, which is in no scope
}

// without leaves those out that others has.
func (e entries) without(others entries) (left entries) {
	type place struct{ id, key string }
	there := make(map[place]bool, len(others.ids))
	for n, id := range others.ids {
		there[place{id, *others.keys[n]}] = true
	}
	for n, id := range e.ids {
		if key := e.keys[n]; key != nil && !there[place{id, *key}] {
			left.ids, left.keys = append(left.ids, id), append(left.keys, key)
		}
	}
	return left
}

// apply updates rows where they are as far as it can, which writes no index if no indexed column changed, and deletes and inserts the others.
func (m *Migration) apply(ctx context.Context, tx pgx.Tx, p Pair, e entries) error {
	passive := p.table(p.Active.other())
	low, high, err := p.span(ctx, tx)
	if err != nil {
		return err
	}
	var alike entries
	if err := tx.QueryRow(ctx, p.updateSQL(), e.ids, e.keys, low, high).Scan(&alike.ids, &alike.keys); err != nil {
		return fmt.Errorf("update rows of %d ids in table %s: %w", len(e.ids), passive, err)
	}
	m.cfg.Step("rows updated")
	if e = e.without(alike); len(e.ids) == 0 {
		return nil
	}
	if p.parted {
		if e, err = m.moved(ctx, tx, p, e); err != nil {
			return err
		}
	}
	if err := m.remove(ctx, tx, p, e, low, high); err != nil {
		return err
	}
	m.cfg.Step("rows deleted")
	sql := fmt.Sprintf("insert into %s (%s) overriding system value select %s from %s join %s a on %s and %s",
		passive, p.columns(), quoted("a.", p.Columns), p.entry(), p.table(p.Active), p.at("a", "entry"), p.within("a", Blue, 3))
	if _, err := tx.Exec(ctx, sql, e.ids, e.keys, low, high); err != nil {
		return fmt.Errorf("write rows of %d ids to table %s: %w", len(e.ids), passive, err)
	}
	m.cfg.Step("rows inserted")
	return nil
}

const movedSQL = `
with entry as materialized (select * from %[1]s), gone as materialized (select i from entry where not exists (select from %[2]s o where %[3]s))
select coalesce(array_agg(i::text), '{}'), coalesce(array_agg(k::text), '{}')
  from (select i, k from entry union select a.%[4]s, a.%[5]s from gone join %[2]s a on a.%[4]s = gone.i) e`

// moved adds the places of rows that are not where their entry says, which may have gone to another partition unseen.
func (m *Migration) moved(ctx context.Context, tx pgx.Tx, p Pair, e entries) (all entries, err error) {
	sql := fmt.Sprintf(movedSQL, p.entry(), p.table(p.Active), p.at("o", "entry"), p.id(), p.key())
	if err := tx.QueryRow(ctx, sql, e.ids, e.keys).Scan(&all.ids, &all.keys); err != nil {
		return all, fmt.Errorf("look for where rows of %d ids of table %s went: %w", len(e.ids), p.table(p.Active), err)
	}
	return all, nil
}

// entry is a relation of what parameters 1 and 2 hold.
func (p Pair) entry() string {
	return fmt.Sprintf("unnest($1::text[]::%s[], $2::text[]::%s[]) as entry (i, k)", p.IDType, p.KeyType)
}

// at is the condition that a row is where an entry says: one partition is asked.
func (p Pair) at(row, entry string) string {
	return fmt.Sprintf("%s.%s = %s.i and %s.%s = %s.k", row, p.id(), entry, row, p.key(), entry)
}

// alikeSQL finds the entries for which both sides have one row, with the same in the fixed columns.
const alikeSQL = `
with entry as materialized (select * from %[1]s), alike as materialized (
	select i, k from (
		select entry.i, entry.k, row(%[2]s)::text as fixed, 1 as side from entry join %[3]s a on %[4]s and %[5]s
		 union all
		select entry.i, entry.k, row(%[6]s)::text, 2 from entry join %[7]s p on %[8]s and %[9]s
	) r group by i, k having count(*) = 2 and min(side) < max(side) and min(fixed collate "C") = max(fixed collate "C")
)`

// rewriteSQL leaves a row alone that is the same already, to the byte.
const rewriteSQL = `, rewritten as (
	update %[1]s p set %[2]s from alike join %[3]s a on %[4]s
	 where %[5]s and pg_catalog.record_image_ne(row(%[6]s), row(%[7]s))
)`

// updateSQL makes rows the same that alikeSQL finds, and returns these entries.
func (p Pair) updateSQL() string {
	passive := p.Active.other()
	sql := fmt.Sprintf(alikeSQL, p.entry(), quoted("a.", p.Fixed), p.table(p.Active), p.at("a", "entry"), p.within("a", Blue, 3),
		quoted("p.", p.Fixed), p.table(passive), p.at("p", "entry"), p.within("p", passive, 3))
	if len(p.Settable) > 0 {
		set := make([]string, len(p.Settable))
		for n, c := range p.Settable {
			c = pgx.Identifier{c}.Sanitize()
			set[n] = c + " = a." + c
		}
		sql += fmt.Sprintf(rewriteSQL, p.table(passive), strings.Join(set, ", "), p.table(p.Active), p.at("a", "alike"), p.at("p", "alike"),
			quoted("p.", p.Settable), quoted("a.", p.Settable))
	}
	return sql + "\nselect coalesce(array_agg(i::text), '{}'), coalesce(array_agg(k::text), '{}') from alike"
}

func (m *Migration) remove(ctx context.Context, tx pgx.Tx, p Pair, e entries, low, high time.Time) error {
	passive := p.Active.other()
	sql := fmt.Sprintf("delete from %s p using %s where %s and %s", p.table(passive), p.entry(), p.at("p", "entry"), p.within("p", passive, 3))
	if _, err := tx.Exec(ctx, sql, e.ids, e.keys, low, high); err != nil {
		return fmt.Errorf("delete rows of %d ids from table %s: %w", len(e.ids), p.table(passive), err)
	}
	return nil
}

// straysSQL names one row of blue that is out of the scope, where that was not accepted.
const straysSQL = `
select id, finding from (
	select %[1]s::text as id, case when %[2]s is null then 'null-key' when not isfinite(%[2]s) then 'infinite-key' when %[2]s < $2::timestamptz then 'old-rows' else 'future-rows' end || ':' || $4 as finding
	  from %[3]s where %[1]s = any ($1::text[]::%[4]s[]) and (%[2]s >= $2::timestamptz and %[2]s < $3::timestamptz) is not true
) s where not exists (select from %[5]s where n = $5 and finding = any (accepted)) limit 1`

// strays refuses rows that have left the scope, or came outside of it, after the findings of a swap were looked at: they would be
// missing from the new table, and go with the old one.
func (m *Migration) strays(ctx context.Context, tx pgx.Tx, p Pair, ids []string) error {
	sql := fmt.Sprintf(straysSQL, p.id(), p.key(), p.table(Blue), p.IDType, m.own("bluegreen_pair"))
	var id, finding string
	err := tx.QueryRow(ctx, sql, ids, p.Low, p.High, partman.FormatName(p.Schema, p.Name), p.N).Scan(&id, &finding)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for rows of %s that no partition takes: %w", p.table(Blue), err)
	}
	return fmt.Errorf("row %s of table %s was just written with a key that no partition takes: correct it, or accept %s with init", id, p.table(Blue), finding)
}

// leavesSQL is the span of green's partitions, wherever they are: what they can have, they may have given to blue.
const leavesSQL = `
with leaf as (select pg_get_expr(c.relpartbound, c.oid) as bound from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = $1)
select least($2::timestamptz, min((regexp_match(bound, 'FROM \(''([^'']+)''\)'))[1]::timestamptz)),
       greatest($3::timestamptz, max((regexp_match(bound, 'TO \(''([^'']+)''\)'))[1]::timestamptz))
  from leaf`

// span is what of both sides is kept the same. With green active a partition that was made since the scope was widened is of it as well; rows of
// a DEFAULT partition are not.
func (p Pair) span(ctx context.Context, tx pgx.Tx) (low, high time.Time, err error) {
	if p.Active == Blue {
		return p.Low, p.High, nil
	}
	if err := tx.QueryRow(ctx, leavesSQL, p.Green, p.Low, p.High).Scan(&low, &high); err != nil {
		return low, high, fmt.Errorf("look at the partitions of table %s: %w", p.table(Green), err)
	}
	return low, high, nil
}
