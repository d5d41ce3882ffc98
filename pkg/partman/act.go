package partman

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrBusy is returned where another instance is at work in the same loop.
var ErrBusy = errors.New("another instance holds the partition lock")

// ErrChanged is returned by Apply for an action that the catalog no longer asks for in the same words.
var ErrChanged = errors.New("the catalog has changed since the plan was made")

// Plan inspects one table and returns its plan, limited to what one round takes. The table is named with its
// schema, or without if that is Config.Schema.
func (m *Manager) Plan(ctx context.Context, table string) (Plan, error) {
	p, err := m.policy(ctx, table)
	if err != nil {
		return Plan{}, err
	}
	s, err := m.inspect(ctx, m.cfg.Pool, p)
	if err != nil {
		return Plan{}, err
	}
	return NewPlan(p, s, s.Now).limit(m.cfg.budget()), nil
}

// Apply carries out the actions of the plan in order and nothing else. Before each the catalog is read again under the
// loop's lock: an action that is no longer planned, word for word, ends Apply with ErrChanged. A busy loop ends it with
// ErrBusy. A guard's refusal is in the result, and the next action follows. The plan may have been JSON in between.
func (m *Manager) Apply(ctx context.Context, plan Plan) (Result, error) {
	var result Result
	p, err := m.policy(ctx, FormatName(plan.Schema, plan.Table))
	if err != nil {
		return result, err
	}
	for _, a := range plan.Actions {
		choose := func(s Snapshot) (Action, bool) {
			if plan.Now.After(s.Now) { // a file's word, by which anything could be past retention
				return Action{}, false
			}
			return find(NewPlan(p, s, plan.Now), a)
		}
		acted, err := m.step(ctx, p, a.Loop(), choose, &result)
		if err == nil && !acted {
			err = ErrChanged
		}
		if err != nil {
			return result, fmt.Errorf("%s %s %s: %w", a.Kind, p, a.Partition, err)
		}
	}
	s, err := m.inspect(ctx, m.cfg.Pool, p)
	if err != nil {
		return result, err
	}
	return result, m.complete(ctx, p, s)
}

func find(plan Plan, a Action) (Action, bool) {
	for _, b := range plan.Actions {
		if a.same(b) {
			return b, true
		}
	}
	return Action{}, false
}

// keep does one round of one loop for one table: action after action, each planned anew from the catalog under the lock.
func (m *Manager) keep(ctx context.Context, p Policy, loop Loop, result *Result) error {
	var faults []error
	var unacted error // what kept the round from even trying an action
	tried := make(map[string]bool)
	budget := m.cfg.budget()
	var last Snapshot
	choose := func(s Snapshot) (Action, bool) {
		last = s
		m.observe(p, s)
		for _, a := range m.inTurn(p, loop, NewPlan(p, s, s.Now).Actions) {
			if a.Loop() != loop || tried[a.key()] || !budget.takes(a) {
				continue
			}
			tried[a.key()] = true
			return a, true
		}
		return Action{}, false
	}
	for {
		acted, err := m.step(ctx, p, loop, choose, result)
		if errors.Is(err, ErrBusy) {
			result.Skipped = true
			if unacted = m.observeNow(ctx, p); unacted != nil {
				faults = append(faults, fmt.Errorf("table %q: %w", p.String(), unacted))
			}
			break
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("table %q: %w", p.String(), err))
			if !acted {
				unacted = err
				result.unacted = append(result.unacted, faults[len(faults)-1])
			}
			if lockFault(err) || !acted || ctx.Err() != nil {
				break // the next one would wait for the same lock, or meets the same lost connection
			}
		}
		if !acted {
			break
		}
	}
	if loop == RetireLoop {
		switch {
		case last.Now.IsZero():
		case clockFault(p, last, last.Now) != "":
			result.doubt = true
		case !last.Record.LastRun.IsZero() && p.Retention > 0:
			result.at = last.Now
		}
		if err := m.complete(ctx, p, last); err != nil {
			faults = append(faults, fmt.Errorf("table %q: %w", p.String(), err))
		}
		m.observeRefused(p, last, *result, errors.Join(faults...))
	}
	err := errors.Join(faults...)
	m.observeFault(p, loop, err, unacted)
	return err
}

// observeNow observes a table without acting on it, so that an instance that is never the one at work knows how it stands, too.
func (m *Manager) observeNow(ctx context.Context, p Policy) error {
	s, err := m.inspect(ctx, m.cfg.Pool, p)
	if err != nil {
		return err
	}
	m.observe(p, s)
	return nil
}

// inTurn puts what was tried in vain behind all else, the last tried last of all: neither MaxRetire nor a lock that is not had
// may keep a partition from leaving because others cannot. The current day's creation stays first, whatever came of it.
func (m *Manager) inTurn(p Policy, loop Loop, actions []Action) []Action {
	if loop == CreateLoop {
		return actions
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	unfinished := m.table(p).unfinished
	slices.SortStableFunc(actions, func(a, b Action) int {
		return cmp.Compare(unfinished[a.key()].try, unfinished[b.key()].try)
	})
	return actions
}

// step does at most one action under the lock of its loop. It takes a connection, the lock on it, reads the catalog, lets
// choose pick, acts on the same connection, and gives both back. acted says that an action was chosen.
func (m *Manager) step(ctx context.Context, p Policy, loop Loop, choose func(Snapshot) (Action, bool), result *Result) (acted bool, err error) {
	conn, err := m.cfg.Pool.Acquire(ctx)
	if err != nil {
		return false, fmt.Errorf("connect: %w", err)
	}
	defer conn.Release()
	unlock, err := m.lock(ctx, conn, loop)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	s, err := m.inspect(ctx, conn, p)
	if err != nil {
		return false, err
	}
	a, ok := choose(s)
	if !ok {
		return false, nil
	}
	err = m.run(ctx, conn, p, a)
	news := ctx.Err() == nil && m.observeAction(p, s.Now, a, err) // an action cut short says nothing of its partition
	var blocked *Blocked
	if errors.As(err, &blocked) {
		result.Refused = append(result.Refused, Refusal{a, blocked, news})
		m.metrics.action(m.label(p), a.Kind, "refused")
		return true, nil
	}
	if err != nil {
		m.metrics.action(m.label(p), a.Kind, "failed")
		err = fmt.Errorf("%s partition %q: %w", a.Kind, a.Partition, err)
		result.failed = append(result.failed, failure{a, err, news})
		return true, err
	}
	m.metrics.action(m.label(p), a.Kind, "done")
	result.Done = append(result.Done, a)
	m.cfg.Acted(a)
	return true, nil
}

// lock takes the loop's advisory lock on the connection that will run the DDL, so that a lost connection gives up both.
func (m *Manager) lock(ctx context.Context, conn *pgxpool.Conn, loop Loop) (unlock func() error, err error) {
	if err := m.direct(ctx, conn); err != nil {
		return nil, err
	}
	key := m.lockKey(loop)
	var got bool
	if err := conn.QueryRow(ctx, "select pg_try_advisory_lock($1)", key).Scan(&got); err != nil {
		return nil, fmt.Errorf("take the partition lock of loop %q: %w", loop, err)
	}
	if !got {
		return nil, ErrBusy
	}
	if err := m.holds(ctx, conn, loop); err != nil {
		return nil, errors.Join(err, conn.Conn().Close(ctx)) // never back into the pool with the lock
	}
	return func() error {
		if conn.Conn().IsClosed() {
			return nil // the server has released it
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		var released bool
		err := conn.QueryRow(ctx, "select pg_advisory_unlock($1)", key).Scan(&released)
		if err == nil && released {
			return nil
		}
		if err != nil {
			err = fmt.Errorf("give back the partition lock of loop %q, which ends with its session: %w", loop, err)
		}
		return errors.Join(err, conn.Conn().Close(ctx)) // never back into the pool with the lock
	}, nil
}

// run carries out an action, transaction by transaction.
func (m *Manager) run(ctx context.Context, conn *pgxpool.Conn, p Policy, a Action) error {
	for list := a.Statements; len(list) > 0; {
		n := 1
		for list[0].Tx != 0 && n < len(list) && list[n].Tx == list[0].Tx {
			n++
		}
		if err := m.group(ctx, conn, p, a, list[:n], len(a.Statements)-len(list)); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

func (m *Manager) group(ctx context.Context, conn *pgxpool.Conn, p Policy, a Action, list []Statement, first int) error {
	if list[0].Tx != 0 {
		if err := m.retry(ctx, conn, p, a, list, first); err != nil {
			return err
		}
		m.cfg.Step(ctx, Point{a, first + len(list) - 1, AfterCommit})
		return nil
	}
	var err error
	switch {
	case list[0].Hook == HookPrepare && m.cfg.Prepare == nil:
	case list[0].Hook == HookPrepare:
		if err = m.cfg.Prepare(ctx, a.retiring()); err != nil {
			err = fmt.Errorf("prepare: %w", err)
		}
	case list[0].Hook == HookRecount:
		err = m.recountRows(ctx, conn, a)
	default:
		err = m.outside(ctx, conn, p, a, list[0])
	}
	if err == nil {
		m.cfg.Step(ctx, Point{a, first, AfterStatement})
	}
	return err
}

// transaction runs one group once. lock_timeout bounds each wait for a lock; the time zone is set for the sake of whatever
// a hook does, our own literals carry their offset. A hook that row security would keep rows from fails, and lets nothing go.
func (m *Manager) transaction(ctx context.Context, conn *pgxpool.Conn, a Action, list []Statement, first int) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		settings := fmt.Sprintf("set local lock_timeout = '%dms'; set local statement_timeout = '%dms'; set local timezone = 'UTC'; "+
			"set local row_security = off; set local standard_conforming_strings = on", m.cfg.LockTimeout.Milliseconds(), m.cfg.Deadline.Milliseconds())
		if _, err := tx.Exec(ctx, settings); err != nil {
			return fmt.Errorf("set timeouts: %w", err)
		}
		if err := m.holds(ctx, tx, a.Loop()); err != nil {
			return err
		}
		for n, s := range list {
			if err := m.one(ctx, tx, a, s); err != nil {
				return &statementError{s, err}
			}
			m.cfg.Step(ctx, Point{a, first + n, AfterStatement})
		}
		m.cfg.Step(ctx, Point{a, first + len(list) - 1, BeforeCommit})
		return nil
	})
}

func (m *Manager) one(ctx context.Context, tx pgx.Tx, a Action, s Statement) error {
	switch s.Hook {
	case "":
		_, err := tx.Exec(ctx, s.SQL)
		return err
	case HookGuard:
		if m.cfg.Guard == nil {
			return nil
		}
		return m.cfg.Guard(ctx, tx, a.retiring())
	case HookIndexes:
		return verifyIndexes(ctx, tx, a)
	case HookReplica:
		return identify(ctx, tx, a)
	case HookDetached:
		return verifyDetached(ctx, tx, a.detached)
	case HookCount:
		return m.countRows(ctx, tx, a)
	case HookWanted:
		return m.verifyWanted(ctx, tx, a)
	default:
		return fmt.Errorf("hook %q is unknown inside a transaction", s.Hook)
	}
}

// outside runs a statement that cannot be in a transaction. It may wait for a lock, since its own blocks no reader and no
// writer meanwhile; the deadline bounds it.
func (m *Manager) outside(ctx context.Context, conn *pgxpool.Conn, p Policy, a Action, s Statement) (err error) {
	if err := m.holds(ctx, conn, a.Loop()); err != nil {
		return err
	}
	stop, err := m.watch(ctx, conn, p, a, s)
	if err != nil {
		return fmt.Errorf("ask for the session: %w", err)
	}
	defer stop()
	set := fmt.Sprintf("set lock_timeout = 0; set statement_timeout = '%dms'", m.cfg.Deadline.Milliseconds())
	if _, err := conn.Exec(ctx, set); err != nil {
		return fmt.Errorf("set timeouts: %w", err)
	}
	defer func() {
		if conn.Conn().IsClosed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, resetErr := conn.Exec(ctx, "reset lock_timeout; reset statement_timeout"); resetErr != nil {
			err = errors.Join(err, resetErr, conn.Conn().Close(ctx))
		}
	}()
	if _, err := conn.Exec(ctx, s.SQL); err != nil {
		return m.explain(ctx, &statementError{s, err})
	}
	return nil
}

func (a Action) retiring() Retiring {
	return Retiring{
		Schema: a.Schema, Table: a.Table, PartitionSchema: a.leafSchema, Partition: a.Partition,
		From: a.From, To: a.To, Kind: a.Kind,
	}
}
