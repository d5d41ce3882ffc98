package feed

import (
	"context"
	"time"

	"plenum/pkg/store"
)

// Seek moves the consumer to position, either way, and forgets what a pusher was at. Rows dropped behind it are a *GoneError, a
// position past the head is a *PositionError.
func (f *Feed) Seek(ctx context.Context, name string, position int64) error {
	if err := validateName(name); err != nil {
		return err
	}
	s, err := store.SeekConsumer(ctx, f.pool, name, position)
	switch {
	case err != nil:
		return err
	case !s.Known:
		return &UnknownError{name}
	case position < s.Horizon:
		return &GoneError{name, position, s.Horizon}
	case position > s.Head:
		return &PositionError{Name: name, Position: position, Head: s.Head}
	}
	f.waker.wake()
	return nil
}

// SeekTime moves the consumer to behind what was processed before t, and returns the position: the horizon's or the head's where t
// is beyond them.
func (f *Feed) SeekTime(ctx context.Context, name string, t time.Time) (int64, error) {
	if err := validateName(name); err != nil {
		return 0, err
	}
	position, err := store.FeedPositionBefore(ctx, f.pool, t)
	if err != nil {
		return 0, err
	}
	return position, f.Seek(ctx, name, position)
}

// Require says whether retention waits for the consumer. An unknown one is created at the horizon, so that it can be declared
// before it first reads: then it returns true.
func (f *Feed) Require(ctx context.Context, name string, required bool) (store.Consumer, bool, error) {
	if err := validateName(name); err != nil {
		return store.Consumer{}, false, err
	}
	return store.RequireConsumer(ctx, f.pool, name, required)
}

// Remove removes the consumer. Its next read creates it anew.
func (f *Feed) Remove(ctx context.Context, name string) error {
	if err := validateName(name); err != nil {
		return err
	}
	removed, err := store.RemoveConsumer(ctx, f.pool, name)
	if err == nil && !removed {
		err = &UnknownError{name}
	}
	f.waker.wake()
	return err
}

// Overview is every consumer, and the bounds of where they can stand.
type Overview struct {
	Horizon, Head int64
	Consumers     []store.ConsumerLag
}

// Overview reads it from the primary: a standby would show the lag of a while ago.
func (f *Feed) Overview(ctx context.Context) (o Overview, err error) {
	if o.Consumers, err = store.ConsumerLags(ctx, f.pool); err != nil {
		return o, err
	}
	for i := range o.Consumers {
		if c := &o.Consumers[i]; c.Target != nil {
			if c.Pusher, err = store.PushHolder(ctx, f.pool, c.Name); err != nil {
				return o, err
			}
		}
	}
	o.Horizon, o.Head, err = store.FeedBounds(ctx, f.pool)
	return o, err
}

// Follow reads on and on behind the consumer's position and commits nothing, until ctx ends or each returns an error. It gives each
// page that has rows.
func (f *Feed) Follow(ctx context.Context, r Request, each func(Page) error) error {
	if err := r.validate(); err != nil {
		return err
	}
	c, err := f.consumer(ctx, r)
	for err == nil {
		var page Page
		if page, err = f.await(ctx, c, r, false); err == nil && len(page.Rows) > 0 {
			err = each(page)
		}
		c.Position = page.Position
	}
	return err
}
