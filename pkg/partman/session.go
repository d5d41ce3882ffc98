package partman

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrPooler is returned where statements of one connection reach several sessions of the server. Advisory locks belong to a
// session: nothing would keep two instances apart, and a lock would stay behind in a session that somebody else gets next.
var ErrPooler = errors.New("statements of one connection reach different sessions of the server, so that no lock holds: a " +
	"transaction pooler is in between; connect to PostgreSQL itself, or through a pooler in session mode")

// CheckSession returns ErrPooler if the pool connects through a transaction pooler, as far as it can be made to show itself.
// It takes no lock, and two connections. A pooler that changes sessions only later is found when a lock is taken, and in
// each transaction that acts under it.
func CheckSession(ctx context.Context, pool *pgxpool.Pool) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Release()
	return checkSession(ctx, conn, pool)
}

// checkSession has another connection open a transaction while conn is in none: a pooler hands it the session that conn had
// just now, or hands conn another one afterwards.
func checkSession(ctx context.Context, conn *pgxpool.Conn, pool *pgxpool.Pool) error {
	first, err := backend(ctx, conn)
	if err != nil {
		return fmt.Errorf("ask for the session: %w", err)
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		other, err := backend(ctx, tx)
		if err != nil {
			return err
		}
		if other == first {
			return ErrPooler
		}
		again, err := backend(ctx, conn)
		if err == nil && again != first {
			err = ErrPooler
		}
		return err
	})
	if err != nil && !errors.Is(err, ErrPooler) {
		return fmt.Errorf("ask for the session beside another: %w", err)
	}
	return err
}

// direct examines the connection before the first lock, and after a pooler was found.
func (m *Manager) direct(ctx context.Context, conn *pgxpool.Conn) error {
	m.session.Lock()
	defer m.session.Unlock()
	if m.examined {
		return nil
	}
	err := checkSession(ctx, conn, m.cfg.Pool)
	m.examined = err == nil
	return err
}

type queryRower interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Nothing is prepared: behind a pooler that would be an error of another kind.
func backend(ctx context.Context, db queryRower) (pid int32, err error) {
	err = db.QueryRow(ctx, "select pg_backend_pid()", pgx.QueryExecModeExec).Scan(&pid)
	return pid, err
}

// lockKey is the advisory lock of a loop.
func (m *Manager) lockKey(loop Loop) int64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "partman %s %s", loop, m.cfg.Schema)
	return int64(h.Sum64())
}

const holdsSQL = `
select exists (select from pg_locks l where l.locktype = 'advisory' and l.granted and l.pid = pg_backend_pid()
   and l.database = (select oid from pg_database where datname = current_database())
   and l.objsubid = 1 and (l.classid::bigint << 32) | l.objid::bigint = $1)`

// holds returns ErrPooler unless the session that answers has the loop's lock.
func (m *Manager) holds(ctx context.Context, db queryRower, loop Loop) error {
	var held bool
	if err := db.QueryRow(ctx, holdsSQL, pgx.QueryExecModeExec, m.lockKey(loop)).Scan(&held); err != nil {
		return fmt.Errorf("look for the partition lock of loop %q: %w", loop, err)
	}
	if !held {
		m.session.Lock()
		m.examined = false
		m.session.Unlock()
		return fmt.Errorf("the partition lock of loop %q is not held by the session that is to act: %w", loop, ErrPooler)
	}
	return nil
}
