package partman

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Examine looks whether p can be carried out with the rights of db's role. It returns all that stands in the way, joined,
// each with what to do about it, the GRANT for a right that is missing. nil means that p can be registered and kept. Where
// nothing stands in the way so far, it makes a leaf on trial and rolls that back: ACCESS SHARE on the table, no row read.
func Examine(ctx context.Context, db Beginner, p Policy) (err error) {
	tx, err := db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return fmt.Errorf("examine table %q: %w", p.String(), err)
	}
	defer func() { err = errors.Join(err, tx.Rollback(context.WithoutCancel(ctx))) }()
	if _, err := tx.Exec(ctx, "set local search_path = pg_catalog; set local lock_timeout = '1s'"); err != nil {
		return fmt.Errorf("examine table %q: %w", p.String(), err)
	}
	live, faults, err := examineTable(ctx, tx, p.Schema, p.Table, p.Key)
	if err != nil {
		return fmt.Errorf("examine table %q: %w", p.String(), err)
	}
	if err := p.Validate(); err != nil {
		faults = append([]error{err}, faults...)
	}
	if err := p.fitsKey(live.keyType); err != nil {
		faults = append(faults, err)
	}
	if p.Expired == ExpiredArchive {
		more, err := examineArchive(ctx, tx, p, live)
		if err != nil {
			return fmt.Errorf("examine archive %q: %w", p.ArchiveTable, err)
		}
		faults = append(faults, more...)
	}
	if len(faults) == 0 {
		faults = append(faults, tryLeaf(ctx, tx, p))
	}
	return errors.Join(faults...)
}

// facts are what the catalog says of a table, partitioned or not.
type facts struct {
	oid                        uint32
	kind                       string
	partition                  bool
	strategy                   string
	key                        []string // an expression's is empty
	keyType                    KeyType
	owner, user                string
	member, create, ownerMayDo bool
}

const factsSQL = `
select c.oid, c.relkind::text, c.relispartition, coalesce(t.partstrat::text, ''),
       array (select coalesce(a.attname, '') from unnest(t.partattrs) with ordinality k (num, pos)
         left join pg_attribute a on a.attrelid = c.oid and a.attnum = k.num order by k.pos)::text[],
       coalesce((select format_type(a.atttypid, null) from pg_attribute a where a.attrelid = c.oid and a.attnum = t.partattrs[0]), ''),
       pg_get_userbyid(c.relowner), current_user, pg_has_role(current_user, c.relowner, 'usage'),
       has_schema_privilege(current_user, n.oid, 'create') and has_schema_privilege(current_user, n.oid, 'usage'),
       has_schema_privilege(c.relowner, n.oid, 'create')
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  left join pg_partitioned_table t on t.partrelid = c.oid
 where n.nspname = $1 and c.relname = $2`

const alikeSQL = `
select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind = 'p' and lower(c.relname) = lower($1) order by 1, 2 limit 3`

// readFacts returns no facts, and why, for a table that is not there.
func readFacts(ctx context.Context, tx pgx.Tx, schema, table string) (f facts, missing error, err error) {
	err = tx.QueryRow(ctx, factsSQL, schema, table).Scan(&f.oid, &f.kind, &f.partition, &f.strategy, &f.key, &f.keyType,
		&f.owner, &f.user, &f.member, &f.create, &f.ownerMayDo)
	if !errors.Is(err, pgx.ErrNoRows) {
		return f, nil, err
	}
	rows, err := tx.Query(ctx, alikeSQL, table)
	if err != nil {
		return f, nil, err
	}
	alike, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		var s, t string
		err := row.Scan(&s, &t)
		return FormatName(s, t), err
	})
	missing = fmt.Errorf("table %q is not there", schema+"."+table)
	if len(alike) > 0 {
		missing = fmt.Errorf("%w; there is %s", missing, strings.Join(alike, ", "))
	}
	return f, missing, err
}

// examineTable lists what keeps a table from being kept by its partitions.
func examineTable(ctx context.Context, tx pgx.Tx, schema, table, key string) (f facts, faults []error, err error) {
	f, missing, err := readFacts(ctx, tx, schema, table)
	if missing != nil || err != nil {
		return f, []error{missing}, err
	}
	bad := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("table %q "+format, append([]any{schema + "." + table}, args...)...))
	}
	switch {
	case f.strategy == "":
		bad("is not partitioned (relkind %q): make one that is partitioned by range on %q, and bring the rows over", f.kind, key)
	case f.strategy != "r":
		bad("is partitioned by %s: by range is needed; make one that is, and bring the rows over", map[string]string{"l": "list", "h": "hash"}[f.strategy])
	}
	if f.strategy != "" {
		switch {
		case len(f.key) > 1:
			bad("is partitioned by %d columns, %q: one is needed", len(f.key), f.key)
		case f.key[0] == "":
			bad("is partitioned by an expression: a column is needed")
		case f.key[0] != key:
			bad("is partitioned by column %q, not by %q", f.key[0], key)
		}
		if f.keyType != TimestampTZ && f.keyType != Date && f.key[0] != "" {
			bad("has a key %q of type %q: %q or %q is needed", f.key[0], f.keyType, TimestampTZ, Date)
		}
	}
	if f.partition {
		bad("is itself a partition: name the table that it is of")
	}
	if !f.member {
		bad("belongs to %q, in whose name role %q may not act; as a superuser: grant %s to %s;", f.owner, f.user, ident(f.owner), ident(f.user))
	}
	for _, who := range []struct {
		role string
		may  bool
	}{{f.user, f.create}, {f.owner, f.ownerMayDo}} {
		if !who.may && (who.role == f.user || f.owner != f.user) {
			bad("is in schema %q, where role %q may not create its partitions; as the schema's owner: grant usage, create on schema %s to %s;",
				schema, who.role, ident(schema), ident(who.role))
		}
	}
	return f, faults, nil
}

// differencesSQL lists the columns, and the CHECK constraints of the archive, of which a leaf of the live table has not the same.
const differencesSQL = `
with own as (select attrelid, attname, format_type(atttypid, atttypmod) || case when attcollation = 0 then '' else ' collate ' || attcollation::regcollation::text end as type,
                    attnotnull, attgenerated from pg_attribute where attrelid in ($1, $2) and attnum > 0 and not attisdropped),
     l as (select * from own where attrelid = $1), a as (select * from own where attrelid = $2)
select 'column ' || quote_ident(coalesce(l.attname, a.attname)) || ' is ' ||
       case when a.attname is null then 'missing in the archive' when l.attname is null then 'only in the archive'
            when l.type <> a.type then a.type || ' in the archive and ' || l.type || ' in the table'
            when l.attgenerated <> a.attgenerated then 'generated in one of the two' else 'not null only in the archive' end
  from l full join a on a.attname = l.attname
 where l.attname is null or a.attname is null or l.type <> a.type or l.attgenerated <> a.attgenerated or a.attnotnull and not l.attnotnull
 union all
select 'constraint ' || quote_ident(c.conname) || ' of the archive is not one of the table' from pg_constraint c
 where c.conrelid = $2 and c.contype = 'c' and not exists (select from pg_constraint k
       where k.conrelid = $1 and k.contype = 'c' and k.conname = c.conname and pg_get_constraintdef(k.oid) = pg_get_constraintdef(c.oid))
 order by 1`

// examineArchive lists what keeps the archive from taking the table's partitions.
func examineArchive(ctx context.Context, tx pgx.Tx, p Policy, live facts) ([]error, error) {
	f, faults, err := examineTable(ctx, tx, p.Schema, p.ArchiveTable, p.Key)
	if err != nil || f.oid == 0 || live.oid == 0 {
		return faults, err
	}
	if f.keyType != live.keyType {
		faults = append(faults, fmt.Errorf("archive %q has a key of type %q, the table's is %q", p.ArchiveTable, f.keyType, live.keyType))
	}
	rows, err := tx.Query(ctx, differencesSQL, live.oid, f.oid)
	if err != nil {
		return nil, err
	}
	differences, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, d := range differences {
		faults = append(faults, fmt.Errorf("archive %q cannot take the table's partitions: %s", p.ArchiveTable, d))
	}
	return faults, err
}

// tryLeaf makes what a new partition is made of, but for its bounds: an index of a column that is not there, or a storage
// parameter that is none, shows here and not at midnight.
func tryLeaf(ctx context.Context, tx pgx.Tx, p Policy) error {
	leaf := ident(p.Schema, clip(p.Table, maxName-len("_partman_trial"))+"_partman_trial")
	list := []string{fmt.Sprintf("create table %s (like %s)%s", leaf, ident(p.Schema, p.Table), with(p.Storage))}
	for _, i := range p.Indexes {
		list = append(list, i.sql(clip(p.Table, 30)+"_partman_trial_"+i.Name, leaf, false))
	}
	for n, sql := range list {
		if _, err := tx.Exec(ctx, sql); err != nil {
			what := "storage parameters"
			if n > 0 {
				what = fmt.Sprintf("index %q", p.Indexes[n-1].Name)
			}
			return fmt.Errorf("%s of the policy of %q: a partition made on trial: %w", what, p.String(), err)
		}
	}
	return nil
}

// Unregister ends the management of a table: its partitions stay as they are, nothing is made ahead, and what is detached
// already is not dropped. It returns the policy that it had, nil where there was none.
func Unregister(ctx context.Context, db DB, schema, tableSchema, table string) (previous *Policy, err error) {
	err = bounded(ctx, db, func(tx pgx.Tx) error {
		list, bad, err := readPolicies(ctx, tx, schema, "where (table_schema, table_name) = ($1, $2)", tableSchema, table)
		if err != nil || len(list)+len(bad) == 0 {
			return err
		}
		previous = &Policy{Schema: tableSchema, Table: table}
		if len(list) > 0 {
			previous = &list[0]
			r, err := readRecord(ctx, tx, schema, list[0], true)
			if err != nil {
				return err
			}
			if len(r.Held) > 0 {
				return fmt.Errorf("%s: it would be forgotten; plenumctl partitions release first", r.Held[0])
			}
			if r.Paused != nil {
				return fmt.Errorf("%s: it would be forgotten; resume it first", r.Paused)
			}
		}
		_, err = tx.Exec(ctx, fmt.Sprintf("delete from %s where (table_schema, table_name) = ($1, $2)", ident(schema, "partition_policy")),
			tableSchema, table)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("unregister %q in schema %q: %w", tableSchema+"."+table, schema, err)
	}
	return previous, nil
}

// field is a part of a policy as text for a person; value is empty where the policy says nothing.
type field struct{ name, value string }

func (p Policy) fields() []field {
	return []field{
		{"key", p.Key},
		{"step", string(p.Step)},
		{"premake", fmt.Sprint(p.Premake)},
		{"retention", fmt.Sprint(p.Retention)},
		{"expired", p.Expired},
		{"archive table", p.ArchiveTable},
		{"grace", p.grace().String()},
		{"indexes", indexTexts(p.Indexes)},
		{"storage", settings(p.Storage)},
	}
}

// Describe lists what the policy says but for the table's name: "retention: 8".
func (p Policy) Describe() []string {
	var list []string
	for _, f := range p.fields() {
		if f.value != "" {
			list = append(list, f.name+": "+f.value)
		}
	}
	return list
}

// Differences lists what of a table's policy is not as it was: "retention: 8, was 30".
func (p Policy) Differences(was Policy) []string {
	var list []string
	before := was.fields()
	for n, f := range p.fields() {
		if f.value != before[n].value {
			list = append(list, fmt.Sprintf("%s: %s, was %s", f.name, orNone(f.value), orNone(before[n].value)))
		}
	}
	return list
}

func orNone(value string) string {
	if value == "" {
		return "none"
	}
	return value
}

func indexTexts(indexes []Index) string {
	var list []string
	for _, i := range indexes {
		list = append(list, i.sql(i.Name, "each leaf", false))
	}
	slices.Sort(list)
	return strings.Join(list, "; ")
}
