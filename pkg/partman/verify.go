package partman

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// looseSQL lists, for a leaf, the parent's indexes that have no valid part on it and the leaf's indexes of equal
// definition of which one is attached and one is not: what INCLUDING INDEXES made and ATTACH did not adopt.
const looseSQL = `
with leaf as (
	select x.indexrelid as id, h.inhparent as parent, x.indisvalid as valid,
	       row (x.indisunique, x.indkey::text, x.indclass::text, x.indcollation::text, x.indoption::text,
	         pg_get_expr(x.indexprs, x.indrelid), pg_get_expr(x.indpred, x.indrelid), c.relam)::text as parts
	  from pg_index x join pg_class c on c.oid = x.indexrelid left join pg_inherits h on h.inhrelid = x.indexrelid
	 where x.indrelid = $1::regclass)
select 'not attached: ' || x.indexrelid::regclass::text from pg_index x
 where x.indrelid = $2::regclass and not exists (select from leaf where parent = x.indexrelid and valid)
union all
select 'doubled: ' || a.id::regclass::text from leaf a
 where a.parent is null and exists (select from leaf b where b.parent is not null and b.parts = a.parts)`

// verifyIndexes refuses a new leaf whose indexes are not exactly what its parent declares, besides the policy's.
func verifyIndexes(ctx context.Context, tx pgx.Tx, a Action) error {
	rows, err := tx.Query(ctx, looseSQL, ident(a.Schema, a.Partition), ident(a.Schema, a.Table))
	if err != nil {
		return err
	}
	loose, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	if len(loose) > 0 {
		return fmt.Errorf("indexes of the new partition are wrong: %s", strings.Join(loose, ", "))
	}
	return nil
}

const detachedStillSQL = `
select c.oid, c.relispartition or exists (select from pg_inherits where inhparent = c.oid or inhrelid = c.oid),
       coalesce(obj_description(c.oid, 'pg_class'), '')
  from pg_class c where c.oid = $1::regclass`

// verifyDetached refuses to drop anything but the very table that was inspected.
func verifyDetached(ctx context.Context, tx pgx.Tx, d Detached) error {
	var oid uint32
	var attached bool
	var comment string
	err := tx.QueryRow(ctx, detachedStillSQL, ident(d.Schema, d.Name)).Scan(&oid, &attached, &comment)
	if err != nil {
		return err
	}
	if oid != d.OID || attached || comment != d.Comment {
		return fmt.Errorf("table %q is no longer the detached partition that was planned to go", d.Schema+"."+d.Name)
	}
	return nil
}
