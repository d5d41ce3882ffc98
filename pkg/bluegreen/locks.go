package bluegreen

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

// BlockedError says that a swap gave up, and who was in its way. Nothing has changed.
type BlockedError struct {
	Tries int
	// Held is how long others were held up by the tries.
	Held time.Duration
	// Blockers held locks in the way in the last try for which somebody was found.
	Blockers []partman.Blocker
	Err      error // of the last try
}

func (e *BlockedError) Error() string {
	var who []string
	for _, b := range e.Blockers {
		who = append(who, b.String())
	}
	if len(who) == 0 {
		who = []string{"nobody who is still there"}
	}
	return fmt.Sprintf("gave up after %d tries, which held others up for %s; in the way: %s: %v",
		e.Tries, e.Held.Round(time.Millisecond), strings.Join(who, "; "), e.Err)
}

func (e *BlockedError) Unwrap() error { return e.Err }

// errTail is a try's that found a log too long to be drained while others wait.
var errTail = errors.New("the log is too long to be drained under the locks")

// errBudget is a try's that was not done in time.
var errBudget = errors.New("the time is over for which others may be held up")

// again says whether a try is worth another one: a lock it did not get, a deadlock, a statement over its time, a log that grew.
func again(err error) bool {
	switch sqlState(err) {
	case "55P03", "40P01", "57014":
		return true
	}
	return errors.Is(err, errTail) || errors.Is(err, errBudget)
}

// hold is one try to hold all tables.
type hold struct {
	m    *Migration
	tx   pgx.Tx
	left time.Duration // for which others may be held up
	from time.Time     // since when they are; zero before
}

// timeouts bounds the next statements; a lock is waited for no longer than either allows.
func (h *hold) timeouts(ctx context.Context, lock, statement time.Duration) error {
	_, err := h.tx.Exec(ctx, fmt.Sprintf("set local lock_timeout = %d; set local statement_timeout = %d",
		max(1, lock.Milliseconds()), max(1, statement.Milliseconds())))
	return err
}

// hurrySQL: a vacuum of autovacuum gives way after deadlock_timeout, which is longer than we wait. Not every role may set it.
const hurrySQL = `select set_config('deadlock_timeout', '20ms', true) where has_parameter_privilege('deadlock_timeout', 'set')`

// giveWay is how long a swap waits for a vacuum of the active sides, while the application goes on: one of autovacuum's is asked to
// give way after deadlock_timeout, which is 1 s.
const giveWay = 1500 * time.Millisecond

// swapTries bounds the tries of a swap that does not even come to hold others up.
const swapTries = 20

// take locks the passive sides and then the active ones, each in one order: ACCESS EXCLUSIVE on the tables and their partitions, until the
// transaction ends. Before that no vacuum is in the way any more, which readers and writers would wait for with us. For the passive sides waits only who
// changes what they refer to; what needs no lock on the active ones is done under these.
func (h *hold) take(ctx context.Context, pairs []Pair) error {
	var passive, active []string
	for _, p := range ordered(pairs) {
		passive, active = append(passive, p.table(p.Active.other())), append(active, p.table(p.Active))
	}
	h.m.cfg.Step("locks wanted")
	if _, err := h.tx.Exec(ctx, hurrySQL); err != nil {
		return err
	}
	wait := max(giveWay, h.m.cfg.LockTimeout)
	if err := h.timeouts(ctx, wait, wait); err != nil {
		return err
	}
	list := strings.Join(active, ", ")
	if _, err := h.tx.Exec(ctx, "lock table "+list+" in share update exclusive mode"); err != nil {
		return fmt.Errorf("lock %s against vacuums: %w", list, err)
	}
	if err := h.timeouts(ctx, h.m.cfg.LockTimeout, time.Minute); err != nil {
		return err
	}
	if _, err := h.tx.Exec(ctx, "lock table "+strings.Join(passive, ", ")+" in access exclusive mode"); err != nil {
		return fmt.Errorf("lock the passive sides: %w", err)
	}
	h.m.cfg.Step("passive sides locked")
	if err := h.m.early(ctx, h, pairs); err != nil {
		return err
	}
	lock, err := viewLocks(ctx, h.tx, pairs)
	if err != nil {
		return fmt.Errorf("look for views: %w", err)
	}
	lock = append(lock, "lock table "+list+" in access exclusive mode")
	most := min(h.m.cfg.LockTimeout, h.left)
	if err := h.timeouts(ctx, most, most); err != nil {
		return err
	}
	h.from = time.Now()
	if err := run(ctx, h.tx, lock...); err != nil {
		return err
	}
	h.m.cfg.Step("active sides locked")
	return h.check(ctx)
}

// check gives the statements that follow the time that is left, each.
func (h *hold) check(ctx context.Context) error {
	if err := h.inTime(); err != nil {
		return err
	}
	left := h.left - h.held()
	return h.timeouts(ctx, min(left, h.m.cfg.LockTimeout), left)
}

func (h *hold) inTime() error {
	if h.held() >= h.left {
		return errBudget
	}
	return nil
}

func (h *hold) held() time.Duration {
	if h.from.IsZero() {
		return 0
	}
	return time.Since(h.from)
}

func ordered(pairs []Pair) []Pair {
	list := slices.Clone(pairs)
	slices.SortFunc(list, func(a, b Pair) int { return cmp.Or(cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Name, b.Name)) })
	return list
}

// tries exchanges the sides until that has committed, within the budget.
func (m *Migration) tries(ctx context.Context, conn *pgx.Conn, pairs []Pair) (s Swapped, err error) {
	var blockers []partman.Blocker
	for {
		s.Tries++
		h := &hold{m: m, left: m.cfg.Budget - s.HeldAll}
		watch := m.watch(ctx, conn)
		s.Drained, err = h.try(ctx, conn, pairs)
		held := h.held() // the transaction is over
		if found := watch(); len(found) > 0 {
			blockers = found
		}
		s.Held, s.HeldAll = held, s.HeldAll+held
		switch {
		case err == nil || !again(err):
			return s, err
		case s.HeldAll >= m.cfg.Budget || s.Tries == swapTries:
			return s, &BlockedError{Tries: s.Tries, Held: s.HeldAll, Blockers: blockers, Err: err}
		}
		if err := pause(ctx, 100*time.Millisecond+rand.N(400*time.Millisecond)); err != nil {
			return s, err
		}
		if err := m.shorten(ctx, conn, pairs); err != nil {
			return s, err
		}
	}
}

func (h *hold) try(ctx context.Context, conn *pgx.Conn, pairs []Pair) (drained int, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		h.tx = tx
		if _, err := tx.Exec(ctx, session); err != nil {
			return err
		}
		if err := h.take(ctx, pairs); err != nil {
			return err
		}
		if drained, err = h.m.exchange(ctx, h, pairs); err != nil {
			return err
		}
		h.m.cfg.Step("before the commit")
		return h.inTime()
	})
	return drained, err
}

// blockersSQL: a prepared transaction has no process, and is 0.
const blockersSQL = `
select pid, name, state, coalesce(extract(epoch from clock_timestamp() - since), 0)::float8 from (
	select pid, coalesce(application_name, '') as name, coalesce(state, '') as state, query_start as since, xact_start
	  from pg_stat_activity where pid = any (pg_blocking_pids($1))
	 union all
	select 0, gid, 'prepared transaction of that name: commit or roll it back', prepared, prepared
	  from pg_prepared_xacts where database = current_database() and 0 = any (pg_blocking_pids($1))
) b order by xact_start nulls last, pid limit 5`

// watch asks on another connection for whom ours waits, until the function it returns is called, and that one returns who it was.
func (m *Migration) watch(ctx context.Context, conn *pgx.Conn) func() []partman.Blocker {
	ctx, cancel := context.WithCancel(ctx)
	var found []partman.Blocker
	var done sync.WaitGroup
	done.Go(func() {
		for pause(ctx, m.cfg.LockTimeout/3) == nil {
			list, err := m.blockers(ctx, conn.PgConn().PID())
			if err == nil && len(list) > 0 { // without an answer the try's own error says what can be said
				found = list
			}
		}
	})
	return func() []partman.Blocker {
		cancel()
		done.Wait()
		return found
	}
}

func (m *Migration) blockers(ctx context.Context, pid uint32) ([]partman.Blocker, error) {
	rows, err := m.cfg.Pool.Query(ctx, blockersSQL, int32(pid))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (b partman.Blocker, err error) {
		var seconds float64
		err = row.Scan(&b.PID, &b.Application, &b.State, &seconds)
		b.QueryAge = time.Duration(seconds * float64(time.Second))
		return b, err
	})
}
