package program

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"plenum/pkg/feed"
	"plenum/pkg/store"
)

// Feed returns the feed of the app's database, as the owner.
func Feed(ctx context.Context, a *App) (*feed.Feed, error) {
	if err := checkTool(ctx, a, false); err != nil {
		return nil, err
	}
	return feed.New(a.owner, a.owner), nil
}

// findConsumers is the doctor's look for consumers that do not get their rows until a person acts.
func findConsumers(ctx context.Context, a *App) ([]Ailment, error) {
	o, err := feed.New(a.owner, a.owner).Overview(ctx)
	if err != nil {
		return nil, err
	}
	letters, err := store.CountDeadLetters(ctx, a.owner)
	if err != nil {
		return nil, err
	}
	var found []Ailment
	for _, c := range o.Consumers {
		add := func(do, message string, args ...any) {
			found = append(found, Ailment{Subject: c.Name, Message: c.Name + ": " + fmt.Sprintf(message, args...), Do: do})
		}
		name := shellWord(c.Name)
		if c.Position < o.Horizon {
			add(fmt.Sprintf("to go on without them: plenumctl feed seek %s %d", name, o.Horizon),
				"it stands at %d, and rows up to %d have been dropped", c.Position, o.Horizon)
		}
		if c.Target != nil && c.Pusher == "" {
			add("start a syncjob that has it in push; or, if it is not wanted any more, plenumctl feed remove "+name,
				"no process pushes to its %s", *c.Target)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(letters)) {
		if n := letters[name]; n > 0 {
			found = append(found, Ailment{
				Subject: name, Message: fmt.Sprintf("%s: %s until a person retries or purges", name, Plural(n, "dead letter")),
				Do: "plenumctl feed dead list " + shellWord(name),
			})
		}
	}
	return found, nil
}
