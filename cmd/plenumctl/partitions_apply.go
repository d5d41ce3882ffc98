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

func setupPartitionsApply(fs *flag.FlagSet) func(context.Context, *call) error {
	var file string
	fs.StringVar(&file, "plan", "", "`file` with what partitions plan --output json printed: do exactly that, or nothing where it does not hold any more")
	return partitionsCommand(func(ctx context.Context, p *partitionsCall) error {
		read := p.plans
		if file != "" {
			read = func(context.Context) ([]partman.Plan, error) { return p.saved(file) }
		}
		plans, err := read(ctx)
		if err != nil {
			return err
		}
		return p.apply(ctx, plans)
	})(fs)
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
