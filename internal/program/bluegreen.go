package program

import (
	"context"

	"go.uber.org/zap"

	"plenum/pkg/bluegreen"
	"plenum/pkg/store"
)

// BlueGreen returns the migration of the app's schema, with the rights of database.owner_url. Plenum's own tables need not be there.
func BlueGreen(ctx context.Context, a *App, c bluegreen.Config) (*bluegreen.Migration, error) {
	c.Schema = a.Settings.Database.Schema
	if err := store.CheckServer(ctx, a.owner, c.Schema); err != nil {
		return nil, err
	}
	if err := checkOwner(ctx, a); err != nil {
		return nil, err
	}
	// What it does is what the command prints.
	c.Pool, c.Log = a.owner, a.Log.With(zap.String("part", "bluegreen")).WithOptions(zap.IncreaseLevel(zap.WarnLevel))
	return bluegreen.New(c)
}

// newBluegreenObserver is for who runs the partition manager, with the rights of database.owner_url.
func newBluegreenObserver(a *App) (*bluegreen.Observer, error) {
	return bluegreen.NewObserver(a.owner, a.Settings.Database.Schema, a.Log.With(zap.String("part", "bluegreen")), a.Registry)
}
