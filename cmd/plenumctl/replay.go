package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"

	"plenum/internal/program"
	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

func setupQuarantineReplay(fs *flag.FlagSet) func(context.Context, *call) error {
	var out output
	var s selection
	var dry bool
	out.add(fs)
	s.add(fs)
	fs.BoolVar(&dry, "dry-run", false, "only say what decoding would make of it now; the database may still find a conflict")
	return func(ctx context.Context, c *call) (err error) {
		if s.ids, err = parseIDs(c.args); err != nil {
			return err
		}
		if err := out.check(); err != nil {
			return err
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
		if len(s.ids) == 0 { // one that is named is reported even if there is nothing to do
			waiting := false
			lines.Replayed = &waiting
		}
		replayer, err := program.NewReplayer(ctx, q.app, q.lines)
		if err != nil {
			return err
		}
		step := replayer.Replay
		if dry {
			step = replayer.Try
		}
		r := &replayReport{w: c.stdout, json: out.format == "json", dry: dry}
		return errors.Join(q.replay(ctx, lines, step, r), r.end())
	}
}

func (q *quarantineCall) replay(ctx context.Context, s store.Selection, step func(context.Context, store.QuarantinedLine) (program.Replay, error), r *replayReport) error {
	for l, err := range q.lines.Oldest(ctx, s) {
		if err != nil {
			return err
		}
		done := program.Replay{Result: program.ReplayedBefore}
		if l.ReplayedAt.IsZero() {
			if done, err = step(ctx, l); err != nil {
				return err
			}
		}
		if err := r.add(l.ID, done); err != nil {
			return err
		}
	}
	return nil
}

// replayReport writes the report line by line: there may be millions.
type replayReport struct {
	w         io.Writer
	json, dry bool
	n         int
	counts    map[program.ReplayResult]int
	total     telemetry.Outcome
}

// replayedLine is the report on a line as JSON.
type replayedLine struct {
	ID          int64                `json:"id"`
	Result      program.ReplayResult `json:"result"`
	Stored      int                  `json:"stored"`
	Duplicate   int                  `json:"duplicate"`
	Quarantined int                  `json:"quarantined"`
	Code        telemetry.Code       `json:"code,omitempty"`
	Detail      string               `json:"detail,omitempty"`
}

func (r *replayReport) add(id int64, p program.Replay) error {
	if r.counts == nil {
		r.counts = map[program.ReplayResult]int{}
	}
	r.n++
	r.counts[p.Result]++
	if p.Result == program.Replayed {
		r.total.Add(p.Outcome)
	}
	if r.json {
		b, err := json.Marshal(replayedLine{id, p.Result, p.Stored, p.Duplicate, p.Quarantined, p.Code, p.Detail})
		if err != nil {
			return err
		}
		between := ",\n    "
		if r.n == 1 {
			between = "{\n  \"lines\": [\n    "
		}
		_, err = fmt.Fprintf(r.w, "%s%s", between, b)
		return err
	}
	_, err := fmt.Fprintf(r.w, "%d  %s\n", id, r.text(p))
	return err
}

func (r *replayReport) text(p program.Replay) string {
	why := fmt.Sprintf("%s: %s", p.Code, plain(p.Detail))
	switch p.Result {
	case program.Replayed:
		text := fmt.Sprintf("replayed: %d stored, %d stored before", p.Stored, p.Duplicate)
		if r.dry {
			text = fmt.Sprintf("would be readings: %d", p.Stored)
		}
		if p.Quarantined > 0 {
			text += fmt.Sprintf("; %d quarantined again, %s", p.Quarantined, why)
		}
		return text
	case program.RejectedAgain:
		return "rejected again, " + why
	case program.Unreplayable:
		return "cannot be replayed, " + why
	}
	return string(p.Result)
}

// end writes the totals, and returns ErrFinding if something is still rejected.
func (r *replayReport) end() error {
	rejected := r.counts[program.RejectedAgain]
	lost := r.counts[program.Unreplayable]
	var err error
	if r.json {
		if r.n == 0 {
			fmt.Fprint(r.w, "{\n  \"lines\": [")
		}
		_, err = fmt.Fprintf(r.w, "\n  ],\n  \"dry_run\": %v,\n  \"replayed\": %d,\n  \"rejected_again\": %d,\n  \"unreplayable\": %d\n}\n",
			r.dry, r.counts[program.Replayed], rejected, lost)
	} else {
		word := "replayed"
		if r.dry {
			word = "would replay"
		}
		_, err = fmt.Fprintf(r.w, "%s %d of %d lines: %d rejected again, %d not kept whole\n", word, r.counts[program.Replayed], r.n, rejected, lost)
	}
	if rejected+lost+r.total.Quarantined > 0 {
		err = errors.Join(err, program.ErrFinding)
	}
	return err
}
