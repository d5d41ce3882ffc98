package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"strconv"
	"time"

	"plenum/internal/program"
	"plenum/pkg/feed"
	"plenum/pkg/store"
)

// withFeed opens the database for do.
func (c *call) withFeed(ctx context.Context, do func(*feed.Feed) error) error {
	a, err := c.app(ctx)
	if err != nil {
		return err
	}
	defer a.Close()
	f, err := program.Feed(ctx, a)
	if err != nil {
		return err
	}
	return do(f)
}

// consumer is a consumer of the feed as JSON.
type consumer struct {
	Name         string     `json:"name"`
	Position     int64      `json:"position"`
	Required     bool       `json:"required"`
	UpdatedAt    time.Time  `json:"updated_at"`
	LagBatches   int64      `json:"lag_batches"`
	LagSeconds   float64    `json:"lag_seconds"`
	Target       *string    `json:"target"` // null: it reads by itself
	Pusher       *string    `json:"pusher"` // the process that pushes; null: none does
	Delivering   *int64     `json:"delivering"`
	Attempts     int        `json:"attempts"`
	FailingSince *time.Time `json:"failing_since"`
	Detail       *string    `json:"detail"`
}

func consumerOf(c store.ConsumerLag) consumer {
	out := consumer{
		Name: c.Name, Position: c.Position, Required: c.Required, UpdatedAt: c.UpdatedAt, LagBatches: c.Batches, LagSeconds: c.Oldest.Seconds(),
		Target: c.Target, Delivering: c.Delivering, Attempts: c.Attempts, FailingSince: c.FailingSince, Detail: c.Detail,
	}
	if c.Pusher != "" {
		out.Pusher = &c.Pusher
	}
	return out
}

// state says in a few words what the consumer is at.
func (c consumer) state(horizon int64) string {
	idle := ""
	if c.Target != nil && c.Pusher == nil {
		idle = "nobody pushes; "
	}
	switch {
	case c.Position < horizon:
		return idle + "rows behind it have been dropped"
	case c.FailingSince != nil:
		state := idle + fmt.Sprintf("failing since %s, %d refused", instant(*c.FailingSince), c.Attempts)
		if c.Detail != nil {
			state += ": " + brief(*c.Detail, 60)
		}
		return state
	case c.LagBatches == 0:
		return idle + "at the head"
	}
	return idle + "behind"
}

func setupFeedList(fs *flag.FlagSet) func(context.Context, *call) error {
	var out output
	out.add(fs)
	return func(ctx context.Context, c *call) error {
		if err := out.check(); err != nil {
			return err
		}
		return c.withFeed(ctx, func(f *feed.Feed) error {
			o, err := f.Overview(ctx)
			if err != nil {
				return err
			}
			return printFeed(&out, c.stdout, o)
		})
	}
}

func printFeed(out *output, w io.Writer, o feed.Overview) error {
	all := make([]consumer, len(o.Consumers))
	for i, c := range o.Consumers {
		all[i] = consumerOf(c)
	}
	return out.print(w, map[string]any{"horizon": o.Horizon, "head": o.Head, "consumers": all}, func(w io.Writer) {
		fmt.Fprintf(w, "feed from %d to %d\n", o.Horizon, o.Head)
		if len(all) == 0 {
			fmt.Fprintln(w, "no consumers")
			return
		}
		fmt.Fprintln(w, "NAME\tPOSITION\tBATCHES BEHIND\tFOR\tREQUIRED\tTARGET\tMOVED\tSTATE")
		for _, c := range all {
			target, required := "none", "no"
			if c.Target != nil {
				target = *c.Target
			}
			if c.Required {
				required = "yes"
			}
			fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\n", plain(c.Name), c.Position, c.LagBatches,
				time.Duration(c.LagSeconds*float64(time.Second)).Round(time.Second), required, plain(target), instant(c.UpdatedAt), c.state(o.Horizon))
		}
	})
}

func setupFeedSeek(*flag.FlagSet) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		if len(c.args) != 2 {
			return program.Usagef("feed seek: NAME and a POSITION or a TIME are needed, %d arguments are given", len(c.args))
		}
		name, to := c.args[0], c.args[1]
		position, err := strconv.ParseInt(to, 10, 64)
		if err == nil && position >= 0 {
			return c.withFeed(ctx, func(f *feed.Feed) error {
				return c.sought(name, position, f.Seek(ctx, name, position))
			})
		}
		at, err := time.Parse(time.RFC3339, to)
		if err != nil {
			return program.Usagef("feed seek: %q is neither a position, a whole number from 0, nor an RFC 3339 time", to)
		}
		return c.withFeed(ctx, func(f *feed.Feed) error {
			position, err := f.SeekTime(ctx, name, at)
			return c.sought(name, position, err)
		})
	}
}

func (c *call) sought(name string, position int64, err error) error {
	if err != nil {
		return usageOf(err)
	}
	_, err = fmt.Fprintf(c.stdout, "%s stands at %d\n", name, position)
	return err
}

func setupFeedRemove(*flag.FlagSet) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		if len(c.args) != 1 {
			return program.Usagef("feed remove: one NAME is needed, %d are given", len(c.args))
		}
		return c.withFeed(ctx, func(f *feed.Feed) error {
			if err := f.Remove(ctx, c.args[0]); err != nil {
				return usageOf(err)
			}
			_, err := fmt.Fprintf(c.stdout, "%s is removed; rows are not kept for it any more\n", c.args[0])
			return err
		})
	}
}
