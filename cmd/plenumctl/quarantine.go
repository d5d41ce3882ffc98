package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"slices"
	"time"

	"plenum/internal/program"
	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

// quarantineCall is one invocation of a quarantine command.
type quarantineCall struct {
	*call
	app    *program.App
	lines  *store.Quarantined
	device func(topic string) string
}

// quarantine opens the database for a command that reads the quarantine, or changes it.
func (c *call) quarantine(ctx context.Context, changes bool) (*quarantineCall, error) {
	a, err := c.app(ctx)
	if err != nil {
		return nil, err
	}
	q := &quarantineCall{call: c, app: a}
	decoder, err := program.NewDecoder(a.Settings)
	if err == nil {
		q.device = deviceOf(decoder)
		q.lines, err = program.Quarantined(ctx, a, changes)
	}
	if err != nil {
		a.Close()
		return nil, err
	}
	return q, nil
}

// line is a line of the quarantine as JSON.
type line struct {
	ID           int64          `json:"id"`
	ReceivedAt   time.Time      `json:"received_at"`
	ReplayedAt   *time.Time     `json:"replayed_at"`
	Code         telemetry.Code `json:"code"`
	Topic        string         `json:"topic"`
	PayloadBytes *int64         `json:"payload_bytes"` // null: not kept
	Detail       string         `json:"detail"`
}

func lineOf(l store.QuarantinedLine) line {
	out := line{ID: l.ID, ReceivedAt: l.ReceivedAt, Code: l.Code, Topic: l.Topic, Detail: l.Detail}
	if !l.ReplayedAt.IsZero() {
		out.ReplayedAt = &l.ReplayedAt
	}
	if l.Bytes != store.DroppedPayload {
		out.PayloadBytes = &l.Bytes
	}
	return out
}

func (l line) size() string {
	if l.PayloadBytes == nil {
		return "dropped"
	}
	return bytes(*l.PayloadBytes)
}

func (l line) replayed() string {
	if l.ReplayedAt == nil {
		return "no"
	}
	return instant(*l.ReplayedAt)
}

func setupQuarantineList(fs *flag.FlagSet) func(context.Context, *call) error {
	var out output
	var s selection
	var summary bool
	limit := countFlag(100)
	out.add(fs)
	s.add(fs)
	fs.Var(&s.since, "since", "only what was received since: "+timeForms)
	fs.Var(&limit, "limit", "lines at most")
	fs.BoolVar(&summary, "summary", false, "count by code and device instead")
	return func(ctx context.Context, c *call) error {
		if err := out.check(); err != nil {
			return err
		}
		q, err := c.quarantine(ctx, false)
		if err != nil {
			return err
		}
		defer q.app.Close()
		lines, err := s.lines(ctx, q.lines, q.device)
		if err != nil {
			return err
		}
		if summary {
			return q.summary(ctx, &out, lines, int(limit))
		}
		return q.list(ctx, &out, lines, int(limit))
	}
}

func (q *quarantineCall) list(ctx context.Context, out *output, s store.Selection, limit int) error {
	lines, more := []line{}, false
	for l, err := range q.lines.Newest(ctx, s) {
		if err != nil {
			return err
		}
		if more = len(lines) == limit; more {
			break
		}
		lines = append(lines, lineOf(l))
	}
	return out.print(q.stdout, lines, func(w io.Writer) {
		if len(lines) == 0 {
			fmt.Fprintln(w, "nothing")
			return
		}
		fmt.Fprintln(w, "ID\tRECEIVED\tCODE\tPAYLOAD\tREPLAYED\tTOPIC\tDETAIL")
		for _, l := range lines {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", l.ID, instant(l.ReceivedAt), l.Code, l.size(), l.replayed(), brief(l.Topic, 60), plain(l.Detail))
		}
		if more {
			fmt.Fprintln(w, "… there are older ones: --limit, --summary")
		}
	})
}

// summarized counts the lines of one code and device.
type summarized struct {
	Code     telemetry.Code `json:"code"`
	Device   string         `json:"device"` // or the topic, where that names none
	Lines    int64          `json:"lines"`
	Replayed int64          `json:"replayed"`
	First    time.Time      `json:"first"`
	Last     time.Time      `json:"last"`
	Example  string         `json:"example"` // the newest one's detail

	newest int64
}

// maxGroups bounds the groups by code and topic of which a summary is made.
const maxGroups = 10_000

func (q *quarantineCall) summary(ctx context.Context, out *output, s store.Selection, limit int) error {
	groups, rest, err := q.lines.Groups(ctx, s, maxGroups)
	if err != nil {
		return err
	}
	if s.Match != nil {
		groups = slices.DeleteFunc(groups, func(g store.QuarantineGroup) bool { return !s.Match(g.Topic) })
	}
	all := summarize(groups, q.device)
	shown := all[:min(limit, len(all))]
	ids := make([]int64, len(shown))
	for i := range shown {
		ids[i] = shown[i].newest
	}
	details, err := q.lines.Details(ctx, ids)
	if err != nil {
		return err
	}
	for i := range shown {
		shown[i].Example = details[shown[i].newest]
	}
	more, moreLines := len(all)-len(shown), int64(0)
	for _, e := range all[len(shown):] {
		moreLines += e.Lines
	}
	report := map[string]any{
		"groups": shown, "more_groups": more, "more_groups_lines": moreLines, "uncounted_topics": rest.Groups, "uncounted_lines": rest.Lines,
	}
	return out.print(q.stdout, report, func(w io.Writer) {
		if len(shown) == 0 {
			fmt.Fprintln(w, "nothing")
			return
		}
		fmt.Fprintln(w, "CODE\tDEVICE\tLINES\tREPLAYED\tFIRST\tLAST\tEXAMPLE")
		for _, e := range shown {
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\t%s\n", e.Code, brief(e.Device, 60), e.Lines, e.Replayed, instant(e.First), instant(e.Last), plain(e.Example))
		}
		if more > 0 {
			fmt.Fprintf(w, "… and %d more with %d lines: --limit\n", more, moreLines)
		}
		if rest.Groups > 0 {
			fmt.Fprintf(w, "… and %d more pairs of code and topic with %d lines, which are in no count above: --code, --device, --since\n", rest.Groups, rest.Lines)
		}
	})
}

// summarize joins groups of one code whose topics name one device; the largest come first.
func summarize(groups []store.QuarantineGroup, device func(string) string) []summarized {
	type key struct {
		code   telemetry.Code
		device string
	}
	at := map[key]int{}
	all := []summarized{}
	for _, g := range groups {
		k := key{g.Code, device(g.Topic)}
		i, known := at[k]
		if !known {
			i = len(all)
			at[k] = i
			all = append(all, summarized{Code: k.code, Device: k.device, First: g.First, Last: g.Last})
		}
		e := &all[i]
		e.Lines, e.Replayed, e.newest = e.Lines+g.Lines, e.Replayed+g.Replayed, max(e.newest, g.Newest)
		if g.First.Before(e.First) {
			e.First = g.First
		}
		if g.Last.After(e.Last) {
			e.Last = g.Last
		}
	}
	slices.SortStableFunc(all, func(a, b summarized) int { return cmp.Compare(b.Lines, a.Lines) })
	return all
}

func setupQuarantineShow(fs *flag.FlagSet) func(context.Context, *call) error {
	var out output
	var raw bool
	out.add(fs)
	fs.BoolVar(&raw, "raw", false, "write the payload's bytes and nothing else")
	return func(ctx context.Context, c *call) error {
		id, err := oneID("quarantine show", c.args)
		if err == nil {
			err = out.checkRaw(raw)
		}
		if err != nil {
			return err
		}
		q, err := c.quarantine(ctx, false)
		if err != nil {
			return err
		}
		defer q.app.Close()
		l, payload, err := q.find(ctx, id)
		if err != nil {
			return err
		}
		if raw {
			if payload == nil {
				return fmt.Errorf("the payload of line %d was not kept: the quarantine was full", l.ID)
			}
			_, err := c.stdout.Write(payload)
			return err
		}
		return show(&out, c.stdout, l, payload)
	}
}

// find returns the line with its payload.
func (q *quarantineCall) find(ctx context.Context, id int64) (line, []byte, error) {
	for l, err := range q.lines.Newest(ctx, store.Selection{IDs: []int64{id}}) {
		if err != nil {
			return line{}, nil, err
		}
		payload, err := q.lines.Payload(ctx, l)
		return lineOf(l), payload, err
	}
	return line{}, nil, fmt.Errorf("no line of the quarantine has id %d: it was purged, or its day is past quarantine.retention_days", id)
}

func show(out *output, w io.Writer, l line, payload []byte) error {
	type shown struct {
		line
		Payload []byte `json:"payload_base64"`
		Text    string `json:"payload_text,omitempty"`
	}
	all := shown{line: l, Payload: payload}
	if isText(payload) {
		all.Text = string(payload)
	}
	err := out.print(w, all, func(w io.Writer) {
		fmt.Fprintf(w, "id\t%d\nreceived_at\t%s\ncode\t%s\ndetail\t%s\ntopic\t%s\nreplayed_at\t%s\npayload\t%s\n",
			l.ID, l.ReceivedAt.Format(time.RFC3339Nano), l.Code, plain(l.Detail), plain(l.Topic), l.replayed(), l.size())
	})
	if err != nil || out.format == "json" || len(payload) == 0 {
		return err
	}
	if isText(payload) {
		_, err = fmt.Fprintf(w, "\n%s\n", payload)
		return err
	}
	fmt.Fprintln(w)
	dump := hex.Dumper(w)
	if _, err := dump.Write(payload); err != nil {
		return err
	}
	return dump.Close()
}
