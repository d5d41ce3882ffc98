package program

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"plenum/pkg/feed"
	"plenum/pkg/feed/kafka"
	"plenum/pkg/feed/webhook"
	"plenum/pkg/httpapi"
	"plenum/pkg/store"
)

// connectionsOfPusher are those of the pool that a pusher may use at once: its lock's, a page's, a commit's.
const connectionsOfPusher = 3

// failingShows is for how long a target may be away before readiness tells of it.
const failingShows = time.Minute

// pushing is every pusher of a process.
type pushing struct {
	pool    *pgxpool.Pool
	pushers []*feed.Pusher
	metrics *feed.PushMetrics
	log     *zap.Logger
}

// newPushing returns the pushers of the key push, none of which has begun.
func newPushing(a *App, log *zap.Logger) (*pushing, error) {
	items, err := a.Settings.push()
	if err != nil {
		return nil, &UsageError{err}
	}
	p := &pushing{pool: a.pool, metrics: feed.NewPushMetrics(a.Registry), log: log}
	for i, item := range items {
		target, err := item.open()
		if err != nil {
			return nil, &UsageError{fmt.Errorf("%s: %w", where(i, item.Name), err)}
		}
		pusher, err := feed.NewPusher(item.PushConfig, a.pool, a.feed, target, log, p.metrics)
		if err != nil {
			return nil, &UsageError{fmt.Errorf("%s: %w", where(i, item.Name), errors.Join(err, target.Close()))}
		}
		p.pushers = append(p.pushers, pusher)
	}
	return p, nil
}

func (i pushItem) open() (feed.Target, error) {
	if i.kafka != nil {
		return kafka.New(*i.kafka)
	}
	return webhook.New(*i.webhook)
}

// run pushes until ctx ends and what is under way has had its time.
func (p *pushing) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, pusher := range p.pushers {
		wg.Go(func() { pusher.Run(ctx) })
	}
	wg.Go(func() { p.metrics.ObserveDeadLetters(ctx, p.pool, p.log) })
	wg.Wait()
}

func (p *pushing) check(context.Context) []httpapi.Finding {
	all := make([]feed.PushStatus, len(p.pushers))
	for i, pusher := range p.pushers {
		all[i] = pusher.Status()
	}
	return pushFindings(all, time.Now())
}

// pushFindings are warnings: what else the program does goes on.
func pushFindings(all []feed.PushStatus, now time.Time) []httpapi.Finding {
	var fs []httpapi.Finding
	for _, s := range all {
		switch {
		case s.Removed:
			fs = append(fs, httpapi.Finding{Component: "push", Message: fmt.Sprintf(
				"%s: the consumer was removed, nothing is pushed to it; a restart creates it anew, taking it out of push keeps it removed", s.Name)})
		case !s.FailingSince.IsZero() && now.Sub(s.FailingSince) >= failingShows:
			fs = append(fs, httpapi.Finding{Component: "push", Message: fmt.Sprintf("%s: nothing was delivered since %s: %s", s.Name, s.FailingSince.UTC().Format(time.RFC3339), s.Detail)})
		}
	}
	return fs
}

// DeadLetters lists dead letters, the newest first; of one consumer where it is named.
func DeadLetters(ctx context.Context, a *App, consumer string, limit int) ([]store.DeadLetter, error) {
	if err := checkTool(ctx, a, false); err != nil {
		return nil, err
	}
	return store.DeadLetters(ctx, a.owner, consumer, limit)
}

// DeadLetter returns one with its body; one that does not exist is a UsageError.
func DeadLetter(ctx context.Context, a *App, id int64) (store.DeadLetter, error) {
	if err := checkTool(ctx, a, false); err != nil {
		return store.DeadLetter{}, err
	}
	d, found, err := store.ReadDeadLetter(ctx, a.owner, id)
	if err == nil && !found {
		err = Usagef("there is no dead letter %d; see plenumctl feed dead list", id)
	}
	return d, err
}

// RetryDeadLetters has syncjob deliver each once more and returns those that exist.
func RetryDeadLetters(ctx context.Context, a *App, ids []int64) ([]int64, error) {
	if err := checkTool(ctx, a, true); err != nil {
		return nil, err
	}
	return store.RetryDeadLetters(ctx, a.owner, ids)
}

// PurgeDeadLetters deletes each and returns how many existed.
func PurgeDeadLetters(ctx context.Context, a *App, ids []int64) (int64, error) {
	if err := checkTool(ctx, a, true); err != nil {
		return 0, err
	}
	return store.DeleteDeadLetters(ctx, a.owner, ids)
}
