package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// growthSize is how much BenchmarkGrowth measures.
type growthSize struct {
	partitions []int // ascending
	rows       int   // in each
	batches    int   // different ones, all in the days that every size has
	rounds     map[growthWay]int
}

var fullGrowth = growthSize{
	partitions: []int{8, 16, 32, 64}, rows: 100_000, batches: 200,
	rounds: map[growthWay]int{withBounds: 4000, wholeMark: 1000, byIDAlone: 1000, withoutIndex: 6},
}

// growthWay is how a batch is marked.
type growthWay string

const (
	withBounds   growthWay = "Plenum: the day's bounds"
	wholeMark    growthWay = "… with the claim and the position"
	byIDAlone    growthWay = "by id alone"
	withoutIndex growthWay = "by id alone, no index on id"
)

var growthWays = []growthWay{withBounds, wholeMark, byIDAlone, withoutIndex}

// growthGoal is how much longer a batch may take with the most partitions than with the fewest.
const growthGoal = 1.15

// BenchmarkGrowth measures a batch's mark against the number of partitions.
func BenchmarkGrowth(b *testing.B) {
	for range b.N {
		r := measureGrowth(b, fullGrowth)
		deliver(b, r.markdown())
		b.ReportMetric(r.ratio(withBounds), "of-the-fewest-partitions")
	}
}

// TestGrowth says that every batch is marked whole, in each way and at each size.
func TestGrowth(t *testing.T) {
	t.Parallel()
	s := growthSize{
		partitions: []int{2, 4}, rows: 500, batches: 3,
		rounds: map[growthWay]int{withBounds: 4, wholeMark: 3, byIDAlone: 3, withoutIndex: 2},
	}
	r := measureGrowth(t, s)
	for way, rounds := range s.rounds {
		for _, n := range s.partitions {
			if got := len(r.took[growthKey{way, n}]); got != rounds {
				t.Errorf("%s, %d partitions: %d batches, want %d", way, n, got, rounds)
			}
		}
	}
	for _, n := range s.partitions {
		if got, want := r.touched[growthKey{withBounds, n}], 1; got != want {
			t.Errorf("with the day's bounds %d of %d partitions are touched", got, n)
		}
		if got := r.touched[growthKey{byIDAlone, n}]; got < n {
			t.Errorf("by id alone %d of %d partitions are touched", got, n)
		}
	}
	t.Log("\n" + r.markdown())
}

type growthKey struct {
	way        growthWay
	partitions int
}

// growthResults are all that BenchmarkGrowth measured.
type growthResults struct {
	size     growthSize
	versions string
	took     map[growthKey][]time.Duration
	planning map[growthKey]time.Duration // the median of EXPLAIN's
	touched  map[growthKey]int           // partitions
}

// measureGrowth makes a database of each size and has them take turns, batch by batch, so that whatever else the machine does falls on
// all.
func measureGrowth(tb testing.TB, s growthSize) *growthResults {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*hangLimit)
	defer cancel()
	h := newHouse(ctx, tb)
	most := h.daysBeforeToday(slices.Max(s.partitions), s.rows)
	databases := h.growthDatabases(s, most)
	r := &growthResults{
		size: s, versions: h.versions(), took: map[growthKey][]time.Duration{},
		planning: map[growthKey]time.Duration{}, touched: map[growthKey]int{},
	}
	for _, way := range growthWays {
		batches := most.drawDays(s.batches, way.lastDays(s.partitions[0]))
		for _, d := range databases {
			d.prepareWay(way)
			for _, b := range batches[:min(len(batches), s.rounds[way])] {
				d.markBatch(most, way, b) // into the caches
			}
		}
		for round := range s.rounds[way] {
			for i := range databases {
				i = (i + round) % len(databases)
				key := growthKey{way, s.partitions[i]}
				r.took[key] = append(r.took[key], databases[i].markBatch(most, way, batches[round%len(batches)]))
			}
		}
		for i, d := range databases {
			key := growthKey{way, s.partitions[i]}
			r.planning[key], r.touched[key] = d.explainBatch(most, way, batches)
		}
	}
	return r
}

// growthDatabases makes the one with the most partitions, and the others as copies that lose their first days.
func (h *house) growthDatabases(s growthSize, most days) (all []*database) {
	h.tb.Helper()
	name := func(n int) string { return fmt.Sprintf("growth_%d", n) }
	d := h.plenumDatabase(name(most.n), most)
	d.makePayloads()
	d.exec("insert into telemetry (" + rowColumns + ") " + most.rowsSQL(1))
	d.exec("vacuum analyze")
	// Only the days before today count, and all sizes have just theirs.
	d.dropLeaves(func(leaf string) bool { return leaf[len(leaf)-len("20060102"):] >= most.end().Format("20060102") })
	h.check(d.conn.Close(h.ctx)) // a template has no sessions
	for _, n := range s.partitions {
		if n != most.n {
			h.check(h.postgres.CreateDatabase(h.ctx, name(n), name(most.n)))
		}
		d := h.open(name(n))
		first := most.day(most.n - n).Format("20060102")
		d.dropLeaves(func(leaf string) bool { return leaf[len(leaf)-len(first):] < first })
		d.expect(leavesSQL, n)
		d.exec("set plan_cache_mode = force_custom_plan") // as Plenum's sessions have
		all = append(all, d)
	}
	_, err := h.admin.Exec(h.ctx, "checkpoint")
	h.check(err)
	return all
}

// dropLeaves drops those partitions of telemetry and of the ledger whose name is one of these.
func (d *database) dropLeaves(these func(leaf string) bool) {
	d.h.tb.Helper()
	for _, leaf := range append(d.leaves("telemetry"), d.leaves("telemetry_batch")...) {
		if these(leaf) {
			d.exec("drop table " + leaf)
		}
	}
}

// leaves are a table's partitions, by name.
func (d *database) leaves(table string) []string {
	d.h.tb.Helper()
	const q = "select inhrelid::regclass::text from pg_inherits where inhparent = $1::text::regclass order by 1"
	rows, err := d.conn.Query(d.h.ctx, q, table)
	d.h.check(err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	d.h.check(err)
	return all
}

// dayBatch are ids of one day, as a ledger line has.
type dayBatch struct {
	ids      []int64
	from, to time.Time
}

// drawDays draws batches from the last days, a day after the other.
func (days days) drawDays(n, last int) (all []dayBatch) {
	random := rand.New(rand.NewPCG(5, 6))
	for i := range n {
		day := days.n - 1 - i%last
		b := dayBatch{from: days.day(day), to: days.day(day + 1)}
		for _, row := range random.Perm(days.rows)[:storyBatch] {
			b.ids = append(b.ids, int64(day*days.rows+row+1))
		}
		all = append(all, b)
	}
	return all
}

// claimDays are the last days, in whose parts of the ledger syncjob looks for lines as long as older days have none.
const claimDays = 2

// lastDays is of how many days, from the last, the way's batches are.
func (way growthWay) lastDays(all int) int {
	if way == wholeMark {
		return min(all, claimDays)
	}
	return all
}

// statements are those of a batch. That of wholeMark stands in the ledger, in a line of its own with the id line.
func (way growthWay) statements(b dayBatch, since time.Time, line int64) []statement {
	mark := statement{markSQL, []any{b.ids, b.from, b.to}}
	switch way {
	case withBounds:
		return []statement{mark}
	case wholeMark:
		return []statement{{claimSQL, []any{since, 1}}, mark, {positionLockSQL, nil}, {positionSQL, []any{[]int64{line}, b.from, b.from}}}
	default:
		return []statement{{"update telemetry set processed = true where id = any($1)", []any{b.ids}}}
	}
}

// prepareWay brings the table into the state of a way; ways only take away.
func (d *database) prepareWay(way growthWay) {
	d.h.tb.Helper()
	if way == withoutIndex {
		d.exec("drop index telemetry_id_idx")
	}
}

// markBatch marks a batch in a transaction that is rolled back, which leaves the rows as they were for the next one; only the way's
// statements are timed.
func (d *database) markBatch(days days, way growthWay, b dayBatch) (took time.Duration) {
	d.h.tb.Helper()
	d.rolledBack(variant{}, func(tx pgx.Tx) {
		list := way.statements(b, days.end().AddDate(0, 0, -claimDays), d.pendingLine(tx, way, b))
		affected := 0
		begin := time.Now()
		for _, st := range list {
			tag, err := tx.Exec(d.h.ctx, st.sql, st.args...)
			d.h.check(err)
			affected += int(tag.RowsAffected())
		}
		took = time.Since(begin)
		// Each of the other statements concerns one row.
		if affected != storyBatch+len(list)-1 {
			d.h.tb.Fatalf("%s, %s: %d rows of the batch and the ledger were concerned", d.name, way, affected)
		}
	})
	return took
}

// pendingLine gives the ledger the line that wholeMark is about to claim; 0 for the other ways.
func (d *database) pendingLine(tx pgx.Tx, way growthWay, b dayBatch) (id int64) {
	d.h.tb.Helper()
	if way != wholeMark {
		return 0
	}
	const q = `insert into telemetry_batch (first_id, last_id, row_count, day, source) values ($1, $2, $3, $4, 'bench') returning batch_id`
	d.h.check(tx.QueryRow(d.h.ctx, q, b.ids[0], b.ids[0]+storyBatch-1, storyBatch, b.from).Scan(&id))
	return id
}

// explainBatch is how long planning takes, the median of some batches, and how many partitions one touches.
func (d *database) explainBatch(days days, way growthWay, batches []dayBatch) (planning time.Duration, partitions int) {
	d.h.tb.Helper()
	var all []time.Duration
	for _, b := range batches[:min(len(batches), 5)] {
		d.rolledBack(variant{}, func(tx pgx.Tx) {
			touched, ms := map[string]bool{}, 0.0
			for _, st := range way.statements(b, days.end().AddDate(0, 0, -claimDays), d.pendingLine(tx, way, b)) {
				e := explain(d, tx, st)
				e.Plan.scanned(touched)
				ms += e.Planning
			}
			partitions = len(touched)
			all = append(all, time.Duration(ms*float64(time.Millisecond)))
		})
	}
	return quantileOf(all, 0.5), partitions
}

// ratio is the median with the most partitions to that with the fewest.
func (r *growthResults) ratio(way growthWay) float64 {
	median := func(partitions int) float64 {
		return float64(quantileOf(r.took[growthKey{way, partitions}], 0.5))
	}
	return median(r.size.partitions[len(r.size.partitions)-1]) / median(r.size.partitions[0])
}

func (r *growthResults) markdown() string {
	var b strings.Builder
	s := r.size
	fewest, most := s.partitions[0], s.partitions[len(s.partitions)-1]
	fmt.Fprintf(&b, `# The update as partitions grow in number

Written by `+"`make bench`"+`. %s.

A batch is %d rows of one day, as a ledger line has them; %s rows in each partition. The batches are the same at all sizes: of
the last %d days, and in the caches before, so that it is the number of partitions that differs. All sizes take turns, batch by batch; each
transaction is rolled back, and only its statements are timed, %s batches of each size
in the first way, %s in the next two, %s in the last. The first way is the update alone, which is the goal's; the second is syncjob's whole transaction of one line,
whose claim looks at the last two days' parts of the ledger, as all but one a second do while no older day has anything pending: its batches are of these. Partitions touched are of both tables.

| | partitions | median, ms | p95, ms | to %d partitions | planning, ms | partitions touched |
|---|---|---|---|---|---|---|
`, r.versions, storyBatch, grouped(fmt.Sprint(s.rows)), fewest, grouped(fmt.Sprint(s.rounds[withBounds])), grouped(fmt.Sprint(s.rounds[byIDAlone])),
		grouped(fmt.Sprint(s.rounds[withoutIndex])), fewest)
	for _, way := range growthWays {
		first := quantileOf(r.took[growthKey{way, fewest}], 0.5)
		for _, n := range s.partitions {
			key := growthKey{way, n}
			median := quantileOf(r.took[key], 0.5)
			fmt.Fprintf(&b, "| %s | %d | %s | %s | %.2f | %s | %d |\n", way, n, fine(median), fine(quantileOf(r.took[key], 0.95)),
				float64(median)/float64(first), fine(r.planning[key]), r.touched[key])
		}
	}
	fmt.Fprintf(&b, "\nGoal: with %d partitions the update takes at most %.2f of the time with %d. It takes %.2f: the goal %s.\n"+
		"With the claim and the position it takes %.2f: for the whole transaction the goal %s.\n", most, growthGoal, fewest,
		r.ratio(withBounds), verdict(r.ratio(withBounds)), r.ratio(wholeMark), verdict(r.ratio(wholeMark)))
	return b.String()
}

func verdict(ratio float64) string {
	if ratio > growthGoal {
		return "does not hold"
	}
	return "holds"
}

// fine is milliseconds to the microsecond.
func fine(d time.Duration) string { return grouped(fmt.Sprintf("%.3f", float64(d.Nanoseconds())/1e6)) }
