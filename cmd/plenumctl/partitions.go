package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"plenum/internal/program"
	"plenum/pkg/partman"
)

// partitionsCall is one invocation of a partitions command.
type partitionsCall struct {
	*call
	output
	table   string // of --table; empty for all
	tables  []string
	manager *partman.Manager
}

// partitionsCommand makes a command of do, which finds the database open and --table narrowed to the tables that there are.
func partitionsCommand(do func(context.Context, *partitionsCall) error) func(*flag.FlagSet) func(context.Context, *call) error {
	return func(fs *flag.FlagSet) func(context.Context, *call) error {
		var p partitionsCall
		p.add(fs)
		fs.StringVar(&p.table, "table", "", "only this table")
		return func(ctx context.Context, c *call) error {
			if err := p.check(); err != nil {
				return err
			}
			a, err := c.app(ctx)
			if err != nil {
				return err
			}
			defer a.Close()
			p.call = c
			if p.manager, p.tables, err = program.Partitions(ctx, a); err != nil {
				return err
			}
			if p.table != "" && !slices.Contains(p.tables, p.table) {
				return program.Usagef("--table: %q has no partition policy; these have: %s", p.table, strings.Join(p.tables, ", "))
			}
			p.tables = slices.DeleteFunc(p.tables, func(t string) bool { return !p.wants(t) })
			return do(ctx, &p)
		}
	}
}

func (p *partitionsCall) wants(table string) bool { return p.table == "" || p.table == table }

func listPartitions(ctx context.Context, p *partitionsCall) error {
	all, err := p.manager.List(ctx)
	if err != nil {
		return err
	}
	listed := []partman.Listed{}
	for _, l := range all {
		if p.wants(l.Table) {
			listed = append(listed, l)
		}
	}
	return p.print(p.stdout, listed, func(w io.Writer) {
		fmt.Fprintln(w, "TABLE\tPARTITION\tFROM\tTO\tSTATE\tROWS\tSIZE\tBLOCKED BY")
		for _, l := range listed {
			rows := "?"
			if l.Rows >= 0 {
				rows = fmt.Sprintf("~%d", l.Rows)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Table, l.Partition, day(l.From), day(l.To), l.State, rows, bytes(l.Bytes), blockers(l.BlockedBy))
		}
	})
}

func blockers(list []partman.Blocker) string {
	var who []string
	for _, b := range list {
		who = append(who, b.String())
	}
	return strings.Join(who, "; ")
}

func day(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateOnly)
}

// plans makes the plan of each table asked for.
func (p *partitionsCall) plans(ctx context.Context) ([]partman.Plan, error) {
	plans := make([]partman.Plan, 0, len(p.tables))
	for _, t := range p.tables {
		plan, err := p.manager.Plan(ctx, t)
		if err != nil {
			return nil, err
		}
		plans = append(plans, plan)
	}
	return plans, nil
}

func planPartitions(ctx context.Context, p *partitionsCall) error {
	plans, err := p.plans(ctx)
	if err != nil {
		return err
	}
	return p.print(p.stdout, plans, func(w io.Writer) {
		for _, plan := range plans {
			fmt.Fprintln(w, plan.String())
		}
	})
}

// applied is what partitions apply reports of one table.
type applied struct {
	Table   string            `json:"table"`
	Done    []partman.Action  `json:"done"`
	Refused []partman.Refusal `json:"refused"`
	Failed  string            `json:"failed,omitempty"`
}

func applyPartitions(ctx context.Context, p *partitionsCall) error {
	plans, err := p.plans(ctx)
	if err != nil {
		return err
	}
	var report []applied
	var errs []error
	for _, plan := range plans {
		result, err := p.manager.Apply(ctx, plan)
		a := applied{Table: plan.Table, Done: result.Done, Refused: result.Refused}
		if err != nil {
			a.Failed = err.Error()
			errs = append(errs, fmt.Errorf("table %q: %w", plan.Table, err))
		}
		report = append(report, a)
	}
	err = p.print(p.stdout, report, func(w io.Writer) { printApplied(w, report) })
	return errors.Join(append(errs, err)...)
}

func printApplied(w io.Writer, report []applied) {
	for _, r := range report {
		if len(r.Done)+len(r.Refused) == 0 && r.Failed == "" {
			fmt.Fprintf(w, "%s\tnothing to do\n", r.Table)
		}
		for _, a := range r.Done {
			fmt.Fprintf(w, "%s\t%s\t%s\tdone\n", r.Table, a.Kind, a.Partition)
		}
		if r.Failed != "" {
			fmt.Fprintf(w, "%s\tfailed\n", r.Table)
		}
		for _, f := range r.Refused {
			fmt.Fprintf(w, "%s\t%s\t%s\trefused: %s\n", r.Table, f.Action.Kind, f.Action.Partition, f.Blocked)
		}
	}
}

func checkPartitions(ctx context.Context, p *partitionsCall) error {
	all, err := p.manager.Check(ctx)
	if err != nil {
		return err
	}
	findings := []partman.Finding{}
	for _, f := range all {
		if p.wants(f.Table) {
			findings = append(findings, f)
		}
	}
	err = p.print(p.stdout, findings, func(w io.Writer) {
		for _, f := range findings {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Table, f.Code, f.Partition, f.Detail)
		}
		if len(findings) == 0 {
			fmt.Fprintln(w, "nothing found")
		}
	})
	if err == nil && len(findings) > 0 {
		err = program.ErrFinding
	}
	return err
}
