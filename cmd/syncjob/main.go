// Command syncjob marks stored rows processed and serves the feed of them over HTTP.
package main

import (
	"context"
	"io"
	"os"

	"plenum/internal/program"
)

func main() { os.Exit(program.Main("syncjob", run)) }

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	d := program.Daemon{
		Name:     "syncjob",
		About:    "marks stored rows processed and serves the feed of them over HTTP",
		Listen:   "127.0.0.1:8081",
		Feed:     true,
		Validate: program.Settings.ValidateSync,
		Work:     program.Syncjob,
	}
	return d.Run(ctx, args, getenv, stdout, stderr)
}
