package bluegreen

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Abort takes away all that Init made: green with its partitions, the capture, the policies, the migration's own tables. It refuses
// where green is active.
func (m *Migration) Abort(ctx context.Context) error {
	return m.exclusive(ctx, func(conn *pgx.Conn) error {
		pairs, err := readPairs(ctx, conn, m.cfg.Schema)
		if err != nil {
			return err
		}
		for _, p := range pairs {
			if p.Active == Green {
				return fmt.Errorf("the new table is the active one of %s: rollback first, else what was written since the swap is lost", p.table(Green))
			}
		}
		for n, p := range pairs {
			if err := m.uproot(ctx, conn, p, n == len(pairs)-1); err != nil {
				return fmt.Errorf("abort the migration of %s: %w", p.table(Blue), err)
			}
			m.cfg.Step("aborted one")
		}
		return nil
	})
}

// uproot takes green away first, which may have many partitions and which nobody waits for, and then the capture: ACCESS EXCLUSIVE on blue, until the commit.
func (m *Migration) uproot(ctx context.Context, conn *pgx.Conn, p Pair, last bool) error {
	err := m.locking(ctx, conn, func(tx pgx.Tx) error {
		if err := m.release(ctx, tx, p, Blue); err != nil {
			return err
		}
		return dropSide(ctx, tx, p, Green)
	})
	if err != nil {
		return err
	}
	m.cfg.Step("green dropped")
	return m.locking(ctx, conn, func(tx pgx.Tx) error {
		if err := m.uncapture(ctx, tx, p.Blue); err != nil {
			return err
		}
		if err := m.dropCapture(ctx, tx, p); err != nil {
			return err
		}
		return m.forget(ctx, tx, p, last, true)
	})
}

// forget removes the pair from the state, and the state with the last one; with the policies' table where Init made it and
// abort is set.
func (m *Migration) forget(ctx context.Context, tx pgx.Tx, p Pair, last, abort bool) error {
	if _, err := tx.Exec(ctx, fmt.Sprintf("delete from %s where n = $1", m.own("bluegreen_pair")), p.N); err != nil {
		return err
	}
	if !last {
		return nil
	}
	var made bool
	err := tx.QueryRow(ctx, "select coalesce(obj_description(to_regclass($1), 'pg_class') = $2, false)", m.own("bluegreen_pair"), withPolicies).Scan(&made)
	if err != nil {
		return err
	}
	if made && abort {
		if err := m.dropPolicies(ctx, tx); err != nil {
			return err
		}
	}
	_, err = tx.Exec(ctx, fmt.Sprintf("drop table if exists %s, %s, %s, %s, %s", m.own("bluegreen_workload"), m.own("bluegreen_stuck"), m.own("bluegreen_trigger"), m.own("bluegreen_name"), m.own("bluegreen_pair")))
	return err
}

// dropPolicies drops partition_policy, unless another table was registered since.
func (m *Migration) dropPolicies(ctx context.Context, tx pgx.Tx) error {
	var used bool
	if err := tx.QueryRow(ctx, fmt.Sprintf("select exists (select from %s)", m.own("partition_policy"))).Scan(&used); err != nil || used {
		return err
	}
	_, err := tx.Exec(ctx, "drop table "+m.own("partition_policy"))
	return err
}
