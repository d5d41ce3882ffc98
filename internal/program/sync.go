package program

import (
	"context"
	"errors"

	"plenum/pkg/store"
)

// setAsideShown is how many lines SyncStatus lists.
const setAsideShown = 1000

// SyncStatus reads what waits to be marked, and what was set aside.
func SyncStatus(ctx context.Context, a *App) (store.Pending, []store.SetAsideLine, error) {
	if err := checkTool(ctx, a, false); err != nil {
		return store.Pending{}, nil, err
	}
	pending, err := store.NewMarker(a.owner).Pending(ctx)
	if err != nil {
		return pending, nil, err
	}
	lines, err := store.SetAside(ctx, a.owner, setAsideShown)
	return pending, lines, err
}

// SyncResolve brings a ledger line and its rows together. A line that is not there is a usage error.
func SyncResolve(ctx context.Context, a *App, batch int64, dryRun bool) (store.Resolution, error) {
	if err := checkTool(ctx, a, true); err != nil {
		return store.Resolution{}, err
	}
	r, err := store.Resolve(ctx, a.owner, batch, dryRun)
	if errors.Is(err, store.ErrUnknownBatch) {
		err = Usagef("%w; plenumctl sync status lists those that are set aside", err)
	}
	return r, err
}

// findSetAside is the doctor's look for lines that were given up.
func findSetAside(ctx context.Context, a *App) ([]Ailment, error) {
	lines, err := store.SetAside(ctx, a.owner, setAsideShown)
	if err != nil {
		return nil, err
	}
	var found []Ailment
	for _, l := range lines {
		found = append(found, setAsideAilment(l))
	}
	return found, nil
}
