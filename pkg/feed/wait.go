package feed

import (
	"context"
	"sync"
	"time"

	"plenum/pkg/store"
)

// await returns the page behind c's position, and waits for a first row as long as the request says. Where follows is set, it goes
// to where the consumer has been moved meanwhile.
func (f *Feed) await(ctx context.Context, c store.Consumer, r Request, follows bool) (Page, error) {
	deadline := time.Now().Add(r.Wait)
	for {
		awake := f.waker.next() // before looking: what commits after the look wakes
		page, err := f.page(ctx, c, r.Limit)
		if err != nil || len(page.Rows) > 0 || time.Until(deadline) <= 0 {
			return page, err
		}
		moved, ended, err := f.sleep(ctx, awake, c, r.Stop, deadline, follows)
		if err != nil || ended {
			return page, err
		}
		if follows {
			c.Position = moved
		}
	}
}

// sleep returns when there may be something for a reader at c: rows, or another position, which it returns. It says that the wait
// has ended where it has for another reason.
func (f *Feed) sleep(ctx context.Context, awake <-chan struct{}, c store.Consumer, stop <-chan struct{}, deadline time.Time, follows bool) (moved int64, ended bool, err error) {
	for {
		pause := f.waker.pause()
		timer := time.NewTimer(min(pause, time.Until(deadline)))
		since := time.Time{}
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-stop:
			ended = true
		case <-awake:
			since = f.waker.last()
		case <-timer.C:
			since = time.Now().Add(-pause / 2) // readers share a look
		}
		timer.Stop()
		if err != nil || ended {
			return 0, ended, err
		}
		awake = f.waker.next()
		seen, err := f.looks.get(ctx, since)
		if err != nil {
			return 0, false, err
		}
		f.waker.setStandby(seen.standby)
		position, known := seen.positions[c.Name]
		switch {
		case !known:
			return 0, false, &UnknownError{c.Name}
		case seen.head > c.Position || follows && position != c.Position:
			return position, false, nil
		case time.Until(deadline) <= 0:
			return 0, true, nil
		}
	}
}

// waker wakes every waiting reader at once.
type waker struct {
	mu      sync.Mutex
	awake   chan struct{} // closed at the next wake
	at      time.Time     // of the latest wake
	hears   bool          // a NOTIFY would be heard
	standby bool          // rows come from a server that shows them later than the NOTIFY says

	listening, alone time.Duration // how often a reader looks that hears, or does not
}

func (w *waker) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at = time.Now()
	close(w.awake)
	w.awake = make(chan struct{})
}

func (w *waker) next() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.awake
}

func (w *waker) last() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at
}

func (w *waker) pause() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hears && !w.standby {
		return w.listening
	}
	return w.alone
}

func (w *waker) setStandby(standby bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.standby = standby
}

func (w *waker) setHears(hears bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hears = hears
}

// seen is what a look saw.
type seen struct {
	began     time.Time
	head      int64            // where rows are read
	standby   bool             // is what they are read from
	positions map[string]int64 // of every consumer
}

// looks shares a look among the readers that wait: a thousand of them ask the database once. Each gets one that began at the
// time it says or later.
type looks struct {
	ask  func(context.Context) (seen, error)
	mu   sync.Mutex
	turn chan struct{} // full while one looks
	now  *flight       // under way
	next *flight       // not begun yet
	done seen          // the latest
}

type flight struct {
	began time.Time
	ready chan struct{}
	seen  seen
	err   error
}

const lookTimeout = 5 * time.Second

func (l *looks) get(ctx context.Context, since time.Time) (seen, error) {
	l.mu.Lock()
	if !l.done.began.IsZero() && !l.done.began.Before(since) {
		defer l.mu.Unlock()
		return l.done, nil
	}
	fl := l.next
	if l.now != nil && !l.now.began.Before(since) {
		fl = l.now
	}
	if fl != nil {
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return seen{}, ctx.Err()
		case <-fl.ready:
			return fl.seen, fl.err
		}
	}
	fl = &flight{ready: make(chan struct{})}
	l.next = fl
	l.mu.Unlock()
	l.fly(context.WithoutCancel(ctx), fl) // others wait for it
	return fl.seen, fl.err
}

func (l *looks) fly(ctx context.Context, fl *flight) {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	defer close(fl.ready)
	l.mu.Lock()
	l.now, l.next, fl.began = fl, nil, time.Now()
	l.mu.Unlock()
	fl.seen, fl.err = l.ask(ctx)
	fl.seen.began = fl.began
	l.mu.Lock()
	l.now = nil
	if fl.err == nil {
		l.done = fl.seen
	}
	l.mu.Unlock()
}

// look asks where the rows are read for the head, and the primary for the consumers.
func (f *Feed) look(ctx context.Context) (s seen, err error) {
	if s.head, s.standby, err = store.FeedHead(ctx, f.read); err != nil {
		return s, err
	}
	s.positions, err = store.ConsumerPositions(ctx, f.pool)
	return s, err
}
