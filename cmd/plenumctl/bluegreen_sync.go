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
	"plenum/pkg/bluegreen"
)

func setupBluegreenSync(fs *flag.FlagSet) func(context.Context, *call) error {
	var b bluegreenCall
	var o bluegreen.SyncOptions
	fs.BoolVar(&o.Follow, "follow", false, "go on until it is stopped, so that a swap has little left to do")
	fs.IntVar(&o.RowsPerSecond, "rate", 0, "most rows copied per second; 0 is as fast as it can")
	fs.DurationVar(&o.MaxReplicaLag, "max-replica-lag", 0, "hold the copy while a standby is further behind; 0 does not look")
	check := func() error {
		switch {
		case o.RowsPerSecond < 0:
			return program.Usagef("--rate: %d is negative", o.RowsPerSecond)
		case o.MaxReplicaLag < 0:
			return program.Usagef("--max-replica-lag: %s is negative", o.MaxReplicaLag)
		}
		return nil
	}
	return bluegreenCommand(&b, fs, check, func(ctx context.Context) error {
		line := newProgressLine(b.stderr)
		o.Progress = line.show
		err := b.migration.Sync(ctx, o)
		line.end()
		if ctx.Err() != nil && o.Follow {
			err = nil
		}
		if err != nil {
			return err
		}
		return b.print(b.stdout, line.last, func(w io.Writer) {
			for _, p := range line.last {
				fmt.Fprintf(w, "%s\tcopied\t%d rows\t%d log entries left%s\n", plain(p.Table), p.Rows, p.Entries, refusedText(p))
			}
		})
	})
}

// progressLine shows how far a sync has come: one line rewritten on a terminal, a line every few seconds elsewhere.
type progressLine struct {
	out   io.Writer
	every time.Duration
	close string // what ends a line
	shown time.Time
	open  bool
	last  []bluegreen.Progress // of each table
}

func newProgressLine(out io.Writer) *progressLine {
	l := &progressLine{out: out, every: 5 * time.Second, close: "\n", last: []bluegreen.Progress{}}
	if program.IsTerminal(out) {
		l.every, l.close = 500*time.Millisecond, "\x1b[K\r"
	}
	return l
}

func (l *progressLine) show(p bluegreen.Progress) {
	n := slices.IndexFunc(l.last, func(o bluegreen.Progress) bool { return o.Table == p.Table })
	changed := n < 0 || l.last[n].Copied != p.Copied || l.last[n].Waiting != p.Waiting || l.last[n].Refused != p.Refused
	if n < 0 {
		l.last = append(l.last, p)
	} else {
		l.last[n] = p
	}
	if !changed && time.Since(l.shown) < l.every {
		return
	}
	l.shown, l.open = time.Now(), l.close != "\n"
	fmt.Fprint(l.out, progressText(p), l.close)
}

func (l *progressLine) end() {
	if l.open {
		fmt.Fprintln(l.out)
	}
}

func refusedText(p bluegreen.Progress) string {
	if p.Refused == 0 {
		return ""
	}
	return fmt.Sprintf(", %d ids refused: bluegreen status says why", p.Refused)
}

func progressText(p bluegreen.Progress) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	switch {
	case p.Copied:
		add("copied %d rows", p.Rows)
	case p.Total > 0:
		add("copying %d of ~%d rows", p.Rows, p.Total)
	default:
		add("copying, %d rows", p.Rows)
	}
	if !p.Copied && p.PerSecond > 0 {
		add("%.0f rows/s", p.PerSecond)
	}
	if p.ETA > 0 {
		add("about %s left", p.ETA.Round(time.Second))
	}
	add("%d log entries behind%s", p.Entries, refusedText(p))
	if p.Waiting != "" {
		add("held: %s", p.Waiting)
	}
	return plain(p.Table) + ": " + strings.Join(parts, ", ")
}
