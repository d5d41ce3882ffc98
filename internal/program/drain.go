package program

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"plenum/pkg/ingest"
	"plenum/pkg/mqtt"
	"plenum/pkg/store"
)

// DrainedSession is what DrainSession has done, also where it ended with an error.
type DrainedSession struct {
	Found       bool  `json:"found"`     // the broker had a session of the client id
	Forgotten   bool  `json:"forgotten"` // the client id is in no list any more
	Messages    int64 `json:"messages"`
	Stored      int64 `json:"stored"` // in rows, as the others
	Duplicate   int64 `json:"duplicate"`
	Quarantined int64 `json:"quarantined"`
}

// DrainSession stores what waits in a session that no process uses, until nothing has come for quiet, and ends the
// session. A process that holds the client id is a *store.HeldError, and leaves it as it is. A session that the broker
// has not is an error, since another broker may have it, unless forget says that it is to be forgotten.
func DrainSession(ctx context.Context, a *App, clientID string, quiet time.Duration, forget bool) (done DrainedSession, err error) {
	if err := a.Settings.ValidateIngest(); err != nil {
		return done, err
	}
	if err := checkTool(ctx, a, true); err != nil {
		return done, err
	}
	lock, err := store.LockNames(ctx, a.owner, []string{clientID})
	if err != nil {
		return done, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { watchLock(ctx, lock, cancel) })
	defer func() {
		cancel(nil)
		watching.Wait()
		lock.Unlock(ctx)
	}()
	decoder, err := NewDecoder(a.Settings)
	if err != nil {
		return done, err
	}
	writer, err := ownWriter(ctx, a)
	if err != nil {
		return done, err
	}
	pipeline, err := ingest.New(a.Settings.ingest(), decoder, writer, a.Log.With(zap.String("part", "ingest")), a.Registry)
	if err != nil {
		return done, &UsageError{err}
	}
	var storing sync.WaitGroup
	storing.Go(func() { _ = pipeline.Run(ctx) })
	stats, err := mqtt.Drain(ctx, a.Settings.mqtt(decoder.Filters()), clientID, store.NewSessions(a.owner),
		func(d mqtt.Delivery) { pipeline.Receive(d.Message, d.Receipt) }, quiet, a.Log.With(zap.String("part", "mqtt")))
	pipeline.Drain()
	storing.Wait()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	forgotten := err == nil && stats.SessionPresent
	switch {
	case err != nil || stats.SessionPresent:
	case forget:
		err = store.NewSessions(a.owner).Keep(ctx, clientID, nil)
		forgotten = err == nil
	default:
		err = fmt.Errorf("the broker has no session of %q: is it another broker's? --force forgets the client id", clientID)
	}
	t := pipeline.Totals()
	return DrainedSession{
		Found: stats.SessionPresent, Forgotten: forgotten, Messages: t.Messages, Stored: t.Stored, Duplicate: t.Duplicate, Quarantined: t.Quarantined,
	}, err
}

// watchLock ends the drain when the lock is lost, usually with the database: another process may take the client id then.
func watchLock(ctx context.Context, lock *store.NameLock, lost context.CancelCauseFunc) {
	const interval = 5 * time.Second
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		}
		asking, done := context.WithTimeout(ctx, interval)
		err := lock.Alive(asking)
		done()
		if err != nil && ctx.Err() == nil {
			lost(fmt.Errorf("the lock of the client id is lost; the broker keeps what was not acknowledged: %w", err))
			return
		}
	}
}
