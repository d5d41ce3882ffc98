package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"plenum/internal/program"
	"plenum/pkg/feed"
)

// usageOf makes an error of the feed that is the caller's a usage error.
func usageOf(err error) error {
	var wrong *feed.RequestError
	var unknown *feed.UnknownError
	switch {
	case errors.As(err, &unknown):
		return program.Usagef("%w; plenumctl feed list has those that exist", err)
	case errors.As(err, &wrong):
		return &program.UsageError{Err: err}
	}
	return err
}

// feedRead is what to read, and what to do with it.
type feedRead struct {
	feed.Request
	commit, follow bool
}

func setupFeedRead(fs *flag.FlagSet) func(context.Context, *call) error {
	r := feedRead{Request: feed.Request{Limit: feed.DefaultLimit}}
	fs.IntVar(&r.Limit, "limit", r.Limit, "rows; the last batch may exceed it")
	fs.DurationVar(&r.Wait, "wait", 0, "how long to wait for a first row, to 1m")
	fs.StringVar(&r.From, "from", "", "where a new consumer starts: earliest, latest or an RFC 3339 time")
	fs.BoolVar(&r.commit, "commit", false, "commit what was written to standard output")
	fs.BoolVar(&r.follow, "follow", false, "go on until it is stopped")
	return func(ctx context.Context, c *call) error {
		if len(c.args) != 1 {
			return program.Usagef("feed read: one NAME is needed, %d are given", len(c.args))
		}
		r.Name = c.args[0]
		return c.withFeed(ctx, func(f *feed.Feed) error {
			if err := r.mayCommit(ctx, f); err != nil {
				return err
			}
			return usageOf(r.run(ctx, c, f))
		})
	}
}

// mayCommit refuses to move a consumer that syncjob moves.
func (r *feedRead) mayCommit(ctx context.Context, f *feed.Feed) error {
	if !r.commit {
		return nil
	}
	o, err := f.Overview(ctx)
	if err != nil {
		return err
	}
	for _, c := range o.Consumers {
		if c.Name == r.Name && c.Target != nil {
			return program.Usagef("--commit: syncjob pushes to consumer %q (%s) and commits what arrived there; read without --commit, or move it by feed seek", r.Name, *c.Target)
		}
	}
	return nil
}

func (r *feedRead) run(ctx context.Context, c *call, f *feed.Feed) error {
	if r.follow {
		r.Wait = feed.MaxWait
	}
	switch {
	case !r.follow:
		page, err := f.Read(ctx, r.Request)
		if err != nil {
			return err
		}
		return r.write(ctx, c, f, page)
	case !r.commit:
		return stopped(ctx, f.Follow(ctx, r.Request, func(page feed.Page) error { return r.write(ctx, c, f, page) }))
	}
	for {
		page, err := f.Read(ctx, r.Request)
		if err == nil {
			err = r.write(ctx, c, f, page)
		}
		if err != nil {
			return stopped(ctx, err)
		}
	}
}

// stopped is nil for the error of a read that a person ended.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// write writes the rows to standard output and then the position to standard error. What could not be written is not committed;
// what was, is committed even if the command is being stopped.
func (r *feedRead) write(ctx context.Context, c *call, f *feed.Feed, page feed.Page) error {
	if len(page.Rows) == 0 && r.follow {
		return nil
	}
	if err := writeRows(c.stdout, page); err != nil {
		return fmt.Errorf("write rows up to position %d: %w", page.Position, err)
	}
	done := ""
	if r.commit {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := f.Commit(ctx, r.Name, page.Position); err != nil {
			return err
		}
		done = ", committed"
	}
	_, err := fmt.Fprintf(c.stderr, "position %d%s\n", page.Position, done)
	return err
}

func writeRows(out io.Writer, page feed.Page) error {
	w := bufio.NewWriterSize(out, 64<<10)
	var buf []byte
	for i := range page.Rows {
		buf = feed.AppendRow(buf[:0], &page.Rows[i])
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	return w.Flush()
}
