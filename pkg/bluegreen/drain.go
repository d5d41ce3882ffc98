package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// errOutrun says that the log grows as fast as it is drained.
var errOutrun = errors.New("the log grows as fast as it is drained")

// drain drains until a batch has found no more than short entries, which is what then may wait again, and returns how many it found. It calls
// drained after each. It is errRewritten where the copy has to begin again, which it has prepared, and errOutrun after so many entries.
func (m *Migration) drain(ctx context.Context, conn *pgx.Conn, p Pair, short, entries int, drained func() error) (taken int, err error) {
	limit := m.cfg.Batch
	for done := 0; done <= entries; {
		err := m.snapshot(ctx, conn, func(tx pgx.Tx) (err error) {
			taken, err = m.drainBatch(ctx, tx, p, limit, limit)
			return err
		})
		switch {
		case errors.Is(err, errRewritten):
			if _, err := m.restart(ctx, conn, p); err != nil {
				return 0, err
			}
			return 0, errRewritten
		case refused(err) && limit > 1:
			limit = max(1, limit/8)
			continue
		case refused(err):
			if err := m.park(ctx, conn, p, err); err != nil {
				return 0, err
			}
			taken = limit
		case err != nil:
			return 0, fmt.Errorf("drain the log of table %s: %w", p.table(p.Active), err)
		}
		done += taken
		m.cfg.Step("drained a batch")
		if done/vacuumAfter > (done-taken)/vacuumAfter {
			if err := m.vacuumLog(ctx, conn, p); err != nil {
				return 0, err
			}
		}
		if err := drained(); err != nil {
			return 0, err
		}
		if taken < limit && taken <= short {
			return taken, nil
		}
		limit = min(2*limit, m.cfg.Batch)
	}
	return 0, fmt.Errorf("table %s: %w: it is not down to %d after %d entries", p.table(p.Active), errOutrun, short, entries)
}

// vacuumAfter is how many entries are drained until those that are dead take longer to pass over than to vacuum. Autovacuum comes once a minute.
const vacuumAfter = 50_000

// vacuumLog is no command of a transaction. It leaves the file as long as it is: to cut it off holds writers up.
func (m *Migration) vacuumLog(ctx context.Context, conn *pgx.Conn, p Pair) error {
	_, err := conn.Exec(ctx, "vacuum (skip_locked, truncate off) "+m.logTable(p))
	if err != nil && sqlState(err) != "57014" { // the role's statement_timeout
		return fmt.Errorf("vacuum the log of table %s: %w", p.table(p.Active), err)
	}
	return nil
}

// Stuck is an id whose rows the passive side does not take.
type Stuck struct {
	ID  string `json:"id"`
	Why string `json:"why"`
}

func (s Stuck) String() string { return fmt.Sprintf("id %s: %s", s.ID, s.Why) }

// StuckError says that a swap would lose rows, which the passive side does not take.
type StuckError struct {
	Table   string  `json:"table"` // quoted
	Passive string  `json:"passive"`
	Stuck   []Stuck `json:"rows"` // the first of them
	// Aside are statements that move the rows of all these ids from the active side to a table of their own, where nothing
	// refuses them: what an operator does who has no time to correct them.
	Aside []string `json:"aside"`
}

func (e *StuckError) Error() string {
	return fmt.Sprintf("table %s refuses rows of %s, the first %d: %v; correct these rows, or what refuses them; or keep them apart and put them right later: %s",
		e.Passive, e.Table, len(e.Stuck), e.Stuck, strings.Join(e.Aside, "; "))
}

func (m *Migration) aside(p Pair) []string {
	table := pgx.Identifier{p.Schema, cutName(p.Name, "_aside")}.Sanitize()
	from := fmt.Sprintf("from %s where %s in (select id::%s from %s where pair = %d)", p.table(p.Active), p.id(), p.IDType, m.own("bluegreen_stuck"), p.N)
	return []string{
		fmt.Sprintf("begin; lock table %s in share row exclusive mode", p.table(p.Active)),
		fmt.Sprintf("create table if not exists %s as table %s with no data", table, p.table(p.Active)),
		fmt.Sprintf("insert into %s select * %s", table, from),
		"delete " + from,
		"commit",
	}
}

const parkSQL = `
with taken as (delete from %[1]s where seq = (select min(seq) from %[1]s where key is not null) returning id::text as id, key::text as key),
     parked as (insert into %[2]s (pair, id, key, why) select $1, id, key, $2 from taken on conflict (pair, id, key) do update set why = excluded.why)
select id, key from taken`

// park moves the first entry of the log to bluegreen_stuck. The passive's rows of it are of no use any more, and may be what is
// in the way of another's.
func (m *Migration) park(ctx context.Context, conn *pgx.Conn, p Pair, why error) error {
	err := m.snapshot(ctx, conn, func(tx pgx.Tx) error {
		var id, key string
		if err := tx.QueryRow(ctx, fmt.Sprintf(parkSQL, m.logTable(p), m.own("bluegreen_stuck")), p.N, why.Error()).Scan(&id, &key); err != nil {
			return err
		}
		low, high, err := p.span(ctx, tx)
		if err != nil {
			return err
		}
		err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return m.remove(ctx, tx, p, entries{[]string{id}, []*string{&key}}, low, high) })
		if refused(err) { // another table refers to them
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("set aside the id that table %s refuses: %w", p.table(p.Active.other()), err)
	}
	return nil
}

// stuck lists the first ids that the passive side does not take.
func (m *Migration) stuck(ctx context.Context, db queryer, p Pair) ([]Stuck, error) {
	rows, err := db.Query(ctx, fmt.Sprintf("select id, min(why) from %s where pair = $1 group by id order by min(at), id limit 10", m.own("bluegreen_stuck")), p.N)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Stuck])
}

// unpark gives the ids that were refused another chance.
func (m *Migration) unpark(ctx context.Context, conn *pgx.Conn, p Pair) error {
	sql := fmt.Sprintf("with s as (delete from %s where pair = $1 returning id, key) insert into %s (id, key) select id::%s, key::%s from s", m.own("bluegreen_stuck"), m.logTable(p), p.IDType, p.KeyType)
	err := m.locking(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql, p.N)
		return err
	})
	if err != nil {
		return fmt.Errorf("take up the ids that table %s refused: %w", p.table(p.Active.other()), err)
	}
	return nil
}

// entries is about how many the log has: entries of transactions that were rolled back are counted, too.
func (m *Migration) entries(ctx context.Context, db queryer, p Pair) (n int64, err error) {
	err = db.QueryRow(ctx, fmt.Sprintf("select coalesce(max(seq) - min(seq) + 1, 0) from %s", m.logTable(p))).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("look at the log of table %s: %w", p.table(p.Active), err)
	}
	return n, nil
}

// settle drains one pair until its log is short, also the ids that were refused when they came alone.
func (s *syncing) settle(ctx context.Context, conn *pgx.Conn, p Pair) error {
	const chances = 2
	resting := s.o.Follow && time.Now().Before(s.rest[p.N])
	for range chances {
		if !resting {
			if err := s.m.unpark(ctx, conn, p); err != nil {
				return err
			}
		}
		waiting, err := s.m.entries(ctx, conn, p)
		if err != nil {
			return err
		}
		_, err = s.m.drain(ctx, conn, p, s.m.cfg.Tail, 50*s.m.cfg.Batch+4*int(waiting), func() error { return s.report(ctx, conn, p, "") })
		if err != nil {
			return err
		}
		refused, err := s.m.refusedIDs(ctx, conn, p)
		if err != nil || refused == 0 || resting {
			return err
		}
	}
	s.rest[p.N] = time.Now().Add(refusedPause)
	return nil
}

// refusedIDs counts the ids that the passive side does not take.
func (m *Migration) refusedIDs(ctx context.Context, db queryer, p Pair) (n int64, err error) {
	err = db.QueryRow(ctx, fmt.Sprintf("select count(distinct id) from %s where pair = $1", m.own("bluegreen_stuck")), p.N).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("look for what table %s refuses: %w", p.table(p.Active.other()), err)
	}
	return n, nil
}

// drainRate is how many entries are drained in a second, on modest hardware: for estimates.
const drainRate = 20000

func drainTime(entries int64) time.Duration {
	return time.Duration(entries) * time.Second / drainRate
}
