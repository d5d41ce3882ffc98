package feed

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/pkg/store"
)

// Bounds of a read.
const (
	DefaultLimit = 1000             // rows
	MaxLimit     = 100_000          // rows
	MaxWait      = 60 * time.Second // of a long poll
)

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// A RequestError is a request that is wrong whenever it is made.
type RequestError struct{ Reason string }

func (e *RequestError) Error() string { return e.Reason }

// An UnknownError names a consumer that does not exist.
type UnknownError struct{ Name string }

func (e *UnknownError) Error() string {
	return fmt.Sprintf("there is no consumer %q", e.Name)
}

// A GoneError says that rows behind the consumer's position have been dropped.
type GoneError struct {
	Name             string
	Position, Oldest int64 // Oldest is the position from which reading is possible again
}

func (e *GoneError) Error() string {
	return fmt.Sprintf("rows behind position %d of consumer %q have been dropped; the oldest position to read from is %d", e.Position, e.Name, e.Oldest)
}

// A PositionError is a commit that would move a consumer backwards or past the head.
type PositionError struct {
	Name                    string
	Position, Current, Head int64
}

func (e *PositionError) Error() string {
	if e.Position > e.Head {
		return fmt.Sprintf("consumer %q: position %d is past the feed's head %d", e.Name, e.Position, e.Head)
	}
	return fmt.Sprintf("consumer %q stands at %d: a commit does not go back to %d", e.Name, e.Current, e.Position)
}

// A PushedError is a commit for a consumer that syncjob pushes to: it would have the pusher skip rows.
type PushedError struct{ Name, Target string }

func (e *PushedError) Error() string {
	return fmt.Sprintf("syncjob pushes to consumer %q (%s) and commits what arrived there; read under another name, or move it by a seek", e.Name, e.Target)
}

// Feed serves consumers from a database.
type Feed struct {
	pool, read *pgxpool.Pool
	waker      waker
	looks      looks
}

// New returns the Feed of the database behind pool. Rows are read from read, which may be a replica's pool:
// a consumer sees there what has arrived, in the same order.
//
// Who waits looks for rows itself, unless a Listener runs beside.
func New(pool, read *pgxpool.Pool) *Feed {
	f := &Feed{pool: pool, read: read, waker: waker{awake: make(chan struct{}), listening: time.Second, alone: 50 * time.Millisecond}}
	f.looks.ask, f.looks.turn = f.look, make(chan struct{}, 1)
	return f
}

// Request is one read.
type Request struct {
	Name  string
	From  string        // where a new consumer starts: earliest (also ""), latest, or an RFC 3339 time of processing
	Limit int           // rows, 1 to MaxLimit; the last batch may exceed it
	Wait  time.Duration // how long to wait for a first row, up to MaxWait

	Stop <-chan struct{} // ends the wait early, as if it had passed; may be nil
}

// Page is what a read returns.
type Page struct {
	Rows     []store.FeedRow
	Position int64 // what to commit once the rows are dealt with
}

// Read returns the rows behind the consumer's position, waiting for the first as long as the request says.
func (f *Feed) Read(ctx context.Context, r Request) (Page, error) {
	if err := r.validate(); err != nil {
		return Page{}, err
	}
	c, err := f.consumer(ctx, r)
	if err != nil {
		return Page{}, err
	}
	return f.await(ctx, c, r, true)
}

func (r Request) validate() error {
	if err := validateName(r.Name); err != nil {
		return err
	}
	_, fromErr := parseFrom(r.From)
	switch {
	case fromErr != nil:
		return fromErr
	case r.Limit < 1 || r.Limit > MaxLimit:
		return &RequestError{fmt.Sprintf("limit %d is not from 1 to %d", r.Limit, MaxLimit)}
	case r.Wait < 0 || r.Wait > MaxWait:
		return &RequestError{fmt.Sprintf("wait %s is not from 0s to %s", r.Wait, MaxWait)}
	}
	return nil
}

func validateName(name string) error {
	if validName.MatchString(name) {
		return nil
	}
	return &RequestError{fmt.Sprintf("consumer name %q: want 1 to 64 letters, digits, dots, underscores and hyphens, the first a letter or digit", name)}
}

// parseFrom returns the time that from is, zero where it is a word.
func parseFrom(from string) (time.Time, error) {
	if from == "" || from == "earliest" || from == "latest" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, from)
	if err != nil {
		return t, &RequestError{fmt.Sprintf("from %q is none of earliest, latest and an RFC 3339 time (in a URL, + is written %%2B)", from)}
	}
	return t, nil
}

// consumer returns the consumer, created where From says if it is new.
func (f *Feed) consumer(ctx context.Context, r Request) (store.Consumer, error) {
	c, ok, err := store.ReadConsumer(ctx, f.pool, r.Name)
	if err != nil || ok {
		return c, err
	}
	start, err := f.start(ctx, r.From)
	if err != nil {
		return c, err
	}
	if err := store.CreateConsumer(ctx, f.pool, r.Name, start); err != nil {
		return c, err
	}
	return f.known(ctx, r.Name)
}

func (f *Feed) start(ctx context.Context, from string) (int64, error) {
	t, err := parseFrom(from)
	if err != nil {
		return 0, err
	}
	if !t.IsZero() {
		return store.FeedPositionBefore(ctx, f.pool, t)
	}
	horizon, head, err := store.FeedBounds(ctx, f.pool)
	if from == "latest" {
		return head, err
	}
	return horizon, err
}

// Commit moves the consumer to position. The same position again is no error. A consumer that is pushed to is the pusher's to move.
func (f *Feed) Commit(ctx context.Context, name string, position int64) error {
	if err := validateName(name); err != nil {
		return err
	}
	c, err := f.known(ctx, name)
	if err != nil {
		return err
	}
	_, head, err := store.FeedBounds(ctx, f.pool)
	if err != nil {
		return err
	}
	if position > head && position != c.Position { // the head goes back where a person drops the ledger's lines
		return &PositionError{name, position, c.Position, head}
	}
	moved, err := store.AdvanceConsumer(ctx, f.pool, name, position)
	if err != nil || moved {
		return err
	}
	now, known, err := store.ReadPush(ctx, f.pool, name) // another reader of the same consumer may just have moved it
	switch {
	case err != nil:
		return err
	case !known:
		return &UnknownError{name}
	case now.Target != "":
		return &PushedError{name, now.Target}
	}
	return &PositionError{name, position, now.Position, head}
}

func (f *Feed) known(ctx context.Context, name string) (store.Consumer, error) {
	c, ok, err := store.ReadConsumer(ctx, f.pool, name)
	if err == nil && !ok {
		err = &UnknownError{name}
	}
	return c, err
}
