package program

import (
	"context"
	"errors"

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

// Partitions returns the manager of the app's database, with Plenum's guards, and the policies. A database without
// Plenum's own tables will do, once a table is registered in it.
func Partitions(ctx context.Context, a *App) (*partman.Manager, []partman.Policy, error) {
	version, err := ownersSchema(ctx, a)
	if err != nil {
		return nil, nil, err
	}
	policies, err := partman.Policies(ctx, a.owner, a.Settings.Database.Schema)
	if version.Database > 0 || err != nil {
		err = errors.Join(version.Err(), err)
	}
	if err != nil {
		return nil, nil, err
	}
	manager, err := newManager(a)
	return manager, policies, err
}

// ownersSchema looks at server and owner, and returns the version of Plenum's own tables, 0 where there are none.
func ownersSchema(ctx context.Context, a *App) (store.Schema, error) {
	if err := store.CheckServer(ctx, a.owner, a.Settings.Database.Schema); err != nil {
		return store.Schema{}, err
	}
	if err := checkOwner(ctx, a); err != nil {
		return store.Schema{}, err
	}
	return store.ReadSchema(ctx, a.owner)
}
