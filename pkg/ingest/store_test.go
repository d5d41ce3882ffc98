package ingest_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zapcore"

	"plenum/pkg/ingest"
	"plenum/pkg/telemetry"
)

var errDown = errors.New("the database is down")

// after makes a store that takes d.
func after(d time.Duration) func(context.Context, int) error {
	return func(ctx context.Context, _ int) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
}

func hang(ctx context.Context, _ int) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestAFailingStoreIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := new(seam)
		s.answer = func(_ context.Context, call int) error {
			if call < 20 {
				return errDown
			}
			return nil
		}
		r := start(t, config(), s)
		receipts := []*receipt{r.send("a", 1), r.send("a", 2)}
		time.Sleep(20 * time.Millisecond)
		synctest.Wait()
		began := time.Now()
		f := r.Failing()
		if f == nil || !errors.Is(f.Err, errDown) || !f.Since.Equal(began) {
			t.Fatalf("Failing %v after a failed try, want since %v", f, began)
		}
		notDone(t, receipts...)
		// 100 ms doubled up to 10 s: 19 pauses take less than 140 s.
		time.Sleep(140 * time.Second)
		synctest.Wait()
		doneOnce(t, receipts...)
		if f := r.Failing(); f != nil {
			t.Errorf("Failing %v after the batch was stored", f)
		}
		w := s.writes()
		if len(w) != 21 {
			t.Fatalf("%d tries, want 21", len(w))
		}
		for i := range w {
			if !slices.Equal(w[i].readings, w[0].readings) {
				t.Errorf("try %d had %v, the first %v", i, w[i].readings, w[0].readings)
			}
		}
		if errs, infos := count(r, zapcore.ErrorLevel), count(r, zapcore.InfoLevel); errs != 1 || infos != 1 {
			t.Errorf("%d errors and %d infos logged, want one each: %v", errs, infos, r.logs.All())
		}
		r.drain(t)
	})
}

func count(r *run, level zapcore.Level) int { return r.logs.FilterLevelExact(level).Len() }

// One batch that cannot be stored is a failure whatever becomes of the others.
func TestFailingStaysWhileOthersAreStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := config()
		c.BatchRows, c.Writers = 1, 2
		s, heal := new(seam), make(chan struct{})
		r := start(t, c, refusing{s, "poison", heal})
		poison := r.send("poison", 1)
		synctest.Wait()
		since := time.Now()
		for seq := range 100 {
			got := r.send("a", seq)
			time.Sleep(time.Second)
			synctest.Wait()
			doneOnce(t, got)
			if f := r.Failing(); f == nil || !f.Since.Equal(since) {
				t.Fatalf("Failing %v after %d others, want since %v", f, seq, since)
			}
		}
		if n := r.logs.Len(); n != 1 {
			t.Errorf("%d lines logged, want 1: %v", n, r.logs.All())
		}
		notDone(t, poison)
		close(heal)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		doneOnce(t, poison)
		if f := r.Failing(); f != nil {
			t.Errorf("Failing %v after all were stored", f)
		}
		r.drain(t)
	})
}

// refusing refuses the batches with readings of a device until it is healed.
type refusing struct {
	*seam
	device string
	healed chan struct{}
}

func (s refusing) Write(ctx context.Context, b *telemetry.Batch) (telemetry.Outcome, error) {
	select {
	case <-s.healed:
	default:
		if len(b.Readings) > 0 && b.Readings[0].DeviceID == s.device {
			return telemetry.Outcome{}, errDown
		}
	}
	return s.seam.Write(ctx, b)
}

func TestADatabaseThatHangsIsAFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := new(seam)
		s.answer = hang
		r := start(t, config(), s)
		got := r.send("a", 1)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if f := r.Failing(); f == nil || !errors.Is(f.Err, context.DeadlineExceeded) {
			t.Errorf("Failing %v while the store hangs", f)
		}
		notDone(t, got)
		r.cancel()
		<-r.done
	})
}

func TestReceiveNeverBlocks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // a Receive that blocks is a deadlock here
		c, s := config(), new(seam)
		c.BatchRows, c.Writers = 10, 2
		s.answer = hang
		r := start(t, c, s)
		var receipts []*receipt
		for seq := range 10_000 {
			receipts = append(receipts, r.send("a", seq))
		}
		synctest.Wait()
		notDone(t, receipts...)
		if n := len(s.writes()); n != 2 {
			t.Errorf("%d batches under way, want one a writer", n)
		}
		r.cancel()
		if err := <-r.done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v, want the end of its context", err)
		}
		notDone(t, receipts...)
	})
}

func TestWritersStoreAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := config(), new(seam)
		c.BatchRows, c.Writers = 1, 3
		var together sync.WaitGroup
		together.Add(3)
		s.answer = func(context.Context, int) error { // returns when three are here: else a deadlock
			together.Done()
			together.Wait()
			return nil
		}
		r := start(t, c, s)
		receipts := []*receipt{r.send("a", 1), r.send("a", 2), r.send("a", 3)}
		synctest.Wait()
		doneOnce(t, receipts...)
		r.drain(t)
	})
}

func TestDrainStoresWhatIsQueued(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := config(), new(seam)
		c.BatchRows, c.Writers, c.Linger = 10, 2, time.Minute
		s.answer = func(ctx context.Context, call int) error {
			if call == 3 {
				return errDown
			}
			return after(time.Second)(ctx, call)
		}
		r := start(t, c, s)
		var receipts []*receipt
		for seq := range 95 {
			receipts = append(receipts, r.send("a", seq))
		}
		synctest.Wait()
		r.Drain()
		r.Drain() // twice is once
		synctest.Wait()
		late := []*receipt{r.send("late", 1), r.send("late", 2)} // the writers still work
		r.drain(t)
		late = append(late, r.send("late", 3)) // nothing runs any more
		doneOnce(t, receipts...)
		notDone(t, late...)
		want := ingest.Totals{Messages: 95, Late: 3, Received: 95, Stored: 95}
		if got := r.Totals(); got != want {
			t.Errorf("totals %+v, want %+v", got, want)
		}
		for _, w := range s.writes() {
			if slices.ContainsFunc(w.readings, func(row string) bool { return strings.HasPrefix(row, "late") }) {
				t.Errorf("a late message was stored: %v", w)
			}
		}
	})
}

func TestDrainOfNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := config()
		c.Writers = 8
		r := start(t, c, new(seam))
		synctest.Wait()
		r.drain(t)
	})
}

// The end of the context between two tries gives up, and what was committed is done all the same.
func TestGivingUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := config(), new(seam)
		c.BatchRows = 1
		s.answer = func(_ context.Context, call int) error {
			if call > 0 {
				return errDown
			}
			return nil
		}
		r := start(t, c, s)
		stored, refused, waiting := r.send("a", 1), r.send("a", 2), r.send("a", 3)
		synctest.Wait()
		r.cancel()
		if err := <-r.done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v, want the end of its context", err)
		}
		doneOnce(t, stored)
		notDone(t, refused, waiting)
	})
}

// Several connections, several writers, a store that fails now and then: no batch holds anything of an earlier
// one, no row is missing, each receipt is done once and after its commit.
func TestRandomLoad(t *testing.T) {
	t.Parallel()
	c := config()
	c.BatchRows, c.BatchBytes, c.Linger, c.Writers = 20, 4096, time.Millisecond, 3
	s := new(seam)
	s.answer = func(context.Context, int) error {
		if rand.IntN(8) == 0 {
			return errDown
		}
		return nil
	}
	r := start(t, c, s)
	var senders sync.WaitGroup
	const connections, messages = 4, 400
	receipts := make([][]*receipt, connections)
	for n := range connections {
		senders.Go(func() {
			device, rng := "dev-"+strconv.Itoa(n), rand.New(rand.NewPCG(uint64(n), 1))
			for i := range messages {
				m, rows := randomMessage(rng, device, i*100)
				got := &receipt{store: s, rows: rows}
				receipts[n] = append(receipts[n], got)
				r.Receive(m, got)
				if totals := r.Totals(); totals.Received < totals.Stored+totals.Duplicate+totals.Quarantined {
					t.Errorf("more stored than received: %+v", totals)
				}
			}
		})
	}
	senders.Wait()
	r.drain(t)
	var sent []string
	for _, got := range slices.Concat(receipts...) {
		doneOnce(t, got)
		sent = append(sent, got.rows...)
	}
	var stored []string
	for _, w := range s.writes() {
		if w.err == nil {
			stored = append(append(stored, w.readings...), w.rejects...)
		} else if !errors.Is(w.err, errDown) {
			t.Error(w.err)
		}
	}
	slices.Sort(sent)
	slices.Sort(stored)
	if !slices.Equal(sent, stored) {
		t.Errorf("%d rows committed, %d sent, or not the same", len(stored), len(sent))
	}
	got := r.Totals()
	if got.Messages != connections*messages || got.Received != int64(len(sent)) || got.Received != got.Stored+got.Quarantined {
		t.Errorf("totals %+v of %d messages and %d rows", got, connections*messages, len(sent))
	}
}

// randomMessage is a reading, an array of some, or one of two faults, and the rows that it becomes.
func randomMessage(rng *rand.Rand, device string, seq int) (telemetry.Message, []string) {
	switch rng.IntN(4) {
	case 0:
		m, rows := array(device, seq, 1+rng.IntN(60))
		return m, rows
	case 1:
		m, _ := reading(device, seq)
		m.Payload = m.Payload[:len(m.Payload)-1]
		return m, []string{m.Topic + " " + string(m.Payload)}
	case 2:
		m, rows := array(device, seq, 2)
		bad := strconv.Itoa(seq)
		m.Payload = append(append(m.Payload[:len(m.Payload)-1], ","+bad...), ']')
		return m, append(rows, m.Topic+" "+bad)
	}
	m, row := reading(device, seq)
	return m, []string{row}
}

// halving commits half of what it is given and fails, until that is one row.
type halving struct{ *seam }

func (s halving) Write(ctx context.Context, b *telemetry.Batch) (telemetry.Outcome, error) {
	n := len(b.Readings) / 2
	if n == 0 {
		return s.seam.Write(ctx, b)
	}
	half := telemetry.Batch{Readings: b.Readings[:n], Rejects: b.Rejects}
	out, err := s.seam.Write(ctx, &half)
	b.Readings, b.Rejects = b.Readings[n:], nil
	return out, errors.Join(err, errDown)
}

// A store that gets through with a batch piece by piece: each piece is counted once and given once, the receipts are done at the
// end, and a store that makes progress is asked again soon.
func TestABatchStoredInParts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := new(seam)
		r := start(t, config(), halving{s})
		var receipts []*receipt
		var rows []string
		for seq := range 1024 {
			m, row := reading("a", seq)
			got := &receipt{store: s, rows: []string{row}}
			r.Receive(m, got)
			receipts, rows = append(receipts, got), append(rows, row)
		}
		r.Receive(telemetry.Message{Topic: "elsewhere", Payload: []byte("{"), ReceivedAt: time.Now()}, new(receipt))
		time.Sleep(20 * time.Millisecond)
		synctest.Wait()
		notDone(t, receipts...)
		time.Sleep(10 * firstRetry) // ten pauses below it
		synctest.Wait()
		doneOnce(t, receipts...)
		var given []string
		for _, w := range s.writes() {
			given = append(given, w.readings...)
		}
		if !slices.Equal(given, rows) {
			t.Errorf("the store was given %d rows, not the %d in order", len(given), len(rows))
		}
		if got, want := r.Totals(), (ingest.Totals{Messages: 1025, Received: 1025, Stored: 1024, Quarantined: 1}); got != want {
			t.Errorf("totals %+v, want %+v", got, want)
		}
		r.drain(t)
	})
}

// firstRetry bounds the first pause between two tries.
const firstRetry = 100 * time.Millisecond
