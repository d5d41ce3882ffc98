package bench

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// partitionSize is how much BenchmarkPartitions measures.
type partitionSize struct {
	repetitions int
	load        load
	rows        int           // in each of the days before today
	query       time.Duration // how long the analytic query runs
	window      time.Duration // the least time that is measured
	pause       time.Duration // between partman's tries, and between its rounds
	retire      int           // rows of the day that is retired
}

var fullPartitions = partitionSize{
	repetitions: 3, load: load{every: 10 * time.Millisecond, rows: 50, writers: 4}, rows: 200_000,
	query: 6 * time.Second, window: 10 * time.Second, pause: time.Second, retire: 1_000_000,
}

// BenchmarkPartitions measures what keeping partitions costs those who insert, and what retiring a day costs, for pkg/partman and
// for what it is compared with, prints the tables, and makes them a part of -out.
func BenchmarkPartitions(b *testing.B) {
	for range b.N {
		r := measurePartitions(b, fullPartitions)
		deliver(b, r.markdown())
		b.ReportMetric(float64(r.worst(ours(0).name, archive).Milliseconds()), "ms-longest-insert")
	}
}

// TestPartitions measures a little, so that the benchmark itself is known to work.
func TestPartitions(t *testing.T) {
	r := measurePartitions(t, partitionSize{
		repetitions: 1, load: load{every: 10 * time.Millisecond, rows: 5, writers: 2}, rows: 500,
		query: 300 * time.Millisecond, window: 400 * time.Millisecond, pause: 20 * time.Millisecond, retire: 2000,
	})
	want := 1 + 4 + 4 + 3 // pg_partman repairs no index
	if len(r.stalls) != want {
		t.Errorf("%d measurements, want %d", len(r.stalls), want)
	}
	for _, s := range r.stalls {
		if len(s.samples) < 20 || s.operation != idle && s.took <= 0 {
			t.Errorf("%s by %s: %d batches, took %s", s.operation, s.keeper, len(s.samples), s.took)
		}
	}
	t.Log("\n" + r.markdown())
}

// stall is the load's latency beside one operation.
type stall struct {
	keeper    string
	operation operation
	samples   []sample
	took      time.Duration // until the operation was done
}

// measurePartitions makes all repetitions. Each operation has a database of its own, copied from its keeper's fixture.
func measurePartitions(tb testing.TB, s partitionSize) *partitionResults {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*hangLimit)
	defer cancel()
	h := newServer(ctx, tb)
	r := &partitionResults{size: s, versions: h.versions()}
	keepers := []keeper{ours(s.pause), plain, extension}
	today := h.today()
	for n, k := range keepers {
		d := h.database(fmt.Sprintf("fixture_%d", n))
		k.prepare(d, today)
		d.fill(today.AddDate(0, 0, -daysBefore), today.AddDate(0, 0, -1), s.rows)
		d.exec("vacuum analyze")
		h.check(d.conn.Close(ctx)) // a template has no sessions
	}
	for n := range s.repetitions {
		r.stalls = append(r.stalls, h.beside(keepers[0], 0, idle, today, s))
		for _, o := range operations {
			for i := range keepers {
				i = (i + n) % len(keepers)
				if _, ok := keepers[i].change[o]; ok {
					r.stalls = append(r.stalls, h.beside(keepers[i], i, o, today, s))
				}
			}
		}
	}
	r.retired = h.retire(s, today)
	return r
}

// today is the database's UTC day.
func (h *house) today() time.Time {
	h.tb.Helper()
	var now time.Time
	h.check(h.admin.QueryRow(h.ctx, "select now()").Scan(&now))
	return now.UTC().Truncate(24 * time.Hour)
}

// beside does an operation beside the load and an analytic query, which has begun before.
func (h *house) beside(k keeper, fixture int, o operation, today time.Time, s partitionSize) stall {
	h.tb.Helper()
	name := fmt.Sprintf("stall_%d", fixture)
	h.check(h.postgres.CreateDatabase(h.ctx, name, fmt.Sprintf("fixture_%d", fixture)))
	d := h.open(name)
	leaves := d.number(leavesSQL)
	l := s.load.start(h.ctx, d.url)
	h.check(wait(h.ctx, s.window/10))
	analyst := h.analyse(d, s.query)
	begin := time.Now()
	took, err := h.change(k, o, d, today)
	h.check(err)
	h.check(<-analyst)
	h.check(wait(h.ctx, max(s.window-time.Since(begin), s.window/10)))
	samples, err := l.end()
	h.check(err)
	d.expect("select count(*) from telemetry where last_modified >= '"+dayOf(today)+"'", len(samples)*s.load.rows)
	d.expectDone(o, leaves, today)
	for n, sample := range samples {
		if !sample.due.Before(begin) {
			samples = samples[n:]
			break
		}
	}
	d.drop()
	return stall{keeper: k.name, operation: o, samples: samples, took: took}
}

const leavesSQL = "select count(*) from pg_inherits where inhparent = 'telemetry'::regclass"

// expectDone says that an operation did what it is called, given the number of partitions before.
func (d *database) expectDone(o operation, leaves int, today time.Time) {
	d.h.tb.Helper()
	oldDay := "select count(*) from pg_class where relkind = 'r' and replace(relname, '_', '') = 'telemetryp" + today.AddDate(0, 0, -daysBefore).Format("20060102") + "'"
	switch o {
	case create:
		d.expect(leavesSQL, leaves+1)
	case archive:
		d.expect(leavesSQL, leaves-1)
		d.expect(oldDay, 1)
	case drop:
		d.expect(leavesSQL, leaves-1)
		d.expect(oldDay, 0)
	case index:
		d.expect("select count(*) from pg_index join pg_inherits on inhrelid = indrelid where indisvalid and pg_get_indexdef(indexrelid) like '%(device_id, recorded_at)'", leaves)
	}
}

// change tries an operation again after a deadlock, as an operator would.
func (h *house) change(k keeper, o operation, d *database, today time.Time) (took time.Duration, err error) {
	if o == idle {
		return 0, nil
	}
	begin := time.Now()
	for {
		done, err := k.change[o](h.ctx, d, today)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "40P01" {
			return done.Sub(begin), err
		}
		h.tb.Logf("%s by %s: %v", o, k.name, err)
	}
}

// analyse begins a query over the whole table that takes as long as it is told, and returns once it holds its snapshot.
func (h *house) analyse(d *database, long time.Duration) <-chan error {
	h.tb.Helper()
	ended := make(chan error, 1)
	conn, err := pgx.Connect(h.ctx, d.url)
	h.check(err)
	go func() {
		_, err := conn.Exec(h.ctx, "select (select count(*) from telemetry), pg_sleep($1)", long.Seconds())
		ended <- errors.Join(err, conn.Close(h.ctx))
	}()
	h.await(10*time.Millisecond, func() error {
		var asleep bool
		h.check(d.conn.QueryRow(h.ctx, "select exists (select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep')").Scan(&asleep))
		if !asleep {
			return errors.New("the analytic query has not begun to wait")
		}
		return nil
	})
	return ended
}
