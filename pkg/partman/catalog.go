package partman

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Beginner is a pool or a connection of pgx.
type Beginner interface {
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}

// Inspect reads all that the pure functions need of the policy's table. It takes no lock on any table: a partition that
// someone holds exclusively does not hold it up. What it finds is the state at one moment, in a transaction of its own.
func Inspect(ctx context.Context, db Beginner, p Policy) (Snapshot, error) {
	s, err := inspect(ctx, db, p)
	if err != nil {
		return Snapshot{}, fmt.Errorf("inspect table %q: %w", p.String(), err)
	}
	return s, nil
}

func inspect(ctx context.Context, db Beginner, p Policy) (s Snapshot, err error) {
	err = reading(ctx, db, func(tx pgx.Tx) error {
		s, err = readSnapshot(ctx, tx, p)
		return err
	})
	return s, err
}

// readSnapshot makes all queries in one snapshot: a partition that moves between two of them would seem to have lost its indexes.
func readSnapshot(ctx context.Context, tx pgx.Tx, p Policy) (s Snapshot, err error) {
	root, err := readRoot(ctx, tx, p.Schema, p.Table, p.Key)
	if err != nil {
		return s, err
	}
	if err := p.fitsKey(root.snapshot.KeyType); err != nil {
		return s, err
	}
	s = root.snapshot
	if s.Traits, err = readTraits(ctx, tx, root.oid); err != nil {
		return s, err
	}
	var fallback Partition
	if s.Partitions, fallback, err = readPartitions(ctx, tx, root.oid); err != nil {
		return s, err
	}
	s.DefaultSchema, s.Default = fallback.Schema, fallback.Name
	if s.Indexes, err = readIndexes(ctx, tx, root.oid, s.Partitions); err != nil {
		return s, err
	}
	if p.Expired == ExpiredArchive {
		var unfit *unfitError
		if s.Archive, err = readArchive(ctx, tx, p); errors.As(err, &unfit) {
			s.Archive, s.ArchiveFault = nil, unfit.Error()
		} else if err != nil {
			return s, err
		}
	}
	marked, err := readDetached(ctx, tx, p, &s)
	if err != nil {
		return s, err
	}
	return s, readNames(ctx, tx, p, &s, marked)
}

type root struct {
	oid      uint32
	snapshot Snapshot
}

const rootSQL = `
select c.oid, clock_timestamp(), coalesce(t.partstrat::text, ''), coalesce(t.partnatts, 0), coalesce(a.attname, ''),
       coalesce(format_type(a.atttypid, null), ''), pg_get_userbyid(c.relowner), current_user,
       pg_has_role(current_user, c.relowner, 'member'), pg_stat_get_last_analyze_time(c.oid)
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  left join pg_partitioned_table t on t.partrelid = c.oid
  left join pg_attribute a on a.attrelid = c.oid and a.attnum = t.partattrs[0]
 where n.nspname = $1 and c.relname = $2`

// readRoot refuses a table that is not partitioned by range on exactly the policy's key, and keys that name no instant.
func readRoot(ctx context.Context, tx pgx.Tx, schema, table, key string) (root, error) {
	var r root
	var strategy, column, keyType string
	var columns int
	var analyzed *time.Time
	s := &r.snapshot
	err := tx.QueryRow(ctx, rootSQL, schema, table).Scan(&r.oid, &s.Now, &strategy, &columns, &column, &keyType,
		&s.Owner, &s.User, &s.CanOwn, &analyzed)
	if errors.Is(err, pgx.ErrNoRows) {
		return r, unfitf("table %q is not there", schema+"."+table)
	}
	if err != nil {
		return r, err
	}
	if strategy != "r" || columns != 1 || column != key {
		return r, unfitf("table %q is not partitioned by range on column %q alone (strategy %q, %d columns, the first %q)",
			schema+"."+table, key, strategy, columns, column)
	}
	s.KeyType = KeyType(keyType)
	if s.KeyType != TimestampTZ && s.KeyType != Date {
		return r, unfitf("key %q of table %q is %q: %q or %q is needed", key, schema+"."+table, keyType, TimestampTZ, Date)
	}
	s.Now = s.Now.UTC()
	if analyzed != nil {
		s.Analyzed = analyzed.UTC()
	}
	return r, nil
}

const partitionsSQL = `
select n.nspname, c.relname, c.oid, c.relkind::text, i.inhdetachpending, pg_get_expr(c.relpartbound, 0),
       case when c.reltuples < 0 then -1 else c.reltuples end::bigint,
       (c.relpages + coalesce((select sum(x.relpages) from pg_class x
           where x.oid = c.reltoastrelid or x.oid in (select indexrelid from pg_index where indrelid = c.oid)), 0))
           * current_setting('block_size')::bigint,
       coalesce(c.reloptions, '{}'), k.convalidated
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  join pg_namespace n on n.oid = c.relnamespace
  left join pg_constraint k on k.conrelid = c.oid and k.conname = $2 and k.contype = 'c'
 where i.inhparent = $1`

func readPartitions(ctx context.Context, tx pgx.Tx, parent uint32) (list []Partition, fallback Partition, err error) {
	rows, err := tx.Query(ctx, partitionsSQL, parent, boundsCheck)
	if err != nil {
		return nil, fallback, err
	}
	var p Partition
	var bound string
	var options []string
	var validated *bool
	_, err = pgx.ForEachRow(rows, []any{
		&p.Schema, &p.Name, &p.OID, &p.Kind, &p.DetachPending, &bound, &p.Rows, &p.Bytes,
		&options, &validated,
	}, func() error {
		if bound == "DEFAULT" {
			fallback = p
			return nil
		}
		leaf := p
		if err := leaf.parseBound(bound); err != nil {
			return err
		}
		leaf.Options = make(map[string]string, len(options))
		for _, o := range options {
			k, v, _ := strings.Cut(o, "=")
			leaf.Options[k] = v
		}
		leaf.Bounded, leaf.BoundsValid = validated != nil, validated != nil && *validated
		list = append(list, leaf)
		return nil
	})
	slices.SortFunc(list, func(a, b Partition) int {
		if a.OpenFrom != b.OpenFrom {
			if a.OpenFrom {
				return -1
			}
			return 1
		}
		return a.From.Compare(b.From)
	})
	return list, fallback, err
}

// unfitError says that a table is none that can be kept as the policy says.
type unfitError struct{ text string }

func (e *unfitError) Error() string { return e.text }

func unfitf(format string, args ...any) error { return &unfitError{fmt.Sprintf(format, args...)} }

func readArchive(ctx context.Context, tx pgx.Tx, p Policy) (*Archive, error) {
	root, err := readRoot(ctx, tx, p.Schema, p.ArchiveTable, p.Key)
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	a := &Archive{KeyType: root.snapshot.KeyType}
	var fallback Partition
	if a.Partitions, fallback, err = readPartitions(ctx, tx, root.oid); err != nil {
		return nil, err
	}
	a.Default = fallback.Name
	a.Indexes, err = readIndexes(ctx, tx, root.oid, nil)
	return a, err
}

// indexesSQL: the tail is the whole definition less the part that names index and table, of which the length is known. It is
// written here for what is plain: pg_get_indexdef opens the table, and would wait for whoever has that to themselves.
const indexesSQL = `
select x.indrelid, x.indexrelid, n.nspname, ic.relname, coalesce(h.inhparent, 0), x.indisvalid and x.indisready, x.indisunique,
       x.indnullsnotdistinct, am.amname,
       exists (select from pg_constraint k where k.conindid = x.indexrelid and k.contype in ('p', 'u', 'x')),
       exists (select from pg_stat_progress_create_index g where g.relid = x.indrelid),
       array (select coalesce(a.attname, '') from unnest(x.indkey[0:x.indnkeyatts-1]) with ordinality k (num, pos)
         left join pg_attribute a on a.attrelid = x.indrelid and a.attnum = k.num order by k.pos)::text[],
       p.plain,
       case when p.plain and ic.reloptions is null then format('USING %I (%s)', am.amname,
         (select string_agg(quote_ident(a.attname), ', ' order by k.pos) from unnest(x.indkey) with ordinality k (num, pos)
           join pg_attribute a on a.attrelid = x.indrelid and a.attnum = k.num)) || case when x.indnullsnotdistinct then ' NULLS NOT DISTINCT' else '' end
       else coalesce(substr(pg_get_indexdef(x.indexrelid), 1 + length(format('CREATE %sINDEX %I ON %s%I.%I ',
         case when x.indisunique then 'UNIQUE ' else '' end, ic.relname,
         case when ic.relkind = 'I' then 'ONLY ' else '' end, tn.nspname, tc.relname))), '') end
  from pg_index x
  join pg_class ic on ic.oid = x.indexrelid
  join pg_namespace n on n.oid = ic.relnamespace
  join pg_am am on am.oid = ic.relam
  join pg_class tc on tc.oid = x.indrelid
  join pg_namespace tn on tn.oid = tc.relnamespace
  left join pg_inherits h on h.inhrelid = x.indexrelid
  cross join lateral (select x.indpred is null and x.indexprs is null and x.indnatts = x.indnkeyatts and 0 = all (x.indoption)
       and not exists (select from unnest(x.indclass) o (id) join pg_opclass oc on oc.oid = o.id where not oc.opcdefault)
       and not exists (select from unnest(x.indkey, x.indcollation) k (num, coll)
         join pg_attribute a on a.attrelid = x.indrelid and a.attnum = k.num where k.coll <> 0 and k.coll <> a.attcollation) as plain) p
 where x.indrelid = any ($1) and x.indislive
 order by x.indrelid, ic.relname`

// readIndexes returns the parent's indexes and gives each leaf its own.
func readIndexes(ctx context.Context, tx pgx.Tx, parent uint32, leaves []Partition) ([]CatalogIndex, error) {
	tables := []uint32{parent}
	at := make(map[uint32]int, len(leaves))
	for n, leaf := range leaves {
		tables = append(tables, leaf.OID)
		at[leaf.OID] = n
	}
	rows, err := tx.Query(ctx, indexesSQL, tables)
	if err != nil {
		return nil, err
	}
	var own []CatalogIndex
	var table uint32
	for rows.Next() {
		var i CatalogIndex
		err := rows.Scan(&table, &i.OID, &i.Schema, &i.Name, &i.Parent, &i.Valid, &i.Unique, &i.NullsNotDistinct, &i.Method,
			&i.Constraint, &i.Building, &i.Columns, &i.Plain, &i.Tail)
		if err != nil {
			return nil, err
		}
		if i.Tail == "" {
			continue // dropped since: definitions are printed from the newest catalog
		}
		if table == parent {
			own = append(own, i)
			continue
		}
		leaf := &leaves[at[table]]
		leaf.Indexes = append(leaf.Indexes, i)
	}
	return own, rows.Err()
}

const detachedSQL = `
select n.nspname, c.relname, c.oid, d.description, c.relpages * current_setting('block_size')::bigint
  from pg_description d
  join pg_class c on c.oid = d.objoid
  join pg_namespace n on n.oid = c.relnamespace
 where d.classoid = 'pg_class'::regclass and d.objsubid = 0 and starts_with(d.description, $1)
   and c.relkind = 'r' and not c.relispartition
 order by c.relname`

// readDetached reads the detached partitions of the policy's table. marked holds the names of all in the policy's schema,
// whichever table they are of.
func readDetached(ctx context.Context, tx pgx.Tx, p Policy, s *Snapshot) (marked []string, err error) {
	rows, err := tx.Query(ctx, detachedSQL, markPrefix)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d Detached, err error) {
		err = row.Scan(&d.Schema, &d.Name, &d.OID, &d.Comment, &d.Bytes)
		return d, err
	})
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		m, ok := readMark(d.Comment)
		if !ok {
			continue
		}
		if d.Schema == p.Schema {
			marked = append(marked, d.Name)
		}
		if m.Schema == p.Schema && m.Table == p.Table {
			d.From, d.To, d.At = m.From, m.To, m.At
			s.Detached = append(s.Detached, d)
		}
	}
	return marked, nil
}

const namesSQL = `
select relname, relkind = 'r' and not relispartition from pg_class
 where relnamespace = to_regnamespace($1)::oid and starts_with(relname, $2)
 union all
select typname, false from pg_type where typnamespace = to_regnamespace($1)::oid and starts_with(typname, $2)`

// readNames reads the names that a new partition cannot have, and among them the strays. One with a mark is none: a day
// that was archived and then detached from the archive has the live table's name for it still.
func readNames(ctx context.Context, tx pgx.Tx, p Policy, s *Snapshot, marked []string) error {
	rows, err := tx.Query(ctx, namesSQL, ident(p.Schema), p.stem())
	if err != nil {
		return err
	}
	var name string
	var loose bool
	_, err = pgx.ForEachRow(rows, []any{&name, &loose}, func() error {
		s.Taken = append(s.Taken, name)
		if loose && looksLikePartition(strings.TrimPrefix(name, p.stem())) && !slices.Contains(marked, name) {
			s.Strays = append(s.Strays, name)
		}
		return nil
	})
	return err
}

func looksLikePartition(suffix string) bool {
	return len(suffix) >= 8 && strings.Trim(suffix[:8], "0123456789") == "" && (len(suffix) == 8 || suffix[8] == '_')
}
