package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"plenum/internal/program"
	"plenum/pkg/store"
)

func setupQuarantinePurge(fs *flag.FlagSet) func(context.Context, *call) error {
	var out output
	var s selection
	var replayed, all, dry bool
	out.add(fs)
	s.add(fs)
	fs.Var(&s.before, "before", "only what was received before: "+timeForms)
	fs.BoolVar(&replayed, "replayed", false, "only what was replayed")
	fs.BoolVar(&all, "all", false, "everything")
	fs.BoolVar(&dry, "dry-run", false, "only say how much it is")
	return func(ctx context.Context, c *call) (err error) {
		if s.ids, err = parseIDs(c.args); err != nil {
			return err
		}
		if replayed {
			s.replayed = &replayed
		}
		narrow := len(s.ids) > 0 || s.code != "" || s.device != "" || s.before.text != "" || replayed
		switch err := out.check(); {
		case err != nil:
			return err
		case !narrow && !all:
			return program.Usagef("quarantine purge: say what: IDs, --code, --device, --before, --replayed, or --all for everything")
		case narrow && all:
			return program.Usagef("quarantine purge: --all means everything, beside IDs, --code, --device, --before and --replayed it means nothing")
		}
		q, err := c.quarantine(ctx, !dry)
		if err != nil {
			return err
		}
		defer q.app.Close()
		lines, err := s.lines(ctx, q.lines, q.device)
		if err != nil {
			return err
		}
		if dry {
			return q.countPurge(ctx, &out, lines)
		}
		return q.purge(ctx, &out, lines)
	}
}

// purged is the report; its sizes are those of the quarantine, indexes included.
type purged struct {
	Lines        int64 `json:"lines"`
	PayloadBytes int64 `json:"payload_bytes"`
	DryRun       bool  `json:"dry_run"`
	BytesBefore  int64 `json:"quarantine_bytes_before"`
	Bytes        int64 `json:"quarantine_bytes"`
}

func (q *quarantineCall) countPurge(ctx context.Context, out *output, s store.Selection) error {
	report := purged{DryRun: true}
	for l, err := range q.lines.Oldest(ctx, s) {
		if err != nil {
			return err
		}
		report.Lines++
		report.PayloadBytes += max(l.Bytes, 0)
	}
	var err error
	if report.Bytes, err = program.QuarantineBytes(ctx, q.app); err != nil {
		return err
	}
	report.BytesBefore = report.Bytes
	return out.print(q.stdout, report, func(w io.Writer) {
		fmt.Fprintf(w, "would delete %d lines with %s of payloads; the quarantine has %s\n", report.Lines, bytes(report.PayloadBytes), bytes(report.Bytes))
	})
}

func (q *quarantineCall) purge(ctx context.Context, out *output, s store.Selection) error {
	before, err := program.QuarantineBytes(ctx, q.app)
	if err != nil {
		return err
	}
	done, err := q.lines.Delete(ctx, s)
	if err == nil {
		err = q.lines.Vacuum(ctx, done.Leaves)
	}
	after, sizeErr := program.QuarantineBytes(ctx, q.app)
	report := purged{Lines: done.Lines, PayloadBytes: done.Bytes, BytesBefore: before, Bytes: after}
	printErr := out.print(q.stdout, report, func(w io.Writer) {
		fmt.Fprintf(w, "deleted %d lines with %s of payloads\n", done.Lines, bytes(done.Bytes))
		if sizeErr == nil {
			fmt.Fprintf(w, "the quarantine has %s, before %s\n", bytes(after), bytes(before))
		}
	})
	return errors.Join(err, sizeErr, printErr)
}
