package bench

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// storySize is how much BenchmarkStory measures.
type storySize struct {
	days, rows int // rows in each
	rounds     int // of a warm cache, variants taking turns in going first
	perRound   int // batches of a variant in a round, at most …
	budget     time.Duration
	cold       int // batches of each variant, each after a restart
}

var fullStory = storySize{days: 8, rows: 970_000, rounds: 3, perRound: 20, budget: 4 * time.Second, cold: 5}

const (
	storyBatch = 50 // ids
	// Every 97th row is unprocessed: batches are drawn from 10,000 rows of each day.
	storyUnprocessed = 97
)

// BenchmarkStory measures the sync job's update on the tables of the system that Plenum replaces, with each remedy that was tried,
// and on Plenum's.
func BenchmarkStory(b *testing.B) {
	for range b.N {
		r := measureStory(b, fullStory)
		deliver(b, r.markdown())
		b.ReportMetric(float64(r.median(len(r.variants)-1, warm).Microseconds()), "µs/batch")
	}
}

// TestStory says that each variant marks what it is said to, and that the cold ones read from the disk.
func TestStory(t *testing.T) {
	t.Parallel()
	s := storySize{days: 8, rows: 970, rounds: 2, perRound: 3, budget: time.Minute, cold: 1}
	r := measureStory(t, s)
	for n, v := range r.variants {
		missed := r.missed(n)
		if v.skips != (missed > 0) {
			t.Errorf("%s: %d of %d ids were not marked", v.name, missed, r.ids(n))
		}
		if got := len(r.of(n, warm)); got != s.rounds*s.perRound {
			t.Errorf("%s: %d batches, want %d", v.name, got, s.rounds*s.perRound)
		}
		if cold := r.of(n, cold); len(cold) != 1 || cold[0].read == 0 {
			t.Errorf("%s: cold: %+v", v.name, cold)
		}
	}
	for n, want := range []scanned{{partitions: 1}, {partitions: 8}, {partitions: 8}, {partitions: 1}, {partitions: 8}, {partitions: 8}} {
		if got := r.scans[n].partitions; got != want.partitions {
			t.Errorf("%s: %d partitions touched, want %d", r.variants[n].name, got, want.partitions)
		}
	}
	if scan := r.scans[1].rows; scan < s.days*s.rows {
		t.Errorf("without an index on id %d rows were scanned of %d", scan, s.days*s.rows)
	}
	if scan := r.scans[5].rows; scan != storyBatch {
		t.Errorf("with ours %d rows were scanned, want %d", scan, storyBatch)
	}
	t.Log("\n" + r.markdown())
}

// statement is one of a batch.
type statement struct {
	sql  string
	args []any
}

// variant is one way of marking a batch.
type variant struct {
	name  string
	story string // what the story says it took
	skips bool   // it can miss rows
	// before brings the tables into the variant's state, in the transaction that is rolled back.
	before string
	batch  func(d days, ids []int64) []statement
}

const (
	flatUpdate  = "update flat set processed = true where id = any($1)"
	storyUpdate = "update story set processed = true where id = any($1)"
	inWindow    = " and last_modified >= $2"
	noIDIndex   = "drop index story_id_idx"
)

func one(sql string) func(days, []int64) []statement {
	return func(_ days, ids []int64) []statement { return []statement{{sql, []any{ids}}} }
}

// window is the filter of the last days.
func window(last int) func(days, []int64) []statement {
	return func(d days, ids []int64) []statement {
		return []statement{{storyUpdate + inWindow, []any{ids, d.end().AddDate(0, 0, -last)}}}
	}
}

// perDay are the statements of syncjob: one for each day that the batch has rows of, with the day's bounds.
func perDay(d days, ids []int64) (all []statement) {
	for n := range d.n {
		var own []int64
		for _, id := range ids {
			if d.dayOf(id) == n {
				own = append(own, id)
			}
		}
		if len(own) > 0 {
			all = append(all, statement{markSQL, []any{own, d.day(n), d.day(n + 1)}})
		}
	}
	return all
}

func storyVariants(daysInAll int) []variant {
	return []variant{
		{name: "one table, primary key", story: "450 ms", batch: one(flatUpdate)},
		{name: "partitioned, no index on id", story: "25–27 s", before: noIDIndex, batch: one(storyUpdate)},
		{name: "… and a filter of 8 days", story: "20+ s", before: noIDIndex, batch: window(daysInAll)},
		{name: "… and a filter of 1 day", story: "5 s", skips: true, before: noIDIndex, batch: window(1)},
		{name: "partitioned, index on id", story: "43 ms", batch: one(storyUpdate)},
		{name: "Plenum", story: "–", batch: perDay},
	}
}

// cache is the state of the caches.
type cache string

const (
	warm cache = "warm"
	cold cache = "cold"
)

// marked is one batch of one variant.
type marked struct {
	variant int
	cache   cache
	took    time.Duration
	rows    int   // updated
	read    int64 // bytes fetched from the disk
}

// scanned is what the plan of a batch touched.
type scanned struct{ rows, partitions int }

// measureStory makes the tables and measures each variant.
func measureStory(tb testing.TB, s storySize) *storyResults {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*hangLimit)
	defer cancel()
	h := newHouse(ctx, tb)
	days := h.daysBeforeToday(s.days, s.rows)
	d := h.plenumDatabase("story", days)
	d.fillStory(days)
	r := &storyResults{size: s, versions: h.versions(), variants: storyVariants(s.days), payload: d.number("select avg(pg_column_size(payload))::int from bench_payload")}
	random := rand.New(rand.NewPCG(3, 4))
	for n := range s.rounds {
		for i := range r.variants {
			i = (i + n) % len(r.variants)
			d.mark(r.variants[i], days, random) // brings what it reads into the caches
			for begin, done := time.Now(), 0; done < s.perRound && (done < 2 || time.Since(begin) < s.budget); done++ {
				r.batch(i, warm, d.mark(r.variants[i], days, random))
			}
		}
	}
	for _, v := range r.variants {
		r.scans = append(r.scans, d.scan(v, days, random))
	}
	for n := range s.cold {
		for i := range r.variants {
			i = (i + n) % len(r.variants)
			h.check(d.conn.Close(ctx))
			h.coldRestart()
			d = h.open("story")
			r.batch(i, cold, d.mark(r.variants[i], days, random))
		}
	}
	return r
}

// fillStory makes the three tables of the same rows.
func (d *database) fillStory(days days) {
	d.h.tb.Helper()
	d.makePayloads()
	d.exec("alter database story set plan_cache_mode = force_custom_plan") // as Plenum's sessions have; it serves all
	d.exec(storySQL("flat", " primary key", ""))
	d.exec(storySQL("story", "", "partition by range (last_modified)"))
	for n := range days.n {
		d.exec(days.day(n).Format("create table story_p20060102 partition of story ") + boundsOf(days.day(n)))
	}
	d.exec("insert into telemetry (" + rowColumns + ") " + days.rowsSQL(storyUnprocessed))
	d.exec("insert into story select " + rowColumns + " from telemetry")
	d.exec("insert into flat select " + rowColumns + " from telemetry")
	d.exec(storyIndexesSQL("flat") + storyIndexesSQL("story") + "create index story_id_idx on story (id)")
	d.exec("vacuum analyze")
	d.exec("checkpoint")
	for _, table := range []string{"flat", "story", "telemetry"} {
		d.expect("select count(*) from "+table+" where not processed", days.n*(days.rows/storyUnprocessed))
	}
}

// draw draws a batch: unprocessed ids of all days.
func (days days) draw(random *rand.Rand) []int64 {
	ids := make([]int64, 0, storyBatch)
	taken := map[int64]bool{}
	for len(ids) < storyBatch {
		id := int64(random.IntN(days.n)*days.rows + (1+random.IntN(days.rows/storyUnprocessed))*storyUnprocessed)
		if !taken[id] {
			taken[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

// mark marks a batch in a transaction that is rolled back. The plan has been made once before, so that the system catalogs are cached
// in any case.
func (d *database) mark(v variant, days days, random *rand.Rand) (m marked) {
	d.h.tb.Helper()
	statements := v.batch(days, days.draw(random))
	d.rolledBack(v, func(tx pgx.Tx) {
		for _, s := range statements {
			_, err := tx.Exec(d.h.ctx, "explain "+s.sql, s.args...)
			d.h.check(err)
			_, err = tx.Prepare(d.h.ctx, s.sql, s.sql)
			d.h.check(err)
		}
		before, err := readFromDisk(d.conn.PgConn().PID())
		d.h.check(err)
		begin := time.Now()
		for _, s := range statements {
			tag, err := tx.Exec(d.h.ctx, s.sql, s.args...)
			d.h.check(err)
			m.rows += int(tag.RowsAffected())
		}
		m.took = time.Since(begin)
		after, err := readFromDisk(d.conn.PgConn().PID())
		d.h.check(err)
		m.read = after - before
	})
	return m
}

func (d *database) rolledBack(v variant, work func(pgx.Tx)) {
	d.h.tb.Helper()
	tx, err := d.conn.Begin(d.h.ctx)
	d.h.check(err)
	if v.before != "" {
		_, err := tx.Exec(d.h.ctx, v.before)
		d.h.check(err)
	}
	work(tx)
	d.h.check(tx.Rollback(d.h.ctx))
}

// scan is what the plan of a batch touches.
func (d *database) scan(v variant, days days, random *rand.Rand) (s scanned) {
	d.h.tb.Helper()
	touched := map[string]bool{}
	d.rolledBack(v, func(tx pgx.Tx) {
		for _, st := range v.batch(days, days.draw(random)) {
			s.rows += explain(d, tx, st).Plan.scanned(touched)
		}
	})
	s.partitions = len(touched)
	return s
}

// explained is what EXPLAIN says of a statement.
type explained struct {
	Plan     planNode
	Planning float64 `json:"Planning Time"` // ms
}

func explain(d *database, tx pgx.Tx, st statement) explained {
	d.h.tb.Helper()
	var text []byte
	d.h.check(tx.QueryRow(d.h.ctx, "explain (analyze, format json) "+st.sql, st.args...).Scan(&text))
	var plans []explained
	d.h.check(json.Unmarshal(text, &plans))
	return plans[0]
}

// planNode is what EXPLAIN says of one.
type planNode struct {
	Type     string  `json:"Node Type"`
	Relation string  `json:"Relation Name"`
	Loops    float64 `json:"Actual Loops"`
	Rows     float64 `json:"Actual Rows"`
	Filtered float64 `json:"Rows Removed by Filter"`
	Lossy    float64 `json:"Rows Removed by Index Recheck"`
	Plans    []planNode
}

// scanned counts the rows that scans looked at, and adds the relations they did it in.
func (n planNode) scanned(touched map[string]bool) int {
	rows := 0
	if n.Relation != "" && n.Type != "ModifyTable" && n.Loops > 0 {
		touched[n.Relation] = true
		rows = int((n.Rows + n.Filtered + n.Lossy) * n.Loops)
	}
	for _, child := range n.Plans {
		rows += child.scanned(touched)
	}
	return rows
}
