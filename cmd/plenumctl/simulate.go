package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"

	"plenum/internal/devenv"
	"plenum/internal/program"
)

func setupSimulate(fs *flag.FlagSet) func(context.Context, *call) error {
	var c devenv.SimulateConfig
	var qos int
	var record string
	fs.StringVar(&c.Broker, "broker", "", "URL of the broker, such as tcp://127.0.0.1:1883; required")
	fs.IntVar(&c.Devices, "devices", 1, "number of devices: cmp-00001 and so on")
	fs.IntVar(&c.FirstDevice, "first-device", 1, "number of the first device, so that several simulations have different ones")
	fs.Float64Var(&c.Rate, "rate", 0, "readings a second over all devices; 0: as fast as the broker takes them")
	fs.IntVar(&c.Total, "total", 0, "readings in all; 0: until Ctrl-C, or the whole file")
	fs.IntVar(&qos, "qos", 1, "0 or 1")
	fs.Uint64Var(&c.Seed, "seed", 1, "same seed, same signals")
	fs.StringVar(&c.File, "file", "", "CSV file to replay once instead of generated signals")
	fs.StringVar(&record, "record", "", "file that gets a line for each acknowledged reading: device id and seq")
	return func(ctx context.Context, call *call) (err error) {
		if qos != 0 && qos != 1 {
			return program.Usagef("--qos: %d is neither 0 nor 1", qos)
		}
		c.QoS = byte(qos)
		if c.FirstDevice < 1 { // 0 is the library's default, and here a mistake
			return program.Usagef("--first-device: %d is not 1 or more", c.FirstDevice)
		}
		if err := c.Validate(); err != nil {
			return &program.UsageError{Err: err}
		}
		if record != "" {
			f, err := os.Create(record)
			if err != nil {
				return fmt.Errorf("--record: %w", err)
			}
			defer func() {
				if closeErr := f.Close(); err == nil {
					err = closeErr
				}
			}()
			c.Record = f
		}
		stats, err := devenv.Simulate(ctx, c, progress(call.stdout))
		fmt.Fprintf(call.stdout, "sent %d, acknowledged %d, reconnected %d times\n", stats.Sent, stats.Acknowledged, stats.Reconnects)
		return err
	}
}

// progress rewrites one line on a terminal, and is silent elsewhere.
func progress(w io.Writer) func(devenv.SimulateStats) {
	if !program.IsTerminal(w) {
		return nil
	}
	return func(s devenv.SimulateStats) {
		fmt.Fprintf(w, "\rsent %d, acknowledged %d\x1b[K\r", s.Sent, s.Acknowledged)
	}
}
