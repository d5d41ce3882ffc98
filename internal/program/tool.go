package program

import (
	"context"

	"plenum/pkg/partman"
	"plenum/pkg/store"
)

// MigrateUp migrates as the owner, registers the tables that have no partition policy, and makes today's partitions.
func MigrateUp(ctx context.Context, a *App) (before, after store.Schema, err error) {
	if before, err = SchemaStatus(ctx, a); err != nil {
		return before, after, err
	}
	manager, err := newManager(a)
	if err != nil {
		return before, after, err
	}
	if err = checkOwner(ctx, a); err != nil {
		return before, after, err
	}
	if after, err = store.Migrate(ctx, a.owner); err != nil {
		return before, after, err
	}
	if err = registerNew(ctx, a); err != nil {
		return before, after, err
	}
	return before, after, ensureToday(ctx, manager, a.Settings)
}

// SchemaStatus reads the schema's version, as the owner.
func SchemaStatus(ctx context.Context, a *App) (store.Schema, error) {
	if err := store.CheckServer(ctx, a.owner, a.Settings.Database.Schema); err != nil {
		return store.Schema{}, err
	}
	return store.ReadSchema(ctx, a.owner)
}

// Partitions returns the manager of the app's database, with Plenum's guards, and the tables that have a policy:
// with their schema where it is not database.schema.
func Partitions(ctx context.Context, a *App) (*partman.Manager, []string, error) {
	schema := a.Settings.Database.Schema
	if err := store.CheckServer(ctx, a.owner, schema); err != nil {
		return nil, nil, err
	}
	if err := checkOwner(ctx, a); err != nil {
		return nil, nil, err
	}
	if err := checkSchema(ctx, a.owner); err != nil {
		return nil, nil, err
	}
	policies, err := partman.Policies(ctx, a.owner, schema)
	if err != nil {
		return nil, nil, err
	}
	var tables []string
	for _, p := range policies {
		if p.Schema == schema {
			tables = append(tables, p.Table)
		} else {
			tables = append(tables, p.String())
		}
	}
	manager, err := newManager(a)
	return manager, tables, err
}
