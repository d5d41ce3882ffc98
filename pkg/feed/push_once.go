package feed

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"go.uber.org/zap"

	"plenum/pkg/store"
)

// Pushed is what one round of a pusher did.
type Pushed struct {
	Rows int  // delivered and committed
	Idle bool // there was nothing to deliver
}

var errRemoved = errors.New("the consumer has been removed")

// RunOnce delivers the page behind the consumer's position, once, and commits it. It is for the holder of the lock.
func (p *Pusher) RunOnce(ctx context.Context) (Pushed, error) {
	c, known, err := store.ReadPush(ctx, p.pool, p.cfg.Name)
	if err != nil {
		return Pushed{}, err
	}
	if !known || c.Target == "" { // or made anew by a reader since
		return Pushed{}, errRemoved
	}
	p.at = c.Position
	if err := p.retryDead(ctx); err != nil {
		return Pushed{}, err
	}
	page, err := p.page(ctx, c)
	if err != nil {
		return Pushed{}, p.failed(ctx, c, fmt.Errorf("read behind position %d: %w", c.Position, err))
	}
	fence := store.Fence{Name: c.Name, Position: c.Position}
	if len(page.Rows) == 0 {
		return Pushed{Idle: true}, p.clear(ctx, c, fence)
	}
	if c.Delivering != page.Position {
		if ok, err := store.BeginDelivery(ctx, p.pool, fence, page.Position); err != nil || !ok {
			return Pushed{}, err
		}
	}
	if !page.delivered {
		fetched := p.prefetch(ctx, page)
		err = p.deliver(ctx, Delivery{
			Consumer: c.Name, Key: deliveryKey(c.Name, fmt.Sprintf("%d-%d", page.after, page.Position)),
			After: page.after, Position: page.Position, Rows: page.Rows,
		})
		page.delivered = err == nil
		<-fetched
	}
	return p.settle(ctx, c, page, err)
}

// deliveryKey is unique to what is delivered. Receivers' libraries join it by dots with other things: it has none.
func deliveryKey(consumer, what string) string {
	return strings.ReplaceAll(consumer, ".", "~") + ":" + what
}

// clear forgets a failure that a seek has mended.
func (p *Pusher) clear(ctx context.Context, c store.PushState, f store.Fence) error {
	if c.FailingSince.IsZero() && c.Delivering == 0 {
		return nil
	}
	_, err := store.CommitDelivery(ctx, p.pool, f, f.Position)
	return err
}

func (p *Pusher) deliver(ctx context.Context, d Delivery) error {
	began := time.Now()
	err := p.target.Deliver(ctx, d)
	result := "delivered"
	switch {
	case err != nil && ctx.Err() != nil:
		return err // broken off, which says nothing of the target
	case isRefusal(err):
		result = "refused"
	case err != nil:
		result = "failed"
	}
	p.m.delivered(p.cfg.Name, result, len(d.Rows), time.Since(began))
	return err
}

func isRefusal(err error) bool {
	var refused *RefusedError
	return errors.As(err, &refused)
}

// settle makes of a delivery's outcome what the consumer is at.
func (p *Pusher) settle(ctx context.Context, c store.PushState, page *held, outcome error) (Pushed, error) {
	f := store.Fence{Name: c.Name, Position: c.Position}
	switch {
	case outcome == nil:
		ok, err := store.CommitDelivery(ctx, p.pool, f, page.Position)
		if err != nil || !ok {
			return Pushed{}, err
		}
		p.current = nil
		return Pushed{Rows: len(page.Rows)}, nil
	case isRefusal(outcome) && ctx.Err() == nil:
		attempts, err := store.NoteRefusal(ctx, p.pool, f, tidy(outcome.Error()))
		if err != nil || attempts == 0 {
			return Pushed{}, err
		}
		if attempts < p.cfg.DeadLetterAfter {
			return Pushed{}, outcome
		}
		return p.exhausted(ctx, c, page, attempts, outcome)
	}
	return Pushed{}, p.failed(ctx, c, outcome)
}

// failed writes down what is in the way, where that is new.
func (p *Pusher) failed(ctx context.Context, c store.PushState, err error) error {
	if detail := tidy(err.Error()); ctx.Err() == nil && (c.FailingSince.IsZero() || c.Detail != detail) {
		return errors.Join(err, store.NoteFailure(ctx, p.pool, store.Fence{Name: c.Name, Position: c.Position}, detail))
	}
	return err
}

// exhausted deals with a page that was refused as often as it may be: one of several batches is cut, a single one buried.
func (p *Pusher) exhausted(ctx context.Context, c store.PushState, page *held, attempts int, refusal error) (Pushed, error) {
	f := store.Fence{Name: c.Name, Position: c.Position}
	first, err := p.feed.page(ctx, c.Consumer, 1)
	if err != nil {
		return Pushed{}, err
	}
	p.tries = 0
	if first.Position < page.Position {
		if ok, err := store.BeginDelivery(ctx, p.pool, f, 0); err != nil || !ok {
			return Pushed{}, err
		}
		p.narrow = span{c.Position, page.Position}
		p.current, p.next = nil, nil
		p.log.Warn("a page is refused again and again: its batches are delivered one by one", zap.Int64("after", c.Position),
			zap.Int64("position", page.Position), zap.Int("attempts", attempts), zap.Error(refusal))
		return Pushed{}, nil
	}
	id, ok, err := store.Bury(ctx, p.pool, f, store.DeadLetter{
		Position: page.Position, Rows: len(page.Rows), Attempts: attempts, Detail: tidy(refusal.Error()), Body: appendRows(nil, page.Rows),
	})
	if err != nil || !ok {
		return Pushed{}, err
	}
	p.current = nil
	p.log.Error("a batch is refused again and again: it is a dead letter now; see plenumctl feed dead", zap.Int64("dead_letter", id),
		zap.Int64("after", c.Position), zap.Int64("position", page.Position), zap.Int("rows", len(page.Rows)), zap.Int("attempts", attempts), zap.Error(refusal))
	return Pushed{}, nil
}

// tidy makes an error fit for a column and a terminal: what a target answered may be in it.
func tidy(s string) string {
	const most = 1000
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// settleNote logs when deliveries begin to fail and when they succeed again.
func (p *Pusher) settleNote(did Pushed, err error) {
	switch {
	case err != nil:
		p.note(err)
	case did.Rows > 0 || did.Idle:
		p.recovered()
	}
}

func (p *Pusher) note(err error) {
	if p.Status().FailingSince.IsZero() {
		p.log.Warn("cannot deliver, trying again", zap.Error(err))
		p.setStatus(func(s *PushStatus) { s.FailingSince = time.Now() })
		p.m.failing.WithLabelValues(p.cfg.Name).Set(1)
	}
	p.setStatus(func(s *PushStatus) { s.Detail = tidy(err.Error()) })
}

func (p *Pusher) recovered() {
	p.tries = 0
	since := p.Status().FailingSince
	if since.IsZero() {
		return
	}
	p.log.Info("delivers again", zap.Duration("after", time.Since(since)))
	p.setStatus(func(s *PushStatus) { s.FailingSince, s.Detail = time.Time{}, "" })
	p.m.failing.WithLabelValues(p.cfg.Name).Set(0)
}

// backoff is full jitter below a bound that doubles, or as long as the target asks for.
func (p *Pusher) backoff(err error) time.Duration {
	bound := min(p.t.firstPause<<min(p.tries, 20), p.t.lastPause)
	p.tries++
	pause := rand.N(bound)
	if later := (*LaterError)(nil); errors.As(err, &later) {
		pause = max(pause, min(later.After, p.t.longestAfter))
	}
	return pause
}

// wait is rest that ends early when somebody moves or removes the consumer.
func (p *Pusher) wait(ctx context.Context, pause time.Duration) {
	for end := time.Now().Add(pause); ctx.Err() == nil && time.Until(end) > 0; {
		p.rest(ctx, min(p.t.look, time.Until(end)))
		now, still, err := store.ReadPush(ctx, p.pool, p.cfg.Name)
		if err == nil && (!still || now.Position != p.at) {
			return
		}
	}
}

func (p *Pusher) rest(ctx context.Context, d time.Duration) { p.restUntil(ctx, nil, d) }

// restUntil rests for d, or until awake is closed.
func (p *Pusher) restUntil(ctx context.Context, awake <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-awake:
	case <-t.C:
	}
}
