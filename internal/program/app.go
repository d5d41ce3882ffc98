package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"

	"plenum/pkg/feed"
	"plenum/pkg/httpapi"
	"plenum/pkg/partman"
	"plenum/pkg/store"
)

// App is what the daemons of one process share.
type App struct {
	Settings Settings
	Log      *zap.Logger
	Registry *prometheus.Registry
	Health   *httpapi.Health

	pool, owner   *pgxpool.Pool
	serving, read *pgxpool.Pool // the feed's: consumers that wait take no connection of marking's, nor of the pushers'
	feed          *feed.Feed
	waiting       waiting
}

// NewApp opens the pools, which connect when they are first used.
func NewApp(ctx context.Context, name string, s Settings, log *zap.Logger) (*App, error) {
	a := &App{Settings: s, Log: log, Registry: prometheus.NewRegistry(), Health: &httpapi.Health{}}
	a.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	var errs []error
	open := func(key, url string, connections int) *pgxpool.Pool {
		if err := checkURL(key, url); err != nil {
			errs = append(errs, err)
			return nil
		}
		pool, err := store.Open(ctx, store.Config{URL: url, Schema: s.Database.Schema, Program: name, Connections: connections})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
		return pool
	}
	pushed, _ := s.push() // whoever pushes tells of its faults
	a.pool = open("database.url", s.Database.URL, s.Ingest.Writers+s.Sync.Workers+connectionsOfPusher*len(pushed)+8)
	if s.Database.URL != "" {
		a.owner = open("database.owner_url", s.Database.OwnerURL, 8)
		a.read = open("database.read_url", s.Database.ReadURL, len(pushed)+8)
	}
	if a.pool != nil { // else its fault has been told
		a.serving = open("database.url", s.Database.URL, 8)
	}
	a.feed = feed.New(a.serving, a.read)
	a.waiting.set("start", "the program is starting") // until a daemon says what it waits for
	a.Health.Add(a.waiting.check)
	a.Registry.MustRegister(a.ready())
	if len(errs) > 0 {
		a.Close()
		return nil, &UsageError{errors.Join(errs...)}
	}
	return a, nil
}

// Close closes the pools.
func (a *App) Close() {
	for _, p := range []*pgxpool.Pool{a.pool, a.owner, a.serving, a.read} {
		if p != nil {
			p.Close()
		}
	}
}

// ready is readiness as a metric: a daemon that waits at its start has few others.
func (a *App) ready() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "plenum_ready", Help: "1 if /readyz answers 200, 0 if it answers 503.",
	}, func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if a.Health.Failing(ctx) {
			return 0
		}
		return 1
	})
}

func buildInfo() prometheus.Collector {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "plenum_build_info", Help: "1, labelled with the version."}, []string{"version"})
	g.WithLabelValues(Version()).Set(1)
	return g
}

// WithHTTP serves HTTP while work runs, and stops serving after it has returned.
func (a *App) WithHTTP(ctx context.Context, withFeed bool, out io.Writer, work func(context.Context) error) error {
	c := httpapi.Config{Listen: a.Settings.HTTP.Listen, Health: a.Health, Metrics: a.Registry}
	if withFeed {
		c.Feed = a.feed
	}
	server, err := httpapi.Listen(c)
	if err != nil {
		return err
	}
	a.Log.Info("serving HTTP", zap.String("address", server.Addr()))
	if httpapi.Exposed(server.Addr()) {
		a.Log.Warn("HTTP has no authentication: whoever reaches this address can read the telemetry and move consumers; put an authenticating proxy before it",
			zap.String("address", server.Addr()))
	}
	if out != nil {
		fmt.Fprintf(out, "HTTP        http://%s\n", server.Addr())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Serve(); err != nil {
			cancel(err)
		}
	})
	listening, deaf := context.WithCancel(ctx)
	if withFeed {
		listener := feed.NewListener(a.feed, a.Log, a.Registry)
		wg.Go(func() { listener.Run(listening) })
	}
	err = work(ctx)
	deaf()
	closing, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer stop()
	if closeErr := server.Close(closing); closeErr != nil { // a client that does not read must not fail the stop
		a.Log.Warn("HTTP requests were cut off", zap.Error(closeErr))
	}
	wg.Wait()
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// begin makes readiness fail until the returned function is called, when the daemon has added its own checks.
func (a *App) begin(daemon string) (begun func()) {
	a.waiting.set(daemon, daemon+" is starting")
	a.waiting.set("start", "")
	return func() { a.waiting.set(daemon, "") }
}

// waiting is what a starting daemon waits for, as readiness tells it.
type waiting struct {
	mu   sync.Mutex
	what map[string]string
}

func (w *waiting) set(component, message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.what == nil {
		w.what = map[string]string{}
	}
	if message == "" {
		delete(w.what, component)
	} else {
		w.what[component] = message
	}
}

func (w *waiting) check(context.Context) []httpapi.Finding {
	w.mu.Lock()
	defer w.mu.Unlock()
	var fs []httpapi.Finding
	for _, component := range slices.Sorted(maps.Keys(w.what)) {
		fs = append(fs, httpapi.Finding{Component: component, Failing: true, Message: w.what[component]})
	}
	return fs
}

const (
	firstWait = 200 * time.Millisecond
	lastWait  = 5 * time.Second
)

// retry calls step until it succeeds, ctx ends, or it returns an error that waiting does not mend. It logs the
// first failure and each that differs, and readiness shows it.
func (a *App) retry(ctx context.Context, component, what string, step func(context.Context) error) error {
	a.waiting.set(component, what+" is under way")
	defer a.waiting.set(component, "")
	last := ""
	for bound := firstWait; ; bound = min(2*bound, lastWait) {
		err := step(ctx)
		if err == nil {
			if last != "" {
				a.Log.Info("waited, and goes on", zap.String("for", what))
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if isFinal(err) {
			return err
		}
		if err.Error() != last {
			last = err.Error()
			a.Log.Warn("cannot go on yet, trying again", zap.String("step", what), zap.Error(err))
		}
		a.waiting.set(component, what+": "+last)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rand.N(bound)):
		}
	}
}

// isFinal tells errors that waiting does not mend.
func isFinal(err error) bool {
	var setup *store.SetupError
	var held *store.HeldError
	var usage *UsageError
	return errors.As(err, &setup) || errors.As(err, &held) || errors.As(err, &usage) || errors.Is(err, partman.ErrPooler)
}
