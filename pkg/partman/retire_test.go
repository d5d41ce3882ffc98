package partman_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

const checksum = "select coalesce(sum(hashtextextended(t::text, 0) / 1000), 0)::bigint from %s t"

// TestArchive moves a day, row for row, while readers of the view never see fewer rows than there are.
func TestArchive(t *testing.T) {
	t.Parallel()
	prepared := make(chan partman.Retiring, 10)
	h := newHouse(t, func(c *partman.Config) {
		c.Tries = 50
		c.Prepare = func(_ context.Context, r partman.Retiring) error { prepared <- r; return nil }
	}, live(), archive())
	kept := h.oldDay(7, 10)
	for n := 1; n < 7; n++ {
		h.oldDay(n, 0)
	}
	var old []string
	for n := 8; n < 11; n++ {
		old = append(old, h.oldDay(n, 500))
	}
	h.once(partman.HealthLoop)
	h.once(partman.CreateLoop)
	before := h.number(fmt.Sprintf(checksum, "telemetry_all"))

	stop := h.readers("select count(*) from telemetry_all", 1510)
	r := h.once(partman.RetireLoop)
	if looks := stop(); looks < 10 {
		t.Errorf("readers looked %d times only", looks)
	}
	if got := kinds(r); got != "[archive archive archive]" {
		t.Fatalf("round did %s, refused %v", got, r.Refused)
	}
	if after := h.number(fmt.Sprintf(checksum, "telemetry_all")); after != before {
		t.Errorf("the rows differ: checksum %d, before %d", after, before)
	}
	if n := h.number("select count(*) from telemetry_archive"); n != 1500 {
		t.Errorf("%d rows in the archive, want 1500", n)
	}
	for _, name := range old {
		if n := h.number("select count(*) from pg_inherits where inhparent = 'telemetry_archive'::regclass and inhrelid = $1::regclass", name); n != 1 {
			t.Errorf("%s is not in the archive under its name", name)
		}
		if n := h.number("select count(*) from pg_index where indrelid = $1::regclass", name); n != 3 {
			t.Errorf("%d indexes on %s, want 3: one was built by the move", n, name)
		}
	}
	if n := h.number("select count(*) from pg_constraint where conname = 'partman_bounds'"); n != 0 {
		t.Errorf("%d helper constraints are left", n)
	}
	if n := h.number("select count(*) from " + kept); n != 10 {
		t.Errorf("%d rows in the last kept day, want 10", n)
	}
	first := <-prepared
	if want := h.today.AddDate(0, 0, -10); !first.From.Equal(want) || first.Kind != partman.Move || first.Partition != old[2] {
		t.Errorf("prepare was called first for %+v, want the oldest day", first)
	}
	h.clean()
}

// readers run the query in loops until stop is called, and expect never less than least. stop returns how often they looked.
func (h *house) readers(query string, least int64) (stop func() int64) {
	ctx, cancel := context.WithCancel(h.ctx)
	pool := h.connect("reader", nil)
	var wg sync.WaitGroup
	var looks atomic.Int64
	started := make(chan struct{}, 2)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeSimpleProtocol} {
		wg.Go(func() {
			for ctx.Err() == nil {
				var n int64
				err := pool.QueryRow(ctx, query, mode).Scan(&n)
				if ctx.Err() != nil {
					return
				}
				if err != nil || n < least {
					h.t.Errorf("a reader saw %d rows of %d: %v", n, least, err)
					return
				}
				if looks.Add(1) < 3 {
					started <- struct{}{}
				}
			}
		})
	}
	<-started
	return func() int64 { cancel(); wg.Wait(); return looks.Load() }
}

// TestArchiveScansNothing: the move attaches by the CHECK alone. PostgreSQL says so at DEBUG1, so a slow scan is no measure.
func TestArchiveScansNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	h.oldDay(9, 100)
	var mu sync.Mutex
	var notices []string
	cfg := h.connect("noticed", nil).Config()
	cfg.ConnConfig.RuntimeParams["client_min_messages"] = "debug1"
	cfg.ConnConfig.OnNotice = noticer(&mu, &notices)
	h.cfg.Pool = h.poolOf(cfg)
	h.m, h.registry = h.manager(h.cfg)
	if got := kinds(h.once(partman.RetireLoop)); got != "[archive]" {
		t.Fatalf("round did %s", got)
	}
	mu.Lock()
	defer mu.Unlock()
	implied := false
	for _, n := range notices {
		implied = implied || contains(n, "is implied by existing constraints")
	}
	if !implied {
		t.Errorf("the archive did not take the leaf by its CHECK: %q", notices)
	}
}

// TestArchiveBuildsItsIndexBefore: an index that only the archive declares is built concurrently, and ATTACH adopts it.
func TestArchiveBuildsItsIndexBefore(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	h.exec("create index on telemetry_archive (device_id) where not processed")
	name := h.oldDay(9, 10)
	if got := kinds(h.once(partman.RetireLoop)); got != "[archive]" {
		t.Fatalf("round did %s", got)
	}
	if n := h.number("select count(*) from pg_index where indrelid = $1::regclass", name); n != 4 {
		t.Errorf("%d indexes on %s, want 4", n, name)
	}
}

// TestGuard: a refusal keeps the day, is counted, and the same day goes as soon as the guard lets it.
func TestGuard(t *testing.T) {
	t.Parallel()
	for name, policy := range map[string]partman.Policy{"archive": live(), "drop": dropping()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var open atomic.Bool
			h := newHouse(t, func(c *partman.Config) {
				c.Guard = func(context.Context, pgx.Tx, partman.Retiring) error {
					if open.Load() {
						return nil
					}
					return fmt.Errorf("asked: %w", &partman.Blocked{Reason: "unprocessed", Detail: "7 rows"})
				}
			}, policy, archive())
			day := h.oldDay(8, 10)
			h.oldDay(9, 10)
			r := h.once(partman.RetireLoop)
			if len(r.Refused) != 2 || len(r.Done) != 0 || r.Refused[0].Blocked.Reason != "unprocessed" {
				t.Fatalf("round did %s, refused %+v", kinds(r), r.Refused)
			}
			if n := h.number("select count(*) from telemetry"); n != 20 {
				t.Errorf("%d rows in the table, want 20", n)
			}
			if n := h.metric("plenum_partition_retire_blocked", "reason=unprocessed", "table=telemetry"); n != 2 {
				t.Errorf("%v blocked in the metric, want 2", n)
			}
			open.Store(true)
			if r := h.once(partman.RetireLoop); len(r.Done) != 2 {
				t.Errorf("the open guard let %s go", kinds(r))
			}
			if n := h.metric("plenum_partition_retire_blocked", "reason=unprocessed", "table=telemetry"); n != -1 {
				t.Errorf("%v blocked in the metric, want none", n)
			}
			if n := h.number("select count(*) from pg_inherits where inhparent = 'telemetry'::regclass and inhrelid = $1::regclass", day); n != 0 {
				t.Error("the day is still in the table")
			}
		})
	}
}

// TestLateWrite: while the guard looks, a late row for that day waits, rows for today do not, and after the guard's refusal
// the late row lands and the next guard sees it.
func TestLateWrite(t *testing.T) {
	t.Parallel()
	inGuard, goOn := make(chan struct{}), make(chan struct{})
	var seen atomic.Int64
	h := newHouse(t, func(c *partman.Config) {
		c.Guard = func(ctx context.Context, tx pgx.Tx, r partman.Retiring) error {
			var n int64
			err := tx.QueryRow(ctx, "select count(*) from telemetry where last_modified >= $1 and last_modified < $2", r.From, r.To).Scan(&n)
			if err != nil {
				return err
			}
			if seen.Swap(n) != 0 {
				return nil
			}
			inGuard <- struct{}{}
			<-goOn
			return &partman.Blocked{Reason: "unprocessed"}
		}
	}, live(), archive())
	h.oldDay(8, 10)
	h.once(partman.CreateLoop)
	done := make(chan partman.Result)
	go func() {
		r, err := h.m.RunOnce(h.ctx, partman.RetireLoop)
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	<-inGuard
	h.exec("insert into telemetry default values") // today's: does not wait
	const late = "insert into telemetry (last_modified) values (date_trunc('day', now(), 'UTC') - interval '8 days')"
	_, err := h.pool.Exec(h.ctx, "set lock_timeout = '100ms'; "+late+"; reset lock_timeout")
	if code := sqlState(err); code != "55P03" {
		t.Errorf("a late row was not held up by the guard's lock: %v", err)
	}
	written := make(chan error)
	go func() {
		_, err := h.connect("late", nil).Exec(h.ctx, late)
		written <- err
	}()
	close(goOn)
	if r := <-done; len(r.Refused) != 1 {
		t.Errorf("first round refused %+v", r.Refused)
	}
	if err := <-written; err != nil {
		t.Errorf("late row: %v", err)
	}
	if r := h.once(partman.RetireLoop); len(r.Done) != 1 {
		t.Errorf("second round did %s, refused %+v", kinds(r), r.Refused)
	}
	if seen.Load() != 11 {
		t.Errorf("the last guard saw %d rows, want 11", seen.Load())
	}
	if n := h.number("select count(*) from telemetry_archive"); n != 11 {
		t.Errorf("%d rows in the archive, want 11", n)
	}
}

// TestDropWithGrace: detached at once, dropped when the grace is over, recognised by its mark through a rename and a new
// manager; a table that only has the name stays.
func TestDropWithGrace(t *testing.T) {
	t.Parallel()
	p := dropping()
	p.Grace = 36 * time.Hour
	var ahead atomic.Int64
	h := newHouse(t, func(c *partman.Config) {
		c.Now = func(now time.Time) time.Time { return now.Add(time.Duration(ahead.Load())) }
	}, p)
	name := h.oldDay(8, 10)
	ahead.Store(0)
	h.exec("create table telemetry_p19990101 (i int)")
	if got := kinds(h.once(partman.RetireLoop)); got != "[detach]" {
		t.Fatalf("first round: %s", got)
	}
	if n := h.number("select count(*) from " + name); n != 10 {
		t.Errorf("%d rows in the detached table, want 10", n)
	}
	ahead.Store(int64(35 * time.Hour))
	if got := kinds(h.once(partman.RetireLoop)); got != "[]" {
		t.Errorf("before the grace is over: %s", got)
	}
	h.exec("alter table " + name + " rename to another_name")
	h.m, h.registry = h.manager(h.cfg)
	ahead.Store(int64(36*time.Hour + time.Minute))
	if found := h.find(partman.Leftover); len(found) != 0 {
		t.Errorf("findings %+v of a partition that was due to be dropped a minute ago", found)
	}
	ahead.Store(int64(37*time.Hour + time.Minute))
	if found := h.find(partman.Leftover); len(found) != 1 || found[0].Partition != "another_name" {
		t.Errorf("findings %+v, want the leftover", found)
	}
	if got := kinds(h.once(partman.RetireLoop)); got != "[drop]" {
		t.Errorf("after the grace: %s", got)
	}
	if n := h.number("select count(*) from pg_class where relname in ('another_name', $1)", name); n != 0 {
		t.Error("the detached table is still there")
	}
	if n := h.number("select count(*) from pg_class where relname = 'telemetry_p19990101'"); n != 1 {
		t.Error("a table that was none of ours is gone")
	}
}

// TestReattachedIsKept: a person who attaches a detached day again, mark and all, keeps it from the drop.
func TestReattachedIsKept(t *testing.T) {
	t.Parallel()
	p := dropping()
	h := newHouse(t, nil, p)
	name := h.oldDay(8, 10)
	h.once(partman.RetireLoop)
	p.Retention, p.Grace = 0, time.Microsecond
	if _, err := partman.Register(h.ctx, h.pool, "public", p); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.m.Confirm(h.ctx, "telemetry"); err != nil {
		t.Fatal(err)
	}
	from := h.today.AddDate(0, 0, -8)
	h.exec(fmt.Sprintf("alter table telemetry attach partition %s for values from ('%s') to ('%s')", name,
		from.Format(time.RFC3339), from.AddDate(0, 0, 1).Format(time.RFC3339)))
	if got := kinds(h.once(partman.RetireLoop)); got != "[]" {
		t.Errorf("the round did %s", got)
	}
	if n := h.number("select count(*) from telemetry"); n != 10 {
		t.Errorf("%d rows, want 10", n)
	}
}

// TestMaxRetire: one round takes no more than its limit, the oldest first.
func TestMaxRetire(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *partman.Config) { c.MaxRetire = 2 }, live(), archive())
	for n := 8; n < 13; n++ {
		h.oldDay(n, 1)
	}
	for _, want := range []string{"[archive archive]", "[archive archive]", "[archive]", "[]"} {
		if got := kinds(h.once(partman.RetireLoop)); got != want {
			t.Errorf("round did %s, want %s", got, want)
		}
	}
}

// TestFailedPrepare: the day stays, and creation is not affected.
func TestFailedPrepare(t *testing.T) {
	t.Parallel()
	cause := errors.New("no reconcile today")
	h := newHouse(t, func(c *partman.Config) {
		c.Prepare = func(context.Context, partman.Retiring) error { return cause }
	}, live(), archive())
	h.oldDay(8, 1)
	if _, err := h.m.RunOnce(h.ctx, partman.RetireLoop); !errors.Is(err, cause) {
		t.Errorf("retire round: %v", err)
	}
	if got := kinds(h.once(partman.CreateLoop)); got != created(10) {
		t.Errorf("create round did %s", got)
	}
	if n := h.metric("plenum_partition_retire_blocked", "reason=error", "table=telemetry"); n != 1 {
		t.Errorf("%v blocked in the metric, want 1", n)
	}
}
