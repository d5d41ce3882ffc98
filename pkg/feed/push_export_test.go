package feed

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/pkg/store"
)

// Hasten makes the pusher wait for milliseconds, and gives it grace to end a delivery.
func (p *Pusher) Hasten(grace time.Duration) {
	p.t = tempo{
		firstPause: time.Millisecond, lastPause: 20 * time.Millisecond, firstIdle: time.Millisecond, lastIdle: 10 * time.Millisecond,
		look: 5 * time.Millisecond, standby: 10 * time.Millisecond, grace: grace, longestAfter: 20 * time.Millisecond,
	}
}

// Tire makes each pause after an error one of hours.
func (p *Pusher) Tire() { p.t.firstPause, p.t.lastPause = 100*time.Hour, 100*time.Hour }

// Backoff is the pause after err.
func (p *Pusher) Backoff(err error) time.Duration { return p.backoff(err) }

// CountDeadLetters sets the gauge.
func (m *PushMetrics) CountDeadLetters(ctx context.Context, pool *pgxpool.Pool) error {
	return m.countDeadLetters(ctx, pool)
}

// ParseRows and AppendRows are how a dead letter is kept.
func ParseRows(body []byte) ([]store.FeedRow, error) { return parseRows(body) }

// AppendRows appends rows as NDJSON.
func AppendRows(buf []byte, rows []store.FeedRow) []byte { return appendRows(buf, rows) }
