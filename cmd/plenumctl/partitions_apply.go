package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"

	"plenum/internal/program"
	"plenum/pkg/partman"
)

// applyFlags are what a person says to partitions apply.
type applyFlags struct {
	acceptClock, confirmRetention bool
	plan                          string
}

func setupPartitionsApply(fs *flag.FlagSet) func(context.Context, *call) error {
	var f applyFlags
	fs.BoolVar(&f.acceptClock, "accept-clock", false, "the database's clock is right, although it is days from the last round's")
	fs.BoolVar(&f.confirmRetention, "confirm-retention", false, "the shorter retention of --table that waits is meant")
	fs.StringVar(&f.plan, "plan", "", "`file` with what partitions plan --output json printed: do exactly that, or nothing where it does not hold any more")
	return partitionsCommand(func(ctx context.Context, p *partitionsCall) error {
		if f.confirmRetention && p.table == "" {
			return program.Usagef("--confirm-retention: --table is needed, the table whose retention is meant")
		}
		read := p.plans
		if f.plan != "" {
			read = func(context.Context) ([]partman.Plan, error) { return p.saved(f.plan) }
		}
		said := f.say(ctx, p)
		if f.confirmRetention && said != nil {
			return said
		}
		plans, err := read(ctx)
		return errors.Join(said, err, p.apply(ctx, plans))
	})(fs)
}

func (f applyFlags) say(ctx context.Context, p *partitionsCall) error {
	if f.confirmRetention {
		before, after, err := p.manager.Confirm(ctx, p.table)
		if err != nil {
			return err
		}
		fmt.Fprintf(p.stderr, "%s: %s is in force, %s was\n", p.table, after, before)
	}
	if !f.acceptClock {
		return nil
	}
	var faults []error
	for _, o := range p.policies {
		faults = append(faults, p.manager.AcceptClock(ctx, partman.FormatName(o.Schema, o.Table)))
	}
	return errors.Join(faults...)
}

// saved reads the plans of a file, those of --table where that is given.
func (p *partitionsCall) saved(file string) ([]partman.Plan, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, program.Usagef("--plan: %w", err)
	}
	var plans []partman.Plan
	if err := json.Unmarshal(text, &plans); err != nil {
		return nil, program.Usagef("--plan: %q is not what partitions plan --output json prints: %w", file, err)
	}
	if p.table != "" {
		plans = slices.DeleteFunc(plans, func(plan partman.Plan) bool { return !p.wants(plan.Schema, plan.Table) })
	}
	return plans, nil
}

// failed is why a plan was not applied, with what to do.
func failed(err error) error {
	if errors.Is(err, partman.ErrChanged) {
		return fmt.Errorf("%w: make and read a new one: plenumctl partitions plan", err)
	}
	return err
}
