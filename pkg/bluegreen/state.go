package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// The migration's own tables are in Config.Schema: bluegreen_pair, a line for each table; bluegreen_name, the names that follow
// a swap; bluegreen_trigger, the application's triggers; bluegreen_stuck, the ids of which the passive side refuses rows; and
// bluegreen_log_N, the log of pair N.
const stateSQL = `
create table if not exists %[1]s.bluegreen_pair (
	n            integer primary key,
	table_schema text not null,
	table_name   text not null,
	key_column   text not null,
	id_column    text not null,
	id_type      text not null,
	blue         oid not null,
	green        oid not null,
	active       text not null default 'blue' check (active in ('blue', 'green')),
	low          timestamptz not null,
	high         timestamptz not null,
	retention    integer not null,
	premake      integer not null,
	accepted     text[] not null default '{}',
	captured_at  timestamptz,
	copy_relation oid not null default 0,
	copy_file    oid not null default 0,
	copy_page    bigint not null default 0,
	copy_rows    bigint not null default 0,
	copied       boolean not null default false,
	begun_at     timestamptz not null default now(),
	swapped_at   timestamptz
);
create table if not exists %[1]s.bluegreen_name (
	pair  integer not null references %[1]s.bluegreen_pair on delete cascade,
	kind  text not null check (kind in ('index', 'sequence')),
	name  text not null,
	blue  oid not null,
	green oid not null,
	primary key (pair, kind, blue)
);
create table if not exists %[1]s.bluegreen_trigger (
	pair    integer not null references %[1]s.bluegreen_pair on delete cascade,
	name    text not null,
	enabled "char" not null,
	primary key (pair, name)
);
create table if not exists %[1]s.bluegreen_stuck (
	pair integer not null references %[1]s.bluegreen_pair on delete cascade,
	id   text not null,
	key  text not null,
	why  text not null,
	at   timestamptz not null default now(),
	primary key (pair, id, key)
)`

// installed says whether a migration's tables are there.
func installed(ctx context.Context, db queryer, schema string) (there bool, err error) {
	err = db.QueryRow(ctx, "select to_regclass($1) is not null", pgx.Identifier{schema, "bluegreen_pair"}.Sanitize()).Scan(&there)
	return there, err
}

type queryer interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const pairsSQL = `
select n, table_schema, table_name, key_column, id_column, id_type, blue, green, active, low, high,
       copy_relation, copy_file, copy_page, copy_rows, copied, captured_at is not null,
       coalesce((select relkind = 'p' from pg_class where oid = case p.active when 'blue' then p.blue else p.green end), false), c.key_type, c.written, c.fixed, c.settable
  from %s p
 cross join lateral (select coalesce(max(format_type(a.atttypid, null)) filter (where a.attname = p.key_column), '') as key_type,
         coalesce(array_agg(a.attname::text order by a.attnum) filter (where a.attgenerated = ''), '{}') as written,
         coalesce(array_agg(a.attname::text order by a.attnum) filter (where f.known or f.keyed), '{}') as fixed,
         coalesce(array_agg(a.attname::text order by a.attnum) filter (where a.attgenerated = '' and not f.known), '{}') as settable
    from pg_attribute a left join pg_attribute o on o.attrelid = case p.active when 'blue' then p.green else p.blue end and o.attname = a.attname
   cross join lateral (select a.attname in (p.key_column, p.id_column) or coalesce(o.attidentity = 'a', false) as known, exists (
         select from pg_index x join pg_attribute k on k.attrelid = x.indrelid and k.attname = a.attname
          where (x.indisunique or x.indisexclusion) and (x.indrelid = o.attrelid or x.indrelid in (select relid::oid from pg_partition_tree(o.attrelid)))
            and (k.attnum = any (x.indkey) or exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = x.indexrelid
                 and d.refclassid = 'pg_class'::regclass and d.refobjid = x.indrelid and d.refobjsubid = k.attnum))) as keyed) f
   where a.attrelid = p.blue and a.attnum > 0 and not a.attisdropped) c
 order by n`

// readPairs returns the pairs, in their order, or ErrNone.
func readPairs(ctx context.Context, db queryer, schema string) ([]Pair, error) {
	there, err := installed(ctx, db, schema)
	if err == nil && !there {
		err = ErrNone
	}
	if err != nil {
		return nil, err
	}
	rows, err := db.Query(ctx, fmt.Sprintf(pairsSQL, pgx.Identifier{schema, "bluegreen_pair"}.Sanitize()))
	if err != nil {
		return nil, fmt.Errorf("read the migration: %w", err)
	}
	pairs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p Pair, err error) {
		c := &p.Cursor
		err = row.Scan(&p.N, &p.Schema, &p.Name, &p.Key, &p.ID, &p.IDType, &p.Blue, &p.Green, &p.Active, &p.Low, &p.High,
			&c.Relation, &c.File, &c.Page, &c.Rows, &c.Done, &p.captured, &p.parted, &p.KeyType, &p.Columns, &p.Fixed, &p.Settable)
		p.Low, p.High = p.Low.UTC(), p.High.UTC()
		return p, err
	})
	if err == nil && len(pairs) == 0 {
		err = ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("read the migration: %w", err)
	}
	return pairs, nil
}

// capturedPairs is readPairs for all commands but those that mend an Init that was interrupted.
func capturedPairs(ctx context.Context, db queryer, schema string) ([]Pair, error) {
	pairs, err := readPairs(ctx, db, schema)
	for _, p := range pairs {
		if !p.captured {
			return nil, fmt.Errorf("init was interrupted before it captured changes of %s: give the same init again, or abort", p.table(p.Active))
		}
	}
	return pairs, err
}

// logTable is the pair's log, quoted.
func (m *Migration) logTable(p Pair) string {
	return pgx.Identifier{m.cfg.Schema, fmt.Sprintf("bluegreen_log_%d", p.N)}.Sanitize()
}

// busyWait is for a sync that follows: it pauses between two rounds.
const busyWait = 10 * time.Second

// holderSQL is who has the migration's lock.
const holderSQL = `
select format('pid %s (%s)', a.pid, a.application_name) from pg_locks l join pg_stat_activity a using (pid)
 where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and l.database = (select oid from pg_database where datname = current_database())
   and l.classid::bigint << 32 | l.objid::bigint = `

// exclusive runs do on one connection while this process alone has the migration's lock, for which it waits as long as busyWait.
func (m *Migration) exclusive(ctx context.Context, do func(conn *pgx.Conn) error) error {
	const key = `hashtextextended('plenum bluegreen ' || $1, 0)`
	pooled, err := m.cfg.Pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer pooled.Release()
	conn := pooled.Conn()
	for deadline := time.Now().Add(busyWait); ; {
		var held bool
		if err := conn.QueryRow(ctx, "select pg_try_advisory_lock("+key+")", m.cfg.Schema).Scan(&held); err != nil {
			return fmt.Errorf("take the migration's lock: %w", err)
		}
		if held {
			break
		}
		if time.Now().After(deadline) {
			var who string
			if err := conn.QueryRow(ctx, holderSQL+key, m.cfg.Schema).Scan(&who); err != nil {
				return ErrBusy // it has gone just now
			}
			return fmt.Errorf("%w: %s; wait for it to end, or stop it", ErrBusy, who)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	err = do(conn)
	ending, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	if _, unlockErr := conn.Exec(ending, "select pg_advisory_unlock("+key+")", m.cfg.Schema); unlockErr != nil && !conn.IsClosed() {
		return errors.Join(err, fmt.Errorf("give the migration's lock back: %w", unlockErr), conn.Close(ending))
	}
	return err
}
