package ingest_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"plenum/pkg/telemetry"
)

type nullStore struct{}

func (nullStore) Write(_ context.Context, b *telemetry.Batch) (telemetry.Outcome, error) {
	return telemetry.Outcome{Stored: len(b.Readings)}, nil
}

type waitReceipt struct{ wg *sync.WaitGroup }

func (r *waitReceipt) Done() { r.wg.Done() }

// BenchmarkMessage is the CPU and the allocations of a message from Receive to Done, without MQTT and PostgreSQL.
func BenchmarkMessage(b *testing.B) {
	c := config()
	c.Writers = 2
	r := start(b, c, nullStore{})
	now := time.Now().UTC()
	var messages []telemetry.Message
	for i := range 50 {
		device := fmt.Sprintf("cmp-%05d", i)
		payload := fmt.Appendf(nil, `{"ts":%d,"seq":%d,"metrics":{"motor_temp_c":81.4,"state":"loaded","pad":"%s"}}`,
			now.UnixMilli(), i, strings.Repeat("x", 150))
		messages = append(messages, telemetry.Message{Topic: "telemetry/" + device, Payload: payload, ReceivedAt: now})
	}
	var pending sync.WaitGroup
	got := &waitReceipt{&pending}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		pending.Add(1)
		r.Receive(messages[i%len(messages)], got)
		i++
	}
	pending.Wait()
	b.StopTimer()
	r.drain(b)
}
