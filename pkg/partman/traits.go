package partman

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Traits are what a table has and what neither LIKE … INCLUDING ALL nor ATTACH gives to its leaf. Row triggers, foreign
// keys and the membership in a publication come with ATTACH, all else that a column or an index has with LIKE.
//
// Policies of row security are not among them: whoever reads a leaf itself, past the table, sees no row.
type Traits struct {
	// Tablespace is empty for the default.
	Tablespace string
	// RowSecurity and ForceRowSecurity are the table's flags of those names.
	RowSecurity, ForceRowSecurity bool
	// ReplicaIdentity is pg_class.relreplident; ReplicaIndex names the table's index where that is "i".
	ReplicaIdentity, ReplicaIndex string
	// Columns are those with planner settings of their own.
	Columns []ColumnTrait
	// Grants are the rights on the table and its columns, less those of its owner.
	Grants []Grant
	// Preset are the roles that ALTER DEFAULT PRIVILEGES gives rights on what Snapshot.User creates; "" is PUBLIC.
	Preset []string
	// References are the tables to which its foreign keys refer, as "schema.table".
	References []string
}

// ColumnTrait holds the planner's settings of a column.
type ColumnTrait struct {
	Name string
	// Statistics is the statistics target, -1 for the default.
	Statistics int
	// Options are such as "n_distinct=-0.5".
	Options []string
}

// Grant is what one role may do. Its privileges are on the table, or on one column of it.
type Grant struct {
	Role       string // "" is PUBLIC
	Column     string
	Grantable  bool
	Privileges []string
}

const traitsSQL = `
select coalesce(t.spcname, ''), c.relrowsecurity, c.relforcerowsecurity, c.relreplident::text,
       coalesce((select i.relname from pg_index x join pg_class i on i.oid = x.indexrelid where x.indrelid = c.oid and x.indisreplident), ''),
       array (select distinct case when x.grantee = 0 then '' else pg_get_userbyid(x.grantee) end
         from pg_default_acl d, aclexplode(d.defaclacl) x
        where d.defaclrole = (select oid from pg_roles where rolname = current_user) and d.defaclobjtype = 'r'
          and d.defaclnamespace in (0, c.relnamespace) and x.grantee not in (d.defaclrole, c.relowner) order by 1)::text[],
       array (select distinct n.nspname || '.' || r.relname from pg_constraint k
         join pg_class r on r.oid = k.confrelid join pg_namespace n on n.oid = r.relnamespace
        where k.conrelid = c.oid and k.contype = 'f' order by 1)::text[]
  from pg_class c left join pg_tablespace t on t.oid = c.reltablespace
 where c.oid = $1`

const columnTraitsSQL = `
select attname, coalesce(attstattarget, -1)::int, coalesce(attoptions, '{}')
  from pg_attribute
 where attrelid = $1 and attnum > 0 and not attisdropped and (coalesce(attstattarget, -1) >= 0 or attoptions is not null)
 order by attnum`

const grantsSQL = `
select case when x.grantee = 0 then '' else pg_get_userbyid(x.grantee) end, g.attname, x.is_grantable,
       array_agg(distinct lower(x.privilege_type) order by lower(x.privilege_type))
  from (select '' as attname, relacl as acl, 0 as attnum from pg_class where oid = $1
         union all
        select attname, attacl, attnum from pg_attribute where attrelid = $1 and attnum > 0 and not attisdropped) g,
       aclexplode(g.acl) x
 where x.grantee <> (select relowner from pg_class where oid = $1)
 group by x.grantee, g.attname, g.attnum, x.is_grantable
 order by 1, g.attnum, 3`

func readTraits(ctx context.Context, tx pgx.Tx, table uint32) (t Traits, err error) {
	err = tx.QueryRow(ctx, traitsSQL, table).Scan(&t.Tablespace, &t.RowSecurity, &t.ForceRowSecurity,
		&t.ReplicaIdentity, &t.ReplicaIndex, &t.Preset, &t.References)
	if err != nil {
		return t, err
	}
	rows, err := tx.Query(ctx, columnTraitsSQL, table)
	if err != nil {
		return t, err
	}
	if t.Columns, err = pgx.CollectRows(rows, pgx.RowToStructByPos[ColumnTrait]); err != nil {
		return t, err
	}
	if rows, err = tx.Query(ctx, grantsSQL, table); err != nil {
		return t, err
	}
	t.Grants, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Grant])
	return t, err
}

// in is the clause of CREATE TABLE that names the tablespace.
func (t Traits) in() string {
	if t.Tablespace == "" {
		return ""
	}
	return " tablespace " + ident(t.Tablespace)
}

// give lists the statements that make a new leaf like its table in what LIKE leaves out. Each takes ACCESS EXCLUSIVE on
// the leaf or less, which nobody else sees yet. leaf is quoted.
func (t Traits) give(leaf string, add func(why, sql string)) {
	if t.RowSecurity {
		add("row security, without which its rows could be read past the table", "alter table "+leaf+" enable row level security")
	}
	if t.ForceRowSecurity {
		add("row security for its owner, too", "alter table "+leaf+" force row level security")
	}
	switch t.ReplicaIdentity {
	case "f":
		add("the table's replica identity", "alter table "+leaf+" replica identity full")
	case "n":
		add("the table's replica identity", "alter table "+leaf+" replica identity nothing")
	}
	for _, c := range t.Columns {
		if c.Statistics >= 0 {
			add("the column's statistics target", fmt.Sprintf("alter table %s alter column %s set statistics %d", leaf, ident(c.Name), c.Statistics))
		}
		if len(c.Options) > 0 {
			add("the column's planner settings", fmt.Sprintf("alter table %s alter column %s set (%s)", leaf, ident(c.Name), options(c.Options)))
		}
	}
	if len(t.Preset) > 0 {
		var roles []string
		for _, r := range t.Preset {
			roles = append(roles, role(r))
		}
		add("no right by ALTER DEFAULT PRIVILEGES alone", fmt.Sprintf("revoke all on table %s from %s", leaf, strings.Join(roles, ", ")))
	}
	for _, g := range t.Grants {
		add("a right on the table", g.sql(leaf))
	}
}

// options writes what the catalog has as "name=value".
func options(list []string) string {
	parts := make([]string, len(list))
	for n, o := range list {
		k, v, _ := strings.Cut(o, "=")
		parts[n] = k + " = " + quote(v)
	}
	return strings.Join(parts, ", ")
}

func role(name string) string {
	if name == "" {
		return "public"
	}
	return ident(name)
}

func (g Grant) sql(table string) string {
	rights := slices.Clone(g.Privileges)
	if g.Column != "" {
		for n := range rights {
			rights[n] += " (" + ident(g.Column) + ")"
		}
	}
	sql := fmt.Sprintf("grant %s on table %s to %s", strings.Join(rights, ", "), table, role(g.Role))
	if g.Grantable {
		sql += " with grant option"
	}
	return sql
}

const replicaIndexSQL = `
select n.nspname, i.relname from pg_index x
  join pg_inherits h on h.inhparent = x.indexrelid
  join pg_index l on l.indexrelid = h.inhrelid and l.indrelid = $2::regclass
  join pg_class i on i.oid = l.indexrelid join pg_namespace n on n.oid = i.relnamespace
 where x.indrelid = $1::regclass and x.indisreplident`

// identify makes the leaf's part of the table's replica identity its own. The name of that index is PostgreSQL's choice,
// known only when it is there.
func identify(ctx context.Context, tx pgx.Tx, a Action) error {
	var schema, index string
	leaf := ident(a.Schema, a.Partition)
	if err := tx.QueryRow(ctx, replicaIndexSQL, ident(a.Schema, a.Table), leaf).Scan(&schema, &index); err != nil {
		return fmt.Errorf("find the leaf's part of the table's replica identity: %w", err)
	}
	// ACCESS EXCLUSIVE on the leaf, held already, which nobody else sees yet.
	_, err := tx.Exec(ctx, fmt.Sprintf("alter table %s replica identity using index %s", leaf, ident(index)))
	return err
}
