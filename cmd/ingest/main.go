// Command ingest receives telemetry over MQTT and stores it in PostgreSQL, whose partitions it keeps.
package main

import (
	"context"
	"io"
	"os"

	"plenum/internal/program"
)

func main() { os.Exit(program.Main("ingest", run)) }

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	d := program.Daemon{
		Name:     "ingest",
		About:    "receives telemetry over MQTT and stores it in PostgreSQL, whose partitions it keeps",
		Listen:   "127.0.0.1:8080",
		Feed:     false,
		Validate: program.Settings.ValidateIngest,
		Work:     program.Ingest,
	}
	return d.Run(ctx, args, getenv, stdout, stderr)
}
