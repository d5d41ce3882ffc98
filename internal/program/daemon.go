package program

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Daemon is a program without subcommands.
type Daemon struct {
	Name, About string
	Listen      string // default of http.listen
	Feed        bool   // serves the feed
	Validate    func(Settings) error
	Work        func(context.Context, *App) error
}

// Run reads the settings, serves HTTP and works until ctx ends.
func (d Daemon) Run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	s, done, err := d.settings(args, getenv, stdout)
	if err != nil || done {
		return err
	}
	log, err := NewLogger(s, zapcore.Lock(zapcore.AddSync(stderr)), IsTerminal(stderr))
	if err != nil {
		return err
	}
	a, err := NewApp(ctx, "plenum-"+d.Name, s, log)
	if err != nil {
		return err
	}
	defer a.Close()
	log.Info("starting", zap.String("program", d.Name), zap.String("version", Version()))
	return a.WithHTTP(ctx, d.Feed, nil, func(ctx context.Context) error { return d.Work(ctx, a) })
}

// settings reads and judges the settings; done says that a flag only asked for information.
func (d Daemon) settings(args []string, getenv func(string) string, stdout io.Writer) (s Settings, done bool, err error) {
	l := NewLoader(d.Listen)
	fs := flag.NewFlagSet(d.Name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	showVersion := fs.Bool("version", false, "print the version")
	l.AddFlags(fs)
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, "%s %s.\n\nUsage: %s [--config FILE] [--KEY VALUE]… [--version]\n\n", d.Name, d.About, d.Name)
		l.PrintKeys(stdout)
		return s, true, nil
	case err != nil:
		return s, false, Usagef("%w; see %s --help", err, d.Name)
	case fs.NArg() > 0:
		return s, false, Usagef("unexpected argument %q: %s has no subcommands; see %s --help", fs.Arg(0), d.Name, d.Name)
	case *showVersion:
		fmt.Fprintln(stdout, d.Name, Version())
		return s, true, nil
	}
	s, err = l.Load(getenv)
	return s, false, usage(err, d.Validate(s))
}
