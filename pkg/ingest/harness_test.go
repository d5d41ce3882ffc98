package ingest_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/ingest"
	"plenum/pkg/telemetry"
)

func TestMain(m *testing.M) { devtest.Main(m) }

// written is a copy of what one Write was given.
type written struct {
	readings, rejects []string
	err               error
}

func (w written) rows() int { return len(w.readings) + len(w.rejects) }

// seam is a store that keeps copies of what it is given, and does what answer says before it commits.
type seam struct {
	answer func(ctx context.Context, call int) error // nil: always commits

	mu        sync.Mutex
	calls     []written
	committed map[string]bool // readings and rejects of committed writes
}

func (s *seam) Write(ctx context.Context, b *telemetry.Batch) (telemetry.Outcome, error) {
	w := copied(b)
	s.mu.Lock()
	call := len(s.calls)
	s.calls = append(s.calls, w)
	s.mu.Unlock()
	if s.answer != nil {
		if err := s.answer(ctx, call); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.calls[call].err = err
			return telemetry.Outcome{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if again := copied(b); !slices.Equal(again.readings, w.readings) || !slices.Equal(again.rejects, w.rejects) {
		return telemetry.Outcome{}, fmt.Errorf("the batch changed while it was stored: %v, was %v", again, w)
	}
	if s.committed == nil {
		s.committed = map[string]bool{}
	}
	for _, row := range slices.Concat(w.readings, w.rejects) {
		s.committed[row] = true
	}
	return telemetry.Outcome{Stored: len(b.Readings), Quarantined: len(b.Rejects)}, nil
}

func copied(b *telemetry.Batch) (w written) {
	for _, r := range b.Readings {
		w.readings = append(w.readings, fmt.Sprintf("%s/%d %s", r.DeviceID, r.Seq, r.Metrics))
	}
	for _, r := range b.Rejects {
		w.rejects = append(w.rejects, fmt.Sprintf("%s %s", r.Topic, r.Raw))
	}
	return w
}

func (s *seam) writes() []written {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

func (s *seam) has(row string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.committed[row]
}

// receipt counts how often it is done and, if it has a store, that its rows were committed before.
type receipt struct {
	n     atomic.Int32
	early atomic.Bool
	store *seam
	rows  []string
}

func (r *receipt) Done() {
	for _, row := range r.rows {
		if !r.store.has(row) {
			r.early.Store(true)
		}
	}
	r.n.Add(1)
}

// run is a pipeline that runs.
type run struct {
	*ingest.Pipeline
	logs    *observer.ObservedLogs
	metrics *prometheus.Registry
	cancel  context.CancelFunc
	done    chan error
}

func config() ingest.Config {
	return ingest.Config{BatchRows: 5000, BatchBytes: 8 << 20, Linger: 20 * time.Millisecond, Writers: 1}
}

// start runs a pipeline over store; the test must make it return.
func start(tb testing.TB, c ingest.Config, store ingest.Store) *run {
	tb.Helper()
	decoder, err := telemetry.NewDecoder(telemetry.DefaultConfig())
	if err != nil {
		tb.Fatal(err)
	}
	core, logs := observer.New(zapcore.DebugLevel)
	reg := prometheus.NewPedanticRegistry()
	p, err := ingest.New(c, decoder, store, zap.New(core), reg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	tb.Cleanup(cancel)
	r := &run{p, logs, reg, cancel, make(chan error, 1)}
	go func() { r.done <- p.Run(ctx) }()
	return r
}

// drain ends the run in order.
func (r *run) drain(tb testing.TB) {
	tb.Helper()
	r.Drain()
	if err := <-r.done; err != nil {
		tb.Errorf("Run returned %v after Drain", err)
	}
}

// reading is a message of one reading, and the row that the seam makes of it.
func reading(device string, seq int) (telemetry.Message, string) {
	now := time.Now().UTC()
	metrics := fmt.Sprintf(`{"device":%q,"seq":%d}`, device, seq)
	return telemetry.Message{
		Topic:      "telemetry/" + device,
		Payload:    fmt.Appendf(nil, `{"ts":%d,"seq":%d,"metrics":%s}`, now.UnixMilli(), seq, metrics),
		ReceivedAt: now,
	}, fmt.Sprintf("%s/%d %s", device, seq, metrics)
}

// array is a message of the readings from seq up, n of them.
func array(device string, seq, n int) (telemetry.Message, []string) {
	var payloads [][]byte
	var rows []string
	for i := range n {
		m, row := reading(device, seq+i)
		payloads, rows = append(payloads, m.Payload), append(rows, row)
	}
	m, _ := reading(device, 0)
	m.Payload = append(append([]byte{'['}, bytes.Join(payloads, []byte{','})...), ']')
	return m, rows
}

// send gives the pipeline one reading.
func (r *run) send(device string, seq int) *receipt {
	m, _ := reading(device, seq)
	got := new(receipt)
	r.Receive(m, got)
	return got
}

func doneOnce(tb testing.TB, receipts ...*receipt) {
	tb.Helper()
	for i, r := range receipts {
		if n := r.n.Load(); n != 1 {
			tb.Errorf("receipt %d of %d was done %d times, want once", i, len(receipts), n)
		}
		if r.early.Load() {
			tb.Errorf("receipt %d of %d was done before the commit", i, len(receipts))
		}
	}
}

func notDone(tb testing.TB, receipts ...*receipt) {
	tb.Helper()
	for i, r := range receipts {
		if n := r.n.Load(); n != 0 {
			tb.Errorf("receipt %d of %d was done %d times, want never", i, len(receipts), n)
		}
	}
}
