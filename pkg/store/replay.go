package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/telemetry"
)

var (
	// ErrReplayed is a line of the quarantine that was replayed before, or is not there.
	ErrReplayed = errors.New("was replayed before, or is not there")
	// ErrNothingStored is a replay that was not made: it would store nothing, or PostgreSQL refuses a row of it.
	ErrNothingStored = errors.New("nothing of it was stored")
)

// Replay stores what a line of the quarantine has become, and marks the line replayed, in one transaction: of two replays
// at once the second finds it marked. Rejects of b are quarantined as new lines. Where nothing would be stored, nor is stored
// already, or PostgreSQL refuses one of the readings, nothing changes: the error is ErrNothingStored, and the outcome what would
// have become of it.
func (w *Writer) Replay(ctx context.Context, id int64, b *telemetry.Batch) (telemetry.Outcome, error) {
	if len(b.Readings) == 0 {
		return telemetry.Outcome{Quarantined: len(b.Rejects)}, ErrNothingStored
	}
	out, err := w.commit(ctx, unit{Batch: *b, repeats: true, replayOf: id})
	if causedByRow(err) {
		out = telemetry.Outcome{Quarantined: 1 + len(b.Rejects), RejectedByDatabase: 1}
		return out, fmt.Errorf("%w: %s", ErrNothingStored, refusal(err))
	}
	return out, err
}

func markReplayed(ctx context.Context, tx pgx.Tx, id int64) error {
	const q = `update telemetry_quarantine set replayed_at = now() where id = $1 and replayed_at is null`
	tag, err := tx.Exec(ctx, q, id)
	if err != nil {
		return fmt.Errorf("mark line %d of the quarantine replayed: %w", id, err)
	}
	if tag.RowsAffected() == 0 {
		return ErrReplayed
	}
	return nil
}
