package partman

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Rename has the policy of a table, with all that is remembered of it, follow the table's new name; from and to are schema and
// name. Besides the policy itself that is what names the table elsewhere: the policies of which it is the archive, also
// where such a retention still waits for confirmation, the counts of days that are moving, and the marks of its detached
// partitions. Their owner's rights are needed for these.
//
// It does not touch the table. Called in the transaction that renames it, whoever retires sees both or neither. Leaves keep
// their names. It is an error if from has no policy, or to has one.
func Rename(ctx context.Context, db DB, schema string, from, to [2]string) error {
	err := bounded(ctx, db, func(tx pgx.Tx) error {
		// Register's lock: a policy of the new name must not appear meanwhile.
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock($1)", int64(installLock)); err != nil {
			return err
		}
		if err := renamePolicy(ctx, tx, schema, from, to); err != nil {
			return err
		}
		if err := renameArchive(ctx, tx, schema, from, to); err != nil {
			return err
		}
		if err := renameCounts(ctx, tx, schema, from, to); err != nil {
			return err
		}
		return renameMarks(ctx, tx, from, to)
	})
	if err != nil {
		return fmt.Errorf("rename the policy of table %q to %q in schema %q: %w", from[0]+"."+from[1], to[0]+"."+to[1], schema, err)
	}
	return nil
}

const renamePolicySQL = `
update %s set table_schema = $3, table_name = $4, updated_at = now() where (table_schema, table_name) = ($1, $2)`

func renamePolicy(ctx context.Context, tx pgx.Tx, schema string, from, to [2]string) error {
	for _, part := range to {
		if part == "" || len(part) > maxName {
			return fmt.Errorf("name %q: an identifier of 1 to %d bytes is needed", part, maxName)
		}
	}
	if from != to {
		there, err := readRecord(ctx, tx, schema, Policy{Schema: to[0], Table: to[1]}, true)
		if err != nil {
			return err
		}
		if there.found {
			return fmt.Errorf("table %q has a policy already: rename or unregister that one first", to[0]+"."+to[1])
		}
	}
	tag, err := tx.Exec(ctx, fmt.Sprintf(renamePolicySQL, ident(schema, "partition_policy")), from[0], from[1], to[0], to[1])
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrUnknownTable
	}
	return err
}

// An archive is in its table's schema.
const archivedSQL = `
select table_schema || '.' || table_name from %s
 where table_schema = $1 and (archive_table = $2 or pending ->> 'archive_table' = $2) order by 1`

const renameArchiveSQL = `
update %s set archive_table = case when archive_table = $2 then $3 else archive_table end,
       pending = case when pending ->> 'archive_table' = $2 then jsonb_set(pending, '{archive_table}', to_jsonb($3::text)) else pending end
 where table_schema = $1 and (archive_table = $2 or pending ->> 'archive_table' = $2)`

func renameArchive(ctx context.Context, tx pgx.Tx, schema string, from, to [2]string) error {
	if from[0] == to[0] {
		_, err := tx.Exec(ctx, fmt.Sprintf(renameArchiveSQL, ident(schema, "partition_policy")), from[0], from[1], to[1])
		return err
	}
	rows, err := tx.Query(ctx, fmt.Sprintf(archivedSQL, ident(schema, "partition_policy")), from[0], from[1])
	if err != nil {
		return err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(tables) > 0 {
		err = fmt.Errorf("it is the archive of table %q, which must be in the same schema", tables[0])
	}
	return err
}

// heldSQL lists the tables that remember a count, with what they hold; the rows stay locked.
const heldSQL = `select table_schema, table_name from %s where held @> '[{"rows": {}}]' order by 1, 2 for no key update`

// renameCounts renames the table in the counts of days that move from it, or to it. The count of a leaf names one schema for
// both tables, so it ends where they part.
func renameCounts(ctx context.Context, tx pgx.Tx, schema string, from, to [2]string) error {
	rows, err := tx.Query(ctx, fmt.Sprintf(heldSQL, ident(schema, "partition_policy")))
	if err != nil {
		return err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct{ Schema, Table string }])
	if err != nil {
		return err
	}
	for _, t := range tables {
		r, err := readRecord(ctx, tx, schema, Policy{Schema: t.Schema, Table: t.Table}, true)
		if err != nil {
			return err
		}
		held := slices.Clone(r.Held)
		if t.Schema != from[0] && [2]string{t.Schema, t.Table} != to {
			continue
		}
		if renameIn(held, from[1], to[1]) {
			if from[0] != to[0] {
				return fmt.Errorf("%s: the rows of a day that moved are being counted, or differ, in schema %q: see to that first", held[0], from[0])
			}
			if err := writeHolds(ctx, tx, schema, t.Schema, t.Table, held); err != nil {
				return err
			}
		}
	}
	return nil
}

// renameIn renames a table in the counts of a list of holds, and says whether there was one.
func renameIn(held []Hold, from, to string) (found bool) {
	for n, h := range held {
		if h.Rows == nil || h.Rows.Table != from && h.Rows.Archive != from {
			continue
		}
		count := *h.Rows
		if count.Table == from {
			count.Table = to
		}
		if count.Archive == from {
			count.Archive = to
		}
		if count.After != nil {
			held[n].Reason = count.String()
		}
		held[n].Rows, found = &count, true
	}
	return found
}

// renameMarks has the detached partitions of a table follow it: they are dropped by the policy that detached them, or not at
// all. SHARE UPDATE EXCLUSIVE on each, of which nobody but a person knows.
func renameMarks(ctx context.Context, tx pgx.Tx, from, to [2]string) error {
	var s Snapshot
	if _, err := readDetached(ctx, tx, Policy{Schema: from[0], Table: from[1]}, &s); err != nil {
		return err
	}
	for _, d := range s.Detached {
		m, _ := readMark(d.Comment)
		m.Schema, m.Table = to[0], to[1]
		if _, err := tx.Exec(ctx, fmt.Sprintf("comment on table %s is %s", ident(d.Schema, d.Name), quote(m.comment()))); err != nil {
			return fmt.Errorf("mark the detached partition %q: %w", d.Schema+"."+d.Name, err)
		}
	}
	return nil
}
