package bluegreen

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

const placedSQL = `select coalesce(to_regclass($1)::oid = $2, false)`

// placed refuses where a side was dropped, or another table has its name: all that is written goes by name.
func (m *Migration) placed(ctx context.Context, db queryer, p Pair) error {
	for _, side := range []Side{Blue, Green} {
		var there bool
		if err := db.QueryRow(ctx, placedSQL, p.table(side), p.oid(side)).Scan(&there); err != nil {
			return fmt.Errorf("look for table %s: %w", p.table(side), err)
		}
		if !there {
			end := "abort ends the migration"
			if p.Active == Green {
				end = "finish ends the migration"
			}
			return fmt.Errorf("table %s is not the one of this migration any more: it was dropped or renamed; rename it back, or %s", p.table(side), end)
		}
	}
	return nil
}

// dropSQL is for a side that may be gone, or be called otherwise.
const dropSQL = `
select format('drop table %I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.oid = $1 and c.relkind in ('r', 'p')`

func dropSide(ctx context.Context, tx pgx.Tx, p Pair, side Side) error {
	return runListed(ctx, tx, dropSQL, p.oid(side))
}
