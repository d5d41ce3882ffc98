package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"plenum/internal/program"
)

func setupDoctor(fs *flag.FlagSet) func(context.Context, *call) error {
	var out output
	out.add(fs)
	return func(ctx context.Context, c *call) error {
		if err := out.check(); err != nil {
			return err
		}
		a, err := c.app(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		found, err := program.Doctor(ctx, a)
		if err != nil && len(found) == 0 {
			return err
		}
		err = errors.Join(err, out.print(c.stdout, found, func(w io.Writer) {
			for _, f := range found {
				fmt.Fprintf(w, "%s: %s; %s\n", f.Check, plain(f.Message), plain(f.Do))
			}
			if len(found) == 0 {
				fmt.Fprintln(w, "nothing found")
			}
		}))
		if err == nil && len(found) > 0 {
			err = program.ErrFinding
		}
		return err
	}
}
