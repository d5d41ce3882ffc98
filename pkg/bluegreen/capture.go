package bluegreen

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const triggerPrefix = "plenum_bluegreen_"

// lockTries bounds the tries of one transaction for its locks; with the pauses that is some minutes.
const lockTries = 150

// logSQL: the log lives by being emptied, so that vacuum may not wait for a part of what it once held.
const logSQL = `
create table if not exists %[1]s (
	seq bigint generated always as identity primary key,
	id  %[2]s,
	key %[3]s
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_scale_factor = 0,
	autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
revoke all on table %[1]s from public`

// functionSQL writes with its owner's rights: who may write the table need not know of the log. It is one for all triggers of a pair. Where a
// row was comes before where it is: a key of the passive side may not allow both. A column may be called like a variable.
const functionSQL = `
#variable_conflict use_column
begin
	if tg_level = 'ROW' then
		insert into %[1]s (id, key) values (old.%[2]s, old.%[3]s);
		return null;
	end if;
	case tg_op
	when 'INSERT' then insert into %[1]s (id, key) select %[2]s, %[3]s from plenum_new;
	when 'DELETE' then insert into %[1]s (id, key) select %[2]s, %[3]s from plenum_old;
	when 'UPDATE' then insert into %[1]s (id, key)
		select %[2]s, %[3]s from plenum_old union all (select %[2]s, %[3]s from plenum_new except select %[2]s, %[3]s from plenum_old);
	else insert into %[1]s (id) values (null);
	end case;
	return null;
end`

// triggerSQL: SHARE ROW EXCLUSIVE on the table. The setting is only this package's own.
const triggerSQL = `
create or replace trigger plenum_bluegreen_%[1]s after %[1]s on %[2]s %[3]s
	for each statement when (pg_catalog.current_setting('plenum_bluegreen.applying', true) is distinct from 'on') execute function %[4]s();
alter table only %[2]s enable always trigger plenum_bluegreen_%[1]s;`

// leavingSQL: a MERGE that moves a row to another partition fires no statement trigger with it, neither for DELETE nor for UPDATE, but this one,
// also on the partitions. Where the row went the drain finds.
const leavingSQL = `
create or replace trigger plenum_bluegreen_leaving after delete on %[1]s
	for each row when (pg_catalog.current_setting('plenum_bluegreen.applying', true) is distinct from 'on') execute function %[2]s();
alter table %[1]s enable always trigger plenum_bluegreen_leaving;`

var triggerEvents = []struct{ event, tables string }{
	{"insert", "referencing new table as plenum_new"},
	{"update", "referencing old table as plenum_old new table as plenum_new"},
	{"delete", "referencing old table as plenum_old"},
	{"truncate", ""},
}

// lackingSQL lists the tables of a side, the root first, that do not have all triggers, or whose ids were not logged since they have:
// the comment on the last trigger says that they were.
const lackingSQL = `
select format('%I.%I', n.nspname, c.relname), x.root and c.relkind = 'p', g.triggers = 4 + g.leaving
  from (select $1::oid as oid, true as root union all
        select relid::oid, false from pg_partition_tree($1::oid) where relid is not null and relid <> $1::oid) x
  join pg_class c on c.oid = x.oid join pg_namespace n on n.oid = c.relnamespace
 cross join lateral (select count(*) as triggers, count(d.description) filter (where g.tgname = 'plenum_bluegreen_truncate') as noted,
         (x.root and c.relkind = 'p')::int as leaving
    from pg_trigger g left join pg_description d on d.classoid = 'pg_trigger'::regclass and d.objoid = g.oid
   where g.tgrelid = c.oid and g.tgenabled = 'A' and g.tgname = any (array['plenum_bluegreen_insert', 'plenum_bluegreen_update',
         'plenum_bluegreen_delete', 'plenum_bluegreen_truncate'] || case when x.root and c.relkind = 'p' then array['plenum_bluegreen_leaving'] end)) g
 where c.relkind in ('r', 'p') and (g.triggers < 4 + g.leaving or g.noted = 0)
 order by not x.root, c.relname`

type uncaptured struct {
	table    string // quoted
	parted   bool   // the root, and a partitioned one
	triggers bool   // they are there, but its ids are not in the log
}

func (m *Migration) own(name string) string { return pgx.Identifier{m.cfg.Schema, name}.Sanitize() }

func (m *Migration) function(p Pair) string { return m.own(fmt.Sprintf("bluegreen_capture_%d", p.N)) }

// createCapture makes the log and the function of a pair.
func (m *Migration) createCapture(ctx context.Context, tx pgx.Tx, p Pair) error {
	body := fmt.Sprintf(functionSQL, m.logTable(p), p.id(), p.key())
	sql := fmt.Sprintf(logSQL, m.logTable(p), p.IDType, p.KeyType) + fmt.Sprintf(`;
create or replace function %[1]s() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as %[2]s;
revoke all on function %[1]s() from public`, m.function(p), literal(body))
	if _, err := tx.Exec(ctx, sql); err != nil {
		return fmt.Errorf("make the log of table %s: %w", p.table(p.Active), err)
	}
	return nil
}

// literal is a string constant of SQL.
func literal(s string) string {
	s = "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + strings.ReplaceAll(s, `\`, `\\`)
	}
	return s
}

// EnsureCapture sees that each table of each side has the triggers, and that green's scope reaches as far as its partitions do. The ids of
// a leaf that lacked the triggers are logged, and where the other side has them: it may have been written directly. Rows that were deleted from
// it before are not known to anybody; verify finds them.
func (m *Migration) EnsureCapture(ctx context.Context) error {
	return m.exclusive(ctx, func(conn *pgx.Conn) error { return m.ensureCapture(ctx, conn) })
}

// ensureCapture is EnsureCapture for who has the migration's lock. Pairs that were read before may have a scope that is too small.
func (m *Migration) ensureCapture(ctx context.Context, conn *pgx.Conn) error {
	pairs, err := capturedPairs(ctx, conn, m.cfg.Schema)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		for _, side := range []Side{Green, Blue} {
			if err := m.capture(ctx, conn, p, side, true); err != nil {
				return err
			}
		}
		if err := m.widen(ctx, conn, p); err != nil {
			return err
		}
	}
	return nil
}

// capture puts the triggers on the tables of a side that lack them. Once it has SHARE ROW EXCLUSIVE, no transaction is open that wrote
// without them. fill logs the ids that were there before, after that and without the lock.
func (m *Migration) capture(ctx context.Context, conn *pgx.Conn, p Pair, side Side, fill bool) error {
	lacking, err := m.lacking(ctx, conn, p, side)
	if err != nil || len(lacking) == 0 {
		return err
	}
	err = m.locking(ctx, conn, func(tx pgx.Tx) error {
		for _, t := range lacking {
			if t.triggers {
				continue
			}
			if err := m.putTriggers(ctx, tx, p, t); err != nil {
				return err
			}
			if !fill {
				if err := note(ctx, tx, t); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("capture changes of table %s: %w", p.table(side), err)
	}
	m.cfg.Step("triggers put")
	if !fill {
		return nil
	}
	for _, t := range lacking {
		err := m.locking(ctx, conn, func(tx pgx.Tx) error {
			sql := fmt.Sprintf("insert into %[1]s (id, key) select %[2]s, %[3]s from only %[4]s union select o.%[2]s, o.%[3]s from %[5]s o join only %[4]s t on t.%[2]s = o.%[2]s",
				m.logTable(p), p.id(), p.key(), t.table, p.table(side.other()))
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
			return note(ctx, tx, t)
		})
		if err != nil {
			return fmt.Errorf("log the ids of table %s: %w", t.table, err)
		}
	}
	return nil
}

func (m *Migration) lacking(ctx context.Context, db queryer, p Pair, side Side) ([]uncaptured, error) {
	rows, err := db.Query(ctx, lackingSQL, p.oid(side))
	if err != nil {
		return nil, fmt.Errorf("look at the triggers of table %s: %w", p.table(side), err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (t uncaptured, err error) {
		err = row.Scan(&t.table, &t.parted, &t.triggers)
		return t, err
	})
}

func (m *Migration) putTriggers(ctx context.Context, tx pgx.Tx, p Pair, t uncaptured) error {
	var sql strings.Builder
	for _, e := range triggerEvents {
		fmt.Fprintf(&sql, triggerSQL, e.event, t.table, e.tables, m.function(p))
	}
	if t.parted {
		fmt.Fprintf(&sql, leavingSQL, t.table, m.function(p))
	}
	_, err := tx.Exec(ctx, sql.String())
	return err
}

func note(ctx context.Context, tx pgx.Tx, t uncaptured) error {
	// SHARE UPDATE EXCLUSIVE on the table: writers go on.
	_, err := tx.Exec(ctx, fmt.Sprintf("comment on trigger plenum_bluegreen_truncate on %s is 'its earlier ids are in the log'", t.table))
	return err
}

// reachSQL is where green's partitions end that follow on one another from low.
const reachSQL = `
with recursive leaf as (
	select (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\)'))[1]::timestamptz as low,
	       (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz as high
	  from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = $1
), reach (high) as (
	select $2::timestamptz union select leaf.high from reach join leaf on leaf.low <= reach.high and leaf.high > reach.high
)
select max(high) from reach`

// takeOverSQL: a row of which green has the id, or had it and the log tells, is none that blue alone has.
const takeOverSQL = `
insert into %[1]s (%[2]s) overriding system value
select %[2]s from %[3]s b where %[4]s >= $1::timestamptz and %[4]s < $2::timestamptz
   and not exists (select from %[1]s g where g.%[5]s = b.%[5]s) and not exists (select from %[6]s l where l.id = b.%[5]s or l.id is null)`

// quietSQL: the application's triggers have seen these rows in blue. A role that may not silence them has them see the rows again, and what they
// make of the rows is captured.
const quietSQL = `
select set_config('plenum_bluegreen.applying', 'off', true);
select set_config('session_replication_role', 'replica', true) where has_parameter_privilege('session_replication_role', 'set')`

// widen moves the scope's end to where green's partitions end. Blue's rows between were not in the scope. Where blue is active their
// ids are logged; where green is, it is given the rows: the drain, which then makes blue as green is, would delete them.
func (m *Migration) widen(ctx context.Context, conn *pgx.Conn, p Pair) error {
	sql := fmt.Sprintf("insert into %s (id, key) select %s, %s from %s b where %s", m.logTable(p), p.id(), p.key(), p.table(Blue), p.within("b", Blue, 1))
	if p.Active == Green {
		sql = fmt.Sprintf(takeOverSQL, p.table(Green), p.columns(), p.table(Blue), p.key(), p.id(), m.logTable(p))
	}
	err := m.locking(ctx, conn, func(tx pgx.Tx) error {
		var high time.Time
		if err := tx.QueryRow(ctx, reachSQL, p.Green, p.High).Scan(&high); err != nil {
			return err
		}
		if high = high.UTC(); !high.After(p.High) {
			return nil
		}
		if p.Active == Green {
			if _, err := tx.Exec(ctx, quietSQL); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, sql, p.High, high); err != nil {
			return err
		}
		m.cfg.Step("rows taken over")
		_, err := tx.Exec(ctx, fmt.Sprintf("update %s set high = $2 where n = $1", m.own("bluegreen_pair")), p.N, high)
		return err
	})
	if err != nil {
		return fmt.Errorf("widen the scope of table %s: %w", p.table(Green), err)
	}
	return nil
}

// uncapture takes the triggers away of a table and its partitions: ACCESS EXCLUSIVE on those that have any.
func (m *Migration) uncapture(ctx context.Context, tx pgx.Tx, table uint32) error {
	return runListed(ctx, tx, capturedSQL, table, triggerPrefix)
}

const capturedSQL = `
select format('drop trigger %I on %I.%I', g.tgname, n.nspname, c.relname)
  from pg_trigger g join pg_class c on c.oid = g.tgrelid join pg_namespace n on n.oid = c.relnamespace
 where starts_with(g.tgname, $2) and not g.tgisinternal and g.tgparentid = 0
   and (c.oid = $1::oid or c.oid in (select relid::oid from pg_partition_tree($1::oid)))
 order by c.oid <> $1::oid, c.relname, g.tgname`

// dropCapture takes away what createCapture made.
func (m *Migration) dropCapture(ctx context.Context, tx pgx.Tx, p Pair) error {
	_, err := tx.Exec(ctx, fmt.Sprintf("drop function if exists %s(); drop table if exists %s", m.function(p), m.logTable(p)))
	return err
}

// session is how this package's transactions see times, numbers and rows, whatever is set for the role: what is read under a lock is read after
// it was got, what is written as text is read as the same value, and a copy takes its time.
const session = "set transaction isolation level read committed; set local statement_timeout = 0; " +
	"set local timezone = 'UTC'; set local datestyle = 'ISO'; set local intervalstyle = 'postgres'; set local extra_float_digits = 1; set local row_security = off; set local plenum_bluegreen.applying = 'on'"

// locking runs do in a transaction that waits for no lock longer than LockTimeout, and tries again where it did not get one.
func (m *Migration) locking(ctx context.Context, conn *pgx.Conn, do func(tx pgx.Tx) error) error {
	for try := 1; ; try++ {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if err := m.begin(ctx, tx); err != nil {
				return err
			}
			return do(tx)
		})
		if state := sqlState(err); state != "55P03" && state != "40P01" {
			return err
		}
		if try == lockTries {
			return fmt.Errorf("in %d tries of %s each: %w", try, m.cfg.LockTimeout, err)
		}
		if err := pause(ctx, 200*time.Millisecond+rand.N(time.Second)); err != nil {
			return err
		}
	}
}

func (m *Migration) begin(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, fmt.Sprintf("%s; set local lock_timeout = '%dms'", session, max(1, m.cfg.LockTimeout.Milliseconds())))
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// reading runs do in one snapshot, in a transaction that writes nothing.
func (m *Migration) reading(ctx context.Context, do func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, m.cfg.Pool, func(tx pgx.Tx) error {
		if err := m.begin(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "set transaction isolation level repeatable read, read only"); err != nil {
			return err
		}
		return do(tx)
	})
}
