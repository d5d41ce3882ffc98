package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"plenum/internal/program"
)

func setupSessionsDrain(fs *flag.FlagSet) func(context.Context, *call) error {
	var out output
	var quiet time.Duration
	var force bool
	out.add(fs)
	fs.DurationVar(&quiet, "quiet", 5*time.Second, "end the session once nothing has come for that long")
	fs.BoolVar(&force, "force", false, "also where ingest is configured to come back to it, so that what is published until then is lost, or where the broker has no such session")
	return func(ctx context.Context, c *call) error {
		switch err := out.check(); {
		case err != nil:
			return err
		case len(c.args) != 1 || c.args[0] == "":
			return program.Usagef("sessions drain: one CLIENT_ID is needed, as plenumctl sessions list shows it, %d are given", len(c.args))
		case quiet <= 0 || quiet > time.Hour:
			return program.Usagef("--quiet: %s is not from above 0s to 1h", quiet)
		}
		a, err := c.app(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		id := c.args[0]
		if program.Configured(a.Settings, id) && !force {
			return program.Usagef("%s is configured: ingest comes back to its session when it starts, and after its end the broker would keep nothing until then; --force ends it all the same", id)
		}
		drained, err := program.DrainSession(ctx, a, id, quiet, force)
		if err != nil && drained == (program.DrainedSession{}) {
			return err
		}
		return errors.Join(err, out.print(c.stdout, drained, func(w io.Writer) {
			fmt.Fprintf(w, "%s: %d messages received, %d rows stored, %d stored before, %d quarantined\n",
				id, drained.Messages, drained.Stored, drained.Duplicate, drained.Quarantined)
			switch {
			case drained.Forgotten && drained.Found:
				fmt.Fprintf(w, "%s: the session is ended\n", id)
			case drained.Forgotten:
				fmt.Fprintf(w, "%s: the broker had no session; the client id is forgotten\n", id)
			}
		}))
	}
}
