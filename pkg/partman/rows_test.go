package partman_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

// TestRowsAreCounted: rows that vanish on the way to the archive are an error, once, and a finding until the day is
// released; and nothing takes the day out of the archive meanwhile.
func TestRowsAreCounted(t *testing.T) {
	t.Parallel()
	var later atomic.Int64
	h := newHouse(t, func(c *partman.Config) {
		c.Now = func(now time.Time) time.Time { return now.Add(time.Duration(later.Load())) }
	}, live(), archive())
	name := h.oldDay(8, 20)
	h.exec(strings.ReplaceAll(`create function lose() returns event_trigger language plpgsql as $$ begin
		if (select inhparent from pg_inherits where inhrelid = 'LEAF'::regclass) = 'telemetry_archive'::regclass and (select count(*) from LEAF) = 20 then
			delete from LEAF where id = (select min(id) from LEAF);
		end if; end $$`, "LEAF", name))
	h.exec("create event trigger lose on ddl_command_end when tag in ('ALTER TABLE') execute function lose()")
	const want = `20 rows in "telemetry" before the move, 19 in "telemetry_archive" after it`
	if _, err := h.m.RunOnce(h.ctx, partman.RetireLoop); err == nil || !contains(err.Error(), name) || !contains(err.Error(), want) {
		t.Fatalf("the round: %v", err)
	}
	later.Store(int64(100 * 24 * time.Hour))
	h.acceptClock()
	for range 2 {
		if got := kinds(h.once(partman.RetireLoop)); got != "[]" {
			t.Errorf("a later round did %s", got)
		}
		found := h.find(partman.RowsDiffer)
		if len(found) != 1 || found[0].Table != "telemetry" || found[0].Partition != name || !contains(found[0].Detail, want) ||
			!contains(found[0].Detail, "partitions release "+h.today.AddDate(0, 0, -8).Format(time.DateOnly)) {
			t.Errorf("findings %v", found)
		}
	}
	h.exec("drop event trigger lose")
	h.release("", 8, 2)
	if found := h.find(partman.RowsDiffer); len(found) != 0 {
		t.Errorf("after the release: %v", found)
	}
	if got := kinds(h.once(partman.RetireLoop)); got != "[detach]" {
		t.Errorf("after the release the round did %s", got)
	}
}

// TestReaderNeverSeesFewer: while day after day moves and rows come in, no reader of both tables ever sees fewer than it,
// or the start, has seen.
func TestReaderNeverSeesFewer(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *partman.Config) { c.Tries = 10_000 }, live(), archive())
	n := sized(8, 40) // all within the archive's own retention
	for i := range n {
		h.oldDay(8+i, 50)
	}
	h.once(partman.CreateLoop)
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	var wg sync.WaitGroup
	var looks, written atomic.Int64
	pool := h.connect("reader", nil)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeSimpleProtocol} {
		wg.Go(func() {
			least := int64(50 * n)
			for ctx.Err() == nil {
				var rows int64
				err := pool.QueryRow(ctx, "select count(*) from telemetry_all", mode).Scan(&rows)
				if ctx.Err() != nil {
					return
				}
				if err != nil || rows < least {
					t.Errorf("a reader saw %d rows after %d: %v", rows, least, err)
					return
				}
				least = rows
				looks.Add(1)
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			if _, err := pool.Exec(ctx, "insert into telemetry (seq) values ($1)", written.Load()); err != nil {
				if ctx.Err() == nil {
					t.Errorf("a writer: %v", err)
				}
				return
			}
			written.Add(1)
		}
	})
	moved := 0
	for moved < n {
		r := h.once(partman.RetireLoop)
		if len(r.Done) == 0 {
			t.Fatalf("%d days of %d have moved, and no more do: %+v", moved, n, r.Refused)
		}
		moved += len(r.Done)
	}
	cancel()
	wg.Wait()
	if looks.Load() < int64(2*n) || written.Load() == 0 {
		t.Errorf("%d looks at %d moves, %d rows written", looks.Load(), n, written.Load())
	}
	if got := h.number("select count(*) from telemetry_archive"); got != int64(50*n) {
		t.Errorf("%d rows in the archive, want %d", got, 50*n)
	}
}

// TestLimitOfBytes: a round takes the oldest days that fit, the next one the next; a day that is larger alone stays, and a
// finding names the setting.
func TestLimitOfBytes(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	large, second, first := h.oldDay(8, 5000), h.oldDay(9, 500), h.oldDay(10, 500)
	size := func(name string) int64 { return h.number("select pg_total_relation_size($1::regclass)", name) }
	limit := size(first) + size(second) - 1
	h.cfg.MaxRetireBytes = limit
	h.m, h.registry = h.manager(h.cfg)
	for _, name := range []string{first, second, ""} {
		r := h.once(partman.RetireLoop)
		if name == "" && len(r.Done) == 0 {
			continue
		}
		if len(r.Done) != 1 || r.Done[0].Partition != name {
			t.Errorf("the round did %+v, want %q", r.Done, name)
		}
	}
	found := h.find(partman.PastRetention)
	if len(found) != 1 || found[0].Partition != large || !contains(found[0].Detail, "more than one round may take, max_retire_bytes ") {
		t.Errorf("findings %v, want the large day", found)
	}
	if n := h.metric("plenum_partition_retire_blocked", "reason=size", "table=telemetry"); n != 1 {
		t.Errorf("%v too large in the metric, want 1", n)
	}
	h.cfg.MaxRetireBytes = size(large)
	h.m, h.registry = h.manager(h.cfg)
	if got := kinds(h.once(partman.RetireLoop)); got != "[archive]" {
		t.Errorf("with a limit that it just meets, the round did %s", got)
	}
}
