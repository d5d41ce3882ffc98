package program

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

// NewDecoder returns the configured decoder; what is wrong with the configuration is a UsageError.
func NewDecoder(s Settings) (*telemetry.Decoder, error) {
	d, err := telemetry.NewDecoder(s.telemetry())
	if err != nil {
		return nil, &UsageError{err}
	}
	return d, nil
}

// Quarantined returns the quarantine of the app's database; changes says that more than reading is meant.
func Quarantined(ctx context.Context, a *App, changes bool) (*store.Quarantined, error) {
	if err := checkTool(ctx, a, changes); err != nil {
		return nil, err
	}
	return store.NewQuarantined(a.owner), nil
}

// checkTool returns why a command cannot work on the database as owner.
func checkTool(ctx context.Context, a *App, changes bool) error {
	schema := a.Settings.Database.Schema
	if err := store.CheckServer(ctx, a.owner, schema); err != nil {
		return err
	}
	if changes {
		if err := store.CheckOwner(ctx, a.owner, schema); err != nil {
			return err
		}
	}
	return checkSchema(ctx, a.owner)
}

// QuarantineBytes returns the size of the quarantine, which quarantine.max_bytes bounds.
func QuarantineBytes(ctx context.Context, a *App) (int64, error) {
	q, err := measuredQuarantine(ctx, a)
	if err != nil {
		return 0, err
	}
	used, _, _ := q.Full()
	return used, nil
}

func measuredQuarantine(ctx context.Context, a *App) (*store.Quarantine, error) {
	q := store.NewQuarantine(a.owner, a.Settings.Quarantine.MaxBytes, prometheus.NewRegistry())
	return q, q.Measure(ctx)
}

// ReplayResult is what has become of a line of the quarantine.
type ReplayResult string

const (
	Replayed       ReplayResult = "replayed"        // stored, or found stored; parts of it may have been quarantined again
	RejectedAgain  ReplayResult = "rejected again"  // nothing has changed
	Unreplayable   ReplayResult = "unreplayable"    // it was not kept whole: nothing has changed
	ReplayedBefore ReplayResult = "replayed before" // or deleted meanwhile
)

// A Replay is the report on one line.
type Replay struct {
	Result            ReplayResult
	telemetry.Outcome                // in rows; of a dry run, Stored counts the readings
	Code              telemetry.Code // why something of it was rejected again: the first one's
	Detail            string
}

// A Replayer takes lines of the quarantine through decoding and storing again.
type Replayer struct {
	lines   *store.Quarantined
	decoder *telemetry.Decoder
	writer  *store.Writer
}

// replaySource is what ledger and accounts call the rows that plenumctl stores.
const replaySource = "plenumctl"

// NewReplayer returns a Replayer with the configured decoder.
func NewReplayer(ctx context.Context, a *App, lines *store.Quarantined) (*Replayer, error) {
	decoder, err := NewDecoder(a.Settings)
	if err != nil {
		return nil, err
	}
	writer, err := ownWriter(ctx, a)
	if err != nil {
		return nil, err
	}
	return &Replayer{lines, decoder, writer}, nil
}

// ownWriter returns a writer with the owner's rights, as ingest's: it has days made, and keeps to the quarantine's bound.
func ownWriter(ctx context.Context, a *App) (*store.Writer, error) {
	manager, err := newManager(a)
	if err != nil {
		return nil, err
	}
	quarantine, err := measuredQuarantine(ctx, a)
	if err != nil {
		return nil, err
	}
	w := store.NewWriter(a.owner, replaySource, func(ctx context.Context) error { return ensureToday(ctx, manager, a.Settings) })
	w.Bound(quarantine)
	return w, nil
}

// Replay decodes the line as the configuration has it now, and stores what it becomes in one transaction with the mark
// that it was replayed. An error leaves the line as it was, unless the answer to the COMMIT is what got lost.
func (r *Replayer) Replay(ctx context.Context, l store.QuarantinedLine) (Replay, error) {
	var b telemetry.Batch
	p, err := r.decode(ctx, l, &b)
	if err != nil || p.Result != "" {
		return p, err
	}
	p.Outcome, err = r.writer.Replay(ctx, l.ID, &b)
	switch {
	case errors.Is(err, store.ErrReplayed):
		return Replay{Result: ReplayedBefore}, nil
	case errors.Is(err, store.ErrNothingStored):
		p.Result = RejectedAgain
	case err != nil:
		return Replay{}, fmt.Errorf("replay line %d: %w", l.ID, err)
	default:
		p.Result = Replayed
	}
	switch {
	case p.Code != "" || p.Quarantined == 0:
	case p.Conflicts > 0:
		p.Code, p.Detail = telemetry.Conflict, "the same identity is stored with another payload"
	case err != nil:
		p.Code, p.Detail = telemetry.RejectedByDatabase, strings.TrimPrefix(err.Error(), store.ErrNothingStored.Error()+": ")
	}
	return p, nil
}

// Try says what decoding alone would make of the line.
func (r *Replayer) Try(ctx context.Context, l store.QuarantinedLine) (Replay, error) {
	var b telemetry.Batch
	p, err := r.decode(ctx, l, &b)
	if err != nil || p.Result != "" {
		return p, err
	}
	p.Outcome = telemetry.Outcome{Stored: len(b.Readings), Quarantined: len(b.Rejects)}
	if p.Result = Replayed; len(b.Readings) == 0 {
		p.Result = RejectedAgain
	}
	return p, nil
}

// decode decodes the line into b; Retained, because its readings may be stored in any live day. A Result says that it
// cannot be.
func (r *Replayer) decode(ctx context.Context, l store.QuarantinedLine, b *telemetry.Batch) (p Replay, err error) {
	if why := incomplete(l); why != "" {
		return Replay{Result: Unreplayable, Code: l.Code, Detail: why}, nil
	}
	payload, err := r.lines.Payload(ctx, l)
	if err != nil {
		return p, err
	}
	if payload == nil { // deleted meanwhile
		return Replay{Result: ReplayedBefore}, nil
	}
	r.decoder.Decode(telemetry.Message{Topic: l.Topic, Payload: payload, Retained: true, ReceivedAt: l.ReceivedAt}, b)
	if len(b.Rejects) > 0 {
		p.Code, p.Detail = b.Rejects[0].Code, b.Rejects[0].Detail
	}
	return p, nil
}

// incomplete says what of the line was not kept, or nothing.
func incomplete(l store.QuarantinedLine) string {
	var length int64
	switch {
	case l.Bytes == store.DroppedPayload:
		return "its payload was not kept, because the quarantine was full"
	case !telemetry.TopicWhole(l.Topic):
		return "its topic was too long to be kept whole"
	case l.Code != telemetry.TooLarge:
		return ""
	}
	if _, err := fmt.Sscanf(l.Detail, "payload: %d bytes", &length); err == nil && length > l.Bytes {
		return fmt.Sprintf("of its %d bytes only the first %d were kept", length, l.Bytes)
	}
	return ""
}
