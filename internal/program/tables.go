package program

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"plenum/pkg/httpapi"
	"plenum/pkg/partman"
)

// Register puts a table under management, or changes its policy. change gets the policy that the table has, or one with
// no more than its name. What stands in the way is a UsageError with all of it. before is nil where there was none. waits is
// set where after keeps less, and is in force only once that is confirmed.
func Register(ctx context.Context, a *App, schema, table string, change func(*partman.Policy)) (before *partman.Policy, after partman.Policy, waits bool, err error) {
	if before, err = policyOf(ctx, a, schema, table, partman.Registered); err != nil {
		return nil, after, false, err
	}
	after = partman.Policy{Schema: schema, Table: table}
	if before != nil {
		after = *before
	}
	change(&after)
	if err := partman.Examine(ctx, a.owner, after); err != nil {
		return nil, after, false, &UsageError{err}
	}
	if before, err = register(ctx, a, after); err != nil {
		return nil, after, false, err
	}
	inForce, err := policyOf(ctx, a, schema, table, partman.Policies)
	return before, after, err == nil && !inForce.Equal(after), err
}

func register(ctx context.Context, a *App, p partman.Policy) (*partman.Policy, error) {
	if err := partman.Install(ctx, a.owner, a.Settings.Database.Schema); err != nil {
		return nil, err
	}
	return partman.Register(ctx, a.owner, a.Settings.Database.Schema, p)
}

// Adopt proposes a policy for a table that somebody else partitioned, and registers it if apply is set and nothing blocks.
func Adopt(ctx context.Context, a *App, schema, table string, apply bool, change func(*partman.Policy)) (partman.Adoption, error) {
	before, err := policyOf(ctx, a, schema, table, partman.Policies)
	if err != nil {
		return partman.Adoption{}, err
	}
	if before != nil {
		return partman.Adoption{}, Usagef("table %s is registered already; change how it is kept with plenumctl partitions register",
			partman.FormatName(schema, table))
	}
	adoption, err := partman.Adopt(ctx, a.owner, schema, table, change)
	if err != nil {
		return adoption, &UsageError{err}
	}
	if apply && !adoption.Blocked() {
		_, err = register(ctx, a, adoption.Policy)
	}
	return adoption, err
}

// Unregister ends the management of a table.
func Unregister(ctx context.Context, a *App, schema, table string) error {
	before, err := policyOf(ctx, a, schema, table, partman.Policies)
	if err != nil {
		return err
	}
	if before == nil {
		return Usagef("--table: %s has no partition policy", partman.FormatName(schema, table))
	}
	_, err = partman.Unregister(ctx, a.owner, a.Settings.Database.Schema, schema, table)
	return err
}

// readPolicies is partman.Policies, or partman.Registered.
type readPolicies func(ctx context.Context, db partman.DB, schema string) ([]partman.Policy, error)

// policyOf returns the policy of the table, nil if it has none. Plenum's own tables
// are refused: their policies come from the settings.
func policyOf(ctx context.Context, a *App, schema, table string, read readPolicies) (*partman.Policy, error) {
	version, err := ownersSchema(ctx, a)
	if err != nil {
		return nil, err
	}
	own := slices.ContainsFunc(policies(a.Settings), func(p partman.Policy) bool { return p.Schema == schema && p.Table == table })
	if own && version.Database > 0 {
		return nil, Usagef("table %s is Plenum's own, and kept as the keys partition.… and quarantine.… say", partman.FormatName(schema, table))
	}
	all, err := read(ctx, a.owner, a.Settings.Database.Schema)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42P01" {
		return nil, nil // nothing was ever registered here
	}
	for _, p := range all {
		if p.Schema == schema && p.Table == table {
			return &p, nil
		}
	}
	return nil, err
}

// KeepPartitions runs the partition manager without its HTTP until ctx ends.
func KeepPartitions(ctx context.Context, a *App) error {
	begun := a.begin("start of the partition manager")
	manager, err := newManager(a)
	if err != nil {
		return err
	}
	migration, err := newBluegreenObserver(a)
	if err != nil {
		return err
	}
	err = a.retry(ctx, "database", "prepare the database", func(ctx context.Context) error {
		version, err := ownersSchema(ctx, a)
		if err == nil && version.Database > 0 {
			err = version.Err()
		}
		if err != nil {
			return err
		}
		return partman.Install(ctx, a.owner, a.Settings.Database.Schema)
	})
	if err != nil {
		return ended(ctx, err)
	}
	a.Health.Add(func(context.Context) []httpapi.Finding { return partitionFindings(manager, a.Settings.Database.Schema) })
	begun()
	var beside sync.WaitGroup
	beside.Go(func() { migration.Run(ctx) })
	defer beside.Wait() // only the end of ctx ends the manager
	return manager.Run(ctx)
}
