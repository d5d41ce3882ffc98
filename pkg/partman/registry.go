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
	add column if not exists held          jsonb       not null default '[]',
	add column if not exists paused_at     timestamptz,
	add column if not exists paused_by     text,
	add column if not exists paused_reason text`

// Install creates the table of policies, partition_policy, in schema, or brings an older one up to date. It is idempotent
// and safe to call from several programs at once.
func Install(ctx context.Context, db DB, schema string) error {
	err := bounded(ctx, db, func(tx pgx.Tx) error {
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
select count(*) = 18 from pg_attribute a
  join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = $1 and c.relname = 'partition_policy' and not a.attisdropped and a.attname = any (array[
       'table_schema', 'table_name', 'key_column', 'step', 'premake', 'retention', 'expired', 'archive_table',
       'grace', 'indexes', 'storage', 'updated_at', 'last_run', 'pending', 'held',
       'paused_at', 'paused_by', 'paused_reason'])`

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
	err = bounded(ctx, db, func(tx pgx.Tx) error {
		// One after the other, so that of two programs that start at once only one finds the table new.
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock($1)", int64(installLock)); err != nil {
			return err
		}
		list, _, err := readPolicies(ctx, tx, schema, "where (table_schema, table_name) = ($1, $2)", p.Schema, p.Table)
		if err != nil {
			return err
		}
		if len(list) == 0 { // or no policy that could be in force
			return writePolicy(ctx, tx, schema, p, nil)
		}
		inForce := list[0]
		r, err := readRecord(ctx, tx, schema, p, true)
		if err != nil {
			return err
		}
		if r.Pending != nil && inForce.Equal(p) {
			previous = &inForce
			return writePolicy(ctx, tx, schema, p, nil)
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
       (extract(epoch from grace) * 1000000)::bigint, indexes::text, storage::text
  from %s %s order by table_schema, table_name`

// Policies lists the policies in schema, ordered by schema and table. A row that is none, since somebody has written it by
// hand, is not among them: [Manager.Check] and each round tell of it.
func Policies(ctx context.Context, db DB, schema string) ([]Policy, error) {
	list, _, err := allPolicies(ctx, db, schema)
	return list, err
}

func allPolicies(ctx context.Context, db DB, schema string) (list []Policy, bad []*PolicyError, err error) {
	err = bounded(ctx, db, func(tx pgx.Tx) error {
		list, bad, err = readPolicies(ctx, tx, schema, "")
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read policies of schema %q: %w", schema, err)
	}
	return list, bad, nil
}

// PolicyError says that a row of partition_policy is no policy. Nothing is done to its table.
type PolicyError struct {
	Schema, Table string
	Err           error
}

func (e *PolicyError) Error() string {
	return fmt.Sprintf("the row of table %q in partition_policy is no policy, and nothing is done to the table: %s; set it right with plenumctl partitions register --table %s",
		e.Schema+"."+e.Table, oneLine(e.Err), ShellName(e.Schema, e.Table))
}

func (e *PolicyError) Unwrap() error { return e.Err }

func (e *PolicyError) policy() Policy { return Policy{Schema: e.Schema, Table: e.Table} }

// policyWait bounds each wait for partition_policy, which somebody may have locked.
// A transaction that was begun for less keeps that: what follows in it must not wait longer than before.
const policyWait = `select set_config('lock_timeout', '1s', true)
 where current_setting('lock_timeout')::interval not between interval '1 millisecond' and interval '1 second'`

// bounded runs do in a transaction that waits for no lock longer than policyWait says.
func bounded(ctx context.Context, db DB, do func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, policyWait); err != nil {
			return err
		}
		return do(tx)
	})
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

// readPolicies returns the rows that are policies, and those that are none.
func readPolicies(ctx context.Context, db DB, schema, where string, args ...any) (list []Policy, bad []*PolicyError, err error) {
	rows, err := db.Query(ctx, fmt.Sprintf(policiesSQL, ident(schema, "partition_policy"), where), args...)
	if err != nil {
		return nil, nil, err
	}
	var p Policy
	var grace int64
	var indexes, storage string
	into := []any{&p.Schema, &p.Table, &p.Key, &p.Step, &p.Premake, &p.Retention, &p.Expired, &p.ArchiveTable, &grace, &indexes, &storage}
	_, err = pgx.ForEachRow(rows, into, func() error {
		p.Grace, p.Indexes, p.Storage = time.Duration(grace)*time.Microsecond, nil, nil
		fault := errors.Join(decode("indexes", indexes, &p.Indexes), decode("storage", storage, &p.Storage))
		if fault == nil {
			fault = p.Validate()
		}
		if fault != nil {
			bad = append(bad, &PolicyError{p.Schema, p.Table, fault})
		} else {
			list = append(list, p)
		}
		return nil
	})
	return list, bad, err
}

// columnError says that a column of partition_policy has what no release writes.
type columnError struct {
	column string
	err    error
}

func (e *columnError) Error() string { return fmt.Sprintf("column %s: %v", e.column, e.err) }

func (e *columnError) Unwrap() error { return e.err }

// decode reads a column, of which a person may have made anything.
func decode(column, text string, into any) error {
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return &columnError{column, err}
	}
	return nil
}

// A pause written by hand may begin at infinity; no pause does.
const recordSQL = `
select last_run, coalesce(pending::text, 'null'), held::text,
       case when paused_at is not null then greatest(least(paused_at, now()), 'epoch') end,
       coalesce(paused_by, ''), coalesce(paused_reason, '')
  from %s where (table_schema, table_name) = ($1, $2)`

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
	var last, paused *time.Time
	var pending, held, by, reason string
	_, err = pgx.ForEachRow(rows, []any{&last, &pending, &held, &paused, &by, &reason}, func() error {
		r.found = true
		return errors.Join(decode("pending", pending, &r.Pending), decode("held", held, &r.Held))
	})
	if sqlState(err) == undefinedColumn {
		err = fmt.Errorf("partition_policy is of an earlier release, run plenumctl migrate up: %w", err)
	}
	if err != nil {
		return r, fmt.Errorf("read the record of table %q: %w", p.String(), err)
	}
	if last != nil {
		r.LastRun = last.UTC()
	}
	if paused != nil {
		r.Paused = &Paused{Since: paused.UTC(), By: by, Reason: reason}
	}
	return r, nil
}
