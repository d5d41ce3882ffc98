package bluegreen

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

const pairSQL = `
insert into %s (n, table_schema, table_name, key_column, id_column, id_type, blue, green, low, high, retention, premake, accepted)
values ($1, $2, $3, $4, $5, $6, $7, $8::regclass, $9, $10, $11, $12, coalesce($13, array[]::text[]))`

// build makes green of pair n, empty and without a partition, and writes down the pair: all in the caller's transaction.
// On blue it takes ACCESS SHARE, which the caller has already; nobody sees green before the commit.
func (m *Migration) build(ctx context.Context, tx pgx.Tx, n int, s shape, accepted []string) error {
	b := builder{Tx: tx, ctx: ctx, s: s, n: n, state: m.cfg.Schema, green: passiveName(s.Name, Green)}
	b.table = pgx.Identifier{s.Schema, b.green}.Sanitize()
	for _, step := range []func() error{
		b.create,
		func() error { return b.carry(ownSQL, b.s.OID) },
		func() error {
			return b.run(fmt.Sprintf(pairSQL, pgx.Identifier{b.state, "bluegreen_pair"}.Sanitize()),
				n, s.Schema, s.Name, s.Key, s.ID, s.IDType, s.OID, b.table, s.Low, s.High, s.Retention, s.Premake, accepted)
		},
		b.indexes, b.replica, b.sequences, b.triggers,
	} {
		if err := step(); err != nil {
			return fmt.Errorf("build %s: %w", b.table, err)
		}
	}
	return nil
}

type builder struct {
	pgx.Tx
	ctx   context.Context
	s     shape
	n     int
	state string // the schema of the migration's tables
	green string // its name
	table string // the same, with the schema and quoted
}

func (b *builder) run(sql string, args ...any) error {
	if _, err := b.Exec(b.ctx, sql, args...); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// create makes the table. A check that is marked NO INHERIT cannot be on a partitioned table: then all are written anew, without the mark.
func (b *builder) create() error {
	like := "including all excluding indexes"
	if b.s.NoInherit {
		like += " excluding constraints"
	}
	sql := fmt.Sprintf("create table %s (like %s %s) partition by range (%s)", b.table, b.s.quoted(), like, pgx.Identifier{b.s.Key}.Sanitize())
	if b.s.Tablespace != "" {
		sql += " tablespace " + pgx.Identifier{b.s.Tablespace}.Sanitize()
	}
	if err := b.run(sql); err != nil {
		return err
	}
	if !b.s.NoInherit {
		return nil
	}
	return b.carry(checksSQL, b.s.OID)
}

const checksSQL = `
select format('alter table %s add constraint %I %s', $2::text, conname, regexp_replace(pg_get_constraintdef(oid), '( NO INHERIT)?( NOT VALID)?$', ''))
  from pg_constraint where conrelid = $1::oid and contype = 'c' order by conname`

// ownSQL writes what LIKE leaves out. The owner comes last: rights are given by him in any case, and until then the table is the role's.
const ownSQL = `
with o (blue, green) as (values ($1::oid, $2::text)), c as (select c.*, o.* from o join pg_class c on c.oid = o.blue)
select sql from (
	select 1, format('comment on table %s is %L', green, obj_description(blue, 'pg_class')) from c where obj_description(blue, 'pg_class') is not null
	 union all
	select 2, format('alter table %s enable row level security', green) from c where relrowsecurity
	 union all
	select 2, format('alter table %s force row level security', green) from c where relforcerowsecurity
	 union all
	select 3, format('create policy %I on %s as %s for %s to %s', polname, green, case when polpermissive then 'permissive' else 'restrictive' end,
	         case polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
	         (select string_agg(case when r = 0 then 'public' else quote_ident(pg_get_userbyid(r)) end, ', ') from unnest(polroles) r))
	       || coalesce(' using (' || pg_get_expr(polqual, polrelid) || ')', '') || coalesce(' with check (' || pg_get_expr(polwithcheck, polrelid) || ')', '')
	  from pg_policy join o on o.blue = polrelid
	 union all
	select 4, format('alter table %s alter column %I set statistics %s', green, attname, attstattarget)
	  from pg_attribute join o on o.blue = attrelid where attnum > 0 and not attisdropped and coalesce(attstattarget, -1) >= 0
	 union all
	select 4, format('alter table %s alter column %I set (%s)', green, attname,
	         (select string_agg(split_part(p, '=', 1) || ' = ' || quote_literal(substr(p, 2 + length(split_part(p, '=', 1)))), ', ') from unnest(attoptions) p))
	  from pg_attribute join o on o.blue = attrelid where attnum > 0 and not attisdropped and attoptions is not null
	 union all
	select 5, format('revoke all on table %s from public, %I', green, pg_get_userbyid(relowner)) from c where relacl is not null
	 union all
	select 6, format('grant %s on table %s to %s', lower(privilege_type), green, case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end)
	       || case when is_grantable then ' with grant option' else '' end
	  from c, aclexplode(relacl)
	 union all
	select 6, format('grant %s (%I) on table %s to %s', lower(privilege_type), attname, green, case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end)
	       || case when is_grantable then ' with grant option' else '' end
	  from pg_attribute join o on o.blue = attrelid, aclexplode(attacl) where attnum > 0 and not attisdropped
	 union all
	select 4.5, format('alter table %s owner to %I', green, pg_get_userbyid(relowner)) from c where pg_get_userbyid(relowner) <> current_user
) s (pos, sql) order by pos`

// carry runs the statements that a query writes, given an object of blue and green's name.
func (b *builder) carry(query string, args ...any) error {
	rows, err := b.Query(b.ctx, query, append(args, b.table)...)
	if err != nil {
		return err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, sql := range list {
		if err := b.run(sql); err != nil {
			return err
		}
	}
	return nil
}

const nameSQL = `insert into %s (pair, kind, name, blue, green) values ($1, $2, $3, $4, $5::regclass)`

func (b *builder) name(kind, name string, blue uint32, green string) error {
	return b.run(fmt.Sprintf(nameSQL, pgx.Identifier{b.state, "bluegreen_name"}.Sanitize()), b.n, kind, name, blue, green)
}

// indexes builds each of blue's: as it is, or, where a partitioned table cannot have it as unique, as a plain one on the same columns.
func (b *builder) indexes() error {
	for _, i := range b.s.Indexes {
		if i.Exclusion {
			continue
		}
		name := passiveName(i.Name, Green)
		sql := fmt.Sprintf("create index %s on %s %s", pgx.Identifier{name}.Sanitize(), b.table, strings.Replace(i.Tail, " NULLS NOT DISTINCT", "", 1))
		switch {
		case i.Constraint != "" && i.carries():
			sql = fmt.Sprintf("alter table %s add constraint %s %s%s%s", b.table, pgx.Identifier{name}.Sanitize(), i.Constraint, i.with(), i.Deferred)
		case i.Unique && i.carries():
			sql = fmt.Sprintf("create unique index %s on %s %s", pgx.Identifier{name}.Sanitize(), b.table, i.Tail)
		}
		if err := b.run(sql); err != nil {
			return err
		}
		quoted := pgx.Identifier{b.s.Schema, name}.Sanitize()
		if i.Tablespace != "" {
			if err := b.run(fmt.Sprintf("alter index %s set tablespace %s", quoted, pgx.Identifier{i.Tablespace}.Sanitize())); err != nil {
				return err
			}
		}
		if i.Comment != "" {
			if err := b.run(fmt.Sprintf("comment on index %s is %s", quoted, literal(i.Comment))); err != nil {
				return err
			}
		}
		if err := b.name("index", i.Name, i.OID, quoted); err != nil {
			return err
		}
	}
	return nil
}

const replicaIndexSQL = `select indexrelid from pg_index where indrelid = $1 and indisreplident`

// replica gives green blue's replica identity. Where that is an index that green lacks, a published table has all columns instead.
func (b *builder) replica() error {
	switch b.s.Identity {
	case "f":
		return b.run(fmt.Sprintf("alter table %s replica identity full", b.table))
	case "n":
		return b.run(fmt.Sprintf("alter table %s replica identity nothing", b.table))
	}
	var by uint32
	if b.s.Identity == "i" {
		if err := b.QueryRow(b.ctx, replicaIndexSQL, b.s.OID).Scan(&by); err != nil {
			return err
		}
	}
	for _, i := range b.s.Indexes {
		if i.Unique && i.carries() && i.OID == by {
			return b.run(fmt.Sprintf("alter table %s replica identity using index %s", b.table, pgx.Identifier{passiveName(i.Name, Green)}.Sanitize()))
		}
		if i.carries() && strings.HasPrefix(i.Constraint, "PRIMARY KEY") {
			return nil
		}
	}
	if !b.s.Published {
		return nil
	}
	return b.run(fmt.Sprintf("alter table %s replica identity full", b.table))
}

const sequenceRightsSQL = `
select format('grant %s on sequence %s to %s', lower(privilege_type), $2::text, case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end)
  from pg_class, aclexplode(relacl) where oid = $1::oid and grantee <> relowner`

// sequences gives the identity columns' sequences, which LIKE has made anew, blue's names and rights. That of a serial column is no
// other one: green's default calls blue's.
func (b *builder) sequences() error {
	for _, q := range b.s.Sequences {
		var made string
		if err := b.QueryRow(b.ctx, "select pg_get_serial_sequence($1, $2)", b.table, q.Column).Scan(&made); err != nil {
			return err
		}
		name := passiveName(q.Name, Green)
		if err := b.run(fmt.Sprintf("alter sequence %s rename to %s", made, pgx.Identifier{name}.Sanitize())); err != nil {
			return err
		}
		quoted := pgx.Identifier{b.s.Schema, name}.Sanitize()
		rights := *b
		rights.table = quoted
		if err := rights.carry(sequenceRightsSQL, q.OID); err != nil {
			return err
		}
		if err := b.name("sequence", q.Name, q.OID, quoted); err != nil {
			return err
		}
	}
	return nil
}

const rememberSQL = `insert into %s (pair, name, enabled) values ($1, $2, $3::text::"char")`

// triggers makes the application's triggers on green, and disables them: what blue's have done is copied.
func (b *builder) triggers() error {
	for _, g := range b.s.Triggers {
		if !g.Fits {
			continue
		}
		if err := b.run(strings.Replace(g.Definition, g.On, " ON "+b.table+" ", 1)); err != nil {
			return err
		}
		if err := b.run(fmt.Sprintf("alter table %s disable trigger %s", b.table, pgx.Identifier{g.Name}.Sanitize())); err != nil {
			return err
		}
		if err := b.run(fmt.Sprintf(rememberSQL, pgx.Identifier{b.state, "bluegreen_trigger"}.Sanitize()), b.n, g.Name, g.Enabled); err != nil {
			return err
		}
	}
	return nil
}
