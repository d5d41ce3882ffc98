package program

import (
	"context"

	"plenum/pkg/feed"
)

// Feed returns the feed of the app's database, as the owner.
func Feed(ctx context.Context, a *App) (*feed.Feed, error) {
	if err := checkTool(ctx, a, false); err != nil {
		return nil, err
	}
	return feed.New(a.owner, a.owner), nil
}
