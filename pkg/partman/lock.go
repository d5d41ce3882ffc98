package partman

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The SQLSTATEs after which trying again is right.
const (
	lockNotAvailable = "55P03"
	deadlockDetected = "40P01"
	queryCanceled    = "57014"
	undefinedColumn  = "42703" // no reason to try again
)

// maxPause bounds the pause between two tries.
const maxPause = 30 * time.Second

// LockError says that an action gave up waiting for a lock, and who held it.
type LockError struct {
	Statement Statement
	Tries     int
	// Blockers held, or waited for, a conflicting lock just after the last try, in transactions older than it; empty if they
	// were gone by then.
	Blockers []Blocker
	Err      error
}

func (e *LockError) Error() string {
	var who []string
	for _, b := range e.Blockers {
		who = append(who, b.String())
	}
	if len(who) == 0 {
		who = []string{"sessions that are gone since"}
	}
	return fmt.Sprintf("%s: no lock after %d tries, held by %s: %v", e.Statement.what(), e.Tries, strings.Join(who, "; "), e.Err)
}

func (e *LockError) Unwrap() error { return e.Err }

// Blocker is a session in whose way an action is. What the connection's role may not see is empty.
type Blocker struct {
	PID         int32  `json:"pid"`
	Application string `json:"application_name"`
	State       string `json:"state"`
	// QueryAge is the time since its query began, or its last one if it is idle in a transaction.
	QueryAge time.Duration `json:"query_age"`
	// Relation and Mode are the lock in the way; empty where a snapshot is.
	Relation string `json:"relation,omitempty"`
	Mode     string `json:"mode,omitempty"`
}

func (b Blocker) String() string {
	state := b.State
	if state == "" {
		state = "in a state that pg_read_all_stats shows"
	}
	s := fmt.Sprintf("pid %d (application %q, %s, query age %s)", b.PID, b.Application, state, b.QueryAge.Round(time.Millisecond))
	if b.Mode != "" {
		s += fmt.Sprintf(" with %s on %s", b.Mode, b.Relation)
	}
	return s
}

func (s Statement) what() string {
	if s.Hook != "" {
		return string(s.Hook)
	}
	return s.SQL
}

// statementError names the statement that failed.
type statementError struct {
	statement Statement
	err       error
}

func (e *statementError) Error() string {
	return fmt.Sprintf("%s: %v", e.statement.what(), e.err)
}

func (e *statementError) Unwrap() error { return e.err }

func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

func lockFault(err error) bool {
	var lock *LockError
	return errors.As(err, &lock)
}

// retry runs a transaction until it got its locks: after 55P03 and 40P01 only, at least Pause apart, so that what queued
// behind a try has long gone on before the next one.
func (m *Manager) retry(ctx context.Context, conn *pgxpool.Conn, p Policy, a Action, list []Statement, first int) error {
	for try := 1; ; try++ {
		begun := time.Now()
		err := m.transaction(ctx, conn, a, list, first)
		state := sqlState(err)
		if err == nil || state != lockNotAvailable && state != deadlockDetected {
			return err
		}
		fault, lookup := m.lockError(ctx, err, try, time.Since(begun))
		m.waits(p, a, fault.Statement, fault.Blockers)
		if try >= m.cfg.Tries || wait(ctx, m.pause(try)) != nil {
			return errors.Join(fault, lookup)
		}
	}
}

func (m *Manager) pause(try int) time.Duration {
	spread := min(m.cfg.Pause<<min(try-1, 5), maxPause)
	return m.cfg.Pause + rand.N(spread+1)
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// lockError looks up who is in the way, in the moment after a try: whose transaction is older than it.
func (m *Manager) lockError(ctx context.Context, err error, tries int, took time.Duration) (*LockError, error) {
	e := &LockError{Tries: tries, Err: err}
	var s *statementError
	if errors.As(err, &s) {
		e.Statement, e.Err = s.statement, s.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	var lookup error
	e.Blockers, lookup = m.blockers(ctx, []Statement{e.Statement}, took, 0)
	return e, lookup
}

// explain names the oldest transactions where a concurrent build ran into its deadline: it waits for them to end.
func (m *Manager) explain(ctx context.Context, err *statementError) error {
	if sqlState(err) != queryCanceled && sqlState(err) != deadlockDetected {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	blockers, lookup := m.ask(ctx, oldestSQL)
	return errors.Join(&LockError{Statement: err.statement, Tries: 1, Blockers: blockers, Err: err.err}, lookup)
}

const oldestSQL = `
select pid, coalesce(application_name, ''), coalesce(state, ''), coalesce(extract(epoch from clock_timestamp() - query_start), 0)::float8, '', ''
  from pg_stat_activity
 where datname = current_database() and pid <> pg_backend_pid() and (backend_xmin is not null or backend_xid is not null)
 order by xact_start limit 3`

// blockersSQL: a session has a transaction older than $3 seconds, and holds or awaits a lock that conflicts with a mode of $2
// on the relation of $1 beside it. Who holds the advisory lock $4 is left out.
const blockersSQL = `
select pid, application, state, age, relation, mode from (
  select distinct on (a.pid) a.pid, coalesce(a.application_name, '') as application, coalesce(a.state, '') as state,
         coalesce(extract(epoch from clock_timestamp() - a.query_start), 0)::float8 as age, want.relation, l.mode, l.granted, a.xact_start
    from unnest($1::text[], $2::text[]) with ordinality want (relation, mode, place)
    join (pg_class c join pg_namespace n on n.oid = c.relnamespace) on n.nspname || '.' || c.relname = want.relation
    join pg_locks l on l.relation = c.oid and l.mode = want.mode
    join pg_stat_activity a on a.pid = l.pid
   where l.locktype = 'relation' and l.database = (select oid from pg_database where datname = current_database())
     and (a.xact_start is null or a.xact_start <= clock_timestamp() - make_interval(secs => $3))
     and not exists (select from pg_locks k where k.pid = l.pid and k.locktype = 'advisory' and k.granted and k.objsubid = 1
         and k.database = l.database and (k.classid::bigint << 32) | k.objid::bigint = $4)
   order by a.pid, l.granted desc, want.place) b
 order by granted desc, xact_start nulls last, pid
 limit 5`

// blockers returns who would keep the statements from their locks, the oldest transaction first; none that began within
// younger, as those of writers do that come and go.
func (m *Manager) blockers(ctx context.Context, list []Statement, younger time.Duration, but int64) ([]Blocker, error) {
	var relations, modes []string
	for _, s := range list {
		for _, on := range s.On {
			for _, mode := range conflicts(s.Lock) {
				relations, modes = append(relations, on), append(modes, mode)
			}
		}
	}
	if len(relations) == 0 {
		return nil, nil
	}
	return m.ask(ctx, blockersSQL, relations, modes, younger.Seconds(), but)
}

const blockingSQL = `
select a.pid, coalesce(a.application_name, ''), coalesce(a.state, ''), coalesce(extract(epoch from clock_timestamp() - a.query_start), 0)::float8, '', ''
  from pg_stat_activity a where a.pid = any (pg_blocking_pids($1)) order by a.xact_start nulls last, a.pid limit 5`

// blocking returns for whom a session of ours waits at the moment: for a lock, or for the end of a transaction.
func (m *Manager) blocking(ctx context.Context, pid int32) ([]Blocker, error) {
	return m.ask(ctx, blockingSQL, pid)
}

func (m *Manager) ask(ctx context.Context, sql string, args ...any) ([]Blocker, error) {
	rows, err := m.cfg.Pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("look up who holds the lock: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanBlocker)
	if err != nil {
		return nil, fmt.Errorf("look up who holds the lock: %w", err)
	}
	return list, nil
}

func scanBlocker(row pgx.CollectableRow) (b Blocker, err error) {
	var seconds float64
	err = row.Scan(&b.PID, &b.Application, &b.State, &seconds, &b.Relation, &b.Mode)
	b.QueryAge = time.Duration(seconds * float64(time.Second))
	return b, err
}

// conflicts lists the modes that conflict with a lock (PostgreSQL, Explicit Locking, table 13.2), as pg_locks spells them.
func conflicts(lock string) []string {
	all := []string{
		"AccessExclusiveLock", "ExclusiveLock", "ShareRowExclusiveLock", "ShareLock",
		"ShareUpdateExclusiveLock", "RowExclusiveLock", "RowShareLock", "AccessShareLock",
	}
	switch lock {
	case "ACCESS SHARE":
		return all[:1]
	case "SHARE UPDATE EXCLUSIVE":
		return all[:5]
	case "SHARE":
		return append(all[:3:3], all[4:6]...)
	default:
		return all
	}
}
