package bench

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/pkg/bluegreen"
)

// bluegreenSize is how much BenchmarkBlueGreen moves.
type bluegreenSize struct {
	days        int
	copied      int // rows in each day of the table that is copied
	repetitions int // of the copy
	written     int // rows in each day of the tables that writers work on
	rounds      int // of the writers, each in all states
	round       time.Duration
	writers     int
}

var fullBluegreen = bluegreenSize{days: 8, copied: 250_000, repetitions: 3, written: 100_000, rounds: 9, round: 5 * time.Second, writers: 4}

// BenchmarkBlueGreen measures what moving a table to partitions takes, and what its application feels of it.
func BenchmarkBlueGreen(b *testing.B) {
	for range b.N {
		r := measureBluegreen(b, fullBluegreen)
		deliver(b, r.markdown())
		b.ReportMetric(middle(r.copyRatios()), "copy-ratio")
		b.ReportMetric(middle(r.ratios(captured, writing.perSecond)), "captured-ratio")
	}
}

// TestBlueGreen says that each copy is complete, that every written id is captured in the rounds that are said to be captured and in no
// other, and that both sides are the same in the end. The measurement itself fails where they are not.
func TestBlueGreen(t *testing.T) {
	t.Parallel()
	s := bluegreenSize{days: 2, copied: 3000, repetitions: 2, written: 2000, rounds: 2, round: 100 * time.Millisecond, writers: 2}
	r := measureBluegreen(t, s)
	if len(r.copies) != 2 || len(r.rounds) != 2 || len(r.drains) != 2 || len(r.controls) != 2 {
		t.Fatalf("%d copies, %d rounds, %d drains, %d controls: want 2 of each", len(r.copies), len(r.rounds), len(r.drains), len(r.controls))
	}
	for _, c := range r.copies {
		if c.sync.rows != 6000 || c.statement.rows != 6000 || c.verified.rows != 12_000 || c.sync.wal <= 0 || c.statement.wal <= 0 {
			t.Errorf("copied: %+v", c)
		}
		if ours, theirs := c.sync.walPerRow(), c.statement.walPerRow(); ours > 1.03*theirs { // speculative inserts are 1.06
			t.Errorf("the copy takes %.0f bytes of WAL a row, one statement %.0f", ours, theirs)
		}
	}
	for n, round := range r.rounds {
		for _, state := range writerStates {
			w := round[state]
			want := w.ids
			if state == bare {
				want = 0
			}
			if w.ids < 3*writerBatch*s.writers || w.ids != w.transactions*writerBatch || w.logged != want || w.wal <= 0 {
				t.Errorf("round %d, %s: %+v; want %d ids logged", n, state, w, want)
			}
		}
		// What is not drained at the end of a captured round is all that was logged in it.
		if got, want := r.drains[n].rows, round[captured].logged; got != want {
			t.Errorf("round %d: %d entries drained, want %d", n, got, want)
		}
	}
	t.Log("\n" + r.markdown())
}

type bluegreenResults struct {
	size     bluegreenSize
	versions string
	copies   []copying
	rounds   []map[writerState]writing
	drains   []passed
	controls []float64 // transactions/s on the table that was migrated to those on the other one, the migration aborted
}

// passed is the rows, or entries, that something worked through, and what that took.
type passed struct {
	rows int
	took time.Duration
	wal  int64
}

func (p passed) perSecond() float64 { return float64(p.rows) / p.took.Seconds() }
func (p passed) walPerRow() float64 { return float64(p.wal) / float64(p.rows) }

// copying is one repetition: what sync copied, what one statement did with the same rows, and the comparison of both sides.
type copying struct{ sync, statement, verified passed }

// measureBluegreen has autovacuum on for the writers only, whose log lives by it. No checkpoint begins by itself.
func measureBluegreen(tb testing.TB, s bluegreenSize) *bluegreenResults {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*hangLimit)
	defer cancel()
	h := newServer(ctx, tb, setting{"max_wal_size", "32GB"}, setting{"checkpoint_timeout", "1h"})
	r := &bluegreenResults{size: s, versions: h.versions()}
	h.copies(r)
	h.autovacuum()
	h.writings(r)
	return r
}

// autovacuum turns it on.
func (h *house) autovacuum() {
	h.tb.Helper()
	for _, sql := range []string{"alter system set autovacuum = on", "select pg_reload_conf()"} {
		_, err := h.admin.Exec(h.ctx, sql)
		h.check(err)
	}
}

// fillFlat makes a table like the one that the story began with.
func (d *database) fillFlat(table string, days days) {
	d.h.tb.Helper()
	d.exec(storySQL(table, " primary key", ""))
	d.exec(fmt.Sprintf("insert into %s (%s) %s", table, rowColumns, days.rowsSQL(storyUnprocessed)))
	d.exec(storyIndexesSQL(table))
}

// migration is one of the table, with green built and changes captured.
func (d *database) migration(table string) (m *bluegreen.Migration, end func()) {
	d.h.tb.Helper()
	pool, err := pgxpool.New(d.h.ctx, d.url)
	d.h.check(err)
	m, err = bluegreen.New(bluegreen.Config{Pool: pool, Schema: "public"})
	d.h.check(err)
	_, err = m.Init(d.h.ctx, bluegreen.InitOptions{Tables: []string{table}, Key: "last_modified", ID: "id"})
	d.h.check(err)
	return m, pool.Close
}

// copies copies a table by sync and by one statement, in turn.
func (h *house) copies(r *bluegreenResults) {
	h.tb.Helper()
	days := h.daysBeforeToday(r.size.days, r.size.copied)
	d := h.database("bluegreen_copy")
	d.makePayloads()
	d.fillFlat("flat", days)
	d.exec("vacuum analyze")
	for n := range r.size.repetitions {
		m, end := d.migration("flat")
		d.exec(twinSQL)
		d.expect(differentSQL, 0)
		var c copying
		h.inTurn(n,
			func() { c.sync = d.copyBySync(m) },
			func() { c.statement = d.copyByStatement() })
		for _, table := range []string{"flat_new", "twin"} {
			d.expect("select count(*) from "+table, days.total())
		}
		c.verified = d.verify(m)
		r.copies = append(r.copies, c)
		d.exec("drop table twin")
		h.check(m.Abort(h.ctx))
		end()
	}
	d.drop()
}

// twinSQL makes a table like green, without what captures changes.
const twinSQL = `do $$ declare leaf record; begin
		create table twin (like flat_new including all) partition by range (last_modified);
		for leaf in select c.relname, pg_get_expr(c.relpartbound, c.oid) as bounds, ' with (' || array_to_string(c.reloptions, ', ') || ')' as options
			from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'flat_new'::regclass
		loop
			execute format('create table %I partition of twin %s%s', 'twin_' || leaf.relname, leaf.bounds, leaf.options);
		end loop;
	end $$`

// differentSQL counts the indexes of leaves that one of both has, and the other has not.
const differentSQL = `
with leaf as (
	select i.inhparent = 'twin'::regclass as twin, pg_get_expr(c.relpartbound, c.oid) as bounds, regexp_replace(pg_get_indexdef(x.indexrelid), ' INDEX .* USING ', ' ') as index
	  from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_index x on x.indrelid = c.oid
	 where i.inhparent in ('flat_new'::regclass, 'twin'::regclass)), diff as (
	select bounds, index, count(*) filter (where twin) as twins, count(*) as n from leaf group by 1, 2)
select count(*) filter (where 2 * twins <> n) + (select case when count(*) = 0 then 1 else 0 end from leaf)::int from diff`

// timed is what work took. It begins after a checkpoint, so that none that was asked for before goes on.
func (d *database) timed(work func() int) (p passed) {
	d.h.tb.Helper()
	d.exec("checkpoint")
	p.wal = -d.wal()
	begin := time.Now()
	p.rows = work()
	p.took = time.Since(begin)
	p.wal += d.wal()
	return p
}

var errCopied = errors.New("the copy is complete")

// copyBySync measures the copy alone: the sync is stopped before it analyzes the table, and goes on afterwards.
func (d *database) copyBySync(m *bluegreen.Migration) (p passed) {
	d.h.tb.Helper()
	p = d.timed(func() (rows int) {
		ctx, stop := context.WithCancelCause(d.h.ctx)
		defer stop(nil)
		err := m.Sync(ctx, bluegreen.SyncOptions{Progress: func(at bluegreen.Progress) {
			if rows = int(at.Rows); at.Copied {
				stop(errCopied)
			}
		}})
		if !errors.Is(context.Cause(ctx), errCopied) {
			d.h.tb.Fatalf("the sync has ended before the copy: %v", err)
		}
		return rows
	})
	d.settle(m)
	return p
}

// settle has sync do all that is left. Its last connection may have to end first.
func (d *database) settle(m *bluegreen.Migration) {
	d.h.tb.Helper()
	d.h.await(time.Millisecond, func() error {
		err := m.Sync(d.h.ctx, bluegreen.SyncOptions{})
		if !errors.Is(err, bluegreen.ErrBusy) {
			d.h.check(err)
		}
		return err
	})
}

func (d *database) copyByStatement() passed {
	d.h.tb.Helper()
	return d.timed(func() int {
		tag, err := d.conn.Exec(d.h.ctx, "insert into twin ("+rowColumns+") select "+rowColumns+" from flat")
		d.h.check(err)
		return int(tag.RowsAffected())
	})
}

// verify compares both sides, which must be the same. Its rows are those of both.
func (d *database) verify(m *bluegreen.Migration) passed {
	d.h.tb.Helper()
	return d.timed(func() int {
		list, err := m.Verify(d.h.ctx)
		d.h.check(err)
		if len(list) > 0 {
			d.h.tb.Fatalf("both sides differ: %v", list)
		}
		status, err := m.Status(d.h.ctx)
		d.h.check(err)
		return 2 * int(status.Tables[0].Rows)
	})
}
