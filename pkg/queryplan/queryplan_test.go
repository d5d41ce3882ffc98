package queryplan_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/queryplan"
)

var byID = queryplan.Need{Table: "event", Column: "id"}

const mark = "update event set processed = true where id = any($1)"

var ids = []int64{10, 20, 30, 6000, 12000}

func TestFaults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		also, sql string
		args      []any
		plain     bool // not analyzed
		needs     []queryplan.Need
		want      []string
	}{
		"served":                    {sql: mark, args: []any{ids}, needs: []queryplan.Need{byID}},
		"served, nothing asked for": {sql: mark, args: []any{ids}},
		"no index": {
			"drop index event_id_idx; create index on event_p1 (id); create index on event_p3 (id)", mark,
			[]any{ids},
			false,
			[]queryplan.Need{byID},
			[]string{"sequential scan of event_p2: no index on id (5,000 rows read to find 1)"},
		},
		"no index, not run": {
			"drop index event_id_idx", mark + " and at < '2026-06-02 00:00+00'",
			[]any{ids},
			true,
			[]queryplan.Need{byID},
			[]string{"sequential scan of event_p1: no index on id"},
		},
		"no index, the column is the filter's": {
			"drop index event_id_idx", mark + " and at < '2026-06-02 00:00+00'",
			[]any{ids},
			false, nil,
			[]string{"sequential scan of event_p1: no index on id (5,000 rows read to find 3)"},
		},
		"no column": {
			"", "select * from event_p1", nil, true, nil, []string{"sequential scan of event_p1: the statement names no value of a column"},
		},
		"a text with the column's name and an equals sign": {
			"", "select from event_p1 where kind = 'id = 3'", nil, true, nil, []string{"sequential scan of event_p1: no index on kind"},
		},
		"the same, before the column": {
			"", "select from event_p1 where 'id = 3' = kind", nil, true, nil, []string{"sequential scan of event_p1: the statement names no value of a column"},
		},
		"a whole index that is walked": {
			"", "select from event_p2 order by id limit 1", nil, true,
			[]queryplan.Need{{Table: "event", Column: "id", Walked: true}},
			[]string{"scan by index event_p2_id_idx of event_p2: the index event_p2_id_idx on id was not chosen"},
		},
		"invalid": {
			"update pg_index set indisvalid = false where indexrelid = 'event_p2_id_idx'::regclass", mark,
			[]any{ids},
			false,
			[]queryplan.Need{byID},
			[]string{"sequential scan of event_p2: the index event_p2_id_idx on id is invalid (5,000 rows read to find 1)"},
		},
		"not chosen": {
			"", "set_off",
			[]any{ids},
			false,
			[]queryplan.Need{byID},
			[]string{"sequential scan of event_p2: the index event_p2_id_idx on id was not chosen (5,000 rows read to find 1)"},
		},
		"only a partial index": {
			"drop index event_id_idx; create index on event_p2 (id) where kind = 'k1'", mark + " and at >= '2026-06-02 00:00+00' and at < '2026-06-03 00:00+00'",
			[]any{ids},
			true,
			[]queryplan.Need{byID},
			[]string{"sequential scan of event_p2: no index on id"},
		},
		"by BRIN": {
			"drop index event_id_idx; set enable_seqscan = off", "select from event where id = any($1) and at >= '2026-06-02 00:00+00' and at < '2026-06-02 00:10+00'",
			[]any{ids},
			true, nil,
			[]string{"scan by BRIN index event_p2_at_idx of event_p2: no index on id"},
		},
		"by BRIN on the column itself": {
			"drop index event_id_idx; create index by_id on event_p2 using brin (id); set enable_seqscan = off", "select from event_p2 where id = 7000", nil, true,
			[]queryplan.Need{byID},
			[]string{"scan by BRIN index by_id of event_p2: no index on id"},
		},
		"an index on the column, by a condition on another": {
			"create index by_both on event_p2 (id, kind); drop index event_id_idx; set enable_seqscan = off; set enable_bitmapscan = off",
			"select from event_p2 where kind = 'id'", nil, true,
			[]queryplan.Need{byID},
			[]string{"scan by index by_both of event_p2: the index by_both on id was not chosen"},
		},
		"one branch of two by the column": {
			"create index by_kind on event_p2 (kind)", "select from event_p2 where id = 7000 or kind = 'nothing'", nil, true,
			[]queryplan.Need{byID},
			[]string{"scan by index event_p2_id_idx, index by_kind of event_p2: the index event_p2_id_idx on id was not chosen"},
		},
		"both branches by the column": {
			"", "select from event_p2 where id = 7000 or id = 8000", nil, true, []queryplan.Need{byID}, nil,
		},
		"by another column": {
			"create index by_kind on event_p2 (kind, id); drop index event_id_idx; set enable_seqscan = off", "select from event_p2 where id = 7 and kind = 'k7'",
			nil, true,
			[]queryplan.Need{{Table: "event", Column: "id"}},
			[]string{"scan by index by_kind of event_p2: no index on id"},
		},
		"a partial index that is walked": {
			"create index by_id on event_p2 (id) where not processed; drop index event_id_idx", "select from event_p2 where not processed order by id limit 1",
			nil, true,
			[]queryplan.Need{{Table: "event", Column: "id", Walked: true}},
			nil,
		},
		"one that is walked and may not be": {
			"create index by_id on event_p2 (id) where not processed; drop index event_id_idx", "select from event_p2 where not processed order by id limit 1",
			nil, true,
			[]queryplan.Need{byID},
			[]string{"scan by index by_id of event_p2: no index on id"},
		},
		"either of two columns": {
			"", "select from event_p2 where id = 7 or id = 8 or kind = 'k1'", nil, true,
			[]queryplan.Need{byID},
			[]string{"sequential scan of event_p2: the index event_p2_id_idx on id was not chosen"},
		},
		"a name that needs quotes": {
			`create table "Odd" ("The Id" bigint); insert into "Odd" select generate_series(1, 5000)`, `select from "Odd" where "The Id" = 7`, nil, false, nil,
			[]string{"sequential scan of Odd: no index on The Id (5,000 rows read to find 1)"},
		},
		"nothing is read": {sql: "select 1", plain: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, c.also)
			if c.sql == "set_off" {
				b.exec("set local enable_indexscan = off; set local enable_bitmapscan = off")
				c.sql = mark + " and at >= '2026-06-02 00:00+00' and at < '2026-06-03 00:00+00'"
			}
			if c.want == nil {
				c.want = []string{}
			}
			if diff := cmp.Diff(c.want, b.faults(b.explain(!c.plain, c.sql, c.args...), c.needs...)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// With Indexed a partition of few rows, or of none and never analyzed, is no fault, and one without the index is.
func TestIndexed(t *testing.T) {
	t.Parallel()
	b := newBench(t, "create table event_p4 partition of event for values from ('2026-06-04 00:00+00') to ('2026-06-05 00:00+00')",
		"create table event_p5 partition of event for values from ('2026-06-05 00:00+00') to ('2026-06-06 00:00+00')",
		"insert into event select i, '2026-06-05 00:00+00', 'x' from generate_series(20000, 20009) i; analyze event_p5",
		"set random_page_cost = 1000") // reads in order are all the cheaper
	if err := queryplan.Indexed(b.ctx, b.tx); err != nil {
		t.Fatal(err)
	}
	const oneDay = mark + " and at >= $2::timestamptz and at < $2::timestamptz + interval '1 day'"
	for day, leaf := range map[string]string{"2026-06-02": "event_p2", "2026-06-04": "event_p4", "2026-06-05": "event_p5"} {
		sql := strings.ReplaceAll(oneDay, "$2", "'"+day+" 00:00+00'")
		p := b.explain(false, sql, ids)
		if got := b.faults(p, byID); len(got) > 0 {
			t.Errorf("%s: %v", leaf, got)
		}
	}
	b.exec("drop index event_id_idx")
	for day, leaf := range map[string]string{"2026-06-02": "event_p2", "2026-06-04": "event_p4", "2026-06-05": "event_p5"} {
		sql := strings.ReplaceAll(oneDay, "$2", "'"+day+" 00:00+00'")
		got := b.faults(b.explain(false, sql, ids), byID)
		if len(got) == 0 || !strings.HasSuffix(got[0], "scan of "+leaf+": no index on id") {
			t.Errorf("%s without its index: %v", leaf, got)
		}
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	b := newBench(t, "drop index event_id_idx")
	p := b.explain(true, mark, ids)
	if p.Matched() != 5 || !p.Modifies() || p.WALBytes() == 0 || p.ExecutionTime == 0 || !p.Analyzed {
		t.Errorf("matched %d, modifies %v, WAL %d, time %v", p.Matched(), p.Modifies(), p.WALBytes(), p.ExecutionTime)
	}
	read, found := map[string]int64{}, map[string]int64{}
	for _, s := range p.Scans() {
		if s.SharedHit+s.SharedRead == 0 || s.Schema != "public" {
			t.Errorf("%+v", s)
		}
		read[s.Relation], found[s.Relation] = s.RowsRead, s.RowsFound
	}
	if diff := cmp.Diff(map[string]int64{"event_p1": 5000, "event_p2": 5000, "event_p3": 5000}, read); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]int64{"event_p1": 3, "event_p2": 1, "event_p3": 1}, found); diff != "" {
		t.Error(diff)
	}
	if e := p.Estimated(); e < 3 || e > 20 {
		t.Errorf("%v rows are estimated", e)
	}
	p = b.explain(true, "select from event where at >= now() - interval '1 day'")
	if n := p.SubplansRemoved(); n != 3 {
		t.Errorf("%d partitions were left out when the statement began, want 3", n)
	}
	if p.Modifies() || p.Matched() != 0 {
		t.Errorf("a select of nothing: modifies %v, matched %d", p.Modifies(), p.Matched())
	}
	p = b.explain(true, "merge into event e using (select unnest($1::bigint[]) as id) i on e.id = i.id when matched then update set processed = true", ids)
	if p.Matched() != 5 || !p.Modifies() {
		t.Errorf("a merge: matched %d", p.Matched())
	}
	p = b.explain(true, "with m as ("+mark+" returning id) select count(*) from m", ids)
	if p.Matched() != 5 || !p.Modifies() {
		t.Errorf("an update within WITH: matched %d", p.Matched())
	}
}

// Two statements are refused, whatever the connection's default is.
// TestBRINBeside has plans as PostgreSQL chooses them on large partitions: where a better index is joined by AND the BRIN costs nothing.
func TestBRINBeside(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for how, want := range map[string][]string{
		"BitmapAnd": {},
		"BitmapOr":  {"scan by index event_p2_id_idx, BRIN index event_p2_at_idx of event_p2: the statement names no value of a column"},
	} {
		p := queryplan.Plan{Root: queryplan.Node{Type: "Bitmap Heap Scan", Schema: "public", Relation: "event_p2", Plans: []queryplan.Node{{
			Type: how, Plans: []queryplan.Node{
				{Type: "Bitmap Index Scan", Index: "event_p2_id_idx", IndexCond: "(id = ANY ('{6000}'::bigint[]))"},
				{Type: "Bitmap Index Scan", Index: "event_p2_at_idx", IndexCond: "(at >= now())"},
			},
		}}}}
		if d := cmp.Diff(want, b.faults(p)); d != "" {
			t.Errorf("%s: %s", how, d)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for sql, code := range map[string]string{
		"select 1; commit":       "42601",
		"commit":                 "42601",
		"call p()":               "42601",
		"create table t (x int)": "42601",
		"":                       "42601",
		"select from nowhere":    "42P01",
	} {
		b := newBench(t)
		_, err := queryplan.Explain(b.ctx, b.tx, queryplan.Options{Analyze: true}, sql)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != code {
			t.Errorf("%q: %v, want SQLSTATE %s", sql, err, code)
		}
		if status := b.tx.Conn().PgConn().TxStatus(); status != 'E' {
			t.Errorf("%q: the transaction is %c", sql, status)
		}
	}
	cfg, err := pgx.ParseConfig(devtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := queryplan.Explain(t.Context(), tx, queryplan.Options{}, "select 1; commit"); err == nil || conn.PgConn().TxStatus() != 'E' {
		t.Errorf("two statements, with the simple protocol as the default: %v", err)
	}
	if _, err := queryplan.Parse([]byte(`["Utility Statement"]`)); err == nil {
		t.Error("a statement without a plan is parsed")
	}
}

func TestParseFractions(t *testing.T) {
	t.Parallel()
	p, err := queryplan.Parse([]byte(`[{"Plan": {"Node Type": "Seq Scan", "Relation Name": "event_p1", "Disabled": true, "Plan Rows": 3,
		"Actual Rows": 0.33, "Actual Loops": 3, "Rows Removed by Filter": 4999.67, "Filter": "(id = 1)"}}]`))
	if err != nil {
		t.Fatal(err)
	}
	if s := p.Scans()[0]; s.RowsFound != 1 || s.RowsRead != 15000 || !p.Root.Disabled {
		t.Errorf("%+v, disabled %v", s, p.Root.Disabled)
	}
}

func TestThousands(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0", 12: "12", 999: "999", 1000: "1,000", 969950: "969,950", -1234567: "-1,234,567"} {
		if got := queryplan.Thousands(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

func TestWays(t *testing.T) {
	b := newBench(t, "create index on event (lower(kind)); create index on event (kind) where not processed; create index on event using gin ((array[kind]));"+
		"create table small (id bigint primary key); insert into small select generate_series(1, 3); analyze small")
	for _, c := range []struct {
		sql  string
		any  bool
		want queryplan.Way
	}{
		{"select from event_p1 where id = 1", false, queryplan.Way{Column: "id", Definition: "btree (id)", Found: true}},
		{"select from event_p1 where lower(kind) = 'x'", false, queryplan.Way{Column: "lower(kind)", Definition: "btree (lower(kind))", Found: true}},
		{"select * from event_p1 where not processed and kind = 'k1' limit 1", true, queryplan.Way{Column: "kind", Definition: "btree (kind) WHERE (NOT processed)", Partial: true, Found: true}},
		{"select from event_p1 where array[kind] @> '{x}'", true, queryplan.Way{Column: "(ARRAY[kind])", Definition: "gin ((ARRAY[kind]))", Found: true}},
		{"select from event_p1 where at < '2026-06-01 01:00+00'", true, queryplan.Way{Column: "at", Definition: "brin (at)", BRIN: true, Found: true}},
		{"select * from event_p1 order by id limit 1", false, queryplan.Way{Column: "id", Definition: "btree (id)"}},
		{"select from small where id = 1", false, queryplan.Way{}},
		{"select from small where id = 1", true, queryplan.Way{Column: "id", Definition: "btree (id)", Found: true}},
		{"select * from event_p1 where kind <> 'x'", false, queryplan.Way{}},
	} {
		b.exec("savepoint before")
		if c.any {
			if err := queryplan.AnyIndex(b.ctx, b.tx); err != nil {
				t.Fatal(err)
			}
		}
		ways, err := queryplan.Ways(b.ctx, b.tx, b.explain(false, c.sql))
		if err != nil || len(ways) != 1 {
			t.Errorf("%s: %+v, %v", c.sql, ways, err)
			continue
		}
		got := ways[0]
		if (got.Index == "") != (c.want.Column == "") || got.Schema != "public" {
			t.Errorf("%s: %+v", c.sql, got)
		}
		got.Schema, got.Relation, got.Index = "", "", ""
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.sql, got, c.want)
		}
		b.exec("rollback to before")
	}
	b.exec("drop index event_lower_idx")
	faults := b.faults(b.explain(false, "select from event where lower(kind) = 'x'"), queryplan.Need{Table: "event", Column: "lower(kind)"})
	if len(faults) != 3 || !strings.Contains(faults[0], "no index on lower(kind)") {
		t.Errorf("faults %q", faults)
	}
}
