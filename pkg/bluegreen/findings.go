package bluegreen

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

// Finding is one thing of blue that green does not have, or that stays with blue. It stops a swap until it is accepted.
type Finding struct {
	// Name is what --accept takes: a kind, the table, and what it is of it. It stays the same as long as the thing is there.
	Name string `json:"name"`
	// What is found, and what to do about it.
	What string `json:"what"`
	Do   string `json:"do"`
	// Accepted says that a person has accepted it.
	Accepted bool `json:"accepted"`
}

// Report is what Init did.
type Report struct {
	// Resumed says that the migration was under way already.
	Resumed bool `json:"resumed"`
	// Findings of all tables, in their order.
	Findings []Finding `json:"findings"`
}

// Unaccepted are the findings that stop a swap.
func Unaccepted(list []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(list), func(f Finding) bool { return f.Accepted })
}

// boundSQL finds what belongs to blue or refers to it by its OID, by kind.
const boundSQL = `
with b as (select c.oid, c.reltype, t.typarray, c.reltoastrelid from pg_class c join pg_type t on t.oid = c.reltype where c.oid = $1)
select distinct kind, name from (
	select case v.relkind when 'v' then 'view' when 'm' then 'matview' else 'rule' end,
	       case when v.relkind in ('v', 'm') then '' else r.rulename || ' of ' end || (pg_identify_object('pg_class'::regclass, v.oid, 0)).identity
	  from b join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = b.oid and d.classid = 'pg_rewrite'::regclass
	  join pg_rewrite r on r.oid = d.objid join pg_class v on v.oid = r.ev_class where v.oid <> b.oid and not (` + followsSQL + `)
	 union all
	select 'rule', r.rulename from b join pg_rewrite r on r.ev_class = b.oid
	 union all
	select 'function', (pg_identify_object('pg_proc'::regclass, d.objid, 0)).identity
	  from b join pg_depend d on d.classid = 'pg_proc'::regclass and (d.refclassid, d.refobjid) in
	       (('pg_class'::regclass, b.oid), ('pg_type'::regclass, b.reltype), ('pg_type'::regclass, b.typarray))
	 union all
	select 'row-type', (pg_identify_object('pg_class'::regclass, d.objid, 0)).identity
	  from b join pg_depend d on d.classid = 'pg_class'::regclass and d.refclassid = 'pg_type'::regclass and d.refobjid in (b.reltype, b.typarray)
	 union all
	select 'policy', p.polname || ' of ' || (pg_identify_object('pg_class'::regclass, p.polrelid, 0)).identity
	  from b join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = b.oid and d.classid = 'pg_policy'::regclass
	  join pg_policy p on p.oid = d.objid where p.polrelid <> b.oid
	 union all
	select 'foreign-key-in', k.conname || ' of ' || (pg_identify_object('pg_class'::regclass, k.conrelid, 0)).identity from b join pg_constraint k on k.confrelid = b.oid
	 where k.contype = 'f' and k.conrelid <> b.oid and k.conparentid = 0
	 union all
	select 'foreign-key', k.conname from b join pg_constraint k on k.conrelid = b.oid where k.contype = 'f'
	 union all
	select 'no-inherit', k.conname from b join pg_constraint k on k.conrelid = b.oid where k.contype = 'c' and k.connoinherit
	 union all
	select 'not-valid', k.conname from b join pg_constraint k on k.conrelid = b.oid where k.contype = 'c' and not k.convalidated
	 union all
	select 'statistics', s.stxnamespace::regnamespace || '.' || quote_ident(s.stxname) from b join pg_statistic_ext s on s.stxrelid = b.oid where coalesce(s.stxstattarget, -1) >= 0
	 union all
	select 'toast-storage', array_to_string(t.reloptions, ', ') from b join pg_class t on t.oid = b.reltoastrelid where t.reloptions is not null
	 union all
	select 'publication', pubname from b join pg_publication p on p.puballtables or exists (select from pg_publication_namespace s
	    join pg_class c on c.relnamespace = s.pnnspid where s.pnpubid = p.oid and c.oid = b.oid)
) f (kind, name) order by kind, name`

// words say what a kind means, given the object and the table, and what to do.
var words = map[string][2]string{
	"view":           {"view %s reads the old table, also after a swap: another role's, one with the table's row in a column, or one that groups by the primary key", "after the swap create it again: create or replace view %[1]s as …"},
	"matview":        {"materialized view %s reads the old table, also after a swap", "after the swap drop it and create it again"},
	"rule":           {"rule %s is not on the new table, or refers to the old one", "make a trigger of it, or after the swap create it again"},
	"function":       {"function %s is bound to the old table or its row type", "after the swap create it again with create or replace function"},
	"row-type":       {"%s has a column of the old table's row type", "after the swap change the column's type"},
	"policy":         {"row security policy %s reads the old table, also after a swap", "after the swap drop it and create it again"},
	"foreign-key-in": {"foreign key %s refers to the old table; a partitioned one has no unique key for it", "drop the foreign key before the swap, else its table's new rows are refused"},
	"foreign-key": {
		"foreign key %s is not on the new table; on the old one it stands after a swap, and refuses to let a row go that the application has ceased to refer to a moment ago",
		"drop it before the swap, unless what it refers to never goes; after finish add it to each partition as not valid, validate these, then add it to the table, which takes them over",
	},
	"no-inherit":       {"check %s is marked NO INHERIT, which is not possible on a partitioned table", "nothing: the new table has the check without the mark"},
	"not-valid":        {"check %s was never validated: the new table refuses the rows that violate it", "validate it, and repair these rows first: alter table %[2]s validate constraint …"},
	"toast-storage":    {"storage parameters of the TOAST table (%s) are not set on partitions", "set them on partitions by hand where they matter"},
	"exclusion":        {"exclusion constraint %s is not on the new table", "see that the application can do without it"},
	"unique":           {"unique key %s does not have the column to partition by: the new table has it as an index that is not unique, and on conflict (…) on it fails", "see that the application can do without it"},
	"trigger":          {"trigger %s is for each row and has transition tables: a partitioned table cannot have it", "make it a statement trigger"},
	"trigger-table":    {"trigger %s is for each row and asks for the table's name, which is the partition's then", "have the function not ask: give it the name as an argument, tg_argv[0]"},
	"trigger-key":      {"trigger %s sets, as it seems, the column to partition by, before the row is written: where that is of another day than the row had, the row is refused", "set it in the application, or by the column's default"},
	"index-statistics": {"index %s has a statistics target, which its partitions have not", "set it on the column, or on the partitions' indexes where it matters"},
	"statistics":       {"statistics object %s has a target, which that of the new table has not", "alter statistics … set statistics on the new table's and its partitions'"},
	"publication":      {"publication %s is of all tables, or of the schema's: it has the new table from init on, and a subscriber without one of that name stops", "create the table there and refresh the subscription right after init, or publish tables by name"},
	"null-key":         {"%s have no key: no partition takes them", "give them a key, else they stay in the old table alone"},
	"infinite-key":     {"%s have a key that is infinite: no partition takes them", "give them another key, else they stay in the old table alone"},
	"old-rows":         {"%s are older than what is kept", "keep more with a longer retention, else they stay in the old table alone"},
	"future-rows":      {"%s are later than the last partition", "correct them, or premake more days; they are taken over when their day is made"},
}

func (s shape) finding(kind, object string) Finding {
	name := kind + ":" + partman.FormatName(s.Schema, s.Name)
	switch kind {
	case "null-key", "infinite-key", "old-rows", "future-rows", "toast-storage":
	default:
		name += "." + object
	}
	say := func(text string) string {
		return fmt.Sprintf(text+"%.0[1]s%.0[2]s", object, s.quoted())
	}
	w := words[kind]
	return Finding{Name: name, What: s.quoted() + ": " + say(w[0]), Do: say(w[1])}
}

// findings lists what of blue cannot carry over.
func (s shape) findings(ctx context.Context, tx pgx.Tx, accepted []string) ([]Finding, error) {
	var list []Finding
	add := func(kind, object string) {
		f := s.finding(kind, object)
		f.Accepted = slices.Contains(accepted, f.Name)
		list = append(list, f)
	}
	for _, i := range s.Indexes {
		switch {
		case i.Exclusion:
			add("exclusion", i.Name)
		case !i.carries() && !i.OnlyID:
			add("unique", i.Name)
		}
		if i.Targets {
			add("index-statistics", i.Name)
		}
	}
	for _, g := range s.Triggers {
		if !g.Fits {
			add("trigger", g.Name)
			continue
		}
		if g.NamesTable {
			add("trigger-table", g.Name)
		}
		if g.SetsKey {
			add("trigger-key", g.Name)
		}
	}
	rows, err := tx.Query(ctx, boundSQL, s.OID)
	if err != nil {
		return nil, fmt.Errorf("look for what is bound to %s: %w", s.quoted(), err)
	}
	var kind, object string
	if _, err := pgx.ForEachRow(rows, []any{&kind, &object}, func() error { add(kind, object); return nil }); err != nil {
		return nil, fmt.Errorf("look for what is bound to %s: %w", s.quoted(), err)
	}
	for _, c := range []struct {
		kind  string
		count int64
	}{{"null-key", s.NullKeys}, {"infinite-key", s.Endless}, {"old-rows", s.Before}, {"future-rows", s.After}} {
		if c.count > 0 {
			add(c.kind, fmt.Sprintf("%d of %d rows", c.count, s.Rows))
		}
	}
	return list, nil
}

const acceptedSQL = `select retention, accepted from %s where n = $1`

// Findings lists what stands now, of all tables: counts are made anew, by one scan of each blue table.
func (m *Migration) Findings(ctx context.Context) (list []Finding, err error) {
	err = m.reading(ctx, func(tx pgx.Tx) error {
		pairs, err := capturedPairs(ctx, tx, m.cfg.Schema)
		for _, p := range pairs {
			found, err := m.pairFindings(ctx, tx, p)
			if err != nil {
				return err
			}
			list = append(list, found...)
		}
		return err
	})
	return list, err
}

func (m *Migration) pairFindings(ctx context.Context, tx pgx.Tx, p Pair) ([]Finding, error) {
	t := target{Schema: p.Schema, Name: p.name(Blue), Key: p.Key, ID: p.ID, Low: p.Low, High: p.High}
	var accepted []string
	err := tx.QueryRow(ctx, fmt.Sprintf(acceptedSQL, m.own("bluegreen_pair")), p.N).Scan(&t.Retention, &accepted)
	if err != nil {
		return nil, fmt.Errorf("read what was accepted: %w", err)
	}
	s, err := readShape(ctx, tx, t)
	if err != nil {
		return nil, err
	}
	if err := m.canonical(ctx, tx, p, &s); err != nil {
		return nil, err
	}
	return s.findings(ctx, tx, accepted)
}

// canonical gives what was renamed by a swap the names that it had before: a finding keeps its name.
func (m *Migration) canonical(ctx context.Context, tx pgx.Tx, p Pair, s *shape) error {
	rows, err := tx.Query(ctx, fmt.Sprintf("select blue, name from %s where pair = $1 and kind = 'index'", m.own("bluegreen_name")), p.N)
	if err != nil {
		return err
	}
	var oid uint32
	var name string
	_, err = pgx.ForEachRow(rows, []any{&oid, &name}, func() error {
		if n := slices.IndexFunc(s.Indexes, func(i index) bool { return i.OID == oid }); n >= 0 {
			s.Indexes[n].Name = name
		}
		return nil
	})
	s.Name = p.Name
	return err
}

// refuseHarmful stops Init by what its commit alone would break elsewhere.
func refuseHarmful(found []Finding) error {
	for _, f := range found {
		if strings.HasPrefix(f.Name, "publication:") && !f.Accepted {
			return fmt.Errorf("%s; %s; then accept %s", f.What, f.Do, f.Name)
		}
	}
	return nil
}

// refuseUnknown says which of the accepted names nothing is called.
func refuseUnknown(accept []string, found []Finding) error {
	var unknown []string
	for _, name := range accept {
		if !slices.ContainsFunc(found, func(f Finding) bool { return f.Name == name }) {
			unknown = append(unknown, fmt.Sprintf("%q", name))
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	var names []string
	for _, f := range found {
		names = append(names, f.Name)
	}
	return fmt.Errorf("nothing that was found is called %s; what can be accepted: %s", strings.Join(unknown, ", "), strings.Join(names, ", "))
}
