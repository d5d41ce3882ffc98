package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// snapshotTries bounds how often a transaction is tried again that met another's write (40001): nobody but this package
// writes what it writes, so that once is rare.
const snapshotTries = 10

// snapshot runs do in a transaction of one snapshot, which is taken by its first query: LOCK TABLE does not take it.
func (m *Migration) snapshot(ctx context.Context, conn *pgx.Conn, do func(tx pgx.Tx) error) error {
	for try := 1; ; try++ {
		err := m.locking(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "set transaction isolation level repeatable read"); err != nil {
				return err
			}
			return do(tx)
		})
		if sqlState(err) != "40001" || try == snapshotTries {
			return err
		}
	}
}

func sqlState(err error) string {
	var fault *pgconn.PgError
	if errors.As(err, &fault) {
		return fault.Code
	}
	return ""
}

// refused says that a table did not take a row: a constraint, a partition that is not there, a trigger that raises, a row that
// is too long for an index.
func refused(err error) bool {
	state := sqlState(err)
	return strings.HasPrefix(state, "23") || state == "P0001" || state == "54000"
}

// columns are those that are written, quoted.
func (p Pair) columns() string { return quoted("", p.Columns) }

// quoted is a list of columns, each with what stands before it.
func quoted(before string, columns []string) string {
	list := make([]string, len(columns))
	for n, c := range columns {
		list[n] = before + pgx.Identifier{c}.Sanitize()
	}
	return strings.Join(list, ", ")
}

func (p Pair) id() string { return pgx.Identifier{p.ID}.Sanitize() }

func (p Pair) key() string { return pgx.Identifier{p.Key}.Sanitize() }

// within is the condition that a row of a side is in the scope, which parameters n and n+1 hold. All of green is.
func (p Pair) within(row string, s Side, n int) string {
	if s == Green {
		return fmt.Sprintf("$%d::timestamptz is not null and $%d::timestamptz is not null", n, n+1)
	}
	return fmt.Sprintf("%[1]s.%[2]s >= $%[3]d::timestamptz and %[1]s.%[2]s < $%[4]d::timestamptz", row, p.key(), n, n+1)
}

// nextSQL is the leaf at which the copy is, or the next one in the order of their OIDs, which a later one is after.
const nextSQL = `
select c.oid, format('%%I.%%I', n.nspname, c.relname)
  from (select $1::oid as oid union select relid::oid from pg_partition_tree($1::oid) where isleaf) x
  join pg_class c on c.oid = x.oid join pg_namespace n on n.oid = c.relnamespace
 where c.relkind = 'r' and c.oid %s $2::oid order by c.oid limit 1`

const placeSQL = `
select coalesce(pg_relation_filenode($1::oid), 0), pg_relation_size($1::oid) / current_setting('block_size')::bigint`

// leaf is a table of the active side that has rows of its own.
type leaf struct {
	oid   uint32
	table string // quoted
}

func nextLeaf(ctx context.Context, db queryer, p Pair, compare string, oid uint32) (l leaf, found bool, err error) {
	err = db.QueryRow(ctx, fmt.Sprintf(nextSQL, compare), p.oid(p.Active), oid).Scan(&l.oid, &l.table)
	if errors.Is(err, pgx.ErrNoRows) {
		return l, false, nil
	}
	return l, err == nil, err
}

// errRewritten says that the copy has to begin again.
var errRewritten = errors.New("the table was rewritten")

// copyPair copies the active side until the cursor is Done. It calls copied after each batch.
func (m *Migration) copyPair(ctx context.Context, conn *pgx.Conn, p Pair, copied func(c Cursor, rows int64) error) error {
	pages := int64(m.cfg.CopyPages)
	for !p.Cursor.Done {
		before := p.Cursor.Rows
		next, err := m.copyBatch(ctx, conn, p, pages)
		switch {
		case errors.Is(err, errRewritten):
			if next, err = m.restart(ctx, conn, p); err != nil {
				return err
			}
		case refused(err) && pages > 1:
			pages = max(1, pages/8)
			continue
		case refused(err):
			if next, err = m.skipPage(ctx, conn, p); err != nil {
				return fmt.Errorf("log the ids of page %d of table %s: %w", p.Cursor.Page, p.table(p.Active), err)
			}
			m.cfg.Step("page skipped")
		case err != nil:
			return fmt.Errorf("copy table %s from page %d of leaf %d: %w", p.table(p.Active), p.Cursor.Page, p.Cursor.Relation, err)
		}
		pages = min(2*pages, int64(m.cfg.CopyPages))
		p.Cursor = next
		m.cfg.Step("copied a batch")
		if err := copied(next, max(0, next.Rows-before)); err != nil {
			return err
		}
	}
	return nil
}

// copyBatch copies the next pages, and says where the cursor is then. A row that was changed since the capture began may be
// met twice, here and where its new version is: its id is in the log, so whichever version comes is made right by the drain.
func (m *Migration) copyBatch(ctx context.Context, conn *pgx.Conn, p Pair, pages int64) (c Cursor, err error) {
	insert := func(tx pgx.Tx, from string, first, last int64) (int64, error) {
		once, err := m.once(ctx, tx, p)
		if err != nil {
			return 0, err
		}
		sql := fmt.Sprintf("insert into %s (%s) overriding system value select %s from only %s t where ctid >= $1::text::tid and ctid < $2::text::tid and %s %s",
			p.table(p.Active.other()), p.columns(), p.columns(), from, p.within("t", p.Active, 3), once)
		tag, err := tx.Exec(ctx, sql, tid(first), tid(last), p.Low, p.High)
		return tag.RowsAffected(), err
	}
	return m.advance(ctx, conn, p, pages, insert)
}

// skipPage leaves a page to the drain, which takes each row by itself.
func (m *Migration) skipPage(ctx context.Context, conn *pgx.Conn, p Pair) (Cursor, error) {
	return m.advance(ctx, conn, p, 1, func(tx pgx.Tx, from string, first, last int64) (int64, error) {
		sql := fmt.Sprintf("insert into %s (id, key) select %s, %s from only %s where ctid >= $1::text::tid and ctid < $2::text::tid", m.logTable(p), p.id(), p.key(), from)
		tag, err := tx.Exec(ctx, sql, tid(first), tid(last))
		return tag.RowsAffected(), err
	})
}

func tid(page int64) string { return fmt.Sprintf("(%d,0)", page) }

// onceSQL looks at all tables of a side: a leaf may have keys of its own.
const onceSQL = `
select count(*) > 0, coalesce(bool_or(not x.indimmediate), false) from pg_index x
 where (x.indisunique or x.indisexclusion) and (x.indrelid = $1::oid or x.indrelid in (select relid::oid from pg_partition_tree($1::oid)))`

// once is the clause that passes over rows that are there already. Without a key no row is refused, and ON CONFLICT would only make each
// insert speculative, which costs WAL. A deferrable key allows no ON CONFLICT: then the ids of the log are left out.
func (m *Migration) once(ctx context.Context, tx pgx.Tx, p Pair) (string, error) {
	var keyed, deferrable bool
	err := tx.QueryRow(ctx, onceSQL, p.oid(p.Active.other())).Scan(&keyed, &deferrable)
	switch {
	case err != nil || !keyed:
		return "", err
	case deferrable:
		return fmt.Sprintf("and not exists (select from %s l where l.id = t.%s)", m.logTable(p), p.id()), nil
	}
	return "on conflict do nothing", nil
}

// advance does one batch with its cursor, in one snapshot.
func (m *Migration) advance(ctx context.Context, conn *pgx.Conn, p Pair, pages int64,
	batch func(tx pgx.Tx, from string, first, last int64) (int64, error),
) (c Cursor, err error) {
	c = p.Cursor
	compare := ">="
	if c.File == 0 { // the leaf is done, or there was none yet
		compare = ">"
	}
	l, found, err := nextLeaf(ctx, conn, p, compare, c.Relation)
	if err != nil {
		return c, err
	}
	err = m.snapshot(ctx, conn, func(tx pgx.Tx) error {
		c = p.Cursor
		if !found {
			c.Done = true
			return m.setCursor(ctx, tx, p, c)
		}
		// Who rewrites the table waits for this lock, or we do for him; the snapshot and the file's name come after it.
		if _, err := tx.Exec(ctx, "lock table only "+l.table+" in access share mode"); err != nil {
			return err
		}
		if l.oid != c.Relation {
			c.Relation, c.File, c.Page = l.oid, 0, 0
		}
		var file uint32
		var end int64
		if err := tx.QueryRow(ctx, placeSQL, l.oid).Scan(&file, &end); err != nil {
			return err
		}
		if c.File != 0 && c.File != file {
			return errRewritten
		}
		c.File = file
		last := c.Page + pages
		rows, err := batch(tx, l.table, c.Page, last)
		if err != nil {
			return err
		}
		m.cfg.Step("batch written")
		c.Page, c.Rows = last, c.Rows+rows
		if last >= end {
			c.File, c.Page = 0, 0
		}
		return m.setCursor(ctx, tx, p, c)
	})
	return c, err
}

const cursorSQL = `
update %s set copy_relation = $2, copy_file = $3, copy_page = $4, copy_rows = $5, copied = $6 where n = $1`

func (m *Migration) setCursor(ctx context.Context, tx pgx.Tx, p Pair, c Cursor) error {
	_, err := tx.Exec(ctx, fmt.Sprintf(cursorSQL, m.own("bluegreen_pair")), p.N, c.Relation, c.File, c.Page, c.Rows, c.Done)
	return err
}

// restart empties the passive side and begins the copy again. What the log has by then happened before any snapshot of the new copy.
func (m *Migration) restart(ctx context.Context, conn *pgx.Conn, p Pair) (Cursor, error) {
	passive := p.Active.other()
	err := m.snapshot(ctx, conn, func(tx pgx.Tx) error {
		if passive == Green {
			// ACCESS EXCLUSIVE on green and its partitions, which nobody uses.
			if _, err := tx.Exec(ctx, "lock table "+p.table(passive)+" in access exclusive mode"); err != nil {
				return err
			}
		}
		if err := m.clearLog(ctx, tx, p); err != nil {
			return err
		}
		if passive == Green {
			if _, err := tx.Exec(ctx, "truncate table "+p.table(passive)); err != nil {
				return err
			}
		} else if _, err := tx.Exec(ctx, fmt.Sprintf("delete from %s t where %s", p.table(passive), p.within("t", passive, 1)), p.Low, p.High); err != nil {
			return err
		}
		m.cfg.Step("passive emptied")
		return m.setCursor(ctx, tx, p, Cursor{})
	})
	if err != nil {
		return Cursor{}, fmt.Errorf("empty table %s to copy it again: %w", p.table(passive), err)
	}
	m.cfg.Step("copy begun again")
	return Cursor{}, nil
}

func (m *Migration) clearLog(ctx context.Context, tx pgx.Tx, p Pair) error {
	if _, err := tx.Exec(ctx, "delete from "+m.logTable(p)); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, fmt.Sprintf("delete from %s where pair = $1", m.own("bluegreen_stuck")), p.N)
	return err
}
