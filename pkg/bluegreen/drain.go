package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

const takeSQL = `
with taken as (
	delete from %[1]s where seq in (select seq from %[1]s order by seq limit $1) returning id::text as id
)
select count(*), coalesce(bool_or(id is null), false), coalesce(array_agg(distinct id) filter (where id is not null), '{}') from taken`

// drainBatch takes entries off the log and makes the passive side's rows of their ids what the active side has. The caller's
// transaction has one snapshot, or holds locks on both sides. It is errRewritten where the active side was truncated.
func (m *Migration) drainBatch(ctx context.Context, tx pgx.Tx, p Pair, limit int) (taken int, err error) {
	// The planner takes each partition to have all these ids, and would rather read all of it, which takes several times as long where it is large.
	if _, err := tx.Exec(ctx, "set local enable_seqscan = off"); err != nil {
		return 0, err
	}
	var truncated bool
	var ids []string
	if err := tx.QueryRow(ctx, fmt.Sprintf(takeSQL, m.logTable(p)), limit).Scan(&taken, &truncated, &ids); err != nil {
		return 0, fmt.Errorf("take entries off the log: %w", err)
	}
	m.cfg.Step("entries taken")
	if truncated {
		return 0, errRewritten
	}
	if len(ids) == 0 {
		return taken, nil
	}
	if p.strict {
		if err := m.strays(ctx, tx, p, ids); err != nil {
			return 0, err
		}
	}
	if err := m.removeIDs(ctx, tx, p, ids); err != nil {
		return 0, err
	}
	m.cfg.Step("rows deleted")
	sql := fmt.Sprintf("insert into %s (%s) overriding system value select %s from %s where %s = any ($1::text[]::%s[]) and %s",
		p.table(p.Active.other()), p.columns(), p.columns(), p.table(p.Active), p.id(), p.IDType, p.within(Blue, 2))
	low, high, err := p.span(ctx, tx)
	if err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, sql, ids, low, high); err != nil {
		return 0, fmt.Errorf("write rows of %d ids to table %s: %w", len(ids), p.table(p.Active.other()), err)
	}
	m.cfg.Step("rows inserted")
	return taken, nil
}

// straysSQL names one row of blue that is out of the scope, where that was not accepted.
const straysSQL = `
select id, finding from (
	select %[1]s::text as id, case when %[2]s is null then 'null-key' when not isfinite(%[2]s) then 'infinite-key' when %[2]s < $2::timestamptz then 'old-rows' else 'future-rows' end || ':' || $4 as finding
	  from %[3]s where %[1]s = any ($1::text[]::%[4]s[]) and (%[2]s >= $2::timestamptz and %[2]s < $3::timestamptz) is not true
) s where not exists (select from %[5]s where n = $5 and finding = any (accepted)) limit 1`

// strays refuses rows that have left the scope, or came outside of it, after the findings of a swap were looked at: they would be
// missing from the new table, and go with the old one.
func (m *Migration) strays(ctx context.Context, tx pgx.Tx, p Pair, ids []string) error {
	sql := fmt.Sprintf(straysSQL, p.id(), pgx.Identifier{p.Key}.Sanitize(), p.table(Blue), p.IDType, m.own("bluegreen_pair"))
	var id, finding string
	err := tx.QueryRow(ctx, sql, ids, p.Low, p.High, partman.FormatName(p.Schema, p.Name), p.N).Scan(&id, &finding)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for rows of %s that no partition takes: %w", p.table(Blue), err)
	}
	return fmt.Errorf("row %s of table %s was just written with a key that no partition takes: correct it, or accept %s with init", id, p.table(Blue), finding)
}

// leavesSQL is the span of green's partitions, wherever they are: what they can have, they may have given to blue.
const leavesSQL = `
with leaf as (select pg_get_expr(c.relpartbound, c.oid) as bound from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = $1)
select least($2::timestamptz, min((regexp_match(bound, 'FROM \(''([^'']+)''\)'))[1]::timestamptz)),
       greatest($3::timestamptz, max((regexp_match(bound, 'TO \(''([^'']+)''\)'))[1]::timestamptz))
  from leaf`

// span is what of both sides is kept the same. With green active a partition that was made since the scope was widened is of it as well; rows of
// a DEFAULT partition are not.
func (p Pair) span(ctx context.Context, tx pgx.Tx) (low, high time.Time, err error) {
	if p.Active == Blue {
		return p.Low, p.High, nil
	}
	if err := tx.QueryRow(ctx, leavesSQL, p.Green, p.Low, p.High).Scan(&low, &high); err != nil {
		return low, high, fmt.Errorf("look at the partitions of table %s: %w", p.table(Green), err)
	}
	return low, high, nil
}

func (m *Migration) removeIDs(ctx context.Context, tx pgx.Tx, p Pair, ids []string) error {
	passive := p.Active.other()
	low, high, err := p.span(ctx, tx)
	if err != nil {
		return err
	}
	sql := fmt.Sprintf("delete from %s where %s = any ($1::text[]::%s[]) and %s", p.table(passive), p.id(), p.IDType, p.within(passive, 2))
	if _, err := tx.Exec(ctx, sql, ids, low, high); err != nil {
		return fmt.Errorf("delete rows of %d ids from table %s: %w", len(ids), p.table(passive), err)
	}
	return nil
}

// errOutrun says that the log grows as fast as it is drained.
var errOutrun = errors.New("the log grows as fast as it is drained")

// drain drains until a batch has found no more than short entries, which is what then may wait again, and calls drained after each.
// It is errRewritten where the copy has to begin again, which it has prepared, and errOutrun after so many entries.
func (m *Migration) drain(ctx context.Context, conn *pgx.Conn, p Pair, short, entries int, drained func() error) error {
	limit := m.cfg.Batch
	for done := 0; done <= entries; {
		var taken int
		err := m.snapshot(ctx, conn, func(tx pgx.Tx) (err error) {
			taken, err = m.drainBatch(ctx, tx, p, limit)
			return err
		})
		switch {
		case errors.Is(err, errRewritten):
			if _, err := m.restart(ctx, conn, p); err != nil {
				return err
			}
			return errRewritten
		case refused(err) && limit > 1:
			limit = max(1, limit/8)
			continue
		case refused(err):
			if err := m.park(ctx, conn, p, err); err != nil {
				return err
			}
			taken = limit
		case err != nil:
			return fmt.Errorf("drain the log of table %s: %w", p.table(p.Active), err)
		}
		done += taken
		m.cfg.Step("drained a batch")
		if err := drained(); err != nil {
			return err
		}
		if taken < limit && taken <= short {
			return nil
		}
		limit = min(2*limit, m.cfg.Batch)
	}
	return fmt.Errorf("table %s: %w: it is not down to %d after %d entries", p.table(p.Active), errOutrun, short, entries)
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
with taken as (delete from %[1]s where seq = (select min(seq) from %[1]s) returning id::text as id),
     parked as (insert into %[2]s (pair, id, why) select $1, id, $2 from taken on conflict (pair, id) do update set why = excluded.why)
select id from taken`

// park moves the first entry of the log to bluegreen_stuck. The passive's rows of the id are of no use any more, and may be what is
// in the way of another's.
func (m *Migration) park(ctx context.Context, conn *pgx.Conn, p Pair, why error) error {
	err := m.snapshot(ctx, conn, func(tx pgx.Tx) error {
		var id string
		if err := tx.QueryRow(ctx, fmt.Sprintf(parkSQL, m.logTable(p), m.own("bluegreen_stuck")), p.N, why.Error()).Scan(&id); err != nil {
			return err
		}
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return m.removeIDs(ctx, tx, p, []string{id}) })
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
	rows, err := db.Query(ctx, fmt.Sprintf("select id, why from %s where pair = $1 order by at, id limit 10", m.own("bluegreen_stuck")), p.N)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Stuck])
}

// unpark gives the ids that were refused another chance.
func (m *Migration) unpark(ctx context.Context, conn *pgx.Conn, p Pair) error {
	sql := fmt.Sprintf("with s as (delete from %s where pair = $1 returning id) insert into %s (id) select id::%s from s", m.own("bluegreen_stuck"), m.logTable(p), p.IDType)
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

// settle drains one pair until its log has at most short entries, also the ids that were refused when they came alone.
func (m *Migration) settle(ctx context.Context, conn *pgx.Conn, p Pair, short int, drained func() error) error {
	const chances = 2
	for range chances {
		if err := m.unpark(ctx, conn, p); err != nil {
			return err
		}
		waiting, err := m.entries(ctx, conn, p)
		if err != nil {
			return err
		}
		if err := m.drain(ctx, conn, p, short, 50*m.cfg.Batch+4*int(waiting), drained); err != nil {
			return err
		}
		stuck, err := m.stuck(ctx, conn, p)
		if err != nil || len(stuck) == 0 {
			return err
		}
	}
	return nil
}

// drainRate is how many entries are drained in a second, on modest hardware: for estimates.
const drainRate = 20000

func drainTime(entries int64) time.Duration {
	return time.Duration(entries) * time.Second / drainRate
}
