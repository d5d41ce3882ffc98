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

func setupDoctor(fs *flag.FlagSet) func(context.Context, *call) error {
	sample := fs.Duration("sample", 5*time.Second, "how long to look for sessions that wait for locks; 0 does not look")
	var out output
	out.add(fs)
	return func(ctx context.Context, c *call) error {
		if err := out.check(); err != nil {
			return err
		}
		if *sample < 0 || *sample > time.Hour {
			return program.Usagef("--sample: %s is not between 0 and 1h", *sample)
		}
		a, err := c.app(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		found, text, err := program.Doctor(ctx, a, *sample)
		if err != nil && len(found) == 0 {
			return err
		}
		err = errors.Join(err, out.print(c.stdout, found, func(w io.Writer) {
			for _, f := range found {
				fmt.Fprintf(w, "%s: %s; %s\n", f.Check, plain(f.Message), plain(f.Do))
			}
			if text != "" {
				fmt.Fprintln(w, text)
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
