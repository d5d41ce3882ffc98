package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/jackc/pgx/v5"
)

// plainVariable makes the test binary be the plain consumer: it holds a plainConfig.
const plainVariable = "PLENUM_BENCH_PLAIN"

// plainConfig says what the plain consumer does: take in rows messages and store them, or only subscribe for 0.
type plainConfig struct {
	Broker, ClientID, Filter, Database string
	Rows                               int
}

// The batches of ingest's defaults.
const (
	plainBatchRows = 5000
	plainLinger    = 20 * time.Millisecond
	plainQueue     = 30_000 // more than the broker has in flight, so that paho's handler does not block
)

// runPlain is what one writes without Plenum: paho with QoS 1 and manual acknowledgement, encoding/json, pgx's CopyFrom, and the
// acknowledgements after the commit.
func runPlain(ctx context.Context, text string) error {
	var c plainConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return fmt.Errorf("%s: %w", plainVariable, err)
	}
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	db, err := pgx.Connect(ctx, c.Database)
	if err != nil {
		return err
	}
	defer db.Close(context.WithoutCancel(ctx))
	messages := make(chan paho.Message, plainQueue)
	client, err := plainClient(c, messages)
	if err != nil {
		return err
	}
	defer client.Disconnect(1000) // ms, for the last acknowledgements
	for stored := 0; stored < c.Rows; {
		batch, err := collect(ctx, messages)
		if err != nil {
			return fmt.Errorf("%d of %d messages have come: %w", stored, c.Rows, err)
		}
		if err := storePlain(ctx, db, batch); err != nil {
			return err
		}
		for _, m := range batch {
			m.Ack()
		}
		stored += len(batch)
	}
	return nil
}

func plainClient(c plainConfig, messages chan<- paho.Message) (paho.Client, error) {
	take := func(_ paho.Client, m paho.Message) { messages <- m }
	o := paho.NewClientOptions().AddBroker(c.Broker).SetClientID(c.ClientID).
		SetCleanSession(false).SetAutoAckDisabled(true).SetDefaultPublishHandler(take)
	client := paho.NewClient(o)
	for _, token := range []func() paho.Token{client.Connect, func() paho.Token { return client.Subscribe(c.Filter, 1, take) }} {
		t := token()
		if !t.WaitTimeout(time.Minute) {
			return nil, errors.New("the broker does not answer")
		}
		if t.Error() != nil {
			return nil, t.Error()
		}
	}
	return client, nil
}

// collect returns the messages of a batch: as many as it holds, or those that come within the linger.
func collect(ctx context.Context, messages <-chan paho.Message) ([]paho.Message, error) {
	var batch []paho.Message
	var linger <-chan time.Time
	for len(batch) < plainBatchRows {
		select {
		case m := <-messages:
			if linger == nil {
				linger = time.After(plainLinger)
			}
			batch = append(batch, m)
		case <-linger:
			return batch, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return batch, nil
}

func storePlain(ctx context.Context, db *pgx.Conn, batch []paho.Message) error {
	rows := make([][]any, 0, len(batch))
	for _, m := range batch {
		var r struct {
			TS       int64           `json:"ts"`
			Seq      *int64          `json:"seq"`
			Kind     string          `json:"kind"`
			DeviceID string          `json:"device_id"`
			Metrics  json.RawMessage `json:"metrics"`
		}
		if err := json.Unmarshal(m.Payload(), &r); err != nil {
			return err
		}
		rows = append(rows, []any{time.UnixMilli(r.TS), r.Seq, r.DeviceID, r.Kind, r.Metrics})
	}
	columns := []string{"recorded_at", "seq", "device_id", "kind", "payload"}
	_, err := db.CopyFrom(ctx, pgx.Identifier{"telemetry"}, columns, pgx.CopyFromRows(rows))
	return err // a transaction of its own, committed here
}

// loopBatch is the rows that the plain SQL loop marks in a transaction.
const loopBatch = 1000

// loopPlain marks every row of today as processed: one session, an update for each loopBatch consecutive ids, each its own
// transaction. It returns how many rows a second it marked, from the end of the first update to the end of the last.
func loopPlain(ctx context.Context, url string, rows int) (perSecond float64, err error) {
	const bounds = `select a.id, b.id, date_trunc('day', a.last_modified, 'UTC'), date_trunc('day', b.last_modified, 'UTC') + interval '1 day'
		from (select id, last_modified from telemetry order by id limit 1) a, (select id, last_modified from telemetry order by id desc limit 1) b`
	const update = `update telemetry set processed = true where id = any($1) and last_modified >= $2 and last_modified < $3`
	db, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, err
	}
	defer db.Close(context.WithoutCancel(ctx))
	var first, last int64
	var from, to time.Time
	if err := db.QueryRow(ctx, bounds).Scan(&first, &last, &from, &to); err != nil {
		return 0, err
	}
	var start time.Time
	marked, early := 0, 0
	ids := make([]int64, 0, loopBatch)
	for id := first; id <= last; {
		for ids = ids[:0]; len(ids) < loopBatch && id <= last; id++ {
			ids = append(ids, id)
		}
		tag, err := db.Exec(ctx, update, ids, from, to)
		if err != nil {
			return 0, err
		}
		marked += int(tag.RowsAffected())
		if start.IsZero() {
			start, early = time.Now(), marked
		}
	}
	if marked != rows {
		return 0, fmt.Errorf("the plain SQL loop marked %d rows of %d", marked, rows)
	}
	return float64(marked-early) / time.Since(start).Seconds(), nil
}
