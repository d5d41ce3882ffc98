package partman

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"
)

// waiting is an action that other sessions hold up, from the first look that finds them until the action is done, has
// failed of something else, or is planned no more. Between two rounds Run looks again each Config.LookEvery, so that
// neither the metric nor readiness names a session that has gone.
type waiting struct {
	action    Action
	statement Statement
	blockers  []Blocker
	told      []int32 // the pids that the log named last
}

// waits keeps who holds up an action, and logs it when it is somebody else than before.
func (m *Manager) waits(p Policy, a Action, s Statement, blockers []Blocker) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.table(p)
	w := t.waiting[a.key()]
	if w == nil {
		w = &waiting{}
		t.waiting[a.key()] = w
	}
	w.action, w.statement, w.blockers = a, s, blockers
	m.measureWaiting(p, t)
	if pids := pids(blockers); len(pids) > 0 && !slices.Equal(pids, w.told) {
		w.told = pids
		fields := append(a.fields(), zap.String("statement", s.what()), zap.Strings("blockers", texts(blockers)))
		m.cfg.Log.Warn("partition action waits", fields...)
	}
}

// waitsNoMore forgets an action. The caller holds the mutex.
func (m *Manager) waitsNoMore(p Policy, t *seen, key string) {
	if t.waiting[key] != nil {
		delete(t.waiting, key)
		m.measureWaiting(p, t)
	}
}

// measureWaiting sets the metric to the oldest query that holds up an action of its kind. The caller holds the mutex.
func (m *Manager) measureWaiting(p Policy, t *seen) {
	oldest := make(map[Kind]time.Duration)
	for _, w := range t.waiting {
		for _, b := range w.blockers {
			oldest[w.action.Kind] = max(oldest[w.action.Kind], b.QueryAge, time.Nanosecond)
		}
	}
	for _, k := range Kinds {
		m.metrics.waiting.WithLabelValues(m.label(p), string(k)).Set(oldest[k].Seconds())
	}
}

// finding says who holds up the action at the moment.
func (w *waiting) finding() Finding {
	return Finding{
		Code: Waiting, Schema: w.action.Schema, Table: w.action.Table, Partition: w.action.Partition, Blockers: w.blockers,
		Detail: string(w.action.Kind) + " waits for " + strings.Join(texts(w.blockers), ", "),
	}
}

func pids(blockers []Blocker) []int32 {
	var list []int32
	for _, b := range blockers {
		list = append(list, b.PID)
	}
	slices.Sort(list)
	return list
}

func texts(blockers []Blocker) []string {
	var list []string
	for _, b := range blockers {
		list = append(list, b.String())
	}
	return list
}

func (a Action) fields() []zap.Field {
	fields := []zap.Field{zap.String("action", string(a.Kind)), zap.String("table", a.Schema+"."+a.Table)}
	if a.Partition != "" {
		fields = append(fields, zap.String("partition", a.Partition))
	}
	return fields
}

// watch names those who hold up a statement that may wait long, asked on another connection each Config.Pause, until stop.
func (m *Manager) watch(ctx context.Context, conn *pgxpool.Conn, p Policy, a Action, s Statement) (stop func(), err error) {
	var pid int32
	if err := conn.QueryRow(ctx, "select pg_backend_pid()").Scan(&pid); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for wait(ctx, m.cfg.Pause) == nil {
			if blockers, err := m.blocking(ctx, pid); err == nil { // else it is asked again, and the statement tells what is wrong
				m.waits(p, a, s, blockers)
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}, nil
}

// blockedBy returns who holds, or awaits, a lock that a statement of the action would wait for if the action began now.
// The session that is at work on the action itself is none.
func (m *Manager) blockedBy(ctx context.Context, a Action) ([]Blocker, error) {
	return m.blockers(ctx, a.Statements, m.cfg.Pause, m.lockKey(a.Loop()))
}
