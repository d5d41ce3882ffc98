package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"plenum/internal/program"
	"plenum/pkg/store"
)

// syncStatus is what sync status reports.
type syncStatus struct {
	Pending  int64          `json:"pending_batches"`
	Lag      float64        `json:"lag_seconds"` // age of the oldest pending batch
	SetAside int64          `json:"set_aside_batches"`
	Lines    []setAsideLine `json:"set_aside"`
}

type setAsideLine struct {
	Batch   int64     `json:"batch_id"`
	Day     string    `json:"day"`
	FirstID int64     `json:"first_id"`
	LastID  int64     `json:"last_id"`
	Counted int       `json:"rows_counted"`
	Found   int       `json:"rows_found"`
	Since   time.Time `json:"since"`
	Source  string    `json:"source"`
	Detail  string    `json:"detail"`
}

func setupSyncStatus(fs *flag.FlagSet) func(context.Context, *call) error {
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
		pending, lines, err := program.SyncStatus(ctx, a)
		if err != nil {
			return err
		}
		s := syncStatus{Pending: pending.Lines, Lag: pending.Oldest.Seconds(), SetAside: pending.SetAside, Lines: []setAsideLine{}}
		for _, l := range lines {
			s.Lines = append(s.Lines, setAsideLine{
				l.BatchID, l.Day.Format(time.DateOnly), l.FirstID, l.LastID, l.Rows, l.Found, l.Since.UTC(), l.Source, l.Detail,
			})
		}
		return out.print(c.stdout, s, s.text)
	}
}

func (s syncStatus) text(w io.Writer) {
	oldest := ""
	if s.Pending > 0 {
		oldest = fmt.Sprintf(", the oldest since %s", time.Duration(s.Lag*float64(time.Second)).Round(time.Millisecond))
	}
	fmt.Fprintf(w, "%d batches pending%s; %d set aside\n", s.Pending, oldest, s.SetAside)
	if len(s.Lines) == 0 {
		return
	}
	fmt.Fprintln(w, "BATCH\tDAY\tIDS\tCOUNTED\tFOUND\tSINCE\tSOURCE\tDETAIL")
	for _, l := range s.Lines {
		fmt.Fprintf(w, "%d\t%s\t%d…%d\t%d\t%d\t%s\t%s\t%s\n", l.Batch, l.Day, l.FirstID, l.LastID, l.Counted, l.Found, instant(l.Since), plain(l.Source), plain(l.Detail))
	}
}

func setupSyncResolve(fs *flag.FlagSet) func(context.Context, *call) error {
	dryRun := fs.Bool("dry-run", false, "say what would be done, and change nothing")
	var out output
	out.add(fs)
	return func(ctx context.Context, c *call) error {
		if err := out.check(); err != nil {
			return err
		}
		batch, err := batchArg(c.args)
		if err != nil {
			return err
		}
		a, err := c.app(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		r, err := program.SyncResolve(ctx, a, batch, *dryRun)
		if err != nil {
			return err
		}
		report := resolutionOf(r, *dryRun)
		return out.print(c.stdout, report, report.text)
	}
}

func batchArg(args []string) (int64, error) {
	if len(args) == 1 {
		if id, err := strconv.ParseInt(args[0], 10, 64); err == nil && id > 0 {
			return id, nil
		}
	}
	return 0, program.Usagef("%q: one BATCH is needed, a number as plenumctl sync status shows it", strings.Join(args, " "))
}

// resolution is what sync resolve reports.
type resolution struct {
	Batch     int64       `json:"batch_id"`
	Day       string      `json:"day"`
	State     string      `json:"state"` // as it was found
	Where     string      `json:"where"`
	Counted   int         `json:"rows_counted"`
	Found     int         `json:"rows_found"`
	Doubled   int         `json:"rows_doubled"`
	Stray     int         `json:"rows_stray"`
	DryRun    bool        `json:"dry_run"`
	Changed   bool        `json:"changed"`
	Deleted   bool        `json:"deleted"`
	Count     int         `json:"rows_counted_now"`
	Moved     int         `json:"rows_moved"`
	MovedTo   []movedLine `json:"moved_to"`
	Processed bool        `json:"-"`
	Freed     bool        `json:"freed"`
}

type movedLine struct {
	Batch   int64 `json:"batch_id"`
	FirstID int64 `json:"first_id"`
	LastID  int64 `json:"last_id"`
}

func resolutionOf(r store.Resolution, dryRun bool) resolution {
	out := resolution{
		Batch: r.BatchID, Day: r.Day.Format(time.DateOnly), State: "pending", Where: r.Where, Counted: r.Rows, Found: r.Found, Doubled: r.Doubled, Stray: r.Stray,
		DryRun: dryRun, Changed: r.Changed(), Deleted: r.Deleted, Count: r.Count, MovedTo: []movedLine{}, Processed: r.Processed, Freed: r.Freed,
	}
	switch {
	case r.Processed:
		out.State = fmt.Sprintf("processed, at position %d", r.Position)
	case r.SetAside:
		out.State = "set aside"
	}
	for _, l := range r.Moved {
		out.Moved += l.Rows
		if !dryRun {
			out.MovedTo = append(out.MovedTo, movedLine{l.BatchID, l.FirstID, l.LastID})
		}
	}
	return out
}

func (r resolution) text(w io.Writer) {
	fmt.Fprintf(w, "batch %d of %s is %s: it counts %d rows, and %d are there", r.Batch, r.Day, r.State, r.Counted, r.Found)
	if r.Doubled > 0 {
		fmt.Fprintf(w, ", %d of them with an id that another one has", r.Doubled)
	}
	if r.Stray > 0 {
		fmt.Fprintf(w, ", %d of them never marked", r.Stray)
	}
	if r.Where == store.InArchive {
		fmt.Fprint(w, ", in the archive")
	}
	fmt.Fprintln(w)
	does := "is"
	if r.DryRun {
		does = "would be"
	}
	switch {
	case !r.Changed && r.Found != r.Counted:
		fmt.Fprintln(w, "its day was dropped when its time had come: nothing to do")
		return
	case !r.Changed:
		fmt.Fprintln(w, "line and rows agree: nothing to do")
		return
	case r.Deleted:
		fmt.Fprintf(w, "the line %s deleted: no row is left for it\n", does)
	case r.Count != r.Counted:
		fmt.Fprintf(w, "the count %s corrected to %d\n", does, r.Count)
	}
	if r.Freed && !r.Deleted {
		fmt.Fprintf(w, "the line %s pending again: syncjob marks it at its next claim\n", does)
	}
	if r.Moved > 0 {
		fmt.Fprintf(w, "%d rows %s given ids and a line of their own", r.Moved, does)
		for _, m := range r.MovedTo {
			fmt.Fprintf(w, "; batch %d, ids %d…%d", m.Batch, m.FirstID, m.LastID)
		}
		fmt.Fprintln(w)
	}
}
