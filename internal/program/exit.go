package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"plenum/pkg/bluegreen"
	"plenum/pkg/partman"
	"plenum/pkg/store"
)

// Exit codes of the three programs.
const (
	ExitDone    = 0
	ExitFailed  = 1
	ExitUsage   = 2 // command line, configuration, schema or rights
	ExitFinding = 3 // a check found something
	ExitHeld    = 4 // another instance holds the lock
)

// ErrHeld is part of an error that says who holds what this instance needs.
var ErrHeld = errors.New("another instance is running")

// ErrFinding is returned by a check that found something and has printed it.
var ErrFinding = errors.New("the check found something")

// ExitCode is the exit code of what a program's run returned.
func ExitCode(err error) int {
	var usage *UsageError
	var setup *store.SetupError
	var held *store.HeldError
	switch {
	case err == nil:
		return ExitDone
	case errors.As(err, &held), errors.Is(err, partman.ErrBusy), errors.Is(err, bluegreen.ErrBusy), errors.Is(err, ErrHeld):
		return ExitHeld
	case errors.As(err, &usage), errors.As(err, &setup), errors.Is(err, partman.ErrPooler):
		return ExitUsage
	case errors.Is(err, ErrFinding):
		return ExitFinding
	}
	return ExitFailed
}

// Main runs a program with the process's arguments, environment and signals, prints its error and returns its
// exit code. The first SIGINT or SIGTERM ends run's context; the second kills.
func Main(name string, run func(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, ErrFinding) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	}
	return ExitCode(err)
}

// version is set by the build; without that it is the module's, or the commit's.
var version string

// Version is what --version prints.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return "devel-" + s.Value[:12]
			}
		}
	}
	return "devel"
}

// levels are the values of log.level.
var levels = map[string]zapcore.Level{
	"debug": zapcore.DebugLevel, "info": zapcore.InfoLevel, "warn": zapcore.WarnLevel, "error": zapcore.ErrorLevel,
}

// NewLogger returns the logger of log.level and log.format on w; terminal says that w is one.
func NewLogger(s Settings, w zapcore.WriteSyncer, terminal bool) (*zap.Logger, error) {
	level, known := levels[s.Log.Level]
	if !known {
		return nil, Usagef("log.level: %q is none of debug, info, warn, error", s.Log.Level)
	}
	format := s.Log.Format
	if format == "" {
		format = "json"
		if terminal {
			format = "console"
		}
	}
	c := zapcore.EncoderConfig{
		TimeKey: "time", LevelKey: "level", MessageKey: "message", NameKey: "logger",
		EncodeTime: zapcore.RFC3339NanoTimeEncoder, EncodeLevel: zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.StringDurationEncoder, EncodeName: zapcore.FullNameEncoder,
	}
	switch format {
	case "json":
		return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(c), w, level)), nil
	case "console":
		c.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(c), w, level)), nil
	}
	return nil, Usagef("log.format: %q is neither json nor console", format)
}

// IsTerminal tells whether f is a terminal.
func IsTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
