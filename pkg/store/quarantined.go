package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/pkg/telemetry"
)

// Quarantined is what telemetry_quarantine holds, for people: what it is, and how it goes. Deleting and vacuuming need
// the owner's rights. Nothing of it reads more than a page of lines, or one payload, at a time.
type Quarantined struct{ pool *pgxpool.Pool }

// NewQuarantined returns the quarantine of the pool's database.
func NewQuarantined(pool *pgxpool.Pool) *Quarantined { return &Quarantined{pool} }

// A QuarantinedLine is one line of the quarantine.
type QuarantinedLine struct {
	ID         int64
	ReceivedAt time.Time // the transaction's time
	ReplayedAt time.Time // zero: not yet
	Code       telemetry.Code
	Detail     string
	Topic      string
	Bytes      int64 // of the payload; DroppedPayload: it was not kept
}

// DroppedPayload is the Bytes of a line whose payload was not kept, because the quarantine was full.
const DroppedPayload = -1

// A Selection says which lines; the zero value, all. Each field narrows it.
type Selection struct {
	IDs      []int64           // of these, where not empty
	Code     telemetry.Code    // of this one
	Since    time.Time         // received at or after
	Before   time.Time         // received before
	Replayed *bool             // replayed, or not yet
	Topic    string            // with this in the topic
	Match    func(string) bool // whose topic it accepts
}

// selected is what of a Selection PostgreSQL decides; with custom plans only the conditions that narrow are left of it.
const selected = `($1::bigint[] is null or id = any($1)) and ($2::text = '' or code = $2)
	and ($3::timestamptz is null or received_at >= $3) and ($4::timestamptz is null or received_at < $4)
	and ($5::boolean is null or (replayed_at is not null) = $5) and ($6::text = '' or strpos(topic, $6) > 0)`

func (s Selection) args() []any {
	var ids any // an empty array is not null
	if len(s.IDs) > 0 {
		ids = s.IDs
	}
	optional := func(t time.Time) any {
		if t.IsZero() {
			return nil
		}
		return t
	}
	return []any{ids, string(s.Code), optional(s.Since), optional(s.Before), s.Replayed, s.Topic}
}

// linesPage is how many lines are read at once.
const linesPage = 500

// Newest iterates over the lines from the newest on, by id; reading ends with the first error.
func (q *Quarantined) Newest(ctx context.Context, s Selection) iter.Seq2[QuarantinedLine, error] {
	const sql = `select id, received_at, replayed_at, code, detail, topic, coalesce(octet_length(payload), -1)
		from telemetry_quarantine where ` + selected + ` and ($7::bigint = 0 or id < $7) order by id desc limit $8`
	return q.pages(s, func(after int64) ([]QuarantinedLine, error) {
		return q.read(ctx, sql, append(s.args(), after, linesPage)...)
	})
}

// Oldest iterates over the lines from the oldest on, by id, up to the newest one of the moment it begins.
func (q *Quarantined) Oldest(ctx context.Context, s Selection) iter.Seq2[QuarantinedLine, error] {
	const newest = `select coalesce(max(id), 0) from telemetry_quarantine`
	const sql = `select id, received_at, replayed_at, code, detail, topic, coalesce(octet_length(payload), -1)
		from telemetry_quarantine where ` + selected + ` and id > $7 and id <= $9 order by id limit $8`
	last := int64(-1)
	return q.pages(s, func(after int64) ([]QuarantinedLine, error) {
		if last < 0 {
			if err := q.pool.QueryRow(ctx, newest).Scan(&last); err != nil {
				return nil, fmt.Errorf("read the quarantine: %w", err)
			}
		}
		return q.read(ctx, sql, append(s.args(), after, linesPage, last)...)
	})
}

// pages makes one sequence of pages, each behind the id of the line before; a page that is not full is the last.
func (q *Quarantined) pages(s Selection, page func(after int64) ([]QuarantinedLine, error)) iter.Seq2[QuarantinedLine, error] {
	return func(yield func(QuarantinedLine, error) bool) {
		for after := int64(0); ; {
			lines, err := page(after)
			if err != nil {
				yield(QuarantinedLine{}, err)
				return
			}
			for _, l := range lines {
				after = l.ID
				if (s.Match == nil || s.Match(l.Topic)) && !yield(l, nil) {
					return
				}
			}
			if len(lines) < linesPage {
				return
			}
		}
	}
}

func (q *Quarantined) read(ctx context.Context, sql string, args ...any) ([]QuarantinedLine, error) {
	rows, err := q.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("read the quarantine: %w", err)
	}
	lines, err := pgx.CollectRows(rows, scanQuarantined)
	if err != nil {
		return nil, fmt.Errorf("read the quarantine: %w", err)
	}
	return lines, nil
}

func scanQuarantined(row pgx.CollectableRow) (l QuarantinedLine, err error) {
	var code string
	var replayed *time.Time
	err = row.Scan(&l.ID, &l.ReceivedAt, &replayed, &code, &l.Detail, &l.Topic, &l.Bytes)
	l.Code, l.ReceivedAt = telemetry.Code(code), l.ReceivedAt.UTC()
	if replayed != nil {
		l.ReplayedAt = replayed.UTC()
	}
	return l, err
}

// Payload returns a line's payload: nil where it was not kept or the line is not there, empty where the message was.
func (q *Quarantined) Payload(ctx context.Context, l QuarantinedLine) (payload []byte, err error) {
	const sql = `select payload from telemetry_quarantine where id = $1 and received_at = $2`
	err = q.pool.QueryRow(ctx, sql, l.ID, l.ReceivedAt).Scan(&payload)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("read the payload of line %d of the quarantine: %w", l.ID, err)
	}
	return payload, nil
}

// Missing returns the ids that no line has, in order.
func (q *Quarantined) Missing(ctx context.Context, ids []int64) ([]int64, error) {
	const sql = `select id from telemetry_quarantine where id = any($1)`
	rows, err := q.pool.Query(ctx, sql, ids)
	if err != nil {
		return nil, fmt.Errorf("look for lines of the quarantine: %w", err)
	}
	there, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look for lines of the quarantine: %w", err)
	}
	missing := slices.DeleteFunc(slices.Clone(ids), func(id int64) bool { return slices.Contains(there, id) })
	slices.Sort(missing)
	return slices.Compact(missing), nil
}

// Now returns the database's time, by which received_at was set.
func (q *Quarantined) Now(ctx context.Context) (t time.Time, err error) {
	if err := q.pool.QueryRow(ctx, `select now()`).Scan(&t); err != nil {
		return t, fmt.Errorf("read the database's time: %w", err)
	}
	return t.UTC(), nil
}

// A Purge is what Delete has done.
type Purge struct {
	Lines  int64
	Bytes  int64    // of payloads
	Leaves []string // partitions that lines went from, as SQL writes their names
}

// Delete deletes the lines of s that are there at its start, a page a transaction. On error the Purge says what has
// been deleted all the same.
func (q *Quarantined) Delete(ctx context.Context, s Selection) (p Purge, err error) {
	var page []QuarantinedLine
	for l, err := range q.Oldest(ctx, s) {
		if err != nil {
			return p, err
		}
		if page = append(page, l); len(page) < linesPage {
			continue
		}
		if err := q.deletePage(ctx, page, &p); err != nil {
			return p, err
		}
		page = page[:0]
	}
	return p, q.deletePage(ctx, page, &p)
}

// deletePage names the times too, so that only the page's partitions are in the plan.
func (q *Quarantined) deletePage(ctx context.Context, page []QuarantinedLine, p *Purge) error {
	const sql = `delete from telemetry_quarantine where id = any($1) and received_at >= $2 and received_at <= $3
		returning tableoid::regclass::text, coalesce(octet_length(payload), 0)`
	if len(page) == 0 {
		return nil
	}
	ids := make([]int64, len(page))
	from, to := page[0].ReceivedAt, page[0].ReceivedAt
	for i, l := range page {
		ids[i] = l.ID
		if l.ReceivedAt.Before(from) {
			from = l.ReceivedAt
		}
		if l.ReceivedAt.After(to) {
			to = l.ReceivedAt
		}
	}
	rows, err := q.pool.Query(ctx, sql, ids, from, to)
	if err != nil {
		return fmt.Errorf("delete %d lines of the quarantine: %w", len(ids), err)
	}
	gone := Purge{Leaves: p.Leaves}
	var leaf string
	var size int64
	_, err = pgx.ForEachRow(rows, []any{&leaf, &size}, func() error {
		gone.Lines, gone.Bytes = gone.Lines+1, gone.Bytes+size
		if !slices.Contains(gone.Leaves, leaf) {
			gone.Leaves = append(gone.Leaves, leaf)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete %d lines of the quarantine: %w", len(ids), err)
	}
	p.Lines, p.Bytes, p.Leaves = p.Lines+gone.Lines, p.Bytes+gone.Bytes, gone.Leaves
	return nil
}

// Vacuum returns the space of deleted lines: to the file system where they stood at a partition's end, and else to the
// lines to come. A partition that has been dropped meanwhile has returned it.
func (q *Quarantined) Vacuum(ctx context.Context, leaves []string) error {
	for _, leaf := range leaves {
		// SHARE UPDATE EXCLUSIVE on the leaf while it runs, which lets inserts pass. ACCESS EXCLUSIVE to cut its end off, given up
		// after 5 s and whenever somebody else waits for the leaf.
		_, err := q.pool.Exec(ctx, `vacuum `+leaf)
		if err != nil && !isUndefinedTable(err) {
			return fmt.Errorf("vacuum %s: %w", leaf, err)
		}
	}
	return nil
}

// A QuarantineGroup counts the lines of one code and topic.
type QuarantineGroup struct {
	Code        telemetry.Code
	Topic       string
	Lines       int64
	Replayed    int64 // of them
	First, Last time.Time
	Newest      int64 // id
}

// QuarantineRest counts what is in none of the groups returned.
type QuarantineRest struct{ Groups, Lines int64 }

// Groups returns the largest groups of s, limit at most, and counts the rest. Of s, Match is not asked.
func (q *Quarantined) Groups(ctx context.Context, s Selection, limit int) (groups []QuarantineGroup, rest QuarantineRest, err error) {
	const sql = `select code, topic, count(*), count(replayed_at), min(received_at), max(received_at), max(id),
			count(*) over (), (sum(count(*)) over ())::bigint
		from telemetry_quarantine where ` + selected + `
		group by code, topic order by count(*) desc, max(id) desc limit $7`
	rows, err := q.pool.Query(ctx, sql, append(s.args(), limit)...)
	if err != nil {
		return nil, rest, fmt.Errorf("count the quarantine by code and topic: %w", err)
	}
	var g QuarantineGroup
	var code string
	_, err = pgx.ForEachRow(rows, []any{&code, &g.Topic, &g.Lines, &g.Replayed, &g.First, &g.Last, &g.Newest, &rest.Groups, &rest.Lines}, func() error {
		g.Code, g.First, g.Last = telemetry.Code(code), g.First.UTC(), g.Last.UTC()
		groups = append(groups, g)
		return nil
	})
	if err != nil {
		return nil, rest, fmt.Errorf("count the quarantine by code and topic: %w", err)
	}
	rest.Groups -= int64(len(groups))
	for i := range groups {
		rest.Lines -= groups[i].Lines
	}
	return groups, rest, nil
}

// Details returns the details of the lines with these ids.
func (q *Quarantined) Details(ctx context.Context, ids []int64) (map[int64]string, error) {
	const sql = `select id, detail from telemetry_quarantine where id = any($1)`
	rows, err := q.pool.Query(ctx, sql, ids)
	if err != nil {
		return nil, fmt.Errorf("read details of the quarantine: %w", err)
	}
	details := make(map[int64]string, len(ids))
	var id int64
	var detail string
	_, err = pgx.ForEachRow(rows, []any{&id, &detail}, func() error {
		details[id] = detail
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read details of the quarantine: %w", err)
	}
	return details, nil
}
