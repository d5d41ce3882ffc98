package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// markingSize is how much BenchmarkMarking marks.
type markingSize struct {
	days, rows int // rows in each; a multiple of each batch
	batches    []int
	parts      int // of a run, each of which gives a rate
}

var fullMarking = markingSize{days: 3, rows: 1_000_000, batches: []int{50, 5000}, parts: 6}

// markingLimit ends a run that hangs.
const markingLimit = 10 * time.Minute

// BenchmarkMarking measures sustained marking by syncjob, and by the sync job of the system that Plenum replaces on that one's tables.
func BenchmarkMarking(b *testing.B) {
	for range b.N {
		r := measureMarking(b, fullMarking)
		deliver(b, r.markdown())
		b.ReportMetric(r.runs[len(r.runs)-1].perSecond(), "rows/s")
	}
}

// TestMarking says that every row is marked, and that ours are heap-only updates while those of the other design cannot be.
func TestMarking(t *testing.T) {
	t.Parallel()
	r := measureMarking(t, markingSize{days: 2, rows: 5000, batches: []int{50}, parts: 3})
	if len(r.runs) != 2 {
		t.Fatalf("%d runs, want 2", len(r.runs))
	}
	for _, run := range r.runs {
		if run.updated != 10_000 {
			t.Errorf("%s by %d: %d rows updated, want 10000", run.design, run.batch, run.updated)
		}
		if ours := run.design == ownDesign; ours != (run.hot == run.updated) || !ours && run.hot > 0 {
			t.Errorf("%s by %d: %d of %d updates were heap-only", run.design, run.batch, run.hot, run.updated)
		}
		if len(run.rates) != 3 || run.perSecond() <= 0 || run.wal <= 0 {
			t.Errorf("%s by %d: %+v", run.design, run.batch, run)
		}
	}
	t.Log("\n" + r.markdown())
}

// The two designs.
const (
	ownDesign   = "Plenum, syncjob"
	storyDesign = "seven indexes, two partial"
)

// sizes are of the leaves that a design needs, in bytes.
type sizes struct{ tables, indexes int64 }

// markingRun is one design's marking of all rows.
type markingRun struct {
	design        string
	batch         int
	rates         []int64 // rows/s of each part
	wal           int64
	updated, hot  int
	before, after sizes
	vacuums       int
}

// perSecond is the median of the parts.
func (r markingRun) perSecond() float64 {
	return float64(medianOf(r.rates, func(n int64) int64 { return n }))
}

type markingResults struct {
	size     markingSize
	versions string
	runs     []markingRun
}

// measureMarking makes all runs, the designs taking turns in going first. Autovacuum is on, since a design that needs it is to have it;
// no checkpoint begins.
func measureMarking(tb testing.TB, s markingSize) *markingResults {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*hangLimit)
	defer cancel()
	h := newHouse(ctx, tb, setting{"autovacuum", "on"}, setting{"max_wal_size", "32GB"}, setting{"checkpoint_timeout", "1h"})
	r := &markingResults{size: s, versions: h.versions()}
	days := h.daysBeforeToday(s.days, s.rows)
	for n, batch := range s.batches {
		h.inTurn(n,
			func() { r.runs = append(r.runs, h.markStory(days, batch, s.parts)) },
			func() { r.runs = append(r.runs, h.markOwn(days, batch, s.parts)) })
	}
	return r
}

// markOwn has syncjob mark the rows, which stand in ledger lines of a batch each.
func (h *house) markOwn(days days, batch, parts int) markingRun {
	h.tb.Helper()
	d := h.plenumDatabase("marking", days)
	defer d.drop()
	d.makePayloads()
	d.exec("insert into telemetry (" + rowColumns + ") " + days.rowsSQL(1))
	d.exec(days.ledgerSQL(batch, false))
	d.exec("vacuum analyze")
	return d.run(markingRun{design: ownDesign, batch: batch}, "telemetry_p", "telemetry_batch_p", func() []time.Time {
		p := h.start("syncjob", "PLENUM_DATABASE_URL="+d.url, fmt.Sprint("PLENUM_SYNC_BATCH_ROWS=", batch))
		h.awaitFor(markingLimit, 500*time.Millisecond, func() error {
			if n := d.number(ledgerRows + " where processed_at is not null"); n < days.total() {
				return fmt.Errorf("%d of %d rows are processed", n, days.total())
			}
			return nil
		})
		h.stop(p)
		d.expect("select count(*) from telemetry where processed", days.total())
		d.expect("select count(distinct xmin::text) from telemetry_batch", days.total()/batch) // a transaction each
		return d.ledgerTimes(days.total(), parts)
	})
}

// ledgerTimes is when the first line was processed, and when each part of the rows was.
func (d *database) ledgerTimes(rows, parts int) []time.Time {
	d.h.tb.Helper()
	const q = `with l as (select processed_at, sum(row_count) over (order by feed_position) as done from telemetry_batch)
		select min(processed_at) filter (where done >= greatest(part * $1::bigint / $2::bigint, 1))
		from l, generate_series(0, $2::bigint) part group by part order by part`
	rowsOf, err := d.conn.Query(d.h.ctx, q, rows, parts)
	d.h.check(err)
	times, err := pgx.CollectRows(rowsOf, pgx.RowTo[time.Time])
	d.h.check(err)
	return times
}

// markStory marks the same rows in the other design, as its sync job does: search for what is not processed, then update it by id.
func (h *house) markStory(days days, batch, parts int) markingRun {
	h.tb.Helper()
	d := h.database("marking")
	defer d.drop()
	d.makePayloads()
	d.exec(storySQL("story", "", "partition by range (last_modified)") + ";" + storyIndexesSQL("story") + "create index on story (id)")
	for n := range days.n {
		d.exec(days.day(n).Format("create table story_p20060102 partition of story ") + boundsOf(days.day(n)))
	}
	d.exec("insert into story (" + rowColumns + ") " + days.rowsSQL(1))
	d.exec("vacuum analyze")
	return d.run(markingRun{design: storyDesign, batch: batch}, "story_p", "story_p", func() []time.Time {
		times, err := searchAndMark(h.ctx, d.url, days.total(), batch, parts)
		h.check(err)
		d.expect("select count(*) from story where processed", days.total())
		return times
	})
}

// searchAndMark returns when the first batch was marked, and when each part of the rows was.
func searchAndMark(ctx context.Context, url string, rows, batch, parts int) (times []time.Time, err error) {
	const search = "select id from story where not processed order by last_modified limit $1"
	db, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close(context.WithoutCancel(ctx))) }()
	if _, err := db.Exec(ctx, "set plan_cache_mode = force_custom_plan"); err != nil {
		return nil, err
	}
	for done := 0; done < rows; {
		found, err := db.Query(ctx, search, batch)
		if err != nil {
			return nil, err
		}
		ids, err := pgx.CollectRows(found, pgx.RowTo[int64])
		if err != nil {
			return nil, err
		}
		tag, err := db.Exec(ctx, storyUpdate, ids)
		if err != nil {
			return nil, err
		}
		if len(ids) == 0 || int(tag.RowsAffected()) != len(ids) {
			return nil, fmt.Errorf("after %d of %d rows: %d found, %d updated", done, rows, len(ids), tag.RowsAffected())
		}
		done += len(ids)
		for len(times) <= parts && done >= max(1, len(times)*rows/parts) {
			times = append(times, time.Now())
		}
	}
	return times, nil
}

// run measures what mark does to the leaves whose names begin with rows, and what it takes besides.
func (d *database) run(r markingRun, rows, besides string, mark func() []time.Time) markingRun {
	d.h.tb.Helper()
	stat := func(column string) int {
		return d.number("select coalesce(sum(" + column + "), 0)::bigint from pg_stat_user_tables where starts_with(relname, '" + rows + "')")
	}
	r.before, r.wal, r.vacuums = d.sizes(rows, besides), -d.wal(), -stat("autovacuum_count")
	times := mark()
	r.wal += d.wal()
	total := d.h.total(d, rows)
	for n := range len(times) - 1 {
		part := float64(total) / float64(len(times)-1)
		r.rates = append(r.rates, int64(part/times[n+1].Sub(times[n]).Seconds()))
	}
	d.h.await(100*time.Millisecond, func() error { // sessions report when they end, or are idle
		if n := stat("n_tup_upd"); n < total {
			return fmt.Errorf("%d of %d updates are counted", n, total)
		}
		return nil
	})
	r.after, r.updated, r.hot = d.sizes(rows, besides), stat("n_tup_upd"), stat("n_tup_hot_upd")
	r.vacuums += stat("autovacuum_count")
	return r
}

// total is how many rows the table of the leaves has.
func (h *house) total(d *database, leaves string) int {
	h.tb.Helper()
	return d.number("select count(*) from " + strings.TrimSuffix(leaves, "_p"))
}

func (d *database) sizes(names ...string) (s sizes) {
	d.h.tb.Helper()
	const q = `select sum(pg_table_size(oid))::bigint, sum(pg_indexes_size(oid))::bigint from pg_class
		where relkind = 'r' and (starts_with(relname, $1) or starts_with(relname, $2))`
	d.h.check(d.conn.QueryRow(d.h.ctx, q, names[0], names[len(names)-1]).Scan(&s.tables, &s.indexes))
	return s
}

func (r *markingResults) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Sustained marking

Written by `+"`make bench`"+`. %s.

%s rows in %d daily partitions, all unprocessed, then all marked; a commit a batch. Plenum's are marked by syncjob, from ledger lines of a batch
each; the tables that it replaces have six indexes and one on id, and their job searches for what is not processed, then updates it by id.
The rows are the same. Autovacuum is on, and its WAL counts; no checkpoint falls into a run, so that WAL holds no full-page images. Rows/s are the
median of a run's %d equal parts, with the least and the greatest. Plenum's sizes are with the ledger.

| batch | design | rows/s | WAL, bytes/row | heap-only updates | tables, MB: before, after | indexes, MB: before, after | autovacuums |
|---|---|---|---|---|---|---|---|
`, r.versions, grouped(fmt.Sprint(r.size.days*r.size.rows)), r.size.days, r.size.parts)
	for _, batch := range r.size.batches {
		own, story := r.of(ownDesign, batch), r.of(storyDesign, batch)
		own.line(&b)
		story.line(&b)
		perRow := func(m markingRun) float64 { return float64(m.wal) / float64(m.updated) }
		grown := func(m markingRun) float64 {
			return float64(m.after.tables+m.after.indexes) / float64(m.before.tables+m.before.indexes)
		}
		fmt.Fprintf(&b, "| %d | the first to the second | %.2f | %.2f | | grown to %.2f and %.2f of what they were, with indexes | | |\n", batch,
			own.perSecond()/story.perSecond(), perRow(own)/perRow(story), grown(own), grown(story))
	}
	return b.String()
}

func (r *markingResults) of(design string, batch int) markingRun {
	for _, run := range r.runs {
		if run.design == design && run.batch == batch {
			return run
		}
	}
	return markingRun{}
}

func (r markingRun) line(b *strings.Builder) {
	least, greatest := r.rates[0], r.rates[0]
	for _, n := range r.rates {
		least, greatest = min(least, n), max(greatest, n)
	}
	megabytes := func(bytes int64) string { return grouped(fmt.Sprintf("%.1f", float64(bytes)/1e6)) }
	fmt.Fprintf(b, "| %d | %s | %s (%s–%s) | %.0f | %.1f %% | %s, %s | %s, %s | %d |\n", r.batch, r.design,
		grouped(fmt.Sprintf("%.0f", r.perSecond())), grouped(fmt.Sprint(least)), grouped(fmt.Sprint(greatest)),
		float64(r.wal)/float64(r.updated), 100*float64(r.hot)/float64(r.updated),
		megabytes(r.before.tables), megabytes(r.after.tables), megabytes(r.before.indexes), megabytes(r.after.indexes), r.vacuums)
}
