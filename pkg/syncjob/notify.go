package syncjob

import (
	"context"
	"time"

	"go.uber.org/zap"

	"plenum/pkg/store"
)

const notifyTimeout = 5 * time.Second

// signal says that positions were given. Those of all commits since the sender's latest NOTIFY share the next.
func (j *Job) signal() {
	select {
	case j.given <- struct{}{}:
	default:
	}
}

// notify sends until ctx ends. What it cannot send costs readers the time until they look by themselves, and marking nothing.
func (j *Job) notify(ctx context.Context) {
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.given:
		}
		err := j.notifyOnce(ctx)
		switch {
		case err == nil:
			j.m.notified.Inc()
		case ctx.Err() != nil:
			return
		default:
			j.m.notNotified.Inc()
		}
		if err != nil && !failing {
			j.log.Warn("cannot notify the feed's readers, they look by themselves", zap.Error(err))
		}
		failing = err != nil
	}
}

func (j *Job) notifyOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	return store.NotifyFeed(ctx, j.pool)
}
