package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"plenum/internal/program"
)

func setupConfigCheck(*flag.FlagSet) func(context.Context, *call) error {
	return func(_ context.Context, c *call) error {
		s, err := c.loader.Load(c.getenv)
		if err := errors.Join(err, s.Validate()); err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.stdout, "the configuration is valid")
		return err
	}
}

func setupMigrateUp(*flag.FlagSet) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		a, err := c.app(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		before, after, err := program.MigrateUp(ctx, a)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.stdout, "schema %q: version %d, was %d\n", a.Settings.Database.Schema, after.Database, before.Database)
		return err
	}
}

func setupMigrateStatus(fs *flag.FlagSet) func(context.Context, *call) error {
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
		s, err := program.SchemaStatus(ctx, a)
		if err != nil {
			return err
		}
		verdict := "up to date"
		if err := s.Err(); err != nil {
			verdict = err.Error()
		} else if s.Database > s.Binary {
			verdict = "newer than this release, which can run on it"
		}
		status := map[string]any{"database": s.Database, "binary": s.Binary, "oldest_binary": s.Oldest, "verdict": verdict}
		err = out.print(c.stdout, status, func(w io.Writer) {
			fmt.Fprintf(w, "database\t%d\nthis release\t%d\noldest release that can run\t%d\n%s\n", s.Database, s.Binary, s.Oldest, verdict)
		})
		if err == nil && s.Err() != nil {
			err = program.ErrFinding
		}
		return err
	}
}
