package program

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"plenum/pkg/httpapi"
	"plenum/pkg/partman"
	"plenum/pkg/queryplan"
	"plenum/pkg/store"
)

// A planFinding is a scan, in a statement that runs all day, that no index serves.
type planFinding struct {
	statement string
	queryplan.Fault
}

func (f planFinding) String() string { return f.statement + ": " + f.Fault.String() }

// findPlans explains the statements that run all day, on each live day, as if only indexes might be used, so that neither
// statistics nor the size of a partition matter. It runs none of them, and waits for no lock.
func findPlans(ctx context.Context, pool *pgxpool.Pool) ([]planFinding, error) {
	var found []planFinding
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select set_config('lock_timeout', '100ms', true), set_config('statement_timeout', '5s', true)`); err != nil {
			return err
		}
		if err := queryplan.Indexed(ctx, tx); err != nil {
			return err
		}
		days, err := store.LiveDays(ctx, tx)
		if err != nil {
			return err
		}
		for _, s := range store.Statements(days) {
			faults, err := judgeStatement(ctx, tx, s)
			if err != nil {
				return fmt.Errorf("statement %q: %w", s.Name, err)
			}
			for _, f := range faults {
				if p := (planFinding{s.Name, f}); !contains(found, p) {
					found = append(found, p)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("explain the statements that run all day: %w", err)
	}
	return found, nil
}

func judgeStatement(ctx context.Context, tx pgx.Tx, s store.Statement) ([]queryplan.Fault, error) {
	plan, err := queryplan.Explain(ctx, tx, queryplan.Options{}, s.SQL, s.Args...)
	if err != nil {
		return nil, err
	}
	needs := make([]queryplan.Need, len(s.Needs))
	for i, n := range s.Needs {
		needs[i] = queryplan.Need{Table: n.Table, Column: n.Column, Walked: n.Partial}
	}
	return queryplan.Judge(ctx, tx, plan, needs...)
}

const (
	plansEvery    = time.Hour       // between two looks
	plansAgain    = 2 * time.Second // while something is found, or partman misses an index: the warning ends soon after the repair
	plansPatience = 3               // looks in a row that may fail, as beside a lock, before readiness says so
)

// planGuard looks at the plans at the start, each hour, after each partition action, and again while something is found.
type planGuard struct {
	pool   *pgxpool.Pool
	log    *zap.Logger
	gauge  *prometheus.GaugeVec
	woken  chan struct{}
	drifts func() bool // whether the partition manager knows of an index that is missing or invalid

	mu     sync.Mutex
	found  []planFinding
	failed int   // looks in a row
	err    error // of the latest one
}

func newPlanGuard(pool *pgxpool.Pool, log *zap.Logger, reg prometheus.Registerer) *planGuard {
	g := &planGuard{
		pool: pool, log: log, woken: make(chan struct{}, 1), drifts: func() bool { return false },
		gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "plenum_plan_findings", Help: "Scans, in a statement that runs all day, that no index serves.",
		}, []string{"statement"}),
	}
	for _, name := range store.StatementNames {
		g.gauge.WithLabelValues(name).Set(0)
	}
	reg.MustRegister(g.gauge)
	g.wake()
	return g
}

// newGuardedManager returns the partition manager and the guard that looks at the plans after each of its actions.
func newGuardedManager(a *App) (*partman.Manager, *planGuard, error) {
	g := newPlanGuard(a.owner, a.Log.With(zap.String("part", "plans")), a.Registry)
	m, err := newManagerWith(a, func(partman.Action) { g.wake() })
	if err != nil {
		return nil, nil, err
	}
	g.drifts = func() bool { return indexDrift(m, a.Settings.Database.Schema) }
	return m, g, nil
}

// wake has run look again soon.
func (g *planGuard) wake() {
	select {
	case g.woken <- struct{}{}:
	default: // it has been woken already
	}
}

func (g *planGuard) run(ctx context.Context) {
	tick := time.NewTicker(plansAgain)
	defer tick.Stop()
	for due := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-g.woken:
		case <-tick.C:
			if time.Now().Before(due) && !g.drifts() {
				continue
			}
		}
		if g.look(ctx) {
			due = time.Now().Add(plansEvery)
		} else {
			due = time.Now()
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// look explains once, and returns whether all is well.
func (g *planGuard) look(ctx context.Context) bool {
	looking, done := context.WithTimeout(ctx, time.Minute)
	defer done()
	found, err := findPlans(looking, g.pool)
	if ctx.Err() != nil {
		return false
	}
	return g.note(found, err)
}

// note keeps what was found, logs what is new and what has ended, and returns whether all is well. Where the look failed,
// what was found before stands.
func (g *planGuard) note(found []planFinding, err error) (well bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err = err; err != nil {
		if g.failed++; g.failed == plansPatience {
			g.log.Warn("cannot look at the plans, trying again", zap.Error(err))
		}
		return false
	}
	g.failed = 0
	for _, f := range found {
		if !contains(g.found, f) {
			g.log.Warn("no index serves a statement that runs all day", f.fields()...)
		}
	}
	for _, f := range g.found {
		if !contains(found, f) {
			g.log.Info("the statement is served by an index again", f.fields()...)
		}
	}
	g.found = found
	for _, name := range store.StatementNames {
		n := 0
		for _, f := range found {
			if f.statement == name {
				n++
			}
		}
		g.gauge.WithLabelValues(name).Set(float64(n))
	}
	return len(found) == 0
}

func contains(list []planFinding, f planFinding) bool {
	return slices.ContainsFunc(list, func(g planFinding) bool {
		return g.statement == f.statement && g.Relation == f.Relation && g.Column == f.Column
	})
}

func (f planFinding) fields() []zap.Field {
	return []zap.Field{
		zap.String("statement", f.statement), zap.String("relation", f.Relation), zap.String("column", f.Column), zap.String("plan", f.Fault.String()),
	}
}

// indexDrift says whether the manager knows of an index of schema's telemetry or ledger that is missing or invalid.
func indexDrift(m *partman.Manager, schema string) bool {
	for _, t := range m.Status() {
		for _, f := range t.Findings {
			if t.Schema == schema && (f.Code == partman.IndexMissing || f.Code == partman.IndexInvalid) {
				return true
			}
		}
	}
	return false
}

// check tells readiness: a slow statement is a warning, since all work goes on.
func (g *planGuard) check(context.Context) []httpapi.Finding {
	g.mu.Lock()
	defer g.mu.Unlock()
	var fs []httpapi.Finding
	for _, f := range g.found {
		fs = append(fs, httpapi.Finding{Component: "plans", Message: f.String()})
	}
	if g.failed >= plansPatience {
		fs = append(fs, httpapi.Finding{Component: "plans", Message: fmt.Sprintf("cannot look at the plans: %v", g.err)})
	}
	return fs
}

// findSlowPlans is the doctor's look.
func findSlowPlans(ctx context.Context, a *App) ([]Ailment, error) {
	found, err := findPlans(ctx, a.owner)
	if err != nil {
		return nil, err
	}
	byRelation := map[string][]planFinding{}
	var order []string
	for _, f := range found {
		key := f.Relation + "." + f.Column
		if byRelation[key] == nil {
			order = append(order, key)
		}
		byRelation[key] = append(byRelation[key], f)
	}
	var all []Ailment
	for _, key := range order {
		var statements []string
		for _, f := range byRelation[key] {
			if !slices.Contains(statements, f.statement) {
				statements = append(statements, f.statement)
			}
		}
		f := byRelation[key][0]
		all = append(all, Ailment{
			Subject: f.Relation, Message: f.Fault.String() + ", in the statements " + strings.Join(statements, ", "),
			Do: "ingest builds the index within seconds; if it does not: plenumctl partitions check, then plenumctl partitions apply",
		})
	}
	return all, nil
}
