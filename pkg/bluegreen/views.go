package bluegreen

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// followsSQL is whether a swap can have view v read the other side of b: who may replace it, a column of the table's row type
// cannot change its type, and what groups by the primary key alone has none then.
const followsSQL = `v.relkind = 'v' and v.relpersistence <> 't' and pg_has_role(v.relowner, 'usage') and has_schema_privilege(v.relnamespace, 'create')
	and not exists (select from pg_attribute a join pg_type t on t.oid = b.reltype where a.attrelid = v.oid and a.atttypid in (t.oid, t.typarray))
	and not exists (select from pg_depend k where k.classid = 'pg_rewrite'::regclass and k.objid = r.oid and k.refclassid = 'pg_constraint'::regclass)`

// viewsSQL is without the definitions: who knows these has locked the views.
const viewsSQL = `
select distinct format('%I.%I', n.nspname, v.relname) as name, v.oid, quote_ident(pg_get_userbyid(v.relowner))
  from pg_class b join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = b.oid and d.classid = 'pg_rewrite'::regclass
  join pg_rewrite r on r.oid = d.objid join pg_class v on v.oid = r.ev_class join pg_namespace n on n.oid = v.relnamespace
 where b.oid = $1 and ` + followsSQL + ` order by name`

type view struct {
	Name  string // quoted
	OID   uint32
	Owner string // quoted
}

// views reads those that follow the name of the active side: they are bound to the table itself.
func views(ctx context.Context, db queryer, p Pair) ([]view, error) {
	rows, err := db.Query(ctx, viewsSQL, p.oid(p.Active))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[view])
}

// viewLocks are statements that have who reads a view wait for it and not, with the view locked, for a table. They change nothing: LOCK TABLE
// would lock what else the view reads.
func viewLocks(ctx context.Context, tx pgx.Tx, pairs []Pair) (list []string, err error) {
	for _, p := range ordered(pairs) {
		of, err := views(ctx, tx, p)
		if err != nil {
			return nil, err
		}
		for _, v := range of {
			list = append(list, fmt.Sprintf("alter view %s owner to %s", v.Name, v.Owner)) // ACCESS EXCLUSIVE
		}
	}
	return list, nil
}

const replaceSQL = `
select format('create or replace view %s %s as %s', $2::text, 'with (' || array_to_string(reloptions, ', ') || ')', pg_get_viewdef(oid))
  from pg_class where oid = $1`

// renaming renames the tables of a pair. The views' definitions are read before it and have the name, which means the other table after it.
func renaming(ctx context.Context, tx pgx.Tx, p Pair, to Side) error {
	list, err := views(ctx, tx, p)
	if err != nil {
		return err
	}
	replace := make([]string, len(list))
	for n, v := range list {
		if err := tx.QueryRow(ctx, replaceSQL, v.OID, v.Name).Scan(&replace[n]); err != nil {
			return err
		}
	}
	if err := renameTables(ctx, tx, p, to); err != nil {
		return err
	}
	return run(ctx, tx, replace...)
}
