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
	table    string // of --table; empty for all
	schema   string // that of a table named without one
	policies []partman.Policy
	manager  *partman.Manager
}

// partitionsCommand makes a command of do, which finds the database open and --table narrowed to the tables that there are.
func partitionsCommand(do func(context.Context, *partitionsCall) error) func(*flag.FlagSet) func(context.Context, *call) error {
	return func(fs *flag.FlagSet) func(context.Context, *call) error {
		var p partitionsCall
		p.add(fs)
		fs.StringVar(&p.table, "table", "", tableFlag)
		return func(ctx context.Context, c *call) error {
			if err := p.check(); err != nil {
				return err
			}
			a, err := c.app(ctx)
			if err != nil {
				return err
			}
			defer a.Close()
			p.call, p.schema = c, a.Settings.Database.Schema
			if p.manager, p.policies, err = program.Partitions(ctx, a); err != nil {
				return err
			}
			if err := p.narrow(); err != nil {
				return err
			}
			return do(ctx, &p)
		}
	}
}

const tableFlag = `only this table: NAME, or SCHEMA.NAME; a part with a dot in it in double quotes`

// narrow leaves the policy of --table alone.
func (p *partitionsCall) narrow() error {
	if p.table == "" {
		return nil
	}
	schema, table, err := partman.ParseName(p.table, p.schema)
	if err != nil {
		return program.Usagef("--table: %w", err)
	}
	var all []string
	for _, o := range p.policies {
		all = append(all, p.name(o.Schema, o.Table))
	}
	p.policies = slices.DeleteFunc(p.policies, func(o partman.Policy) bool { return o.Schema != schema || o.Table != table })
	if len(p.policies) == 0 {
		return program.Usagef("--table: %q has no partition policy; these have: %s", p.table, strings.Join(all, ", "))
	}
	return nil
}

// name is a table's for people, and as --table takes it.
func (p *partitionsCall) name(schema, table string) string {
	name := partman.FormatName(schema, table)
	if schema == p.schema {
		name = strings.TrimPrefix(name, partman.FormatName(schema, ""))
	}
	return name
}

func (p *partitionsCall) wants(schema, table string) bool {
	return slices.ContainsFunc(p.policies, func(o partman.Policy) bool { return o.Schema == schema && o.Table == table })
}

func listPartitions(ctx context.Context, p *partitionsCall) error {
	listed, fault := p.manager.List(ctx, p.names()...)
	if listed == nil {
		listed = []partman.Listed{}
	}
	err := p.print(p.stdout, listed, func(w io.Writer) {
		fmt.Fprintln(w, "TABLE\tPARTITION\tFROM\tTO\tSTATE\tROWS\tSIZE\tHELD\tBLOCKED BY")
		for _, l := range listed {
			start, end := bounds(l)
			rows := "?"
			if l.Rows >= 0 {
				rows = fmt.Sprintf("~%d", l.Rows)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.name(l.Schema, l.Table), l.Partition, start, end, l.State, rows, bytes(l.Bytes),
				heldBy(l.Held), blockers(l.BlockedBy))
		}
		p.printPaused(w, listed)
	})
	return errors.Join(fault, err)
}

// printPaused has a line for each table of which nothing retires. It is of the table, so no column has it.
func (p *partitionsCall) printPaused(w io.Writer, listed []partman.Listed) {
	var said []string
	for _, l := range listed {
		if name := p.name(l.Schema, l.Table); l.Paused != nil && !slices.Contains(said, name) {
			said = append(said, name)
			fmt.Fprintf(w, "%s: %s\n", name, plain(l.Paused.String()))
		}
	}
}

// names are the tables of --table, as the manager takes them; none is all.
func (p *partitionsCall) names() []string {
	if p.table == "" {
		return nil
	}
	return []string{p.table}
}

func blockers(list []partman.Blocker) string {
	var who []string
	for _, b := range list {
		who = append(who, b.String())
	}
	return strings.Join(who, "; ")
}

// bounds are dates, or minutes where one of the two is within a day.
func bounds(l partman.Listed) (from, to string) {
	layout := time.DateOnly
	for _, t := range []time.Time{l.From, l.To} {
		if !t.Equal(t.Truncate(24 * time.Hour)) {
			layout = "2006-01-02T15:04Z"
		}
	}
	write := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(layout)
	}
	return write(l.From), write(l.To)
}

// plans makes the plan of each table asked for; what is wrong with one comes with the others'.
func (p *partitionsCall) plans(ctx context.Context) ([]partman.Plan, error) {
	plans := make([]partman.Plan, 0, len(p.policies))
	var faults []error
	for _, o := range p.policies {
		plan, err := p.manager.Plan(ctx, partman.FormatName(o.Schema, o.Table))
		if err != nil {
			faults = append(faults, err)
			continue
		}
		plans = append(plans, plan)
	}
	return plans, errors.Join(faults...)
}

func planPartitions(ctx context.Context, p *partitionsCall) error {
	plans, fault := p.plans(ctx)
	err := p.print(p.stdout, plans, func(w io.Writer) {
		for _, plan := range plans {
			fmt.Fprintln(w, plan.String())
		}
	})
	return errors.Join(fault, err)
}

// applied is what partitions apply reports of one table.
type applied struct {
	Schema  string            `json:"schema"`
	Table   string            `json:"table"`
	Done    []partman.Action  `json:"done"`
	Refused []partman.Refusal `json:"refused"`
	Failed  string            `json:"failed,omitempty"`
}

func (p *partitionsCall) apply(ctx context.Context, plans []partman.Plan) error {
	report := []applied{}
	var errs []error
	for _, plan := range plans {
		result, err := p.manager.Apply(ctx, plan)
		a := applied{
			Schema: plan.Schema, Table: plan.Table,
			Done: append([]partman.Action{}, result.Done...), Refused: append([]partman.Refusal{}, result.Refused...),
		}
		if err != nil {
			a.Failed = err.Error()
			errs = append(errs, fmt.Errorf("table %q: %w", p.name(plan.Schema, plan.Table), failed(err)))
		}
		report = append(report, a)
	}
	err := p.print(p.stdout, report, func(w io.Writer) { p.printApplied(w, report) })
	return errors.Join(append(errs, err)...)
}

func (p *partitionsCall) printApplied(w io.Writer, report []applied) {
	for _, r := range report {
		table := p.name(r.Schema, r.Table)
		if len(r.Done)+len(r.Refused) == 0 && r.Failed == "" {
			fmt.Fprintf(w, "%s\tnothing to do\n", table)
		}
		for _, a := range r.Done {
			fmt.Fprintf(w, "%s\t%s\t%s\tdone\n", table, a.Kind, a.Partition)
		}
		if r.Failed != "" {
			fmt.Fprintf(w, "%s\tfailed\n", table)
		}
		for _, f := range r.Refused {
			fmt.Fprintf(w, "%s\t%s\t%s\trefused: %s\n", table, f.Action.Kind, f.Action.Partition, f.Blocked)
		}
	}
}

func checkPartitions(ctx context.Context, p *partitionsCall) error {
	findings, fault := p.manager.Check(ctx, p.names()...)
	if findings == nil {
		findings = []partman.Finding{}
	}
	err := p.print(p.stdout, findings, func(w io.Writer) {
		for _, f := range findings {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", p.name(f.Schema, f.Table), f.Code, f.Partition, f.Detail)
		}
		if len(findings) == 0 && fault == nil {
			fmt.Fprintln(w, "nothing found")
		}
	})
	err = errors.Join(fault, err)
	if err == nil && len(findings) > 0 {
		err = program.ErrFinding
	}
	return err
}
