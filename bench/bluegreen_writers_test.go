package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/bluegreen"
)

// writerState is what goes on beside writers.
type writerState string

const (
	bare     writerState = "no migration"
	captured writerState = "captured"
	followed writerState = "captured, sync --follow"
)

var writerStates = []writerState{bare, captured, followed}

// writerBatch is the rows of a transaction: a third of them insert rows, a third change random ones, and a third delete those that were
// inserted, so that the table keeps its size.
const writerBatch = 50

const (
	writerInsert = "insert into %s (" + rowColumns + `) select $1::bigint + i, now(), now() - interval '1 second', $1 + i, false,
		'cmp-' || lpad(i::text, 5, '0'), 'parameters', payload from generate_series(1, $2::int) i join bench_payload p on p.n = ($1 + i) %% 997`
	writerUpdate = "update %s set processed = not processed where id = any($1)"
	writerDelete = "delete from %s where id > $1 and id <= $1 + $2::int"
)

// writing is what all writers did in one round.
type writing struct {
	transactions, ids int
	took              time.Duration
	wal               int64
	logged            int           // ids that were captured
	left              int           // of these, what no sync had drained when the writers ended
	update            time.Duration // the median update's
}

func (w writing) perSecond() float64  { return float64(w.transactions) / w.took.Seconds() }
func (w writing) walEach() float64    { return float64(w.wal) / float64(w.transactions) }
func (w writing) eachUpdate() float64 { return float64(w.update.Microseconds()) / 1e3 } // ms

// writings has writers work on two tables of the same rows, one of which is being migrated, in each state in turn.
func (h *house) writings(r *bluegreenResults) {
	h.tb.Helper()
	days := h.daysBeforeToday(r.size.days, r.size.written)
	d := h.database("bluegreen_write")
	defer d.drop()
	d.makePayloads()
	d.fillFlat("flat", days)
	d.fillFlat("watched", days)
	d.exec("vacuum analyze")
	m, end := d.migration("watched")
	defer end()
	d.settle(m)
	for n := range r.size.rounds {
		round := map[writerState]writing{}
		h.inTurn(n,
			func() { round[bare] = d.write("flat", days, r.size) },
			func() {
				w := d.write("watched", days, r.size)
				w.left = d.number(logLeft)
				round[captured] = w
				r.drains = append(r.drains, d.drained(m))
			},
			func() { round[followed] = d.writeFollowed(m, days, r.size) })
		r.rounds = append(r.rounds, round)
	}
	for _, table := range []string{"flat", "watched", "watched_new"} {
		d.expect("select count(*) from "+table, days.total())
	}
	d.verify(m)
	h.check(m.Abort(h.ctx))
	for n := range r.size.rounds {
		var other, migrated writing
		h.inTurn(n,
			func() { other = d.write("flat", days, r.size) },
			func() { migrated = d.write("watched", days, r.size) })
		r.controls = append(r.controls, migrated.perSecond()/other.perSecond())
	}
	slices.Sort(r.controls)
}

const (
	logLeft  = "select count(*) from bluegreen_log_1"
	logDrawn = "select coalesce(pg_sequence_last_value(to_regclass('bluegreen_log_1_seq_seq')), 0)" // 0 without a migration
)

// drained is how fast one sync empties the log.
func (d *database) drained(m *bluegreen.Migration) (p passed) {
	d.h.tb.Helper()
	p = passed{rows: d.number(logLeft), wal: -d.wal()}
	begin := time.Now()
	d.settle(m)
	p.took, p.wal, p.rows = time.Since(begin), p.wal+d.wal(), p.rows-d.number(logLeft)
	return p
}

// writeFollowed has a sync follow meanwhile, and waits until it has come after.
func (d *database) writeFollowed(m *bluegreen.Migration, days days, s bluegreenSize) writing {
	d.h.tb.Helper()
	ctx, stop := context.WithCancel(d.h.ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- m.Sync(ctx, bluegreen.SyncOptions{Follow: true}) }()
	w := d.write("watched", days, s)
	w.left = d.number(logLeft)
	d.h.await(50*time.Millisecond, func() error {
		select {
		case err := <-ended:
			d.h.tb.Fatalf("the sync has ended: %v", err)
		default:
		}
		if n := d.number(logLeft); n > 0 {
			return fmt.Errorf("%d entries are left", n)
		}
		return nil
	})
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		d.h.tb.Fatalf("the sync has ended: %v", err)
	}
	return w
}

// write is one round. It begins vacuumed, whatever came before.
func (d *database) write(table string, days days, s bluegreenSize) (w writing) {
	d.h.tb.Helper()
	d.exec("vacuum")
	var all sync.WaitGroup
	var mu sync.Mutex
	var errs error
	var updates []time.Duration
	drawn := d.number(logDrawn)
	w.wal = -d.wal()
	begin := time.Now()
	for n := range s.writers {
		all.Go(func() {
			one := writer{table: table, days: days, n: n, of: s.writers, until: begin.Add(s.round)}
			err := one.run(d.h.ctx, d.url)
			mu.Lock()
			defer mu.Unlock()
			w.transactions, w.ids = w.transactions+one.transactions, w.ids+one.ids
			updates, errs = append(updates, one.updates...), errors.Join(errs, err)
		})
	}
	all.Wait()
	w.took = time.Since(begin)
	w.wal += d.wal()
	w.logged = d.number(logDrawn) - drawn
	d.h.check(errs)
	w.update = quantileOf(updates, 0.5)
	return w
}

// writer writes what no other one does, so that none waits for another's rows.
type writer struct {
	table string
	days  days
	n, of int // which of how many
	until time.Time

	transactions, ids int
	updates           []time.Duration
}

// run does rounds of three transactions, one at least.
func (w *writer) run(ctx context.Context, url string) (err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	random := rand.New(rand.NewPCG(5, uint64(w.n)))
	for turn := 0; turn == 0 || time.Now().Before(w.until); turn++ {
		after := int64(w.days.total() + (turn*w.of+w.n)*writerBatch)
		if err := w.send(ctx, conn, writerInsert, after, writerBatch); err != nil {
			return err
		}
		begin := time.Now()
		if err := w.send(ctx, conn, writerUpdate, w.draw(random)); err != nil {
			return err
		}
		w.updates = append(w.updates, time.Since(begin))
		if err := w.send(ctx, conn, writerDelete, after, writerBatch); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) send(ctx context.Context, conn *pgx.Conn, sql string, args ...any) error {
	tag, err := conn.Exec(ctx, fmt.Sprintf(sql, w.table), args...)
	if err != nil {
		return err
	}
	if tag.RowsAffected() != writerBatch {
		return fmt.Errorf("%s: %d rows, not %d", tag, tag.RowsAffected(), writerBatch)
	}
	w.transactions++
	w.ids += writerBatch
	return nil
}

// draw draws a batch of different ids of all days.
func (w *writer) draw(random *rand.Rand) []int64 {
	taken := map[int64]bool{}
	ids := make([]int64, 0, writerBatch)
	for len(ids) < writerBatch {
		id := int64(random.IntN(w.days.total()/w.of)*w.of + w.n + 1)
		if !taken[id] {
			taken[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}
