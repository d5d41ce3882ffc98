package partman

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// DB is a pool, a connection or a transaction of pgx.
type DB interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// ErrUnknownTable is returned where no policy names the table.
var ErrUnknownTable = errors.New("no partition policy for this table")

// installLock keeps two programs that start at once from creating the table twice, which CREATE … IF NOT EXISTS does not.
const installLock = 0x706172746d616e // "partman"

// A column that a later release adds comes as an "add column if not exists" with a default that says what went before.
const installSQL = `
create table if not exists %[1]s (
	table_schema text not null,
	table_name   text not null,
	primary key (table_schema, table_name)
);
alter table %[1]s
	add column if not exists key_column    text        not null default '',
	add column if not exists step          text        not null default 'day',
	add column if not exists premake       integer     not null default 0,
	add column if not exists retention     integer     not null default 0,
	add column if not exists expired       text        not null default '',
	add column if not exists archive_table text        not null default '',
	add column if not exists grace         interval    not null default '0',
	add column if not exists indexes       jsonb       not null default '[]',
	add column if not exists storage       jsonb       not null default '{}',
	add column if not exists updated_at    timestamptz not null default now(),
	add column if not exists last_run      timestamptz,
	add column if not exists pending       jsonb,
	add column if not exists held          jsonb       not null default '[]'`

// Install creates the table of policies, partition_policy, in schema, or brings an older one up to date. It is idempotent
// and safe to call from several programs at once.
func Install(ctx context.Context, db DB, schema string) error {
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock($1)", int64(installLock)); err != nil {
			return err
		}
		complete, err := installed(ctx, tx, schema)
		if err != nil || complete {
			return err
		}
		// ACCESS EXCLUSIVE on partition_policy, for an instant, and only where it lacks a column.
		_, err = tx.Exec(ctx, fmt.Sprintf(installSQL, ident(schema, "partition_policy")))
		return err
	})
	if err != nil {
		return fmt.Errorf("install partition_policy in schema %q: %w", schema, err)
	}
	return nil
}

const installedSQL = `
select count(*) = 15 from pg_attribute a
  join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = $1 and c.relname = 'partition_policy' and not a.attisdropped and a.attname = any (array[
       'table_schema', 'table_name', 'key_column', 'step', 'premake', 'retention', 'expired', 'archive_table',
       'grace', 'indexes', 'storage', 'updated_at', 'last_run', 'pending', 'held'])`

func installed(ctx context.Context, tx pgx.Tx, schema string) (complete bool, err error) {
	err = tx.QueryRow(ctx, installedSQL, schema).Scan(&complete)
	return complete, err
}

const registerSQL = `
insert into %s as p (table_schema, table_name, key_column, step, premake, retention, expired, archive_table, grace, indexes, storage, pending)
values ($1, $2, $3, $4, $5, $6, $7, $8, make_interval(secs => $9), $10, $11, $12)
on conflict (table_schema, table_name) do update set
	key_column = excluded.key_column, step = excluded.step, premake = excluded.premake, retention = excluded.retention,
	expired = excluded.expired, archive_table = excluded.archive_table, grace = excluded.grace,
	indexes = excluded.indexes, storage = excluded.storage, pending = excluded.pending, updated_at = now()`

// Register puts a table under management, or changes its policy. It returns the policy that was registered before: nil where
// there was none, one Equal to p where nothing changed and nothing was written. The policy is validated; the table need not
// exist yet. Grace is kept to the microsecond. In what a policy keeps less than the one
// in force, its [Retention] is only noted, until [Manager.Confirm]; one that keeps as much or more is in force at once, and
// nothing waits any more.
func Register(ctx context.Context, db DB, schema string, p Policy) (previous *Policy, err error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	p.Grace = p.Grace.Round(time.Microsecond)
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		// One after the other, so that of two programs that start at once only one finds the table new.
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock($1)", int64(installLock)); err != nil {
			return err
		}
		list, err := readPolicies(ctx, tx, schema, "where (table_schema, table_name) = ($1, $2)", p.Schema, p.Table)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return writePolicy(ctx, tx, schema, p, nil)
		}
		inForce := list[0]
		r, err := readRecord(ctx, tx, schema, p, true)
		if err != nil {
			return err
		}
		registered := inForce.with(r.Pending)
		if previous = &registered; registered.Equal(p) {
			return nil
		}
		if kept := inForce.keeping(p); !kept.Equal(p) {
			wanted := p.retention()
			return writePolicy(ctx, tx, schema, kept, &wanted)
		}
		return writePolicy(ctx, tx, schema, p, nil)
	})
	if err != nil {
		return nil, fmt.Errorf("register %q in schema %q: %w", p.String(), schema, err)
	}
	return previous, nil
}

func writePolicy(ctx context.Context, tx pgx.Tx, schema string, p Policy, pending *Retention) error {
	indexes, err := json.Marshal(p.Indexes)
	if err != nil {
		return fmt.Errorf("indexes: %w", err)
	}
	if p.Indexes == nil {
		indexes = []byte("[]")
	}
	storage := p.Storage
	if storage == nil {
		storage = map[string]string{}
	}
	_, err = tx.Exec(ctx, fmt.Sprintf(registerSQL, ident(schema, "partition_policy")), p.Schema, p.Table, p.Key, string(p.Step),
		p.Premake, p.Retention, p.Expired, p.ArchiveTable, p.Grace.Seconds(), indexes, storage, pending)
	return err
}

const policiesSQL = `
select table_schema, table_name, key_column, step, premake, retention, expired, archive_table,
       (extract(epoch from grace) * 1000000)::bigint, indexes, storage
  from %s %s order by table_schema, table_name`

// Policies lists the policies in schema, ordered by schema and table. One that does not validate is an error.
func Policies(ctx context.Context, db DB, schema string) ([]Policy, error) {
	list, err := readPolicies(ctx, db, schema, "")
	if err != nil {
		return nil, fmt.Errorf("read policies of schema %q: %w", schema, err)
	}
	return list, nil
}

// Registered lists the policies as they were registered last: where a [Retention] waits for confirmation, with that one.
func Registered(ctx context.Context, db DB, schema string) ([]Policy, error) {
	list, err := Policies(ctx, db, schema)
	if err != nil {
		return nil, err
	}
	for n, p := range list {
		r, err := readRecord(ctx, db, schema, p, false)
		if err != nil {
			return nil, err
		}
		list[n] = p.with(r.Pending)
	}
	return list, nil
}

func readPolicies(ctx context.Context, db DB, schema, where string, args ...any) ([]Policy, error) {
	rows, err := db.Query(ctx, fmt.Sprintf(policiesSQL, ident(schema, "partition_policy"), where), args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanPolicy)
}

func scanPolicy(row pgx.CollectableRow) (Policy, error) {
	var p Policy
	var grace int64
	err := row.Scan(&p.Schema, &p.Table, &p.Key, &p.Step, &p.Premake, &p.Retention, &p.Expired, &p.ArchiveTable,
		&grace, &p.Indexes, &p.Storage)
	if err != nil {
		return p, err
	}
	p.Grace = time.Duration(grace) * time.Microsecond
	return p, nil
}

const recordSQL = `select last_run, pending, held from %s where (table_schema, table_name) = ($1, $2)`

// readRecord reads what is remembered of a table, nothing where it has no policy. forUpdate makes whoever writes it wait
// for the end of the transaction.
func readRecord(ctx context.Context, db DB, schema string, p Policy, forUpdate bool) (Record, error) {
	sql := fmt.Sprintf(recordSQL, ident(schema, "partition_policy"))
	if forUpdate {
		sql += " for no key update"
	}
	r := Record{Schema: schema}
	rows, err := db.Query(ctx, sql, p.Schema, p.Table)
	if err != nil {
		return r, err
	}
	var last *time.Time
	_, err = pgx.ForEachRow(rows, []any{&last, &r.Pending, &r.Held}, func() error { return nil })
	if err != nil {
		return r, fmt.Errorf("read the record of table %q: %w", p.String(), err)
	}
	if last != nil {
		r.LastRun = last.UTC()
	}
	return r, nil
}
