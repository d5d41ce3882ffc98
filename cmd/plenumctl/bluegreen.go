package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"time"

	"plenum/internal/program"
	"plenum/pkg/bluegreen"
	"plenum/pkg/partman"
)

// bluegreenCall is one invocation of a blue/green command.
type bluegreenCall struct {
	*call
	output
	config    bluegreen.Config
	schema    string
	migration *bluegreen.Migration
}

// bluegreenCommand makes a command of do, which finds the database open. check looks at the flags before that.
func bluegreenCommand(b *bluegreenCall, fs *flag.FlagSet, check func() error, do func(context.Context) error) func(context.Context, *call) error {
	b.add(fs)
	fs.DurationVar(&b.config.LockTimeout, "lock-timeout", 200*time.Millisecond, "how long one try waits for a lock, and with it who comes after")
	return func(ctx context.Context, c *call) error {
		if err := errors.Join(b.check(), between("lock-timeout", b.config.LockTimeout, time.Millisecond, time.Minute)); err != nil {
			return err
		}
		if check != nil {
			if err := check(); err != nil {
				return err
			}
		}
		a, err := c.app(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		b.call, b.schema = c, a.Settings.Database.Schema
		if b.migration, err = program.BlueGreen(ctx, a, b.config); err != nil {
			return err
		}
		if err = do(ctx); err != nil && ctx.Err() != nil {
			err = errors.New("stopped; nothing is lost or half done: plenumctl bluegreen status says what is so, and the same command goes on from there")
		}
		return err
	}
}

// between refuses a duration of a flag that cannot be meant.
func between(name string, d, least, most time.Duration) error {
	if d < least || d > most {
		return program.Usagef("--%s: %s is not between %s and %s", name, d, least, most)
	}
	return nil
}

func setupBluegreenInit(fs *flag.FlagSet) func(context.Context, *call) error {
	var b bluegreenCall
	var o bluegreen.InitOptions
	list := func(name, usage string, to *[]string) {
		fs.Func(name, usage+"; repeatable", func(v string) error { *to = append(*to, v); return nil })
	}
	list("table", "the live `table`: NAME, or SCHEMA.NAME; a part with a dot in it in double quotes", &o.Tables)
	list("accept", "the `name` of a finding that stays as it is", &o.Accept)
	fs.StringVar(&o.Key, "key", "", "the `column` to partition by, timestamptz or date, of all these tables")
	fs.StringVar(&o.ID, "id", "", "the `column` that tells rows apart, of all these tables")
	fs.IntVar(&o.Retention, "retention", 0, "days that the new tables keep, the current one included; 0 keeps all")
	fs.IntVar(&o.Premake, "premake", 7, "days kept ready after the current one")
	check := func() error {
		var faults []error
		if len(o.Tables) == 0 || o.Key == "" || o.ID == "" {
			faults = append(faults, errors.New("--table, --key and --id are needed: the table, the column to partition it by, and the one that tells its rows apart"))
		}
		if o.Retention < 0 || o.Premake < 1 {
			faults = append(faults, fmt.Errorf("--retention: %d, --premake: %d: at least 0 and 1 are needed", o.Retention, o.Premake))
		}
		for _, name := range o.Tables {
			if _, _, err := partman.ParseName(name, "public"); err != nil {
				faults = append(faults, fmt.Errorf("--table: %w", err))
			}
		}
		if err := errors.Join(faults...); err != nil {
			return &program.UsageError{Err: err}
		}
		return nil
	}
	return bluegreenCommand(&b, fs, check, func(ctx context.Context) error {
		report, err := b.migration.Init(ctx, o)
		if err != nil {
			return err
		}
		if report.Findings == nil {
			report.Findings = []bluegreen.Finding{}
		}
		return b.found(report, func(w io.Writer) { printInit(w, report) }, len(bluegreen.Unaccepted(report.Findings)) > 0)
	})
}

// found prints, and ends with exit code 3 where there is something for a person to settle.
func (b *bluegreenCall) found(v any, text func(io.Writer), open bool) error {
	err := b.print(b.stdout, v, text)
	if err == nil && open {
		err = program.ErrFinding
	}
	return err
}

func setupBluegreenVerify(fs *flag.FlagSet) func(context.Context, *call) error {
	var b bluegreenCall
	file := fs.String("workload", "", "a `file` with the application's statements, each with sample values and a semicolon: they are explained on both sides, never run, and remembered for swap; - for standard input")
	return bluegreenCommand(&b, fs, nil, func(ctx context.Context) error {
		workload, err := b.workload(*file)
		if err != nil {
			return err
		}
		plans, err := b.migration.Plans(ctx, workload) // first: it is quick, and says what is wrong with the file
		if err != nil {
			return err
		}
		differences, err := b.migration.Verify(ctx)
		if err != nil {
			return err
		}
		tables, err := b.migration.Tables(ctx)
		if err != nil {
			return err
		}
		report := verified{Differences: append([]bluegreen.Difference{}, differences...), Plans: append([]bluegreen.PlanFinding{}, plans...)}
		for _, t := range tables {
			report.Entries += t.Entries
			report.Blocked = append(report.Blocked, t.Blocked()...)
		}
		fatal := slices.ContainsFunc(plans, func(f bluegreen.PlanFinding) bool { return f.Fatal })
		return b.found(report, report.text, len(differences) > 0 || fatal || len(report.Blocked) > 0)
	})
}

// workloadBytes is above what a workload may have: the error is that of who reads it.
const workloadBytes = 2 << 20

// workload returns what --workload names, nil where it was not given.
func (b *bluegreenCall) workload(name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	return b.readInput("workload", name, workloadBytes)
}

func setupBluegreenSwap(fs *flag.FlagSet) func(context.Context, *call) error {
	return swapCommand(fs, bluegreen.Green)
}

func setupBluegreenRollback(fs *flag.FlagSet) func(context.Context, *call) error {
	return swapCommand(fs, bluegreen.Blue)
}

func swapCommand(fs *flag.FlagSet, to bluegreen.Side) func(context.Context, *call) error {
	var b bluegreenCall
	var o bluegreen.SwapOptions
	fs.BoolVar(&o.SkipVerify, "no-verify", false, "look neither at both sides' rows nor at the plans first")
	fs.DurationVar(&b.config.Budget, "budget", time.Second, "for how long others may be held up, by all tries together")
	check := func() error { return between("budget", b.config.Budget, time.Millisecond, time.Minute) }
	return bluegreenCommand(&b, fs, check, func(ctx context.Context) error {
		s, err := b.migration.Swap(ctx, to, o)
		if err == nil {
			return b.print(b.stdout, s, func(w io.Writer) { printSwapped(w, s) })
		}
		return b.refused(err, to)
	})
}

// refused prints what stands against a swap as the command does that finds it, and returns any other error.
func (b *bluegreenCall) refused(err error, to bluegreen.Side) error {
	var different *bluegreen.DifferentError
	var unaccepted *bluegreen.UnacceptedError
	var plans *bluegreen.PlanError
	var stuck *bluegreen.StuckError
	r := refusal{to: to, Findings: []bluegreen.Finding{}, verified: verified{Differences: []bluegreen.Difference{}, Plans: []bluegreen.PlanFinding{}}}
	switch {
	case errors.As(err, &different):
		r.Differences = different.Differences
	case errors.As(err, &plans):
		r.Plans = plans.Findings
	case errors.As(err, &unaccepted):
		r.Findings = unaccepted.Findings
	case errors.As(err, &stuck):
		r.Stuck = stuck
	default:
		return err
	}
	return b.found(r, r.text, true)
}

func setupBluegreenStatus(fs *flag.FlagSet) func(context.Context, *call) error {
	var b bluegreenCall
	return bluegreenCommand(&b, fs, nil, func(ctx context.Context) error {
		s, err := b.migration.Status(ctx)
		if errors.Is(err, bluegreen.ErrNone) {
			return b.none()
		}
		if err != nil {
			return err
		}
		return b.print(b.stdout, s, func(w io.Writer) { printStatus(w, s, time.Now()) })
	})
}

// none is for commands that are done where no migration is there: one that was killed after its commit is given again.
func (b *bluegreenCall) none(more ...string) error {
	s := bluegreen.Status{Tables: []bluegreen.TableStatus{}, Next: []string{"init"}, Blocked: []string{}}
	return b.print(b.stdout, s, func(w io.Writer) {
		fmt.Fprintf(w, "no blue/green migration is under way in schema %q\n", b.schema)
		for _, line := range more {
			fmt.Fprintln(w, line)
		}
	})
}

func setupBluegreenFinish(fs *flag.FlagSet) func(context.Context, *call) error {
	var b bluegreenCall
	drop := fs.Bool("drop", false, "drop the old tables too")
	return bluegreenCommand(&b, fs, nil, func(ctx context.Context) error {
		err := b.migration.Finish(ctx, *drop)
		if errors.Is(err, bluegreen.ErrNone) {
			return b.none("an old table that was kept is an ordinary one by now, NAME_old: drop table removes it")
		}
		if err != nil {
			return err
		}
		return b.print(b.stdout, map[string]bool{"finished": true, "dropped": *drop}, func(w io.Writer) {
			fmt.Fprintln(w, "finished: the new tables are ordinary partitioned tables, and partitions are made and retired by their policies: plenumctl partitions list")
			if *drop {
				fmt.Fprintln(w, "the old tables are dropped")
			} else {
				fmt.Fprintln(w, "the old tables are kept as NAME_old, and nothing is written to them any more: drop table removes them")
			}
		})
	})
}

func setupBluegreenAbort(fs *flag.FlagSet) func(context.Context, *call) error {
	var b bluegreenCall
	return bluegreenCommand(&b, fs, nil, func(ctx context.Context) error {
		err := b.migration.Abort(ctx)
		if errors.Is(err, bluegreen.ErrNone) {
			return b.none()
		}
		if err != nil {
			return err
		}
		return b.print(b.stdout, map[string]bool{"aborted": true}, func(w io.Writer) {
			fmt.Fprintln(w, "aborted: the new tables, the capture and the migration's own tables are gone; the old tables are as before init")
		})
	})
}
