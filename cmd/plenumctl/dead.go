package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"plenum/internal/program"
	"plenum/pkg/store"
)

// deadLetter is a dead letter as JSON.
type deadLetter struct {
	ID        int64      `json:"id"`
	Consumer  string     `json:"consumer"`
	After     int64      `json:"after_position"`
	Position  int64      `json:"position"`
	Rows      int        `json:"rows"`
	Bytes     int64      `json:"bytes"`
	Attempts  int        `json:"attempts"`
	CreatedAt time.Time  `json:"created_at"`
	RetryAt   *time.Time `json:"retry_at"` // null: no further delivery was asked for
	Detail    string     `json:"detail"`
}

func deadLetterOf(d store.DeadLetter) deadLetter {
	out := deadLetter{d.ID, d.Consumer, d.After, d.Position, d.Rows, d.Bytes, d.Attempts, d.CreatedAt, nil, d.Detail}
	if d.RetryAt.Year() > 1 {
		out.RetryAt = &d.RetryAt
	}
	return out
}

func (d deadLetter) retry() string {
	if d.RetryAt == nil {
		return "no"
	}
	return "asked for " + instant(*d.RetryAt)
}

func setupDeadList(fs *flag.FlagSet) func(context.Context, *call) error {
	var out output
	limit := countFlag(100)
	out.add(fs)
	fs.Var(&limit, "limit", "lines at most")
	return func(ctx context.Context, c *call) error {
		if err := out.check(); err != nil {
			return err
		}
		if len(c.args) > 1 {
			return program.Usagef("feed dead list: one consumer at most, %d are given", len(c.args))
		}
		a, err := c.app(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		found, err := program.DeadLetters(ctx, a, strings.Join(c.args, ""), int(limit)+1)
		if err != nil {
			return err
		}
		more := len(found) > int(limit)
		all := []deadLetter{}
		for _, d := range found[:min(len(found), int(limit))] {
			all = append(all, deadLetterOf(d))
		}
		return out.print(c.stdout, all, func(w io.Writer) { listDead(w, all, more) })
	}
}

func listDead(w io.Writer, all []deadLetter, more bool) {
	if len(all) == 0 {
		fmt.Fprintln(w, "none")
		return
	}
	fmt.Fprintln(w, "ID\tCONSUMER\tPOSITIONS\tROWS\tSIZE\tATTEMPTS\tSINCE\tRETRY\tDETAIL")
	for _, d := range all {
		fmt.Fprintf(w, "%d\t%s\t%d-%d\t%d\t%s\t%d\t%s\t%s\t%s\n", d.ID, plain(d.Consumer), d.After+1, d.Position, d.Rows, bytes(d.Bytes), d.Attempts,
			instant(d.CreatedAt), d.retry(), brief(d.Detail, 120))
	}
	if more {
		fmt.Fprintln(w, "… there are older ones: --limit")
	}
}

func setupDeadShow(fs *flag.FlagSet) func(context.Context, *call) error {
	var out output
	var raw bool
	out.add(fs)
	fs.BoolVar(&raw, "raw", false, "write the rows as NDJSON and nothing else")
	return func(ctx context.Context, c *call) error {
		id, err := oneID("feed dead show", c.args)
		if err == nil {
			err = out.checkRaw(raw)
		}
		if err != nil {
			return err
		}
		a, err := c.app(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		d, err := program.DeadLetter(ctx, a, id)
		if err != nil {
			return err
		}
		if raw {
			_, err := c.stdout.Write(d.Body)
			return err
		}
		return showDead(&out, c.stdout, d)
	}
}

func showDead(out *output, w io.Writer, letter store.DeadLetter) error {
	type shown struct {
		deadLetter
		Body string `json:"body"`
	}
	d := deadLetterOf(letter)
	err := out.print(w, shown{d, string(letter.Body)}, func(w io.Writer) {
		fmt.Fprintf(w, "id\t%d\nconsumer\t%s\npositions\t%d-%d\nrows\t%d\nattempts\t%d\ncreated_at\t%s\nretry\t%s\ndetail\t%s\n",
			d.ID, plain(d.Consumer), d.After+1, d.Position, d.Rows, d.Attempts, instant(d.CreatedAt), d.retry(), plain(d.Detail))
	})
	if err != nil || out.format == "json" {
		return err
	}
	_, err = fmt.Fprintf(w, "\n%s", letter.Body)
	return err
}

// setupDeadRetry only asks: the process that pushes delivers.
func setupDeadRetry(*flag.FlagSet) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		ids, a, err := c.deadLetters(ctx, "retry")
		if err != nil {
			return err
		}
		defer a.Close()
		known, err := program.RetryDeadLetters(ctx, a, ids)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if !slices.Contains(known, id) {
				fmt.Fprintf(c.stdout, "there is no dead letter %d\n", id)
			}
		}
		if len(known) > 0 {
			_, err = fmt.Fprintf(c.stdout, "%d will be delivered once more by the syncjob that pushes to their consumer; see feed dead list\n", len(known))
		}
		if err == nil && len(known) < len(ids) {
			err = program.ErrFinding
		}
		return err
	}
}

func setupDeadPurge(*flag.FlagSet) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		ids, a, err := c.deadLetters(ctx, "purge")
		if err != nil {
			return err
		}
		defer a.Close()
		n, err := program.PurgeDeadLetters(ctx, a, ids)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.stdout, "deleted %d of %d dead letters; what they held was delivered to nobody\n", n, len(ids))
		return err
	}
}

// deadLetters opens the database for a command that acts on the IDs given, each once.
func (c *call) deadLetters(ctx context.Context, verb string) ([]int64, *program.App, error) {
	ids, err := parseIDs(c.args)
	if err != nil {
		return nil, nil, err
	}
	if len(ids) == 0 {
		return nil, nil, program.Usagef("feed dead %s: say which: IDs, as feed dead list has them", verb)
	}
	slices.Sort(ids)
	a, err := c.app(ctx)
	return slices.Compact(ids), a, err
}
