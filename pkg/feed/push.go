package feed

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"plenum/pkg/store"
)

// A Target is where a pusher delivers to.
type Target interface {
	// Deliver returns nil once the target has durably taken every row. It may be called again with the same
	// Delivery, after an error, a crash or a restart. It returns within a bounded time, and at once when ctx ends. A
	// *RefusedError says that the target refuses this very content; any other error, that it cannot take it now.
	Deliver(ctx context.Context, d Delivery) error
	Close() error
}

// A Delivery is a page on its way to a target.
type Delivery struct {
	Consumer        string
	Key             string // the same whenever the same page comes again
	After, Position int64  // the rows stand behind After, up to and with Position
	Rows            []store.FeedRow
}

// A RefusedError is a target that refuses the rows themselves: sending them again is of no use.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "the target refuses the rows: " + e.Reason }

// A LaterError is a target that says how long to leave it alone.
type LaterError struct {
	After time.Duration
	Err   error
}

func (e *LaterError) Error() string { return e.Err.Error() }
func (e *LaterError) Unwrap() error { return e.Err }

// Bounds of PushConfig.
const (
	DefaultDeadLetterAfter = 10
	MaxPushLimit           = 10_000 // rows
)

// PushConfig is one consumer that is pushed to.
type PushConfig struct {
	Name            string
	Target          string // kafka or webhook, as people see it
	From            string // where it starts when it is new: earliest (also ""), latest, or an RFC 3339 time of processing
	Limit           int    // rows of a page; the last batch may exceed it
	DeadLetterAfter int    // refusals after which a page is cut, and a batch becomes a dead letter
	Required        bool   // retention waits for it
}

// Validate joins every fault, each beginning with the field's key.
func (c PushConfig) Validate() error {
	var errs []error
	if err := validateName(c.Name); err != nil {
		errs = append(errs, fmt.Errorf("name: %w", err))
	}
	if _, err := parseFrom(c.From); err != nil {
		errs = append(errs, fmt.Errorf("from: %w", err))
	}
	if c.Limit < 1 || c.Limit > MaxPushLimit {
		errs = append(errs, fmt.Errorf("limit: %d is not from 1 to %d", c.Limit, MaxPushLimit))
	}
	if c.DeadLetterAfter < 1 || c.DeadLetterAfter > 1000 {
		errs = append(errs, fmt.Errorf("dead_letter_after: %d is not from 1 to 1000", c.DeadLetterAfter))
	}
	return errors.Join(errs...)
}

// tempo is how long a pusher waits for what.
type tempo struct {
	firstPause, lastPause time.Duration // after an error: full jitter below a bound that doubles
	firstIdle, lastIdle   time.Duration // where there is nothing to deliver
	look                  time.Duration // how often a pause looks whether the consumer was moved
	standby               time.Duration // between two tries to take the lock
	grace                 time.Duration // for what is under way when the pusher is to stop
	longestAfter          time.Duration // most that a target may ask to be left alone
}

var usualTempo = tempo{
	firstPause: 500 * time.Millisecond, lastPause: time.Minute, firstIdle: 10 * time.Millisecond, lastIdle: 250 * time.Millisecond,
	look: time.Second, standby: 5 * time.Second, grace: 5 * time.Second, longestAfter: 10 * time.Minute,
}

// A Pusher delivers one consumer's rows to a target.
//
// The model. It holds an advisory lock by the consumer's name, reads the page behind the consumer's position, writes down where the
// page ends, delivers it, commits. Whatever it changes is fenced by the position that it read.
//
// What must hold:
//
//   - A page is committed only after Deliver has returned nil for it, or in the transaction that makes it a dead letter.
//   - What a crash leaves uncommitted goes out again as the same page, under the same key.
//   - Two pushers of one consumer never deliver at once, as far as PostgreSQL can tell: one that has lost the session
//     of its lock breaks off its delivery.
//   - A seek, a commit or a removal by somebody else is never overwritten. A removed consumer stays removed until the
//     process starts again.
type Pusher struct {
	cfg    PushConfig
	pool   *pgxpool.Pool
	feed   *Feed
	target Target
	log    *zap.Logger
	m      *PushMetrics
	t      tempo

	// Of the goroutine that works.
	current, next    *held
	at               int64     // where the consumer stood in the latest round
	narrow           span      // pages within are cut to single batches
	tries            int       // errors in a row
	idle             int       // rounds in a row without rows
	lookForRetriesAt time.Time // dead letters that are to be delivered once more

	mu     sync.Mutex
	status PushStatus
}

// held is a page in memory.
type held struct {
	Page
	after     int64
	delivered bool // the commit is what is missing
}

type span struct{ from, to int64 }

func (s span) holds(position int64) bool { return position >= s.from && position < s.to }

// PushStatus is what a pusher is at.
type PushStatus struct {
	Name         string
	Removed      bool      // the consumer was removed while the pusher ran
	Standby      string    // the process that pushes instead; empty: this one does
	FailingSince time.Time // zero while deliveries succeed
	Detail       string    // why they do not
}

// NewPusher returns a Pusher, which closes target when Run ends. It needs three connections of pool at a time.
func NewPusher(c PushConfig, pool *pgxpool.Pool, f *Feed, target Target, log *zap.Logger, m *PushMetrics) (*Pusher, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	m.begin(c.Name)
	return &Pusher{
		cfg: c, pool: pool, feed: f, target: target, m: m, t: usualTempo,
		log: log.With(zap.String("consumer", c.Name)), status: PushStatus{Name: c.Name},
	}, nil
}

// Status returns what the pusher is at.
func (p *Pusher) Status() PushStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

func (p *Pusher) setStatus(change func(*PushStatus)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.status)
}

// Run pushes until ctx ends, and gives a delivery under way then a few seconds to be committed.
func (p *Pusher) Run(ctx context.Context) {
	defer func() {
		if err := p.target.Close(); err != nil {
			p.log.Warn("cannot close the target", zap.Error(err))
		}
	}()
	// Once a process: one that stands by must not bring back a consumer that was removed meanwhile.
	if !p.insist(ctx, p.create) {
		return
	}
	for ctx.Err() == nil && !p.Status().Removed {
		if lock := p.lock(ctx); lock != nil {
			p.hold(ctx, lock)
		}
	}
}

// insist calls step until it succeeds; it returns false if ctx ends first.
func (p *Pusher) insist(ctx context.Context, step func(context.Context) error) bool {
	for {
		err := step(ctx)
		if ctx.Err() != nil {
			return false
		}
		if err == nil {
			return true
		}
		p.note(err)
		p.rest(ctx, p.backoff(err))
	}
}

// create makes the consumer if it is new, and one that is pushed to.
func (p *Pusher) create(ctx context.Context) error {
	c, known, err := store.ReadPush(ctx, p.pool, p.cfg.Name)
	if err != nil {
		return err
	}
	if !known {
		position, err := p.feed.start(ctx, p.cfg.From)
		if err != nil {
			return err
		}
		if err := store.CreateConsumer(ctx, p.pool, p.cfg.Name, position); err != nil {
			return err
		}
	}
	if _, err := store.AdoptPush(ctx, p.pool, p.cfg.Name, p.cfg.Target, p.cfg.Required); err != nil {
		return err
	}
	if known && c.Target == "" {
		p.log.Warn("a consumer that read by itself is pushed to from now on; nobody else should commit for it", zap.Int64("position", c.Position))
	}
	return nil
}

// lock takes the consumer's lock, and says once if another process has it. It returns nil if ctx ends first.
func (p *Pusher) lock(ctx context.Context) *store.NameLock {
	for ctx.Err() == nil {
		lock, err := store.LockPush(ctx, p.pool, p.cfg.Name)
		if err == nil {
			if p.Status().Standby != "" {
				p.log.Info("pushes now, the other process has gone")
			}
			p.setStatus(func(s *PushStatus) { s.Standby = "" })
			return lock
		}
		if other := (*store.HeldError)(nil); errors.As(err, &other) {
			if p.Status().Standby == "" {
				p.log.Info("another process pushes, this one stands by", zap.String("holder", other.Holder))
			}
			p.setStatus(func(s *PushStatus) { s.Standby = other.Holder })
		} else if ctx.Err() == nil {
			p.note(fmt.Errorf("take the lock of consumer %q: %w", p.cfg.Name, err))
		}
		p.rest(ctx, p.t.standby)
	}
	return nil
}

var errStopped = errors.New("the pusher stops")

// hold works as long as the lock's session lives, and a moment longer than ctx.
func (p *Pusher) hold(ctx context.Context, lock *store.NameLock) {
	defer lock.Unlock(context.WithoutCancel(ctx))
	held, lose := context.WithCancelCause(context.WithoutCancel(ctx))
	defer lose(nil)
	defer context.AfterFunc(ctx, func() { time.AfterFunc(p.t.grace, func() { lose(errStopped) }) })()
	watching, stopWatching := context.WithCancel(held)
	var watch sync.WaitGroup
	watch.Go(func() {
		if err := lock.Watch(watching); watching.Err() == nil {
			p.log.Warn("lost the session that holds the consumer's lock; what is under way is broken off, the lock is taken again", zap.Error(err))
			lose(err)
		}
	})
	p.work(ctx, held)
	stopWatching()
	watch.Wait()
}

func (p *Pusher) work(ctx, held context.Context) {
	p.current, p.next, p.narrow, p.tries = nil, nil, span{}, 0
	for ctx.Err() == nil && held.Err() == nil {
		awake := p.feed.waker.next() // before looking: what commits after the look wakes
		did, err := p.RunOnce(held)
		if held.Err() != nil {
			return
		}
		if errors.Is(err, errRemoved) {
			p.log.Error("the consumer was removed: nothing is pushed until this process starts again, which creates it anew; take it out of the configuration to keep it removed")
			p.setStatus(func(s *PushStatus) { s.Removed = true })
			return
		}
		p.settleNote(did, err)
		switch {
		case err != nil:
			p.wait(ctx, p.backoff(err))
		case did.Idle:
			p.restUntil(ctx, awake, min(p.t.firstIdle<<min(p.idle, 20), p.t.lastIdle))
			p.idle++
		default:
			p.idle = 0
		}
	}
}
