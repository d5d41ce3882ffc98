package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os/user"
	"strings"
	"time"

	"plenum/internal/program"
	"plenum/pkg/partman"
)

// setupHold is `partitions hold DAY`.
func setupHold(fs *flag.FlagSet) func(context.Context, *call) error {
	reason := fs.String("reason", "", "why, for whoever finds the hold")
	return partitionsCommand(func(ctx context.Context, p *partitionsCall) error {
		from, to, err := p.day()
		if err != nil {
			return err
		}
		h := partman.Hold{From: from, To: to, Reason: *reason}
		if u, err := user.Current(); err == nil {
			h.By = u.Username // else it is the database's role
		}
		if err := p.manager.Hold(ctx, p.table, h); err != nil {
			return err
		}
		return p.printHeld(ctx, from, to)
	})(fs)
}

// setupRelease is `partitions release DAY`.
func setupRelease(fs *flag.FlagSet) func(context.Context, *call) error {
	return partitionsCommand(func(ctx context.Context, p *partitionsCall) error {
		from, to, err := p.day()
		if err != nil {
			return err
		}
		n, err := p.manager.Release(ctx, p.table, from, to)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("nothing holds %s: plenumctl partitions list shows what is held", p.args[0])
		}
		return p.print(p.stdout, map[string]int{"released": n}, func(w io.Writer) { fmt.Fprintf(w, "%d released\n", n) })
	})(fs)
}

// day reads the range that the command's only argument names: a UTC day, or an hour of one.
func (p *partitionsCall) day() (from, to time.Time, err error) {
	if len(p.args) == 1 {
		if from, err = time.Parse(time.DateOnly, p.args[0]); err == nil {
			return from, from.AddDate(0, 0, 1), nil
		}
		if from, err = time.Parse("2006-01-02T15", strings.TrimSuffix(p.args[0], "Z")); err == nil {
			return from, from.Add(time.Hour), nil
		}
	}
	return from, to, program.Usagef("%q: one UTC day as 2026-11-14 is needed, or an hour as 2026-11-14T05", strings.Join(p.args, " "))
}

// heldTable is what partitions hold reports of one table.
type heldTable struct {
	Schema     string   `json:"schema"`
	Table      string   `json:"table"`
	Partitions []string `json:"partitions"` // that the hold keeps; empty where none has that day yet, or any more
}

func (p *partitionsCall) printHeld(ctx context.Context, from, to time.Time) error {
	list, fault := p.manager.List(ctx, p.names()...)
	if fault != nil {
		fmt.Fprintf(p.stderr, "plenumctl: the hold is set; not every table could be looked at: %v\n", fault)
	}
	report := make([]heldTable, len(p.policies))
	for n, o := range p.policies {
		report[n] = heldTable{o.Schema, o.Table, []string{}}
		for _, l := range list {
			if l.Schema == o.Schema && l.Table == o.Table && l.From.Before(to) && l.To.After(from) {
				report[n].Partitions = append(report[n].Partitions, l.Partition)
			}
		}
	}
	return p.print(p.stdout, report, func(w io.Writer) {
		for _, t := range report {
			what := strings.Join(t.Partitions, " ")
			if what == "" {
				what = "no partition has that day now; one that comes will be held"
			}
			fmt.Fprintf(w, "%s\theld\t%s\n", p.name(t.Schema, t.Table), what)
		}
	})
}

// heldBy is a hold as a column has it.
func heldBy(h *partman.Hold) string {
	if h == nil {
		return ""
	}
	return strings.TrimPrefix(h.String(), "held ")
}
