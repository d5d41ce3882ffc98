package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Consumer is a named reader's durable cursor.
type Consumer struct {
	Name      string
	Position  int64 // everything up to and with it has been committed by the consumer
	Required  bool  // retention waits for it
	UpdatedAt time.Time
}

// ReadConsumer returns the consumer, and false if there is none of that name.
func ReadConsumer(ctx context.Context, pool *pgxpool.Pool, name string) (Consumer, bool, error) {
	c := Consumer{Name: name}
	const q = `select position, required, updated_at from feed_consumer where name = $1`
	err := pool.QueryRow(ctx, q, name).Scan(&c.Position, &c.Required, &c.UpdatedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return c, false, nil
	}
	if err != nil {
		return c, false, fmt.Errorf("read consumer %q: %w", name, err)
	}
	return c, true, nil
}

// ConsumerPositions returns where each consumer stands.
func ConsumerPositions(ctx context.Context, pool *pgxpool.Pool) (map[string]int64, error) {
	rows, err := pool.Query(ctx, `select name, position from feed_consumer`)
	if err != nil {
		return nil, fmt.Errorf("read consumers' positions: %w", err)
	}
	positions, name, position := map[string]int64{}, "", int64(0)
	_, err = pgx.ForEachRow(rows, []any{&name, &position}, func() error {
		positions[name] = position
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read consumers' positions: %w", err)
	}
	return positions, nil
}

// CreateConsumer creates the consumer at position; where it exists, it stays as it is.
func CreateConsumer(ctx context.Context, pool *pgxpool.Pool, name string, position int64) error {
	const q = bounded + `insert into feed_consumer (name, position) select $1, $2::bigint from bounded on conflict (name) do nothing`
	if _, err := pool.Exec(ctx, q, name, position); err != nil {
		return fmt.Errorf("create consumer %q: %w", name, err)
	}
	return nil
}

// AdvanceConsumer sets the consumer's position unless that would move it backwards or it is pushed to, and returns false then.
func AdvanceConsumer(ctx context.Context, pool *pgxpool.Pool, name string, position int64) (bool, error) {
	const q = bounded + `update feed_consumer set position = $2, updated_at = now() from bounded where name = $1 and position <= $2 and target is null`
	tag, err := pool.Exec(ctx, q, name, position)
	if err != nil {
		return false, fmt.Errorf("commit position %d of consumer %q: %w", position, name, err)
	}
	return tag.RowsAffected() == 1, nil
}

// lockConsumers is taken for reading what the horizon lets a consumer stand at. Who holds it waits for nothing for long: a
// consumer's own transaction may hold its row, and retiring a day waits meanwhile.
const lockConsumers = `select pg_advisory_xact_lock($1, hashtext(current_schema()))`

const boundWaits = `set local lock_timeout = '5s'`

// bounded is the same for a statement that reads from it. A consumer's own transaction may hold its row, or its name, for as long as it
// likes; each who waits for that has a connection meanwhile.
const bounded = `with bounded as materialized (select set_config('lock_timeout', '5s', true)) `

// RequireConsumer says whether retention waits for the consumer. Where there is none of that name, it creates one at the
// horizon, and returns true.
func RequireConsumer(ctx context.Context, pool *pgxpool.Pool, name string, required bool) (c Consumer, created bool, err error) {
	const q = `insert into feed_consumer as c (name, position, required) select $1, position, $2 from feed_horizon
		on conflict (name) do update set required = excluded.required
		returning c.name, c.position, c.required, c.updated_at, c.xmax = 0`
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := lockRow(ctx, tx, name); err != nil {
			return err
		}
		return tx.QueryRow(ctx, q, name, required).Scan(&c.Name, &c.Position, &c.Required, &c.UpdatedAt, &created)
	})
	if err != nil {
		err = fmt.Errorf("set required of consumer %q to %t: %w", name, required, err)
	}
	return c, created, err
}

// lockRow locks the consumer's row, if there is one, and then what retiring a day locks.
func lockRow(ctx context.Context, tx pgx.Tx, name string) error {
	if _, err := tx.Exec(ctx, boundWaits); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `select from feed_consumer where name = $1 for update`, name); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, lockConsumers, lockRetention)
	return err
}

// A Sought is how a seek ended: it moved the consumer only where that is known and the position is in the bounds.
type Sought struct {
	Known         bool
	Horizon, Head int64
}

// SeekConsumer moves the consumer to a position from the horizon to the head, and forgets the page that was being pushed
// to it.
func SeekConsumer(ctx context.Context, pool *pgxpool.Pool, name string, position int64) (s Sought, err error) {
	const move = `update feed_consumer set position = $2, updated_at = now(), delivering = null, attempts = 0, failing_since = null, detail = null
		where name = $1`
	if _, s.Head, err = FeedBounds(ctx, pool); err != nil { // outside the transaction, whose lock who locks the ledger may hold
		return s, err
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := lockRow(ctx, tx, name); err != nil {
			return err
		}
		const q = `select position, exists (select from feed_consumer where name = $1) from feed_horizon`
		if err := tx.QueryRow(ctx, q, name).Scan(&s.Horizon, &s.Known); err != nil {
			return err
		}
		if !s.Known || position < s.Horizon || position > s.Head {
			return nil
		}
		_, err := tx.Exec(ctx, move, name, position)
		return err
	})
	if err != nil {
		err = fmt.Errorf("seek consumer %q to position %d: %w", name, position, err)
	}
	return s, err
}

// RemoveConsumer removes the consumer, and returns false if there is none of that name.
func RemoveConsumer(ctx context.Context, pool *pgxpool.Pool, name string) (bool, error) {
	tag, err := pool.Exec(ctx, bounded+`delete from feed_consumer using bounded where name = $1`, name)
	if err != nil {
		return false, fmt.Errorf("remove consumer %q: %w", name, err)
	}
	return tag.RowsAffected() == 1, nil
}

// ConsumerLag is how far a consumer is behind.
type ConsumerLag struct {
	Consumer
	Batches int64         // positions up to the head; a crash of the server may have left some of them empty
	Oldest  time.Duration // age since processing of the oldest batch it has not committed; 0 if none

	// Of a consumer that syncjob pushes to.
	Target       *string // kafka or webhook; nil: the consumer reads by itself
	Pusher       string  // the process that pushes to it, where that was asked for; empty: none does
	Delivering   *int64  // where the page ends that is being delivered
	Attempts     int     // refused deliveries of that page
	FailingSince *time.Time
	Detail       *string // why the latest delivery failed
}

// ConsumerLags returns every consumer by name with its lag.
func ConsumerLags(ctx context.Context, pool *pgxpool.Pool) ([]ConsumerLag, error) {
	const q = `with head as materialized (select coalesce(max(feed_position), 0) as position from telemetry_batch)
		select c.name, c.position, c.required, c.updated_at, greatest(head.position - c.position, 0),
			coalesce(extract(epoch from now() - (select b.processed_at from telemetry_batch b
				where b.feed_position > c.position and c.position < head.position order by b.feed_position limit 1)), 0)::float8,
			c.target, c.delivering, c.attempts, c.failing_since, c.detail
		from feed_consumer c, head order by c.name`
	rows, err := pool.Query(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("read consumers: %w", err)
	}
	lags, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (ConsumerLag, error) {
		var l ConsumerLag
		var age float64
		err := row.Scan(&l.Name, &l.Position, &l.Required, &l.UpdatedAt, &l.Batches, &age,
			&l.Target, &l.Delivering, &l.Attempts, &l.FailingSince, &l.Detail)
		l.Oldest = time.Duration(max(age, 0) * float64(time.Second))
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("read consumers: %w", err)
	}
	return lags, nil
}
