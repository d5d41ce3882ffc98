package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// A DeadLetter is a page that a target refused for good.
type DeadLetter struct {
	ID              int64
	Consumer        string
	After, Position int64 // the page is what stands behind After, up to and with Position
	Rows            int
	Attempts        int
	CreatedAt       time.Time
	RetryAt         time.Time // when a person asked for one more delivery; zero: nobody has
	Detail          string    // why it was refused the last time
	Bytes           int64     // of the body
	Body            []byte    // the rows as NDJSON; nil in listings
}

const deadColumns = `id, consumer, after_position, position, row_count, attempts, created_at, coalesce(retry_at, '0001-01-01Z'), detail, octet_length(body)`

func scanDead(row pgx.CollectableRow) (DeadLetter, error) {
	var d DeadLetter
	err := row.Scan(d.fields()...)
	return d.utc(), err
}

func (d *DeadLetter) fields() []any {
	return []any{&d.ID, &d.Consumer, &d.After, &d.Position, &d.Rows, &d.Attempts, &d.CreatedAt, &d.RetryAt, &d.Detail, &d.Bytes}
}

func (d DeadLetter) utc() DeadLetter {
	d.CreatedAt, d.RetryAt = d.CreatedAt.UTC(), d.RetryAt.UTC()
	return d
}

// Bury makes the page a dead letter and moves the consumer past it, in one transaction. It returns false, and leaves
// everything as it is, where the consumer stands elsewhere.
func Bury(ctx context.Context, pool *pgxpool.Pool, f Fence, d DeadLetter) (id int64, buried bool, err error) {
	const insert = `insert into feed_dead_letter (consumer, after_position, position, row_count, attempts, detail, body)
		values ($1, $2, $3, $4, $5, $6, $7) returning id`
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if buried, err = f.update(ctx, tx, "move past a dead letter", commitDelivery, d.Position); err != nil || !buried {
			return err
		}
		return tx.QueryRow(ctx, insert, f.Name, f.Position, d.Position, d.Rows, d.Attempts, d.Detail, d.Body).Scan(&id)
	})
	if err != nil {
		return 0, false, fmt.Errorf("store a dead letter of consumer %q, positions %d to %d: %w", f.Name, f.Position, d.Position, err)
	}
	return id, buried, nil
}

// DeadLetterToRetry returns the consumer's oldest dead letter that a person wants delivered once more, with its body; false if there is none.
func DeadLetterToRetry(ctx context.Context, pool *pgxpool.Pool, consumer string) (DeadLetter, bool, error) {
	const q = `select ` + deadColumns + `, body from feed_dead_letter where consumer = $1 and retry_at is not null order by retry_at, id limit 1`
	var d DeadLetter
	err := pool.QueryRow(ctx, q, consumer).Scan(append(d.fields(), &d.Body)...)
	if errors.Is(err, pgx.ErrNoRows) {
		return d, false, nil
	}
	if err != nil {
		return d, false, fmt.Errorf("look for dead letters of consumer %q: %w", consumer, err)
	}
	return d.utc(), true, nil
}

// RefuseDeadLetter says that the dead letter was refused once more, and why.
func RefuseDeadLetter(ctx context.Context, pool *pgxpool.Pool, id int64, detail string) error {
	const q = `update feed_dead_letter set retry_at = null, attempts = attempts + 1, detail = $2 where id = $1`
	if _, err := pool.Exec(ctx, q, id, detail); err != nil {
		return fmt.Errorf("note the refusal of dead letter %d: %w", id, err)
	}
	return nil
}

// DeleteDeadLetters deletes these dead letters and returns how many there were.
func DeleteDeadLetters(ctx context.Context, pool *pgxpool.Pool, ids []int64) (int64, error) {
	const q = `delete from feed_dead_letter where id = any($1)`
	tag, err := pool.Exec(ctx, q, ids)
	if err != nil {
		return 0, fmt.Errorf("delete dead letters %v: %w", ids, err)
	}
	return tag.RowsAffected(), nil
}

// RetryDeadLetters asks for one more delivery of each and returns the ids that exist.
func RetryDeadLetters(ctx context.Context, pool *pgxpool.Pool, ids []int64) ([]int64, error) {
	const q = `update feed_dead_letter set retry_at = now() where id = any($1) returning id`
	rows, err := pool.Query(ctx, q, ids)
	if err != nil {
		return nil, fmt.Errorf("ask for dead letters %v once more: %w", ids, err)
	}
	known, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("ask for dead letters %v once more: %w", ids, err)
	}
	return known, nil
}

// DeadLetters returns up to limit dead letters without their bodies, the newest first; of one consumer where it is named.
func DeadLetters(ctx context.Context, pool *pgxpool.Pool, consumer string, limit int) ([]DeadLetter, error) {
	const q = `select ` + deadColumns + ` from feed_dead_letter where $1 = '' or consumer = $1 order by id desc limit $2`
	rows, err := pool.Query(ctx, q, consumer, limit)
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	all, err := pgx.CollectRows(rows, scanDead)
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return all, nil
}

// ReadDeadLetter returns one with its body, and false if there is none of that id.
func ReadDeadLetter(ctx context.Context, pool *pgxpool.Pool, id int64) (DeadLetter, bool, error) {
	const q = `select ` + deadColumns + `, body from feed_dead_letter where id = $1`
	var d DeadLetter
	err := pool.QueryRow(ctx, q, id).Scan(append(d.fields(), &d.Body)...)
	if errors.Is(err, pgx.ErrNoRows) {
		return d, false, nil
	}
	if err != nil {
		return d, false, fmt.Errorf("read dead letter %d: %w", id, err)
	}
	return d.utc(), true, nil
}

// CountDeadLetters returns how many each consumer has; a consumer without is there if it is one that is pushed to.
func CountDeadLetters(ctx context.Context, pool *pgxpool.Pool) (map[string]int64, error) {
	const q = `select name, count(d.id) from (select name from feed_consumer where target is not null
			union select consumer from feed_dead_letter) n left join feed_dead_letter d on d.consumer = n.name group by name`
	rows, err := pool.Query(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	counts := map[string]int64{}
	var name string
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&name, &n}, func() error { counts[name] = n; return nil }); err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	return counts, nil
}
