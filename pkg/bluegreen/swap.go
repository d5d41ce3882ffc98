package bluegreen

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"
)

// SwapOptions say what a swap may leave out.
type SwapOptions struct {
	// SkipVerify swaps without a comparison of both sides, which reads all of both and may take long, of their columns, rights and
	// triggers, and, to green, of their plans.
	SkipVerify bool
}

// Swapped is what a swap did.
type Swapped struct {
	Active  Side          `json:"active"`
	Already bool          `json:"already"`  // it was the active side, and nothing was changed
	Tries   int           `json:"tries"`    // to get the locks
	Held    time.Duration `json:"held"`     // for which others were held up by the try that succeeded, in ns
	HeldAll time.Duration `json:"held_all"` // by all tries
	Drained int           `json:"drained"`  // entries of the log, under the locks
}

// DifferentError says that both sides differ in what is in no log.
type DifferentError struct {
	To          Side
	Differences []Difference
}

func (e *DifferentError) Error() string {
	var all []string
	for _, d := range e.Differences[:min(3, len(e.Differences))] {
		all = append(all, d.String())
	}
	text := fmt.Sprintf("the sides differ on %d days: %s", len(e.Differences), strings.Join(all, "; "))
	if e.To == Blue {
		text += "; a rollback that cannot wait for the reason is one with --no-verify: rows that only green has are then missing until they are put in by hand"
	}
	return text
}

// UnacceptedError says that something was found that nobody has accepted.
type UnacceptedError struct{ Findings []Finding }

func (e *UnacceptedError) Error() string {
	var all []string
	for _, f := range e.Findings {
		all = append(all, fmt.Sprintf("%s (%s; %s)", f.Name, f.What, f.Do))
	}
	return "found and not accepted: " + strings.Join(all, "; ")
}

// Swap makes a side the active one of all tables, in one transaction: a swap where it is green, a rollback where it is blue. Where
// it is so already, it says so.
func (m *Migration) Swap(ctx context.Context, to Side, o SwapOptions) (s Swapped, err error) {
	if to != Blue && to != Green {
		return s, fmt.Errorf("side %q: blue or green is needed", to)
	}
	if !o.SkipVerify { // these look only, and take long: before the lock
		if s, err = m.already(ctx, to); err != nil || s.Already {
			return s, err
		}
		if err := m.undrifted(ctx); err != nil {
			return s, err
		}
		if to == Green {
			if err := m.plansAllow(ctx); err != nil {
				return s, err
			}
		}
		if err := m.verified(ctx, to); err != nil {
			return s, err
		}
	}
	err = m.exclusive(ctx, func(conn *pgx.Conn) (err error) {
		s, err = m.swap(ctx, conn, to)
		return err
	})
	return s, err
}

func (m *Migration) already(ctx context.Context, to Side) (Swapped, error) {
	pairs, err := capturedPairs(ctx, m.cfg.Pool, m.cfg.Schema)
	if err != nil {
		return Swapped{}, err
	}
	return Swapped{Active: pairs[0].Active, Already: pairs[0].Active == to}, nil
}

func (m *Migration) verified(ctx context.Context, to Side) error {
	differences, err := m.Verify(ctx)
	if err == nil && len(differences) > 0 {
		err = &DifferentError{to, differences}
	}
	return err
}

// swap is Swap for who has the migration's lock.
func (m *Migration) swap(ctx context.Context, conn *pgx.Conn, to Side) (Swapped, error) {
	pairs, err := capturedPairs(ctx, conn, m.cfg.Schema)
	if err != nil {
		return Swapped{}, err
	}
	if pairs[0].Active == to {
		return Swapped{Active: to, Already: true}, nil
	}
	if pairs, err = m.prepare(ctx, conn); err != nil {
		return Swapped{}, err
	}
	if err := m.ready(ctx, conn, pairs, to); err != nil {
		return Swapped{}, err
	}
	for n := range pairs {
		pairs[n].strict = to == Green
	}
	if err := m.shorten(ctx, conn, pairs); err != nil {
		return Swapped{}, err
	}
	s, err := m.tries(ctx, conn, pairs)
	if err != nil {
		return s, fmt.Errorf("swap to %s: %w", to, err)
	}
	m.cfg.Step("swapped")
	s.Active = to
	m.cfg.Log.Info("blue/green: swapped", zap.String("active", string(to)), zap.Duration("held", s.Held), zap.Int("tries", s.Tries), zap.Int("drained", s.Drained))
	return s, nil
}

// cascadeSQL finds foreign keys by which a drain's deletes in the table would reach others.
const cascadeSQL = `
select conname || ' of ' || conrelid::regclass from pg_constraint
 where confrelid = $1 and contype = 'f' and confdeltype in ('c', 'n', 'd') and conparentid = 0 order by 1 limit 1`

// ready refuses what a swap cannot be made of.
func (m *Migration) ready(ctx context.Context, conn *pgx.Conn, pairs []Pair, to Side) error {
	for _, p := range pairs {
		if !p.Cursor.Done {
			return fmt.Errorf("table %s is not copied completely: run sync first", p.table(p.Active))
		}
		var key string
		err := conn.QueryRow(ctx, cascadeSQL, p.oid(p.Active)).Scan(&key)
		if err == nil {
			return fmt.Errorf("foreign key %s refers to table %s and would delete or change its own rows when that one is brought up to date: drop it first", key, p.table(p.Active))
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("look for foreign keys to table %s: %w", p.table(p.Active), err)
		}
	}
	if to == Blue {
		return nil
	}
	if err := m.publishable(ctx, conn, pairs); err != nil {
		return err
	}
	for _, p := range pairs {
		if fault, err := m.kept(ctx, conn, p); err != nil || fault != "" {
			return cmp.Or(err, errors.New(fault))
		}
	}
	found, err := m.Findings(ctx)
	if err == nil && len(Unaccepted(found)) > 0 {
		err = &UnacceptedError{Unaccepted(found)}
	}
	return err
}

// publishedSQL finds publications that would not work with green, and says what to do. One that was made after init finds green without
// the replica identity that init gives it. Full replica identity is all columns, since
// PostgreSQL 18 the generated ones among them.
const publishedSQL = `
select case when not b.pubviaroot
            then format('would publish the partitions under their own names: alter publication %1$I set (publish_via_partition_root = true)', b.pubname)
            when k.lacking
            then format('would have updates and deletes of the new table refused, which has no replica identity: '
                   'do $$ declare t regclass; begin for t in select relid from pg_partition_tree(%1$L) loop execute format(''alter table %%s replica identity full'', t); end loop; end $$', $2::oid::regclass)
            when r.prattrs is null
            then format('does not publish generated columns, without which updates of a table that has no primary key are refused: alter publication %1$I set (publish_generated_columns = stored)', b.pubname)
            else format('has a column list, with which updates of a table without a primary key are refused: alter publication %1$I drop table %2$s, and add table %2$s without the list', b.pubname, $3::text)
       end, quote_ident(b.pubname)
  from pg_publication_rel r join pg_publication b on b.oid = r.prpubid
 cross join lateral (select (b.pubupdate or b.pubdelete) and exists (select from pg_partition_tree($2::oid) l join pg_class c on c.oid = l.relid
         where c.relreplident = 'd' and not exists (select from pg_index x where x.indrelid = c.oid and x.indisprimary)) as lacking) k
 where r.prrelid = $1 and (not b.pubviaroot or k.lacking or (select relreplident = 'f' from pg_class where oid = $2)
       and (r.prattrs is not null or to_jsonb(b) ->> 'pubgencols' = 'n' and exists (select from pg_attribute where attrelid = $2 and attgenerated <> '')))
 order by b.pubname limit 1`

// publishable refuses where subscribers would hear of partitions, which they do not know, or the application's updates would fail.
func (m *Migration) publishable(ctx context.Context, conn *pgx.Conn, pairs []Pair) error {
	for _, p := range pairs {
		var why, publication string
		err := conn.QueryRow(ctx, publishedSQL, p.Blue, p.Green, p.table(Blue)).Scan(&why, &publication)
		if err == nil {
			return fmt.Errorf("table %s: publication %s %s", p.table(Blue), publication, why)
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("look at the publications of table %s: %w", p.table(Blue), err)
		}
	}
	return nil
}

// turns bounds how often a swap drains all logs before it finds that they do not get short.
const turns = 100

// shorten drains the logs as far as can be without a lock: all of them in turn, since each grows while the others are drained, until all are
// short and a turn finds about as much as the one before. A table that was truncated is copied again, which is short work.
func (m *Migration) shorten(ctx context.Context, conn *pgx.Conn, pairs []Pair) error {
	s := m.syncing(SyncOptions{})
	for _, p := range pairs {
		if err := s.pair(ctx, conn, p); err != nil {
			return err
		}
		if err := m.vacuumLog(ctx, conn, p); err != nil {
			return err
		}
	}
	before := math.MaxInt
	for turn := 1; ; turn++ {
		all, most := 0, 0
		for _, p := range pairs {
			taken, err := m.drain(ctx, conn, p, m.cfg.Batch, 50*m.cfg.Batch, func() error { return nil })
			if errors.Is(err, errRewritten) {
				p.Cursor = Cursor{}
				err = s.pair(ctx, conn, p)
			}
			if err != nil {
				return err
			}
			all, most = all+taken, max(most, taken)
		}
		if most <= m.cfg.Tail && all >= before/2 {
			break
		}
		if turn == turns {
			return fmt.Errorf("%w: one of %d tables has %d new entries each time that all are drained", errOutrun, len(pairs), most)
		}
		before = all
	}
	return m.unstuck(ctx, conn, pairs)
}

// unstuck refuses a swap that would lose rows.
func (m *Migration) unstuck(ctx context.Context, conn *pgx.Conn, pairs []Pair) error {
	for _, p := range pairs {
		stuck, err := m.stuck(ctx, conn, p)
		if err != nil {
			return fmt.Errorf("look for what table %s refuses: %w", p.table(p.Active.other()), err)
		}
		if len(stuck) > 0 {
			return &StuckError{Table: p.table(p.Active), Passive: p.table(p.Active.other()), Stuck: stuck, Aside: m.aside(p)}
		}
	}
	return nil
}
