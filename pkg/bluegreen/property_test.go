package bluegreen_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/bluegreen"
)

// The property test runs this binary again as a tool that kills itself at a point.
const (
	killURL   = "BLUEGREEN_KILL_URL"
	killSide  = "BLUEGREEN_KILL_SIDE"
	killPoint = "BLUEGREEN_KILL_POINT"
)

func init() {
	if os.Getenv(killURL) != "" {
		fmt.Fprintln(os.Stderr, dieAtPoint(context.Background(), os.Getenv))
		os.Exit(1)
	}
}

// dieAtPoint syncs and swaps, and returns only if it has not come to the point.
func dieAtPoint(ctx context.Context, getenv func(string) string) error {
	pool, err := pgxpool.New(ctx, getenv(killURL))
	if err != nil {
		return err
	}
	m, err := bluegreen.New(hasty(pool, named(func(point string) {
		if point == getenv(killPoint) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})))
	if err != nil {
		return err
	}
	return errors.Join(m.Sync(ctx, bluegreen.SyncOptions{}), second(m.Swap(ctx, bluegreen.Side(getenv(killSide)), bluegreen.SwapOptions{})))
}

// named tells the points under the locks of a swap from those of the same name before. What is written there of a row is one point: there are few.
func named(do func(string)) func(string) {
	locked := ""
	return func(point string) {
		switch point {
		case "passive sides locked":
			locked = ""
		case "active sides locked":
			locked = "locked: "
		}
		if locked != "" && strings.HasPrefix(point, "rows ") {
			point = "rows written"
		}
		do(locked + point)
	}
}

func second(_ bluegreen.Swapped, err error) error { return err }

// hasty is a configuration in which all there is to do is done in many steps.
func hasty(pool *pgxpool.Pool, step func(string)) bluegreen.Config {
	return bluegreen.Config{Pool: pool, Schema: "public", CopyPages: 1, Batch: 1000, Tail: 2000, Budget: hang, Step: step}
}

// scribes write the active table, and in the same transactions a mirror of it.
type scribes struct {
	*yard
	truncate atomic.Bool
	stop     chan struct{}
	done     sync.WaitGroup
}

const writers = 3

func (y *yard) scribes() *scribes {
	s := &scribes{yard: y, stop: make(chan struct{})}
	pool := y.connect("")
	for n := range writers {
		s.done.Go(func() { s.write(pool, n) })
	}
	y.Cleanup(s.end)
	return s
}

func (s *scribes) end() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	s.done.Wait()
}

// write makes one transaction after the other. Ids are a writer's own, or they would lock each other out; a truncate is of all.
func (s *scribes) write(pool *pgxpool.Pool, n int) {
	r := rand.New(rand.NewPCG(uint64(n), 7))
	next := int64(1_000_000 + n)
	for {
		select {
		case <-s.stop:
			return
		case <-s.ctx.Done():
			return
		default:
		}
		err := pgx.BeginFunc(s.ctx, pool, func(tx pgx.Tx) error { return s.transaction(tx, r, n, &next) })
		if err != nil && s.ctx.Err() == nil {
			s.Errorf("a writer saw: %v", err)
			return
		}
	}
}

// own are up to count ids of a writer, some of which are there.
func own(r *rand.Rand, n, count int, next int64) []int64 {
	ids := make([]int64, count)
	for k := range ids {
		if ids[k] = int64(n) + writers*r.Int64N(600/writers); r.IntN(2) == 0 {
			ids[k] = max(next-writers*r.Int64N(300), 1_000_000+int64(n))
		}
	}
	return ids
}

func (s *scribes) transaction(tx pgx.Tx, r *rand.Rand, n int, next *int64) error {
	both := func(sql string, args ...any) error {
		for _, table := range []string{"orders", "mirror"} {
			if _, err := tx.Exec(s.ctx, strings.ReplaceAll(sql, "TABLE", table), args...); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	}
	if r.IntN(2500) == 0 && s.truncate.Load() {
		return both("truncate TABLE")
	}
	for range 1 + r.IntN(3) {
		*next += writers
		ids := own(r, n, 50, *next)
		var err error
		switch r.IntN(8) {
		case 0, 1, 2:
			err = both("insert into TABLE (id, at, state) values ($1, date_trunc('day', now(), 'UTC') - $2 * interval '1 hour', 'x')", *next, r.IntN(200))
		case 3:
			err = both("update TABLE set processed = not processed where id = any ($1)", ids)
		case 4:
			move := "update TABLE set at = date_trunc('day', now(), 'UTC') - $2 * interval '1 hour' where id = any ($1)"
			if r.IntN(2) == 0 {
				move = "merge into TABLE t using (select distinct unnest($1::bigint[])) s (id) on t.id = s.id when matched then update set at = date_trunc('day', now(), 'UTC') - $2 * interval '1 hour'"
			}
			err = both(move, ids[:5], r.IntN(200))
		case 5:
			err = both("update TABLE set id = $2 where id = $1", ids[0], *next)
		case 6:
			err = both("delete from TABLE where id = any ($1)", ids[:3])
		case 7:
			err = s.direct(tx, ids)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// direct writes the leaf of today, where the active table has one.
func (s *scribes) direct(tx pgx.Tx, ids []int64) error {
	var leaf string
	if _, err := tx.Exec(s.ctx, "lock table orders in row exclusive mode"); err != nil {
		return err
	}
	err := tx.QueryRow(s.ctx, `select coalesce((select relid::regclass::text from pg_partition_tree('orders') where isleaf
		and relid::text ~ to_char(date_trunc('day', now(), 'UTC') at time zone 'UTC', 'YYYYMMDD')), 'orders')`).Scan(&leaf)
	if err != nil {
		return err
	}
	const sql = "update %s set state = state || 'y' where id = any ($1) and at >= date_trunc('day', now(), 'UTC')"
	if _, err := tx.Exec(s.ctx, fmt.Sprintf(sql, leaf), ids); err != nil {
		return err
	}
	_, err = tx.Exec(s.ctx, fmt.Sprintf(sql, "mirror"), ids)
	return err
}

// mirrored compares the active table with the mirror, while the writers wait.
func (s *scribes) mirrored(after string) {
	s.Helper()
	err := pgx.BeginFunc(s.ctx, s.pool, func(tx pgx.Tx) error {
		var rows int
		if _, err := tx.Exec(s.ctx, "lock table orders in share mode; lock table mirror in share mode"); err != nil {
			return err
		}
		if err := tx.QueryRow(s.ctx, "select "+strings.NewReplacer("%[1]s", "orders", "%[2]s", "mirror").Replace(apart)).Scan(&rows); err != nil {
			return err
		}
		if rows != 0 {
			s.Errorf("after %q: %d rows are in one of the active table and its mirror only", after, rows)
		}
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
}

// killAt has another process sync and swap until it dies at the point, or has not met it.
func (s *scribes) killAt(point string, to bluegreen.Side) (died bool) {
	s.Helper()
	cmd := exec.CommandContext(s.ctx, os.Args[0])
	cmd.Env = append(os.Environ(), killURL+"="+s.url, killSide+"="+string(to), killPoint+"="+point)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		s.Fatalf("at %q: %v\n%s", point, err, out)
	}
	devtest.Eventually(s, func() error { // the server has to see that the connection is gone
		if s.text("select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())") != "0" {
			return fmt.Errorf("after %q the lock of the dead process is still held", point)
		}
		return nil
	})
	died = exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	if text := strings.TrimSpace(string(out)); !died && text != "<nil>" && !strings.Contains(text, "grows as fast") { // writers may be too fast for a swap
		s.Errorf("the process that was to die at %q: %s", point, text)
	}
	return died
}

// swapped goes on where the dead process was.
func (s *scribes) swapped(after string, to bluegreen.Side) {
	s.Helper()
	devtest.Eventually(s, func() error {
		err := s.m.Sync(s.ctx, bluegreen.SyncOptions{})
		if err == nil {
			_, err = s.m.Swap(s.ctx, to, bluegreen.SwapOptions{})
		}
		if err != nil {
			return fmt.Errorf("after %q: %w", after, err)
		}
		return nil
	})
}

// TestKilledAtEachPoint swaps back and forth while writers write, and kills the tool at each point once, at the full size. All is in the active
// table, whichever that is, and nobody has seen an error.
func TestKilledAtEachPoint(t *testing.T) {
	t.Parallel()
	y := newYard(t, `
		create table orders (id bigint primary key, at timestamptz not null, state text not null, processed boolean not null default false);
		insert into orders select i, date_trunc('day', now(), 'UTC') - (i % 200) * interval '1 hour', 'new' from generate_series(1, 600) i;
		create table mirror (like orders including all);
		insert into mirror select * from orders`)
	y.init("orders")
	seen := make(map[string]int)
	pool := y.connect("")
	m, err := bluegreen.New(hasty(pool, named(func(point string) { seen[point]++ })))
	if err != nil {
		t.Fatal(err)
	}
	y.m = m
	s := y.scribes()
	died := make(map[string]bool)
	to := bluegreen.Green
	for _, point := range []string{"copied a batch", "batch written"} { // only before the first swap is there something to copy
		died[point] = s.killAt(point, to)
	}
	s.swapped("the copy", to)
	s.mirrored("the copy")
	s.truncate.Store(true) // before, it could leave too little to copy
	points := slices.Sorted(maps.Keys(seen))
	if os.Getenv("PLENUM_PROVE") == "" { // any half of them
		rand.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		points = points[:len(points)/2]
	}
	for _, name := range points {
		for try := 0; try < 5 && !died[name]; try++ { // some come only if somebody has written at the right moment
			to = map[bluegreen.Side]bluegreen.Side{bluegreen.Blue: bluegreen.Green, bluegreen.Green: bluegreen.Blue}[to]
			died[name] = s.killAt(name, to)
			s.swapped(name, to)
			s.mirrored(name)
		}
	}
	s.end()
	for point, d := range died {
		truncated := point == "passive emptied" || point == "copy begun again"
		if !d && !truncated { // nobody may have done so
			t.Errorf("nothing died at %q", point)
		}
	}
	s.sync()
	s.mirrored("the end")
	if list := s.verify(); len(list) > 0 {
		t.Errorf("differences at the end: %v", list)
	}
	s.alike("orders", map[bluegreen.Side]string{bluegreen.Blue: "orders_new", bluegreen.Green: "orders_old"}[to])
	t.Logf("%d of %d points, %s rows", len(died), len(seen), s.text("select count(*) from orders"))
}
