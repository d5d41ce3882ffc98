package partman_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// A crash test runs this binary again as a manager that kills itself at one point of one action.
const (
	crashURL   = "PARTMAN_CRASH_URL"
	crashLoop  = "PARTMAN_CRASH_LOOP"
	crashPoint = "PARTMAN_CRASH_POINT"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashURL) != "" {
		fmt.Fprintln(os.Stderr, crashAtPoint(context.Background(), os.Getenv))
		os.Exit(1)
	}
	devtest.Main(m)
}

// name tells a point from all others of a plan. A mark, which holds the plan's instant, is past its end.
func name(p partman.Point) string {
	s := p.Action.Statements[p.Statement]
	return fmt.Sprintf("%s %d %s %.40s%s", p.Action.Kind, p.Statement, p.Moment, s.SQL, s.Hook)
}

// crashAtPoint does a round of a loop, and returns only if it has not come to the point.
func crashAtPoint(ctx context.Context, getenv func(string) string) error {
	pool, err := pgxpool.New(ctx, getenv(crashURL))
	if err != nil {
		return err
	}
	m, err := partman.New(partman.Config{Pool: pool, Schema: "public", Step: func(_ context.Context, p partman.Point) {
		if name(p) == getenv(crashPoint) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}})
	if err != nil {
		return err
	}
	r, err := m.RunOnce(ctx, partman.Loop(getenv(crashLoop)))
	return errors.Join(fmt.Errorf("the round did %s", kinds(r)), err)
}

// crashCase is a state in which one kind of action is planned.
type crashCase struct {
	kind   partman.Kind
	policy partman.Policy
	harm   func(h *house)
	// in is the table that has the old day in the end, if there is one; "gone" is none, and "itself" is a detached one.
	in string
}

func crashCases() map[string]crashCase {
	old := func(h *house) { h.crashDay() }
	oldWith := func(sql string) func(h *house) {
		return func(h *house) { h.exec(strings.ReplaceAll(sql, "LEAF", h.crashDay())) }
	}
	today := func(do func(h *house, leaf string)) func(h *house) {
		return func(h *house) {
			h.once(partman.CreateLoop)
			h.once(partman.HealthLoop)
			h.exec("insert into telemetry (seq) select i from generate_series(1, 50) i")
			do(h, h.partition())
		}
	}
	sql := func(text string) func(h *house) {
		return today(func(h *house, leaf string) { h.exec(strings.ReplaceAll(text, "LEAF", leaf)) })
	}
	invalid := func(text, index string) func(h *house) {
		return today(func(h *house, leaf string) {
			if text != "" {
				h.exec(strings.ReplaceAll(text, "LEAF", leaf))
			}
			h.invalidate(strings.ReplaceAll(index, "LEAF", leaf))
		})
	}
	const check = "alter table LEAF add constraint partman_bounds check (last_modified is not null and last_modified >= '%s' and last_modified < '%s') %s"
	bounded := func(valid string) func(h *house) {
		return func(h *house) {
			from := h.today.AddDate(0, 0, -8)
			oldWith(fmt.Sprintf(check, from.Format(time.RFC3339), from.AddDate(0, 0, 1).Format(time.RFC3339), valid))(h)
		}
	}
	return map[string]crashCase{
		"create":                         {partman.Create, live(), func(*house) {}, ""},
		"archive":                        {partman.Move, live(), old, "telemetry_archive"},
		"archive with an index to build": {partman.Move, live(), oldWith("create index on telemetry_archive (device_id) where not processed"), "telemetry_archive"},
		"archive with its CHECK":         {partman.Move, live(), bounded("not valid"), "telemetry_archive"},
		"archive with its CHECK proven":  {partman.Move, live(), bounded(""), "telemetry_archive"},
		"count":                          {partman.Count, live(), (*house).uncounted, "telemetry_archive"},
		"detach":                         {partman.Detach, dropping(), old, "itself"},
		"drop":                           {partman.Drop, dropping(), (*house).dropDue, "gone"},
		"index of the parent missing":    {partman.Reindex, live(), sql("create index on only telemetry (kind)"), ""},
		"index not attached":             {partman.Reindex, live(), (*house).loose, ""},
		"index left invalid":             {partman.Reindex, live(), invalid("create index mine on LEAF (kind); create index on only telemetry (kind)", "mine"), ""},
		"index attached and invalid":     {partman.Reindex, live(), invalid("", "LEAF_id_idx"), ""},
		"index of the policy missing":    {partman.Reindex, live(), sql("drop index LEAF_identity"), ""},
		"index of the policy invalid":    {partman.Reindex, live(), invalid("", "LEAF_identity"), ""},
		"index left behind":              {partman.Reindex, live(), invalid("create index spare_ccnew on LEAF (id)", "spare_ccnew"), ""},
		"index of the parent invalid":    {partman.Reindex, live(), invalid("", "telemetry_id_idx"), ""},
		"storage":                        {partman.Storage, live(), sql("alter table LEAF reset (fillfactor)"), ""},
		"analyze":                        {partman.Analyze, live(), func(h *house) { h.once(partman.CreateLoop) }, ""},
	}
}

// crashDay is a day past retention, with all that there is to be after it: what goes on has less to do.
func (h *house) crashDay() string {
	name := h.oldDay(8, 20)
	h.once(partman.CreateLoop)
	return name
}

// uncounted leaves a day that has moved and was not counted again.
func (h *house) uncounted() {
	h.crashDay()
	ctx, cancel := context.WithCancel(h.ctx)
	cfg := h.cfg
	cfg.Step = func(_ context.Context, p partman.Point) {
		if p.Action.Kind == partman.Move && p.Moment == partman.AfterCommit && p.Statement == len(p.Action.Statements)-2 {
			cancel()
		}
	}
	m, _ := h.manager(cfg)
	if _, err := m.RunOnce(ctx, partman.RetireLoop); !errors.Is(err, context.Canceled) {
		h.t.Fatalf("the round that was cut short: %v", err)
	}
}

// dropDue leaves a detached day whose grace is over.
func (h *house) dropDue() {
	h.crashDay()
	h.once(partman.RetireLoop)
	p := dropping()
	p.Grace = time.Microsecond
	if _, err := partman.Register(h.ctx, h.pool, "public", p); err != nil {
		h.t.Fatal(err)
	}
	if _, _, err := h.m.Confirm(h.ctx, "telemetry"); err != nil {
		h.t.Fatal(err)
	}
}

// loose leaves a leaf with an index that its parent's would take, and has not.
func (h *house) loose() {
	h.once(partman.CreateLoop)
	h.exec("create index on only telemetry (kind)")
	h.exec("create index mine on " + h.partition() + " (kind)")
}

// TestCrashAtEachPoint kills the process after each statement and hook of each kind of plan, and before and after each
// commit; another one goes on from there, and everything is as if nothing had happened.
func TestCrashAtEachPoint(t *testing.T) {
	t.Parallel()
	cases := crashCases()
	for _, kind := range partman.Kinds {
		if !slices.ContainsFunc(slices.Collect(maps.Values(cases)), func(c crashCase) bool { return c.kind == kind }) {
			t.Errorf("no case has an action %q", kind)
		}
	}
	for title, c := range cases {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, nil, c.policy, archive())
			c.harm(h)
			a := h.first(c.kind)
			before := h.census()
			h.pool.Close()
			for n, p := range a.Points() {
				crashed := h.copy(fmt.Sprintf("%s_%d", h.pool.Config().ConnConfig.Database, n))
				crashed.killAt(p)
				crashed.goOn(name(p))
				crashed.compare(name(p), before, c.in)
				crashed.pool.Close()
			}
		})
	}
}

// first is the first planned action of a kind.
func (h *house) first(kind partman.Kind) partman.Action {
	h.t.Helper()
	plan, err := h.m.Plan(h.ctx, "telemetry")
	if err != nil {
		h.t.Fatal(err)
	}
	n := slices.IndexFunc(plan.Actions, func(a partman.Action) bool { return a.Kind == kind })
	if n < 0 {
		h.t.Fatalf("no action %q is planned:\n%s", kind, plan)
	}
	return plan.Actions[n]
}

// copy is the house in a database of its own, which is as this one was left. Nobody may be connected to this one.
func (h *house) copy(database string) *house {
	h.t.Helper()
	server := devtest.Postgres(h.t)
	from := h.pool.Config().ConnConfig.Database
	devtest.Eventually(h.t, func() error { // the last session may be on its way out
		return server.CreateDatabase(h.ctx, database, from)
	})
	h.t.Cleanup(func() {
		if err := server.DropDatabase(context.Background(), database); err != nil {
			h.t.Error(err)
		}
	})
	c := &house{t: h.t, ctx: h.ctx, url: server.URL(database), today: h.today, cfg: h.cfg}
	c.pool = c.connect("fresh", nil)
	c.cfg.Pool = c.pool
	c.m, c.registry = c.manager(c.cfg)
	return c
}

// killAt has another process work until it dies at the point.
func (h *house) killAt(p partman.Point) {
	h.t.Helper()
	cmd := exec.CommandContext(h.ctx, os.Args[0])
	cmd.Env = append(os.Environ(), crashURL+"="+h.url, crashLoop+"="+string(p.Action.Loop()), crashPoint+"="+name(p))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		h.t.Fatalf("the process did not die at %q: %v\n%s", name(p), err, out)
	}
}

// goOn has a fresh manager work until nothing is planned.
func (h *house) goOn(point string) {
	h.t.Helper()
	devtest.Eventually(h.t, func() error {
		for _, loop := range []partman.Loop{partman.CreateLoop, partman.RetireLoop, partman.HealthLoop} {
			r, err := h.m.RunOnce(h.ctx, loop)
			if err != nil {
				return fmt.Errorf("after %q: %w", point, err)
			}
			if r.Skipped {
				return fmt.Errorf("after %q the lock of the dead process is still held", point)
			}
		}
		for _, table := range []string{"telemetry", "telemetry_archive"} {
			plan, err := h.m.Plan(h.ctx, table)
			if err != nil || len(plan.Actions) > 0 {
				return fmt.Errorf("after %q: %w, still planned:\n%s", point, err, plan)
			}
		}
		return nil
	})
}

// compare expects the rows of before, each day in one place only, and nothing left over.
func (h *house) compare(point string, before map[string]string, in string) {
	h.t.Helper()
	after := h.census()
	old := h.today.AddDate(0, 0, -8).Format(time.DateOnly)
	switch {
	case in == "gone":
		if rows, there := after[old]; there || before[old] == "" {
			h.t.Errorf("after %q: %s has %s, before %s", point, old, rows, before[old])
		}
		before = maps.Clone(before)
		delete(before, old)
	case in != "":
		const parent = `select count(*) from pg_class c where c.relname = $1 and c.relname ||
			coalesce((select inhparent::regclass::text from pg_inherits where inhrelid = c.oid), 'itself') = $1 || $2`
		if h.number(parent, "telemetry_p"+strings.ReplaceAll(old, "-", ""), in) != 1 {
			h.t.Errorf("after %q: %s is not in %s", point, old, in)
		}
	}
	compareValue(h.t, before, after)
	h.clean()
	for what, query := range map[string]string{
		"invalid indexes":        "select count(*) from pg_index where not indisvalid",
		"helper constraints":     "select count(*) from pg_constraint where conname = 'partman_bounds'",
		"holds":                  "select count(*) from partition_policy where held <> '[]'",
		"indexes there twice":    "select count(*) from (select from pg_index group by indrelid, indkey::text, indclass::text, pg_get_expr(indpred, indrelid) having count(*) > 1) t",
		"tables beside the days": "select count(*) from pg_class where relkind = 'r' and relname like 'telemetry%' and not relispartition and obj_description(oid) is null",
	} {
		if n := h.number(query + " "); n != 0 {
			h.t.Errorf("after %q: %d %s", point, n, what)
		}
	}
}

// census is, for each day that has rows, the table that has them, how many and their checksum. A day in two tables is an error.
func (h *house) census() map[string]string {
	h.t.Helper()
	const query = `select string_agg(format('select (last_modified at time zone ''utc'')::date::text, count(*) || '' rows '' || sum(hashtextextended(t::text, 0) / 1000)
		from only %s t group by 1', c.oid::regclass), ' union all ')
		from pg_class c join pg_attribute a on a.attrelid = c.oid where c.relkind = 'r' and a.attname = 'last_modified'`
	var sql *string
	if err := h.pool.QueryRow(h.ctx, query).Scan(&sql); err != nil {
		h.t.Fatal(err)
	}
	found := make(map[string]string)
	if sql == nil {
		return found
	}
	rows, err := h.pool.Query(h.ctx, *sql)
	if err != nil {
		h.t.Fatal(err)
	}
	var day, what string
	_, err = pgx.ForEachRow(rows, []any{&day, &what}, func() error {
		if found[day] != "" {
			h.t.Errorf("the rows of %s are in two tables", day)
		}
		found[day] = what
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return found
}
