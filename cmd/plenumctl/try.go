package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"plenum/internal/program"
	"plenum/pkg/telemetry"
)

// row is a reading as the feed would give it, with what only the database adds left out.
type row struct {
	DeviceID   string          `json:"device_id"`
	Kind       string          `json:"kind"`
	Seq        *int64          `json:"seq"`
	RecordedAt time.Time       `json:"recorded_at"`
	Payload    json.RawMessage `json:"payload"`
}

type rejected struct {
	Code   telemetry.Code `json:"code"`
	Detail string         `json:"detail"`
	Topic  string         `json:"topic"`
}

func setupTry(fs *flag.FlagSet) func(context.Context, *call) error {
	var out output
	var topic string
	var retained bool
	out.add(fs)
	fs.StringVar(&topic, "topic", "", "the topic that the message came on; required")
	fs.BoolVar(&retained, "retained", false, "the broker had kept the message for new subscribers")
	return func(_ context.Context, c *call) error {
		switch err := out.check(); {
		case err != nil:
			return err
		case topic == "":
			return program.Usagef("--topic: the topic of the message is needed; see plenumctl try --help")
		case strings.ContainsAny(topic, "+#"):
			return program.Usagef("--topic: %q is a filter, and a message comes on one topic", topic)
		}
		s, err := c.loader.Load(c.getenv)
		if err != nil {
			return err
		}
		decoder, err := program.NewDecoder(s)
		if err != nil {
			return err
		}
		payload, length, err := readPayload(c.stdin, s.Ingest.MaxPayloadBytes)
		if err != nil {
			return err
		}
		var b telemetry.Batch
		decoder.Decode(telemetry.Message{
			Topic: topic, Payload: payload, Length: length, QoS: 1, Retained: retained, ReceivedAt: time.Now().UTC(),
		}, &b)
		if err := printBatch(&out, c.stdout, &b); err != nil {
			return err
		}
		if len(b.Rejects) > 0 {
			return program.ErrFinding
		}
		return nil
	}
}

// readPayload keeps up to a byte more than limit, as much as decides that it is too large, and counts the rest.
func readPayload(r io.Reader, limit int) (payload []byte, length int, err error) {
	payload, err = io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, 0, fmt.Errorf("read the message from standard input: %w", err)
	}
	rest, err := io.Copy(io.Discard, r)
	if err != nil {
		return nil, 0, fmt.Errorf("read the message from standard input: %w", err)
	}
	return payload, len(payload) + int(rest), nil
}

func printBatch(out *output, w io.Writer, b *telemetry.Batch) error {
	rows, rejects := make([]row, len(b.Readings)), make([]rejected, len(b.Rejects))
	for i := range b.Readings {
		r := &b.Readings[i]
		rows[i] = row{DeviceID: r.DeviceID, Kind: r.Kind, RecordedAt: r.RecordedAt, Payload: r.Metrics}
		if r.Seq != telemetry.NoSeq {
			rows[i].Seq = &r.Seq
		}
	}
	for i, r := range b.Rejects {
		rejects[i] = rejected{r.Code, r.Detail, r.Topic}
	}
	return out.print(w, map[string]any{"rows": rows, "rejects": rejects}, func(w io.Writer) {
		for _, r := range rows {
			var line strings.Builder
			e := json.NewEncoder(&line)
			e.SetEscapeHTML(false)
			if err := e.Encode(r); err != nil { // a Reading's metrics are JSON
				fmt.Fprintln(w, err)
				continue
			}
			fmt.Fprint(w, line.String())
		}
		for _, r := range rejects {
			fmt.Fprintf(w, "quarantine\t%s\t%s\n", r.Code, plain(r.Detail))
		}
	})
}
