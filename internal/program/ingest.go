package program

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"plenum/pkg/bluegreen"
	"plenum/pkg/httpapi"
	"plenum/pkg/ingest"
	"plenum/pkg/mqtt"
	"plenum/pkg/partman"
	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

// Ingest runs the ingest daemon without its HTTP until ctx ends and it has drained.
func Ingest(ctx context.Context, a *App) error {
	begun := a.begin("start of ingest")
	manager, plans, err := newGuardedManager(a)
	if err != nil {
		return err
	}
	if err := prepareDatabase(ctx, a); err != nil {
		return ended(ctx, err)
	}
	var lock *store.NameLock
	err = a.retry(ctx, "database", "lock the MQTT client id", func(ctx context.Context) (err error) {
		lock, err = store.LockNames(ctx, a.pool, clientIDs(a.Settings))
		return err
	})
	if err != nil {
		return ended(ctx, err)
	}
	// Only the holder of the client ids changes policies: one that is refused leaves everything as it was.
	err = a.retry(ctx, "database", "prepare the partitions", func(ctx context.Context) error {
		if err := registerPolicies(ctx, a); err != nil {
			return err
		}
		return ensureToday(ctx, manager, a.Settings)
	})
	if err != nil {
		lock.Unlock(ctx)
		return ended(ctx, err)
	}
	p, err := newPath(a, manager, plans)
	if err != nil {
		lock.Unlock(ctx)
		return err
	}
	begun() // newPath has added the checks
	return p.run(ctx, a, lock)
}

// ended turns the end of ctx into a clean stop: nothing had begun.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// prepareDatabase waits for the database and brings schema and rights in order.
func prepareDatabase(ctx context.Context, a *App) error {
	s := a.Settings
	return a.retry(ctx, "database", "prepare the database", func(ctx context.Context) error {
		if err := store.CheckServer(ctx, a.pool, s.Database.Schema); err != nil {
			return err
		}
		if err := checkOwner(ctx, a); err != nil {
			return err
		}
		if s.Database.Migrate {
			schema, err := store.Migrate(ctx, a.owner)
			if err != nil {
				return err
			}
			a.Log.Info("schema", zap.Int64("version", schema.Database))
		} else if err := checkSchema(ctx, a.pool); err != nil {
			return err
		}
		return store.CheckRights(ctx, a.pool, store.IngestRights())
	})
}

// checkSchema returns why this binary cannot run on the schema.
func checkSchema(ctx context.Context, pool *pgxpool.Pool) error {
	schema, err := store.ReadSchema(ctx, pool)
	if err != nil {
		return err
	}
	return schema.Err()
}

// ensureToday makes the partitions that a batch needs.
func ensureToday(ctx context.Context, m *partman.Manager, s Settings) error {
	for _, p := range policies(s) {
		if p.Premake == partman.NoPremake {
			continue
		}
		if err := m.EnsureNow(ctx, partman.FormatName(p.Schema, p.Table)); err != nil {
			return err
		}
	}
	return nil
}

func clientIDs(s Settings) []string {
	ids := make([]string, s.MQTT.Connections)
	for i := range ids {
		ids[i] = s.MQTT.ClientID + "-" + strconv.Itoa(i)
	}
	return ids
}

// path is the parts between broker and database.
type path struct {
	client     *mqtt.Client
	pipeline   *ingest.Pipeline
	manager    *partman.Manager
	schema     string // database.schema
	quarantine *store.Quarantine
	account    *account
	plans      *planGuard
	bluegreen  *bluegreen.Observer
	drain      time.Duration
	lost       atomic.Pointer[string] // since when and why the session that holds the client ids is gone; nil while it lives
}

func newPath(a *App, manager *partman.Manager, plans *planGuard) (*path, error) {
	s := a.Settings
	decoder, err := telemetry.NewDecoder(s.telemetry())
	if err != nil {
		return nil, &UsageError{err}
	}
	quarantine := store.NewQuarantine(a.pool, s.Quarantine.MaxBytes, a.Registry)
	writer := store.NewWriter(a.pool, s.MQTT.ClientID, func(ctx context.Context) error { return ensureToday(ctx, manager, s) })
	writer.Bound(quarantine)
	pipeline, err := ingest.New(s.ingest(), decoder, writer, a.Log.With(zap.String("part", "ingest")), a.Registry)
	if err != nil {
		return nil, &UsageError{err}
	}
	client, err := mqtt.New(s.mqtt(decoder.Filters()), store.NewSessions(a.pool), func(d mqtt.Delivery) { pipeline.Receive(d.Message, d.Receipt) },
		a.Log.With(zap.String("part", "mqtt")), a.Registry)
	if err != nil {
		return nil, &UsageError{err}
	}
	migration, err := newBluegreenObserver(a)
	if err != nil {
		return nil, err
	}
	p := &path{
		client: client, pipeline: pipeline, manager: manager, schema: s.Database.Schema, quarantine: quarantine, drain: s.Ingest.DrainTimeout,
		account: newAccount(a.pool, s.MQTT.ClientID, a.Registry), plans: plans, bluegreen: migration,
	}
	a.Health.Add(p.checkMQTT)
	a.Health.Add(p.checkStore)
	a.Health.Add(p.checkPartitions)
	a.Health.Add(p.checkQuarantine)
	a.Health.Add(p.checkDatabase)
	a.Health.Add(plans.check)
	return p, nil
}

// run works until ctx ends or the lock is lost to another process, and then stops in order.
func (p *path) run(ctx context.Context, a *App, lock *store.NameLock) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	work, cut := context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx by the drain
	defer cut()
	var parts, storing sync.WaitGroup
	managing, stopManaging := context.WithCancel(work)
	defer stopManaging()
	parts.Go(func() { _ = p.client.Run(work) })
	parts.Go(func() { _ = p.manager.Run(managing) })
	parts.Go(func() { p.measure(managing, a) })
	parts.Go(func() { p.plans.run(managing) })
	parts.Go(func() { p.bluegreen.Run(managing) })
	storing.Go(func() { _ = p.pipeline.Run(work) })
	parts.Go(func() {
		if err := p.guardLock(managing, a, lock); err != nil { // until the broker is left
			stop(err)
		}
	})
	<-ctx.Done()
	err := p.stop(ctx, a, cut, &storing)
	stopManaging()
	parts.Wait()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// stop ends intake, stores what is queued, acknowledges it and disconnects, under one deadline.
func (p *path) stop(ctx context.Context, a *App, cut context.CancelFunc, storing *sync.WaitGroup) error {
	a.Log.Info("draining", zap.Int("unacknowledged", p.client.Unacked()), zap.Duration("timeout", p.drain))
	deadline, done := context.WithTimeout(context.WithoutCancel(ctx), p.drain)
	defer done()
	p.client.Pause()
	p.pipeline.Drain()
	stopped := make(chan struct{})
	go func() {
		storing.Wait()
		close(stopped)
	}()
	var err error
	select {
	case <-stopped:
	case <-deadline.Done():
		err = fmt.Errorf("drain: not everything could be stored within %s; what is not, the broker keeps", p.drain)
		cut()
		<-stopped
	}
	closing, closed := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer closed()
	if closeErr := p.client.Close(closing); closeErr != nil {
		a.Log.Warn("disconnected without an orderly end", zap.Error(closeErr))
	}
	if accountErr := p.account.read(closing); accountErr != nil {
		a.Log.Warn("cannot read the account; what follows has it as it was", zap.Error(accountErr))
	}
	t := p.pipeline.Totals()
	log := a.Log.Info
	message := "drained"
	if err != nil {
		log, message = a.Log.Warn, "drain incomplete"
	}
	log(message, zap.Int("unacknowledged", p.client.Unacked()), zap.Int64("messages", t.Messages), zap.Int64("received", t.Received), zap.Int64("stored", t.Stored),
		zap.Int64("duplicate", t.Duplicate), zap.Int64("quarantined", t.Quarantined),
		zap.Int64("left_to_broker", t.Late), zap.Dict("over_restarts", p.account.fields()...))
	return err
}

// guardLock watches the session that holds the client ids. When it is lost, it takes them again; another
// process that was faster is a *store.HeldError. The lost session may hold them for as long as PostgreSQL takes it for alive.
func (p *path) guardLock(ctx context.Context, a *App, lock *store.NameLock) error {
	const interval = 5 * time.Second
	defer func() { lock.Unlock(context.WithoutCancel(ctx)) }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
		asking, done := context.WithTimeout(ctx, interval)
		err := lock.Alive(asking)
		done()
		if err == nil || ctx.Err() != nil {
			continue
		}
		if p.lost.Load() == nil {
			since := fmt.Sprintf("no session since %s, so nothing can be stored; the broker keeps what comes: %v", time.Now().UTC().Format(time.RFC3339), err)
			p.lost.Store(&since)
			a.Log.Warn("lost the lock of the MQTT client ids, taking it again", zap.Error(err))
		}
		lock.Unlock(ctx)
		fresh, err := store.LockNames(ctx, a.pool, clientIDs(a.Settings))
		if held := (*store.HeldError)(nil); errors.As(err, &held) {
			if !held.By(a.pool) {
				return err
			}
			a.Log.Info("the lock is still this process's own, by a connection that is dead; PostgreSQL notices within a minute")
		}
		if err == nil {
			a.Log.Info("took the lock of the MQTT client ids again")
			lock = fresh
			p.lost.Store(nil)
		}
	}
}

// checkDatabase tells of a database that is away also while no reading comes that could not be stored.
func (p *path) checkDatabase(context.Context) []httpapi.Finding {
	lost := p.lost.Load()
	if lost == nil {
		return nil
	}
	return []httpapi.Finding{{Component: "database", Failing: true, Message: *lost}}
}

// checkMQTT fails where no connection is up; one of several is a warning.
func (p *path) checkMQTT(context.Context) []httpapi.Finding {
	var fs []httpapi.Finding
	all := p.client.Status()
	none := !slices.ContainsFunc(all, func(c mqtt.ConnectionStatus) bool { return c.Connected })
	for _, c := range all {
		if !c.Connected {
			message := fmt.Sprintf("%s is not connected to %s since %s", c.ClientID, c.Broker, c.Since.Format(time.RFC3339))
			if c.LastError != "" {
				message += ": " + c.LastError
			}
			fs = append(fs, httpapi.Finding{Component: "mqtt", Failing: none, Message: message})
		}
		if h := c.Stalled; h != nil {
			fs = append(fs, httpapi.Finding{Component: "mqtt", Message: fmt.Sprintf("%s: the message of topic %q received at %s holds up the acknowledgement of %d others",
				c.ClientID, h.Topic, h.ReceivedAt.Format(time.RFC3339), h.Waiting)})
		}
		for _, w := range c.Warnings {
			fs = append(fs, httpapi.Finding{Component: "mqtt", Message: c.ClientID + ": " + w})
		}
	}
	return fs
}

func (p *path) checkStore(context.Context) []httpapi.Finding {
	f := p.pipeline.Failing()
	if f == nil {
		return nil
	}
	return []httpapi.Finding{{
		Component: "ingest", Failing: true,
		Message: fmt.Sprintf("cannot store since %s; nothing is acknowledged, the broker keeps it: %v", f.Since.UTC().Format(time.RFC3339), f.Err),
	}}
}

// measure keeps the quarantine's size and the account known.
func (p *path) measure(ctx context.Context, a *App) {
	for failing := false; ctx.Err() == nil; {
		err := errors.Join(p.quarantine.Measure(ctx), p.account.read(ctx))
		if err != nil && !failing && ctx.Err() == nil {
			a.Log.Warn("cannot measure, trying again", zap.Error(err))
		}
		failing = err != nil
		select {
		case <-ctx.Done():
		case <-time.After(store.MeasureEvery):
		}
	}
}

func (p *path) checkQuarantine(context.Context) []httpapi.Finding {
	used, allowed, full := p.quarantine.Full()
	if !full {
		return nil
	}
	return []httpapi.Finding{{Component: "quarantine", Message: fmt.Sprintf(
		"holds %d bytes of quarantine.max_bytes, %d: messages are kept without their bytes; find out who sends them, or raise the key", used, allowed)}}
}

func (p *path) checkPartitions(context.Context) []httpapi.Finding {
	return partitionFindings(p.manager, p.schema, ownTables...)
}

// ownTables are those without which ingest cannot do its work.
var ownTables = []string{"telemetry", "telemetry_batch", "telemetry_quarantine"}

// partitionFindings are those of every registered table, which is named with its schema where that is another. Where tables of
// schema are named, a fault of any other is a warning.
func partitionFindings(m *partman.Manager, schema string, needed ...string) []httpapi.Finding {
	var fs []httpapi.Finding
	for _, t := range m.Status() {
		name := partman.FormatName(t.Schema, t.Table)
		if t.Schema == schema {
			name = t.Table
		}
		for _, f := range t.Findings {
			failing := f.Broken && (len(needed) == 0 || t.Schema == schema && slices.Contains(needed, t.Table))
			fs = append(fs, httpapi.Finding{Component: "partitions", Failing: failing, Message: name + ": " + f.String()})
		}
	}
	return fs
}
