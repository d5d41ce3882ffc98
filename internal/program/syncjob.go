package program

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"plenum/pkg/feed"
	"plenum/pkg/httpapi"
	"plenum/pkg/store"
	"plenum/pkg/syncjob"
)

// rightsPatience is how long a missing right is waited for: an ingest that starts at the same time may be about to
// migrate, and grants the rights after it has made the tables.
const rightsPatience = 15 * time.Second

// patient turns the lack of a right into an error that is waited for, until the time given.
func patient(err error, until time.Time) error {
	if setup := (*store.SetupError)(nil); errors.As(err, &setup) && setup.Right && time.Now().Before(until) {
		return errors.New(setup.Reason)
	}
	return err
}

// Syncjob runs the sync daemon without its HTTP until ctx ends and the marking under way is done.
func Syncjob(ctx context.Context, a *App) error {
	s := a.Settings
	begun := a.begin("start of syncjob")
	patience := time.Now().Add(rightsPatience)
	err := a.retry(ctx, "sync", "wait for the schema", func(ctx context.Context) error {
		if err := store.CheckServer(ctx, a.pool, s.Database.Schema); err != nil {
			return err
		}
		if err := checkSchema(ctx, a.pool); err != nil {
			return patient(err, patience)
		}
		return patient(store.CheckRights(ctx, a.pool, store.SyncRights()), patience)
	})
	if err != nil {
		return ended(ctx, err)
	}
	log := a.Log.With(zap.String("part", "sync"))
	job, err := syncjob.New(s.sync(), a.pool, log, a.Registry)
	if err != nil {
		return &UsageError{err}
	}
	pushing, err := newPushing(a, a.Log.With(zap.String("part", "push")))
	if err != nil {
		return err
	}
	a.Health.Add(pushing.check)
	a.Health.Add(func(context.Context) []httpapi.Finding {
		f := job.Failing()
		if f == nil {
			return nil
		}
		return []httpapi.Finding{{
			Component: "sync", Failing: true,
			Message: fmt.Sprintf("cannot mark batches since %s: %v", f.Since.UTC().Format(time.RFC3339), f.Err),
		}}
	})
	begun()
	observer := feed.NewObserver(a.pool, log, a.Registry)
	var beside sync.WaitGroup
	beside.Go(func() { observer.Run(ctx) })
	beside.Go(func() { pushing.run(ctx) })
	_ = job.Run(ctx) // only the end of ctx stops it
	beside.Wait()
	log.Info("stopped", zap.Int64("rows_processed", job.Rows()))
	return nil
}
