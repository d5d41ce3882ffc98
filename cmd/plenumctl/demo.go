package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"plenum/internal/devenv"
	"plenum/internal/program"
)

// demo is everything on one machine.
type demo struct {
	dir     string
	devices int
	rate    float64
}

const demoDatabase = "plenum"

func setupDemo(fs *flag.FlagSet) func(context.Context, *call) error {
	var d demo
	fs.StringVar(&d.dir, "dir", ".plenum", "where the data of PostgreSQL and Mosquitto is kept between runs")
	fs.IntVar(&d.devices, "devices", 50, "simulated compressors")
	fs.Float64Var(&d.rate, "rate", 500, "readings a second over all devices")
	return d.run
}

// run starts the servers, which end last, and everything between them.
func (d *demo) run(ctx context.Context, c *call) (err error) {
	s, err := c.loader.Load(c.getenv)
	if err != nil {
		return err
	}
	if s.Database.URL != "" || len(s.MQTT.Brokers) > 0 {
		return program.Usagef("database.url and mqtt.brokers must not be set: the demo runs a PostgreSQL and a Mosquitto of its own")
	}
	if s.Log.Level == "info" && program.IsTerminal(c.stdout) {
		s.Log.Level = "warn" // the live line says the rest
	}
	if err := (devenv.SimulateConfig{Broker: "tcp://127.0.0.1:1", Devices: d.devices, Rate: d.rate}).Validate(); err != nil {
		return &program.UsageError{Err: err}
	}
	if err := probe(s.HTTP.Listen); err != nil {
		return err
	}
	postgres, err := devenv.StartPostgres(ctx, devenv.PostgresConfig{
		BinDir: devenv.PostgresBinDir(c.getenv), Dir: filepath.Join(d.dir, "postgres"), Fsync: true,
	})
	if inUse := (*devenv.InUseError)(nil); errors.As(err, &inUse) {
		return fmt.Errorf("%w: %w", program.ErrHeld, err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, postgres.Stop()) }()
	broker, err := devenv.StartMosquitto(ctx, devenv.MosquittoConfig{Dir: filepath.Join(d.dir, "mosquitto")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	if err := ensureDatabase(ctx, postgres); err != nil {
		return err
	}
	s.Database.URL, s.MQTT.Brokers = postgres.URL(demoDatabase), []string{broker.URL()}
	s.Database.OwnerURL, s.Database.ReadURL = s.Database.URL, s.Database.URL
	if err := s.Validate(); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "PostgreSQL  %s\nMQTT        %s\n", s.Database.URL, broker.URL())
	return d.work(ctx, c, s)
}

// probe finds a taken address before the servers are started.
func probe(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return program.Usagef("http.listen: %w; another one: --http.listen 127.0.0.1:0", err)
	}
	return l.Close()
}

func ensureDatabase(ctx context.Context, postgres *devenv.Postgres) error {
	conn, err := pgx.Connect(ctx, postgres.URL("postgres"))
	if err != nil {
		return err
	}
	var exists bool
	err = conn.QueryRow(ctx, `select exists (select from pg_database where datname = $1)`, demoDatabase).Scan(&exists)
	if err = errors.Join(err, conn.Close(ctx)); err != nil || exists {
		return err
	}
	return postgres.CreateDatabase(ctx, demoDatabase, "")
}

// work runs both daemons and the devices in this process. When ctx ends, the devices stop first, then ingest
// drains, then syncjob ends with the batch under way; the next run marks the rest.
func (d *demo) work(ctx context.Context, c *call, s program.Settings) error {
	log, err := c.logger(s)
	if err != nil {
		return err
	}
	a, err := program.NewApp(ctx, "plenum-demo", s, log)
	if err != nil {
		return err
	}
	defer a.Close()
	return a.WithHTTP(ctx, true, c.stdout, func(ctx context.Context) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		syncing, stopSync := context.WithCancel(context.WithoutCancel(ctx))
		defer stopSync()
		var front, back sync.WaitGroup
		part := func(wg *sync.WaitGroup, work func() error) {
			wg.Go(func() {
				if err := work(); err != nil {
					cancel(err)
				}
			})
		}
		part(&back, func() error {
			awaitIngest(ctx, a) // which makes the schema
			return program.Syncjob(syncing, a)
		})
		part(&front, func() error { return program.Ingest(ctx, a) })
		part(&front, func() error { return d.simulate(ctx, a, s.MQTT.Brokers[0]) })
		showState(ctx, c.stdout, a.Registry)
		front.Wait()
		stopSync()
		back.Wait()
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
			return cause
		}
		fmt.Fprintln(c.stdout, "drained and stopped; the data stays in", d.dir)
		return nil
	})
}

// simulate begins once ingest is connected, so that its subscriptions are there before the first reading.
func (d *demo) simulate(ctx context.Context, a *program.App, broker string) error {
	if !awaitIngest(ctx, a) {
		return nil
	}
	_, err := devenv.Simulate(ctx, devenv.SimulateConfig{Broker: broker, Devices: d.devices, Rate: d.rate, QoS: 1, Seed: 1}, nil)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("simulated devices: %w", err)
	}
	if err != nil {
		a.Log.Warn("the simulated devices stopped with readings unacknowledged", zap.Error(err))
	}
	return nil
}

// awaitIngest waits until ingest is connected; it returns false if ctx ended first.
func awaitIngest(ctx context.Context, a *program.App) bool {
	for readState(a.Registry).connected == 0 && ctx.Err() == nil {
		wait(ctx, 50*time.Millisecond)
	}
	return ctx.Err() == nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
