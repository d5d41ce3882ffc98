package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A HeldError is a name that another process holds.
type HeldError struct {
	Name   string
	Holder string // application name, address, backend pid and since when
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("%q is in use by another process: %s", e.Name, e.Holder)
}

// By tells whether the holder is a session of the pool's own process: one whose connection is dead, which the server has not noticed.
func (e *HeldError) By(pool *pgxpool.Pool) bool {
	own := pool.Config().ConnConfig.RuntimeParams["application_name"]
	return own != "" && strings.HasPrefix(e.Holder, own+",")
}

// A NameLock keeps names exclusive among the processes on one database while its connection lives.
type NameLock struct {
	conn *pgxpool.Conn // nil once unlocked
}

// nameKey makes an advisory lock key of a name; the bigint form, which the two-key form never meets.
const nameKey = `hashtextextended('plenum.name/' || $1, 0)`

// A session that has just ended may still hold its locks for a moment: a name is held if it stays so for that long.
const (
	lockPatience = 3 * time.Second
	lockPause    = 100 * time.Millisecond
)

// LockNames takes the session-level advisory lock of each name, on one connection that it keeps. A name that
// another session goes on holding is a *HeldError.
func LockNames(ctx context.Context, pool *pgxpool.Pool, names []string) (*NameLock, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("lock names: connect to PostgreSQL: %w", asSetup(err))
	}
	l := &NameLock{conn}
	for _, name := range names {
		if err := lockName(ctx, conn.Conn(), name); err != nil {
			l.Unlock(ctx)
			return nil, err
		}
	}
	return l, nil
}

func lockName(ctx context.Context, conn *pgx.Conn, name string) error {
	for end := time.Now().Add(lockPatience); ; {
		var ok bool
		if err := conn.QueryRow(ctx, `select pg_try_advisory_lock(`+nameKey+`)`, name).Scan(&ok); err != nil {
			return fmt.Errorf("lock name %q: %w", name, err)
		}
		if ok {
			return nil
		}
		if time.Now().After(end) {
			who, err := holder(ctx, conn, name)
			if who == "" {
				who = "unknown, it has just gone"
			}
			return errors.Join(&HeldError{name, who}, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockPause):
		}
	}
}

// holder returns who holds the name's lock, or nothing.
func holder(ctx context.Context, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, name string,
) (who string, err error) {
	const q = `select format('%s, address %s, backend pid %s, connected since %s', a.application_name,
			coalesce(host(a.client_addr), 'local'), a.pid, coalesce(to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SS "UTC"'), 'unknown'))
		from pg_locks l join pg_stat_activity a using (pid), (select ` + nameKey + ` as key) k
		where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and l.database = (select oid from pg_database where datname = current_database())
			and l.classid::bigint = (k.key >> 32) & 4294967295 and l.objid::bigint = k.key & 4294967295`
	err = db.QueryRow(ctx, q, name).Scan(&who)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		err = fmt.Errorf("ask who holds %q: %w", name, err)
	}
	return who, err
}

// Alive asks the session that holds the locks; an error means they are gone.
func (l *NameLock) Alive(ctx context.Context) error {
	if l.conn == nil || l.conn.Conn().IsClosed() {
		return errors.New("the connection that held the lock is closed")
	}
	return l.conn.Ping(ctx)
}

// Unlock closes the connection, which releases the locks. A second call does nothing.
func (l *NameLock) Unlock(ctx context.Context) {
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = l.conn.Conn().Close(ctx) // a connection that cannot be closed cleanly is closed anyway
	l.conn.Release()
	l.conn = nil
}
