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

// partitionsCall is what the partitions commands share.
type partitionsCall struct {
	output
	table  string
	tables []string // with a policy, and asked for
}

func (p *partitionsCall) add(fs *flag.FlagSet) {
	p.output.add(fs)
	fs.StringVar(&p.table, "table", "", "only this table")
}

// manager opens the database and narrows --table to the tables that there are; done closes it.
func (p *partitionsCall) manager(ctx context.Context, c *call) (m *partman.Manager, done func(), err error) {
	if err := p.check(); err != nil {
		return nil, nil, err
	}
	a, err := c.app(ctx)
	if err != nil {
		return nil, nil, err
	}
	m, tables, err := program.Partitions(ctx, a)
	if err == nil && p.table != "" && !slices.Contains(tables, p.table) {
		err = program.Usagef("--table: %q has no partition policy; these have: %s", p.table, strings.Join(tables, ", "))
	}
	if err != nil {
		a.Close()
		return nil, nil, err
	}
	p.tables = slices.DeleteFunc(tables, func(t string) bool { return !p.wants(t) })
	return m, a.Close, nil
}

func (p *partitionsCall) wants(table string) bool { return p.table == "" || p.table == table }

func setupPartitionsList(fs *flag.FlagSet) func(context.Context, *call) error {
	var p partitionsCall
	p.add(fs)
	return func(ctx context.Context, c *call) error {
		m, done, err := p.manager(ctx, c)
		if err != nil {
			return err
		}
		defer done()
		all, err := m.List(ctx)
		if err != nil {
			return err
		}
		listed := []partman.Listed{}
		for _, l := range all {
			if p.wants(l.Table) {
				listed = append(listed, l)
			}
		}
		return p.print(c.stdout, listed, func(w io.Writer) {
			fmt.Fprintln(w, "TABLE\tPARTITION\tFROM\tTO\tSTATE\tROWS\tSIZE")
			for _, l := range listed {
				rows := "?"
				if l.Rows >= 0 {
					rows = fmt.Sprintf("~%d", l.Rows)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Table, l.Partition, day(l.From), day(l.To), l.State, rows, bytes(l.Bytes))
			}
		})
	}
}

func day(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateOnly)
}

// plans makes the plan of each table asked for.
func (p *partitionsCall) plans(ctx context.Context, m *partman.Manager) ([]partman.Plan, error) {
	plans := make([]partman.Plan, 0, len(p.tables))
	for _, t := range p.tables {
		plan, err := m.Plan(ctx, t)
		if err != nil {
			return nil, err
		}
		plans = append(plans, plan)
	}
	return plans, nil
}

func setupPartitionsPlan(fs *flag.FlagSet) func(context.Context, *call) error {
	var p partitionsCall
	p.add(fs)
	return func(ctx context.Context, c *call) error {
		m, done, err := p.manager(ctx, c)
		if err != nil {
			return err
		}
		defer done()
		plans, err := p.plans(ctx, m)
		if err != nil {
			return err
		}
		if p.format == "json" {
			return p.print(c.stdout, plans, nil)
		}
		for _, plan := range plans {
			fmt.Fprintln(c.stdout, plan.String())
		}
		return nil
	}
}

// applied is what partitions apply reports of one table.
type applied struct {
	Table   string            `json:"table"`
	Done    []partman.Action  `json:"done"`
	Refused []partman.Refusal `json:"refused"`
	Failed  string            `json:"failed,omitempty"`
}

func setupPartitionsApply(fs *flag.FlagSet) func(context.Context, *call) error {
	var p partitionsCall
	p.add(fs)
	return func(ctx context.Context, c *call) error {
		m, done, err := p.manager(ctx, c)
		if err != nil {
			return err
		}
		defer done()
		plans, err := p.plans(ctx, m)
		if err != nil {
			return err
		}
		var report []applied
		var errs []error
		for _, plan := range plans {
			result, err := m.Apply(ctx, plan)
			a := applied{Table: plan.Table, Done: result.Done, Refused: result.Refused}
			if err != nil {
				a.Failed = err.Error()
				errs = append(errs, fmt.Errorf("table %q: %w", plan.Table, err))
			}
			report = append(report, a)
		}
		err = p.print(c.stdout, report, func(w io.Writer) { printApplied(w, report) })
		return errors.Join(append(errs, err)...)
	}
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

func setupPartitionsCheck(fs *flag.FlagSet) func(context.Context, *call) error {
	var p partitionsCall
	p.add(fs)
	return func(ctx context.Context, c *call) error {
		m, done, err := p.manager(ctx, c)
		if err != nil {
			return err
		}
		defer done()
		all, err := m.Check(ctx)
		if err != nil {
			return err
		}
		findings := []partman.Finding{}
		for _, f := range all {
			if p.wants(f.Table) {
				findings = append(findings, f)
			}
		}
		err = p.print(c.stdout, findings, func(w io.Writer) {
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
}
