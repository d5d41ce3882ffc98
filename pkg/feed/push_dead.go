package feed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"

	"plenum/pkg/store"
)

// retryDead delivers one dead letter that a person wants delivered once more. What the target cannot take now stays
// asked for, and holds up no page: it has its turn again later. While a page is cut it waits: a target may remember what it took of
// that page until it gets another.
func (p *Pusher) retryDead(ctx context.Context) error {
	now := time.Now()
	if now.Before(p.lookForRetriesAt) || !p.Status().FailingSince.IsZero() || p.narrow.holds(p.at) {
		return nil
	}
	p.lookForRetriesAt = now.Add(p.t.look)
	d, found, err := store.DeadLetterToRetry(ctx, p.pool, p.cfg.Name)
	if err != nil || !found {
		return err
	}
	rows, err := parseRows(d.Body)
	if err != nil {
		return store.RefuseDeadLetter(ctx, p.pool, d.ID, tidy(err.Error()))
	}
	err = p.deliver(ctx, Delivery{
		Consumer: d.Consumer, Key: deliveryKey(d.Consumer, fmt.Sprintf("dead-%d", d.ID)), After: d.After, Position: d.Position, Rows: rows,
	})
	switch {
	case err == nil:
		p.lookForRetriesAt = now // the next one
		p.log.Info("a dead letter was delivered", zap.Int64("dead_letter", d.ID), zap.Int("rows", len(rows)))
		_, err := store.DeleteDeadLetters(ctx, p.pool, []int64{d.ID})
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case isRefusal(err):
		p.lookForRetriesAt = now
		p.log.Warn("a dead letter was refused once more", zap.Int64("dead_letter", d.ID), zap.Error(err))
		return store.RefuseDeadLetter(ctx, p.pool, d.ID, tidy(err.Error()))
	}
	p.lookForRetriesAt = now.Add(p.t.lastPause)
	p.log.Warn("a dead letter cannot be delivered now, it is tried again", zap.Int64("dead_letter", d.ID), zap.Error(err))
	return nil
}

func appendRows(buf []byte, rows []store.FeedRow) []byte {
	for i := range rows {
		buf = AppendRow(buf, &rows[i])
	}
	return buf
}

// parseRows reads what appendRows wrote; appended again, it is the same bytes.
func parseRows(body []byte) ([]store.FeedRow, error) {
	var rows []store.FeedRow
	for d := json.NewDecoder(bytes.NewReader(body)); ; {
		var r struct {
			ID           int64           `json:"id"`
			DeviceID     string          `json:"device_id"`
			Kind         string          `json:"kind"`
			Seq          *int64          `json:"seq"`
			RecordedAt   time.Time       `json:"recorded_at"`
			LastModified time.Time       `json:"last_modified"`
			Payload      json.RawMessage `json:"payload"`
		}
		err := d.Decode(&r)
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the row after the first %d: %w", len(rows), err)
		}
		rows = append(rows, store.FeedRow{
			ID: r.ID, DeviceID: r.DeviceID, Kind: r.Kind, Seq: r.Seq, RecordedAt: r.RecordedAt, LastModified: r.LastModified, Payload: r.Payload,
		})
	}
}
