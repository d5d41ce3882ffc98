package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"plenum/pkg/partman"
)

// SyncOptions say how Sync works.
type SyncOptions struct {
	// Follow goes on until the context ends. Another command may come in between at any time.
	Follow bool
	// RowsPerSecond bounds the copy; 0 is no bound. What the log has is drained as fast as can be: it must not grow.
	RowsPerSecond int
	// MaxReplicaLag holds the copy while a standby of this server is further behind; 0 is no bound.
	MaxReplicaLag time.Duration
	// Progress is called after each batch. Optional.
	Progress func(Progress)
}

// Progress is how far Sync has come with one table.
type Progress struct {
	Table     string        `json:"table"`   // the active one, schema.table
	Copied    bool          `json:"copied"`  // the copy is complete
	Rows      int64         `json:"rows"`    // copied so far
	Total     int64         `json:"total"`   // rows of the table, as the last ANALYZE found; 0 if there was none
	PerSecond float64       `json:"rate"`    // rows, since Sync began
	ETA       time.Duration `json:"eta"`     // of the copy, in ns; 0 where it cannot be told
	Entries   int64         `json:"entries"` // in the log, about
	Refused   int64         `json:"refused"` // ids that the passive side does not take: Status says why
	Waiting   string        `json:"waiting"` // what the copy is held for; empty where it is not
}

const followPause = 500 * time.Millisecond

// refusedPause is how long a Sync that follows lets ids rest that were refused.
const refusedPause = time.Minute

// Sync copies what is not copied yet, then drains each log until it is short. It can be killed and called again at any time.
func (m *Migration) Sync(ctx context.Context, o SyncOptions) error {
	s := m.syncing(o)
	for worked, lost := false, false; ; {
		err := m.exclusive(ctx, func(conn *pgx.Conn) error { return s.round(ctx, conn) })
		if !o.Follow {
			return err
		}
		switch {
		case err == nil || errors.Is(err, ErrBusy) || errors.Is(err, errOutrun):
			worked, lost = true, false
		case !worked || !disconnected(err) || ctx.Err() != nil:
			return err
		case !lost:
			lost = true
			m.cfg.Log.Warn("blue/green: the connection is lost, trying again", zap.Error(err))
		}
		if err := pause(ctx, followPause); err != nil {
			return err
		}
	}
}

// disconnected says that the server may be there again soon, and would not have refused the work itself.
func disconnected(err error) bool {
	if state := sqlState(err); state != "" {
		return strings.HasPrefix(state, "08") || strings.HasPrefix(state, "57P0")
	}
	var network net.Error
	var connect *pgconn.ConnectError
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err)
}

type syncing struct {
	m     *Migration
	o     SyncOptions
	begun time.Time
	rows  int64 // copied by this process
	total int64
	// rest is until when ids of each pair are not tried again that were refused.
	rest map[int]time.Time
}

func (m *Migration) syncing(o SyncOptions) *syncing {
	return &syncing{m: m, o: o, begun: time.Now(), rest: map[int]time.Time{}}
}

func (s *syncing) round(ctx context.Context, conn *pgx.Conn) error {
	pairs, err := s.m.prepare(ctx, conn)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		if err := s.pair(ctx, conn, p); err != nil {
			return err
		}
	}
	return nil
}

// prepare sees that both sides are there, all is captured and each scope as wide as it can be, and reads the pairs.
func (m *Migration) prepare(ctx context.Context, conn *pgx.Conn) ([]Pair, error) {
	pairs, err := capturedPairs(ctx, conn, m.cfg.Schema)
	if err != nil {
		return nil, err
	}
	for _, p := range pairs {
		if err := m.placed(ctx, conn, p); err != nil {
			return nil, err
		}
	}
	if err := m.ensureCapture(ctx, conn); err != nil {
		return nil, err
	}
	for _, p := range pairs {
		// SHARE ROW EXCLUSIVE on the passive side, where there is one.
		if err := m.locking(ctx, conn, func(tx pgx.Tx) error { return disableTriggers(ctx, tx, p, "") }); err != nil {
			return nil, fmt.Errorf("disable triggers of table %s: %w", p.table(p.Active.other()), err)
		}
	}
	return capturedPairs(ctx, conn, m.cfg.Schema)
}

// restarts bounds how often one Sync copies a table from the start because it was rewritten or truncated meanwhile.
const restarts = 20

const totalSQL = `
select coalesce(sum(c.reltuples) filter (where c.reltuples > 0), 0)::bigint from pg_class c
 where c.relkind = 'r' and (c.oid = $1 or c.oid in (select relid::oid from pg_partition_tree($1::oid)))`

func (s *syncing) pair(ctx context.Context, conn *pgx.Conn, p Pair) error {
	if err := conn.QueryRow(ctx, totalSQL, p.oid(p.Active)).Scan(&s.total); err != nil {
		return fmt.Errorf("look at the size of table %s: %w", p.table(p.Active), err)
	}
	for try := 1; ; try++ {
		fresh := !p.Cursor.Done
		err := s.m.copyPair(ctx, conn, p, func(c Cursor, rows int64) error {
			s.rows += rows
			p.Cursor = c
			return s.copied(ctx, conn, p)
		})
		if err != nil {
			return err
		}
		p.Cursor.Done = true
		if fresh {
			// SHARE UPDATE EXCLUSIVE on the passive side. Autovacuum never does it for a partitioned table, and plans after a swap need it.
			err := s.m.locking(ctx, conn, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "analyze "+p.table(p.Active.other()))
				return err
			})
			if err != nil {
				return fmt.Errorf("analyze table %s: %w", p.table(p.Active.other()), err)
			}
		}
		if err := s.m.analyzeFresh(ctx, conn, p); err != nil {
			return err
		}
		err = s.settle(ctx, conn, p)
		if !errors.Is(err, errRewritten) {
			return err
		}
		if try == restarts {
			return fmt.Errorf("table %s was truncated or rewritten %d times while it was copied", p.table(p.Active), try)
		}
		p.Cursor = Cursor{}
	}
}

// freshSQL finds partitions of either side that have rows and were never analyzed.
const freshSQL = `
select c.oid::regclass::text from pg_class c
 where c.relkind = 'r' and c.reltuples < 0 and pg_relation_size(c.oid) > 0
   and c.oid in (select relid::oid from pg_partition_tree($1::oid) union select relid::oid from pg_partition_tree($2::oid))`

// analyzeFresh analyzes the partitions that have come meanwhile. Of a table that was never analyzed the planner cannot tell that an id finds fewer rows than
// a key, of which a day may have one; autovacuum comes after a minute. SHARE UPDATE EXCLUSIVE on each.
func (m *Migration) analyzeFresh(ctx context.Context, conn *pgx.Conn, p Pair) error {
	rows, err := conn.Query(ctx, freshSQL, p.Blue, p.Green)
	if err != nil {
		return err
	}
	fresh, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look for partitions of table %s that were never analyzed: %w", p.table(Green), err)
	}
	for _, table := range fresh {
		err := m.locking(ctx, conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "analyze "+table)
			return err
		})
		if err != nil && sqlState(err) != "42P01" { // it was dropped meanwhile
			return fmt.Errorf("analyze table %s: %w", table, err)
		}
	}
	return nil
}

// copied reports, and holds the copy back as far as is wanted.
func (s *syncing) copied(ctx context.Context, conn *pgx.Conn, p Pair) error {
	if err := s.report(ctx, conn, p, ""); err != nil {
		return err
	}
	if s.o.RowsPerSecond > 0 {
		due := time.Duration(float64(s.rows) / float64(s.o.RowsPerSecond) * float64(time.Second))
		if err := pause(ctx, due-time.Since(s.begun)); err != nil {
			return err
		}
	}
	return s.awaitReplicas(ctx, conn, p)
}

// lagSQL: a role that may not look sees no lag.
const lagSQL = `
select coalesce(max(extract(epoch from replay_lag)), 0)::float8, pg_has_role('pg_read_all_stats', 'usage') from pg_stat_replication`

// lag is that of the standby that is furthest behind.
func (s *syncing) lag(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	var seconds float64
	var allowed bool
	if err := conn.QueryRow(ctx, lagSQL).Scan(&seconds, &allowed); err != nil {
		return 0, fmt.Errorf("look at the standbys' lag: %w", err)
	}
	if !allowed {
		return 0, errors.New("this role cannot see the standbys' lag: grant pg_read_all_stats to it, or sync without a bound")
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

func (s *syncing) awaitReplicas(ctx context.Context, conn *pgx.Conn, p Pair) error {
	for s.o.MaxReplicaLag > 0 {
		lag, err := s.lag(ctx, conn)
		if err != nil || lag <= s.o.MaxReplicaLag {
			return err
		}
		if err := s.report(ctx, conn, p, fmt.Sprintf("a standby is %s behind", lag.Round(time.Millisecond))); err != nil {
			return err
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	return nil
}

func (s *syncing) report(ctx context.Context, conn *pgx.Conn, p Pair, waiting string) error {
	if s.o.Progress == nil {
		return nil
	}
	entries, err := s.m.entries(ctx, conn, p)
	if err != nil {
		return err
	}
	refused, err := s.m.refusedIDs(ctx, conn, p)
	if err != nil {
		return err
	}
	r := Progress{
		Table: partman.FormatName(p.Schema, p.Name), Copied: p.Cursor.Done, Rows: p.Cursor.Rows, Total: s.total, Entries: entries, Refused: refused, Waiting: waiting,
		PerSecond: float64(s.rows) / time.Since(s.begun).Seconds(),
	}
	if left := r.Total - r.Rows; left > 0 && !r.Copied && s.rows > 0 {
		r.ETA = time.Duration(float64(left) / r.PerSecond * float64(time.Second))
	}
	s.o.Progress(r)
	return nil
}
