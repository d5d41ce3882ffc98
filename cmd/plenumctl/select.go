package main

import (
	"context"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"time"

	"plenum/internal/program"
	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

// selection is the flags and arguments that say which lines of the quarantine are meant.
type selection struct {
	ids           []int64
	code          codeFlag
	device        string
	since, before timeFlag
	replayed      *bool
}

func (s *selection) add(fs *flag.FlagSet) {
	fs.Var(&s.code, "code", "only this quarantine code")
	fs.StringVar(&s.device, "device", "", "only what topics name this device, or this topic")
}

// lines makes the selection one of the store. Times of the form 2h count from the database's time.
func (s *selection) lines(ctx context.Context, q *store.Quarantined, device func(string) string) (store.Selection, error) {
	now, err := q.Now(ctx)
	if err != nil {
		return store.Selection{}, err
	}
	out := store.Selection{
		IDs: s.ids, Code: telemetry.Code(s.code), Since: s.since.at(now), Before: s.before.at(now), Replayed: s.replayed, Topic: s.device,
	}
	if s.device != "" {
		out.Match = func(topic string) bool { return topic == s.device || device(topic) == s.device }
	}
	if len(s.ids) == 0 {
		return out, nil
	}
	missing, err := q.Missing(ctx, s.ids)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("no line of the quarantine has id %s; nothing was done", join(missing))
	}
	return out, err
}

func join(ids []int64) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = strconv.FormatInt(id, 10)
	}
	return strings.Join(words, ", ")
}

func parseIDs(args []string) ([]int64, error) {
	ids := make([]int64, len(args))
	for i, arg := range args {
		id, err := strconv.ParseInt(arg, 10, 64)
		if err != nil || id < 1 {
			return nil, program.Usagef("%q is not the id of a line: a whole number from 1", arg)
		}
		ids[i] = id
	}
	return ids, nil
}

// oneID is the one id that the command needs.
func oneID(command string, args []string) (int64, error) {
	ids, err := parseIDs(args)
	if err == nil && len(ids) != 1 {
		err = program.Usagef("%s: one ID is needed, %d are given", command, len(ids))
	}
	if err != nil {
		return 0, err
	}
	return ids[0], nil
}

// deviceOf returns what the device of a topic is called: the topic itself where it names none.
func deviceOf(d *telemetry.Decoder) func(topic string) string {
	return func(topic string) string {
		if device, ok := d.Device(topic); ok {
			return device
		}
		return topic
	}
}

// codeFlag is a quarantine code; empty for any.
type codeFlag telemetry.Code

func (c *codeFlag) String() string { return string(*c) }

func (c *codeFlag) Set(v string) error {
	if !telemetry.Code(v).Known() {
		words := make([]string, 0, 11)
		for _, k := range telemetry.Codes() {
			words = append(words, string(k))
		}
		return fmt.Errorf("it is none of %s", strings.Join(words, ", "))
	}
	*c = codeFlag(v)
	return nil
}

// timeFlag is a point in time, or a distance to now; zero where not given.
type timeFlag struct {
	text  string
	point time.Time
	ago   time.Duration
}

const timeForms = "a time such as 2026-11-22 or 2026-11-22T21:45:00Z, or how long ago, such as 90m or 7d"

func (f *timeFlag) String() string { return f.text }

func (f *timeFlag) Set(v string) error {
	*f = timeFlag{text: v}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, v); err == nil {
			f.point = t.UTC()
			return nil
		}
	}
	var err error
	if days, isDays := strings.CutSuffix(v, "d"); isDays {
		var n int
		n, err = strconv.Atoi(days)
		f.ago = time.Duration(min(n, 36525)) * 24 * time.Hour
	} else {
		f.ago, err = time.ParseDuration(v)
	}
	if err != nil || f.ago <= 0 {
		return fmt.Errorf("it is not %s", timeForms)
	}
	return nil
}

func (f *timeFlag) at(now time.Time) time.Time {
	if f.ago > 0 {
		return now.Add(-f.ago)
	}
	return f.point
}

// countFlag is a number from 1.
type countFlag int

func (c *countFlag) String() string { return strconv.Itoa(int(*c)) }

func (c *countFlag) Set(v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		return fmt.Errorf("it is not a whole number from 1")
	}
	*c = countFlag(n)
	return nil
}
