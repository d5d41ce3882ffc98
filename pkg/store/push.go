package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A PushState is what a pushed consumer is at.
type PushState struct {
	Consumer
	Target       string    // kafka or webhook; empty: the consumer reads by itself
	Delivering   int64     // where the page ends that is being delivered; 0: none is
	Attempts     int       // deliveries of that page that the target refused
	FailingSince time.Time // zero while deliveries succeed
	Detail       string    // why the latest one did not
}

// ReadPush returns what the consumer is at, and false if there is none of that name.
func ReadPush(ctx context.Context, pool *pgxpool.Pool, name string) (PushState, bool, error) {
	const q = `select position, required, updated_at, coalesce(target, ''), coalesce(delivering, 0), attempts,
		coalesce(failing_since, '0001-01-01Z'), coalesce(detail, '') from feed_consumer where name = $1`
	s := PushState{Consumer: Consumer{Name: name}}
	err := pool.QueryRow(ctx, q, name).Scan(&s.Position, &s.Required, &s.UpdatedAt, &s.Target, &s.Delivering, &s.Attempts, &s.FailingSince, &s.Detail)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, false, nil
	}
	if err != nil {
		return s, false, fmt.Errorf("read consumer %q: %w", name, err)
	}
	return s, true, nil
}

// AdoptPush makes an existing consumer one that is pushed to target, and returns what it was before. required makes
// retention wait for it; without it, that stays as it is.
func AdoptPush(ctx context.Context, pool *pgxpool.Pool, name, target string, required bool) (before string, err error) {
	const q = bounded + `, before as (select name, target from feed_consumer, bounded where name = $1 for update of feed_consumer)
		update feed_consumer c set target = $2, required = c.required or $3 from before b where c.name = b.name
		returning coalesce(b.target, '')`
	if err := pool.QueryRow(ctx, q, name, target, required).Scan(&before); err != nil {
		return "", fmt.Errorf("make %q a consumer that is pushed to: %w", name, err)
	}
	return before, nil
}

// pushName is the name that who pushes to the consumer locks.
func pushName(consumer string) string { return "push/" + consumer }

// LockPush makes this process the one that pushes to the consumer; another one is a *HeldError.
func LockPush(ctx context.Context, pool *pgxpool.Pool, consumer string) (*NameLock, error) {
	return LockNames(ctx, pool, []string{pushName(consumer)})
}

// PushHolder returns who pushes to the consumer, or nothing.
func PushHolder(ctx context.Context, pool *pgxpool.Pool, consumer string) (string, error) {
	return holder(ctx, pool, pushName(consumer))
}

// A Fence is where a pusher believes its consumer to stand. What is changed under it is changed only there: a seek, a
// commit or a removal meanwhile makes the change void.
type Fence struct {
	Name     string
	Position int64
}

func (f Fence) update(ctx context.Context, db execer, what, sql string, args ...any) (bool, error) {
	tag, err := db.Exec(ctx, sql, append([]any{f.Name, f.Position}, args...)...)
	if err != nil {
		return false, fmt.Errorf("%s of consumer %q at %d: %w", what, f.Name, f.Position, err)
	}
	return tag.RowsAffected() == 1, nil
}

// BeginDelivery writes down where the page ends that is about to be delivered, 0 for none, and that nothing of it was refused yet.
func BeginDelivery(ctx context.Context, pool *pgxpool.Pool, f Fence, to int64) (bool, error) {
	const q = bounded + `update feed_consumer set delivering = nullif($3::bigint, 0), attempts = 0 from bounded where name = $1 and position = $2 and target is not null`
	return f.update(ctx, pool, "begin the delivery", q, to)
}

// CommitDelivery moves the consumer to the end of the page that was delivered.
func CommitDelivery(ctx context.Context, pool *pgxpool.Pool, f Fence, to int64) (bool, error) {
	return f.update(ctx, pool, "commit the delivery", commitDelivery, to)
}

const commitDelivery = bounded + `update feed_consumer set position = $3, updated_at = now(), delivering = null, attempts = 0,
	failing_since = null, detail = null from bounded where name = $1 and position = $2 and target is not null`

// NoteRefusal counts a refusal of the page under way and returns how many it has had; 0 if the consumer stands elsewhere.
func NoteRefusal(ctx context.Context, pool *pgxpool.Pool, f Fence, detail string) (attempts int, err error) {
	const q = bounded + `update feed_consumer set attempts = attempts + 1, failing_since = coalesce(failing_since, now()), detail = $3
		from bounded where name = $1 and position = $2 and target is not null returning attempts`
	err = pool.QueryRow(ctx, q, f.Name, f.Position, detail).Scan(&attempts)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("count a refusal of consumer %q at %d: %w", f.Name, f.Position, err)
	}
	return attempts, nil
}

// NoteFailure writes down that the page cannot be delivered at the moment, and why.
func NoteFailure(ctx context.Context, pool *pgxpool.Pool, f Fence, detail string) error {
	const q = bounded + `update feed_consumer set failing_since = coalesce(failing_since, now()), detail = $3
		from bounded where name = $1 and position = $2 and target is not null`
	_, err := f.update(ctx, pool, "note the failure", q, detail)
	return err
}

// Watch returns when the session that holds the locks is gone, with the reason, or when ctx ends. Nothing else may use
// the lock meanwhile.
func (l *NameLock) Watch(ctx context.Context) error {
	const askEvery, patience = 5 * time.Second, 5 * time.Second // a host that is gone says nothing
	for ctx.Err() == nil {
		if l.conn == nil || l.conn.Conn().IsClosed() {
			return errors.New("the connection that held the lock is closed")
		}
		waiting, done := context.WithTimeout(ctx, askEvery)
		_, err := l.conn.Conn().WaitForNotification(waiting) // returns at once if the session is ended
		quiet := waiting.Err() != nil
		done()
		if err != nil && !quiet {
			return err
		}
		if ctx.Err() != nil {
			break
		}
		asking, done := context.WithTimeout(ctx, patience)
		err = l.Alive(asking)
		done()
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
	return ctx.Err()
}
