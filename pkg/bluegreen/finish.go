package bluegreen

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Finish ends the migration with green active: the capture ends, retention is resumed, and where drop is set the old tables are
// dropped; else they stay, and partman keeps them no longer. It refuses while a blue table is active.
func (m *Migration) Finish(ctx context.Context, drop bool) error {
	return m.exclusive(ctx, func(conn *pgx.Conn) error {
		pairs, err := readPairs(ctx, conn, m.cfg.Schema)
		if err != nil {
			return err
		}
		for _, p := range pairs {
			if p.Active == Blue {
				return fmt.Errorf("the old table is the active one of %s: swap first, or abort", p.table(Blue))
			}
		}
		for n, p := range pairs {
			if err := m.finishLeaves(ctx, conn, p); err != nil {
				return fmt.Errorf("finish the migration of %s: %w", p.table(Green), err)
			}
			err := m.locking(ctx, conn, func(tx pgx.Tx) error { return m.finish(ctx, tx, p, drop, n == len(pairs)-1) })
			if err != nil {
				return fmt.Errorf("finish the migration of %s: %w", p.table(Green), err)
			}
			m.cfg.Step("finished one")
		}
		return nil
	})
}

const leafSQL = `select relid::oid from pg_partition_tree($1) where isleaf`

// finishLeaves takes the triggers off green's partitions, one after the other, as all together would take long. Until the root loses its own, what is
// written by its name is captured; where finish is killed here, the next command puts them back.
func (m *Migration) finishLeaves(ctx context.Context, conn *pgx.Conn, p Pair) error {
	rows, err := conn.Query(ctx, leafSQL, p.Green)
	if err != nil {
		return err
	}
	leaves, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return err
	}
	for _, leaf := range leaves {
		if err := m.locking(ctx, conn, func(tx pgx.Tx) error { return m.uncapture(ctx, tx, leaf) }); err != nil {
			return err
		}
	}
	m.cfg.Step("leaves finished")
	return nil
}

func (m *Migration) finish(ctx context.Context, tx pgx.Tx, p Pair, drop, last bool) error {
	if err := m.release(ctx, tx, p, Green); err != nil {
		return err
	}
	// ACCESS EXCLUSIVE on both, until the commit.
	for _, side := range []Side{Green, Blue} {
		if err := m.uncapture(ctx, tx, p.oid(side)); err != nil {
			return err
		}
	}
	if drop {
		if err := dropSide(ctx, tx, p, Blue); err != nil {
			return fmt.Errorf("drop the old table, without which finish can do: %w", err)
		}
	} else if err := revive(ctx, tx, p, Blue, m.own("bluegreen_trigger")); err != nil {
		return fmt.Errorf("enable the triggers of the old table: %w", err)
	}
	if err := m.dropCapture(ctx, tx, p); err != nil {
		return err
	}
	return m.forget(ctx, tx, p, last, false)
}
