package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"plenum/internal/program"
	"plenum/pkg/partman"
)

// tableCall is one invocation of a command on one table, which need not be registered.
type tableCall struct {
	*call
	app           *program.App
	schema, table string
}

// tableCommand makes a command of do that needs --table.
func tableCommand(fs *flag.FlagSet, do func(context.Context, *tableCall) error) func(context.Context, *call) error {
	name := fs.String("table", "", "the table: NAME, or SCHEMA.NAME; a part with a dot in it in double quotes")
	return func(ctx context.Context, c *call) error {
		if *name == "" {
			return program.Usagef("--table: is needed")
		}
		a, err := c.app(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		t := &tableCall{call: c, app: a}
		if t.schema, t.table, err = partman.ParseName(*name, a.Settings.Database.Schema); err != nil {
			return program.Usagef("--table: %w", err)
		}
		return do(ctx, t)
	}
}

func (t *tableCall) name() string { return partman.FormatName(t.schema, t.table) }

// policyFlags are the flags of a policy; those that are given change it.
type policyFlags struct{ changes []func(*partman.Policy) }

func (f *policyFlags) add(fs *flag.FlagSet) {
	text := func(name, usage string, set func(*partman.Policy, string)) {
		fs.Func(name, usage, func(v string) error {
			f.changes = append(f.changes, func(p *partman.Policy) { set(p, v) })
			return nil
		})
	}
	number := func(name, usage string, set func(*partman.Policy, int)) {
		fs.Func(name, usage, func(v string) error {
			n, err := strconv.Atoi(v)
			f.changes = append(f.changes, func(p *partman.Policy) { set(p, n) })
			return err
		})
	}
	text("key", "the `column` that the table is partitioned by", func(p *partman.Policy, v string) { p.Key = v })
	text("step", "day or hour, in UTC (default day)", func(p *partman.Policy, v string) { p.Step = partman.Step(v) })
	number("premake", "`partitions` ready after the current one, -1 for none at all (default 4)", func(p *partman.Policy, n int) { p.Premake = n })
	number("retention", "`partitions` kept, the current one included; 0 keeps all (default 0)", func(p *partman.Policy, n int) { p.Retention = n })
	text("expired", "what becomes of older ones: archive or drop", func(p *partman.Policy, v string) { p.Expired = v })
	text("archive-table", "the partitioned `table` of the same schema that they move to", func(p *partman.Policy, v string) { p.ArchiveTable = v })
	fs.Func("grace", "`time` between detaching and dropping (default 24h)", func(v string) error {
		d, err := time.ParseDuration(v)
		f.changes = append(f.changes, func(p *partman.Policy) { p.Grace = d })
		return err
	})
	f.lists(fs)
}

// lists adds the flags that can be given several times: the first replaces what there was.
func (f *policyFlags) lists(fs *flag.FlagSet) {
	var indexes []partman.Index
	fs.Func("index", "an index that each partition has and the table does not declare: `NAME:COLUMN[,COLUMN…][:unique][:nulls_not_distinct]`; '' for none; repeatable", func(v string) error {
		if v != "" {
			i, err := parseIndex(v)
			if err != nil {
				return err
			}
			indexes = append(indexes, i)
		}
		f.changes = append(f.changes, func(p *partman.Policy) { p.Indexes = indexes })
		return nil
	})
	storage := make(map[string]string)
	fs.Func("storage", "a storage parameter of the partitions: `KEY=VALUE`; '' for none; repeatable", func(v string) error {
		k, value, found := strings.Cut(v, "=")
		if v != "" {
			if !found {
				return errors.New("KEY=VALUE is needed")
			}
			storage[k] = value
		}
		f.changes = append(f.changes, func(p *partman.Policy) { p.Storage = storage })
		return nil
	})
}

func parseIndex(text string) (partman.Index, error) {
	parts := strings.Split(text, ":")
	if len(parts) < 2 {
		return partman.Index{}, errors.New("NAME:COLUMN[,COLUMN…][:unique][:nulls_not_distinct] is needed")
	}
	i := partman.Index{Name: parts[0], Columns: strings.Split(parts[1], ",")}
	for _, word := range parts[2:] {
		switch word {
		case "unique":
			i.Unique = true
		case "nulls_not_distinct":
			i.NullsNotDistinct = true
		default:
			return i, fmt.Errorf("%q is neither unique nor nulls_not_distinct", word)
		}
	}
	return i, nil
}

func (f *policyFlags) change(p *partman.Policy) {
	for _, change := range f.changes {
		change(p)
	}
}

func setupRegister(fs *flag.FlagSet) func(context.Context, *call) error {
	var flags policyFlags
	flags.add(fs)
	return tableCommand(fs, func(ctx context.Context, t *tableCall) error {
		before, after, waits, err := program.Register(ctx, t.app, t.schema, t.table, func(p *partman.Policy) {
			if p.Step == "" { // it is new
				p.Step, p.Premake = partman.Day, 4
			}
			flags.change(p)
		})
		if err != nil {
			return err
		}
		if before == nil {
			fmt.Fprintf(t.stdout, "%s is registered:\n", t.name())
			printPolicy(t.stdout, after)
			_, err = fmt.Fprintf(t.stdout, "What will be done: plenumctl partitions plan --table %s\n", partman.ShellName(t.schema, t.table))
			return err
		}
		changes := after.Differences(*before)
		if len(changes) == 0 {
			fmt.Fprintf(t.stdout, "%s is registered like that already\n", t.name())
		} else {
			fmt.Fprintf(t.stdout, "%s is kept differently:\n  %s\n", t.name(), strings.Join(changes, "\n  "))
		}
		if waits {
			fmt.Fprintf(t.stdout, "It keeps less than before, and is in force once you say so: plenumctl partitions apply --confirm-retention --table %s\n", partman.ShellName(t.schema, t.table))
		}
		return nil
	})
}

func printPolicy(w io.Writer, p partman.Policy) {
	for _, line := range p.Describe() {
		fmt.Fprintf(w, "  %s\n", line)
	}
}

func setupUnregister(fs *flag.FlagSet) func(context.Context, *call) error {
	return tableCommand(fs, func(ctx context.Context, t *tableCall) error {
		if err := program.Unregister(ctx, t.app, t.schema, t.table); err != nil {
			return err
		}
		_, err := fmt.Fprintf(t.stdout, "%s is kept no longer: its partitions stay as they are, no new ones are made, none goes\n", t.name())
		return err
	})
}

func setupAdopt(fs *flag.FlagSet) func(context.Context, *call) error {
	var flags policyFlags
	var out output
	flags.add(fs)
	out.add(fs)
	apply := fs.Bool("apply", false, "register the table, if nothing is in the way")
	return tableCommand(fs, func(ctx context.Context, t *tableCall) error {
		if err := out.check(); err != nil {
			return err
		}
		a, err := program.Adopt(ctx, t.app, t.schema, t.table, *apply, flags.change)
		if err != nil {
			return err
		}
		if err := out.print(t.stdout, a, func(w io.Writer) { printAdoption(w, t.name(), a, *apply) }); err != nil {
			return err
		}
		if a.Blocked() {
			return program.ErrFinding
		}
		return nil
	})
}

func printAdoption(w io.Writer, name string, a partman.Adoption, apply bool) {
	fmt.Fprintf(w, "%s, by %s:\n", name, a.Source)
	printPolicy(w, a.Policy)
	blocks := slices.Clone(a.Misfits)
	slices.SortStableFunc(blocks, func(a, b partman.Misfit) int {
		return strings.Compare(fmt.Sprint(b.Blocks), fmt.Sprint(a.Blocks))
	})
	for _, m := range blocks {
		what := m.What
		if m.Partition != "" {
			what = m.Partition + ": " + what
		}
		mark := "-"
		if m.Blocks {
			mark = "in the way:"
		}
		fmt.Fprintf(w, "%s %s\n    %s\n", mark, plain(what), plain(m.Do))
	}
	switch {
	case a.Blocked():
		fmt.Fprintln(w, "Nothing is changed: do what is in the way first.")
	case apply:
		fmt.Fprintf(w, "It is registered. What will be done: plenumctl partitions plan --table %s\n", partman.ShellName(a.Policy.Schema, a.Policy.Table))
	default:
		fmt.Fprintln(w, "Nothing is changed: --apply registers the table.")
	}
}

func setupPartitionsRun(*flag.FlagSet) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		a, err := c.app(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		return a.WithHTTP(ctx, false, nil, func(ctx context.Context) error { return program.KeepPartitions(ctx, a) })
	}
}
