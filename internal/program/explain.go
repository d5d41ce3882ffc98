package program

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/pkg/queryplan"
	"plenum/pkg/store"
)

// Bounds of a statement that is tried.
const (
	trialTimeout     = 5 * time.Second
	trialGrace       = time.Second // for what a statement does to its own timeout, and for the looks at the plan
	trialLockTimeout = 100 * time.Millisecond
	trialSample      = 5000  // rows of a batch
	trialRows        = 10000 // that a statement may touch
	smallRelation    = 5000  // rows, up to which a scan beside a good index is no fault
)

// A Trial is what one statement did to the batch, before it was rolled back.
type Trial struct {
	Name      string            `json:"name"`
	SQL       string            `json:"sql"`
	Runs      int               `json:"runs"` // a statement a day is run once for each
	Time      float64           `json:"time_ms"`
	Planning  float64           `json:"planning_ms"`
	Parts     []TrialPart       `json:"partitions"`
	RowsRead  int64             `json:"rows_read"`
	Hit       int64             `json:"buffers_hit"`
	Read      int64             `json:"buffers_read"`
	Changes   bool              `json:"changes_rows"`
	Matched   int64             `json:"matched"`
	Expected  int64             `json:"expected"`
	DeadRows  int64             `json:"dead_rows"` // versions that the rollback leaves for vacuum
	WALBytes  int64             `json:"wal_bytes"`
	LeftOut   int               `json:"partitions_left_out"` // when the statement began to run
	Faults    []queryplan.Fault `json:"faults"`
	Verdict   []string          `json:"verdict"`
	Completed bool              `json:"completed"` // false: it ran into a bound, and the figures are not those of a whole run
}

// TrialPart is how one partition was read, in all runs.
type TrialPart struct {
	Relation  string   `json:"relation"`
	Scan      string   `json:"scan"`
	Indexes   []string `json:"indexes,omitempty"`
	RowsRead  int64    `json:"rows_read"`
	RowsFound int64    `json:"rows_found"`
	Hit       int64    `json:"buffers_hit"`
	Read      int64    `json:"buffers_read"`
	Time      float64  `json:"time_ms"`
}

// Trials is what SyncExplain found.
type Trials struct {
	Rows    int      `json:"rows"`
	Days    []string `json:"days"`
	Pending bool     `json:"pending"` // the rows are of batches that are not processed yet
	Trials  []Trial  `json:"trials"`
}

// SyncExplain runs statements on a batch of up to rows rows, each in a transaction that is rolled back: sql, or where that is empty the
// statement that marks and its variants.
func SyncExplain(ctx context.Context, a *App, sql string, rows int) (Trials, error) {
	if rows < 1 || rows > trialSample {
		return Trials{}, Usagef("--rows: %d is not between 1 and %d", rows, trialSample)
	}
	if err := checkExplain(ctx, a); err != nil {
		return Trials{}, err
	}
	variants := store.MarkVariants
	if sql != "" {
		v, err := readVariant(ctx, a, sql)
		if err != nil {
			return Trials{}, err
		}
		variants = []store.Variant{v}
	}
	var all Trials
	err := inTrial(ctx, a, func(tx pgx.Tx) error { // holds pending lines, if they are taken, until all is tried
		sample, err := store.TakeSample(ctx, tx, rows)
		if err != nil {
			return trialError(err)
		}
		all = newTrials(sample)
		if all.Rows == 0 {
			return errors.New("there is no row to try it on: no live day has a batch that is processed, or one that nobody else is marking")
		}
		for _, v := range variants {
			t, err := try(ctx, a, v, sample)
			if err != nil && sql != "" {
				return err
			}
			if err != nil {
				t.Verdict = append(t.Verdict, "not run: "+err.Error())
			}
			all.Trials = append(all.Trials, t)
		}
		return nil
	})
	return all, err
}

// checkExplain looks at server, schema and rights: those that marking needs are enough.
func checkExplain(ctx context.Context, a *App) error {
	if err := store.CheckServer(ctx, a.pool, a.Settings.Database.Schema); err != nil {
		return err
	}
	if err := checkSchema(ctx, a.pool); err != nil {
		return err
	}
	return store.CheckRights(ctx, a.pool, []store.Right{
		{Privilege: "select", Object: "telemetry"},
		{Privilege: "select", Object: "telemetry_batch"},
		{Privilege: "update", Object: "telemetry", Column: "processed"},
		{Privilege: "update", Object: "telemetry_batch", Column: "processed_at"},
	})
}

func newTrials(s store.Sample) Trials {
	t := Trials{Rows: len(s.IDs()), Days: []string{}, Pending: s.Pending, Trials: []Trial{}}
	for _, d := range s.Days {
		t.Days = append(t.Days, d.From.Format(time.DateOnly))
	}
	return t
}

// inTrial calls f in a bounded transaction that is rolled back whatever f does. The search path ends with the temporary
// schema, so that no temporary table stands for another. Where this process is killed, PostgreSQL notices within a second.
func inTrial(ctx context.Context, a *App, f func(pgx.Tx) error) error {
	const q = `select set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true), set_config('search_path', $3, true),
		set_config('client_connection_check_interval', '500ms', true)`
	return rolledBack(ctx, a.pool, func(tx pgx.Tx) error {
		path := pgx.Identifier{a.Settings.Database.Schema}.Sanitize() + ", pg_temp"
		if _, err := tx.Exec(ctx, q, trialTimeout.String(), trialLockTimeout.String(), path); err != nil {
			return fmt.Errorf("begin a trial: %w", err)
		}
		return f(tx)
	})
}

// rolledBack rolls back also when ctx has ended or f panics; where that cannot be done, the connection is closed, which does.
func rolledBack(ctx context.Context, pool *pgxpool.Pool, f func(pgx.Tx) error) error {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin a trial: %w", err)
	}
	defer func() {
		ending, done := context.WithTimeout(context.WithoutCancel(ctx), trialTimeout)
		defer done()
		_ = tx.Rollback(ending) // on an error pgx closes the connection
	}()
	return f(tx)
}

// try runs one variant on the sample.
func try(ctx context.Context, a *App, v store.Variant, s store.Sample) (Trial, error) {
	t := Trial{Name: v.Name, SQL: v.SQL, Parts: []TrialPart{}, Faults: []queryplan.Fault{}, Verdict: []string{}, Completed: true}
	deadline, done := context.WithTimeout(ctx, trialTimeout+trialGrace) // all days together: what it locks waits for the end
	defer done()
	err := inTrial(deadline, a, func(tx pgx.Tx) error {
		for _, run := range runsOf(v, s) {
			if err := t.run(deadline, tx, v, run); err != nil {
				return err
			}
		}
		return nil
	})
	if isTimeout(err) {
		t.Completed, err = false, nil
		t.Verdict = append(t.Verdict, fmt.Sprintf("not done after %s, and stopped: what follows is of the plan alone", trialTimeout))
	}
	t.judge()
	return t, err
}

// A trialRun is one execution: the arguments, and how many rows they stand for.
type trialRun struct {
	args []any
	rows int
}

func runsOf(v store.Variant, s store.Sample) (runs []trialRun) {
	ids := s.IDs()
	switch {
	case v.Bare:
		runs = []trialRun{{nil, len(ids)}}
	case v.Daily:
		for _, d := range s.Days {
			runs = append(runs, trialRun{[]any{d.IDs, d.From, d.To}, len(d.IDs)})
		}
	case v.Exact:
		first, last := s.Times()
		runs = []trialRun{{[]any{ids, first, last}, len(ids)}}
	default:
		runs = []trialRun{{[]any{ids}, len(ids)}}
	}
	return runs
}

// run asks for the plan, and runs the statement if that expects it to touch no more rows than it may.
func (t *Trial) run(ctx context.Context, tx pgx.Tx, v store.Variant, r trialRun) error {
	const limit = trialRows
	plan, err := queryplan.Explain(ctx, tx, queryplan.Options{}, v.SQL, r.args...)
	if err != nil {
		return trialError(err)
	}
	if expected := plan.Estimated(); expected > float64(limit) {
		return Usagef("the plan expects %s rows of a batch of %d, and no more than %s may be touched: it was not run; if the estimate is wrong, analyze the table",
			queryplan.Thousands(int64(expected)), r.rows, queryplan.Thousands(int64(limit)))
	}
	faults, err := queryplan.Judge(ctx, tx, plan)
	if err != nil {
		return trialError(err)
	}
	before := len(t.Faults)
	t.Faults = append(t.Faults, faults...)
	if plan, err = queryplan.Explain(ctx, tx, queryplan.Options{Analyze: true}, v.SQL, r.args...); err != nil {
		return trialError(err)
	}
	if faults, err = queryplan.Judge(ctx, tx, plan); err != nil {
		return trialError(err)
	}
	t.Faults = append(t.Faults[:before], faults...)
	t.add(plan, r)
	if t.Matched > int64(limit) {
		t.Verdict = append(t.Verdict, fmt.Sprintf("%s rows, more than the %s that may be touched", queryplan.Thousands(t.Matched), queryplan.Thousands(int64(limit))))
	}
	return nil
}

// add counts a run that is done.
func (t *Trial) add(plan queryplan.Plan, r trialRun) {
	t.Runs++
	t.Time += plan.ExecutionTime
	t.Planning += plan.PlanningTime
	t.Hit += plan.Root.SharedHit
	t.Read += plan.Root.SharedRead
	t.Changes = t.Changes || plan.Modifies()
	t.Matched += plan.Matched()
	t.Expected += int64(r.rows)
	t.WALBytes += plan.WALBytes()
	t.LeftOut += plan.SubplansRemoved()
	if plan.Modifies() {
		t.DeadRows += plan.Matched()
	}
	for _, s := range plan.Scans() {
		if s.Loops == 0 {
			continue // never executed
		}
		part := TrialPart{
			Relation: s.Relation, Scan: s.Type, RowsRead: s.RowsRead, RowsFound: s.RowsFound, Hit: s.SharedHit, Read: s.SharedRead, Time: s.Time,
		}
		for _, c := range s.Conditions {
			part.Indexes = append(part.Indexes, c.Index)
		}
		t.RowsRead += s.RowsRead
		t.Parts = append(t.Parts, part)
	}
}

// judge says in words what the figures show.
func (t *Trial) judge() {
	small := map[string]bool{}
	for _, f := range t.Faults {
		if f.Cause == queryplan.NotChosen && f.Analyzed && f.Scan.RowsRead < smallRelation {
			small[f.Relation] = true
			continue
		}
		t.Verdict = append(t.Verdict, f.String())
	}
	if !t.Completed || t.Runs == 0 {
		return
	}
	verb := "unread"
	if t.Changes {
		verb = "unmarked"
	}
	switch missing := t.Expected - t.Matched; {
	case missing > 0:
		t.Verdict = append(t.Verdict, fmt.Sprintf("%s of %s rows not matched: would be left %s", queryplan.Thousands(missing), queryplan.Thousands(t.Expected), verb))
	case missing < 0:
		t.Verdict = append(t.Verdict, fmt.Sprintf("%s rows more than the batch has", queryplan.Thousands(-missing)))
	}
	if len(t.Verdict) == 0 {
		text := fmt.Sprintf("every row is matched, in %s", Plural(t.Touched(), "partition"))
		if len(small) > 0 {
			text += fmt.Sprintf(", %d of them so small that a scan costs less than their index", len(small))
		}
		t.Verdict = append(t.Verdict, text)
	}
}

// relations are those that were read.
func (t *Trial) relations() map[string]bool {
	names := map[string]bool{}
	for _, p := range t.Parts {
		names[p.Relation] = true
	}
	return names
}

// Touched is the number of relations that were read.
func (t *Trial) Touched() int { return len(t.relations()) }

// Plural is n and the noun, as 1 row or 2 rows.
func Plural[N int | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
