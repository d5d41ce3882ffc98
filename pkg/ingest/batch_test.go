package ingest_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"plenum/pkg/telemetry"
)

func TestRowsSealABatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := config(), new(seam)
		c.BatchRows, c.Linger = 3, time.Minute
		r := start(t, c, s)
		began := time.Now()
		first := []*receipt{r.send("a", 1), r.send("a", 2)}
		synctest.Wait()
		notDone(t, first...)
		third := r.send("a", 3)
		synctest.Wait()
		doneOnce(t, append(first, third)...)
		if waited := time.Since(began); waited != 0 {
			t.Errorf("a full batch waited %v", waited)
		}
		fourth := r.send("a", 4)
		synctest.Wait()
		notDone(t, fourth)
		r.drain(t)
		doneOnce(t, fourth)
		if w := s.writes(); len(w) != 2 || w[0].rows() != 3 || w[1].rows() != 1 {
			t.Errorf("batches %v, want 3 rows and 1", w)
		}
	})
}

func TestBytesSealABatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := config(), new(seam)
		c.BatchBytes, c.Linger = 1024, time.Minute
		r := start(t, c, s)
		m, _ := reading("a", 1)
		size := len(m.Payload) + len(m.Topic)
		want := (1024 + size - 1) / size
		for range want - 1 {
			r.send("a", 1)
		}
		synctest.Wait()
		if w := s.writes(); len(w) != 0 {
			t.Fatalf("stored %d batches below 1024 bytes", len(w))
		}
		r.send("a", 1)
		synctest.Wait()
		if w := s.writes(); len(w) != 1 || w[0].rows() != want {
			t.Errorf("batches %v, want one of %d rows", w, want)
		}
		r.drain(t)
	})
}

func TestLingerIsTheFirstMessages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := new(seam)
		r := start(t, config(), s)
		for range 3 { // the timer starts anew for each batch
			first := r.send("a", 1)
			time.Sleep(15 * time.Millisecond)
			second := r.send("a", 2)
			time.Sleep(5*time.Millisecond - 1)
			synctest.Wait()
			notDone(t, first, second)
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			doneOnce(t, first, second)
			time.Sleep(time.Hour)
		}
		r.drain(t)
		if w := s.writes(); len(w) != 3 {
			t.Errorf("%d batches, want 3", len(w))
		}
	})
}

func TestLingerIgnoresTheMessagesClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := start(t, config(), new(seam))
		m, _ := reading("a", 1)
		m.ReceivedAt = m.ReceivedAt.Add(10 * time.Hour).Round(0)
		got := new(receipt)
		r.Receive(m, got)
		time.Sleep(20 * time.Millisecond)
		synctest.Wait()
		doneOnce(t, got)
		r.drain(t)
	})
}

func TestNoLinger(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := config()
		c.Linger = 0
		r := start(t, c, new(seam))
		got := r.send("a", 1)
		synctest.Wait()
		doneOnce(t, got)
		r.drain(t)
	})
}

// A batch that lingers while the only writer works must not be forgotten.
func TestLingerEndsWhileTheWriterIsBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := config(), new(seam)
		c.BatchRows = 2
		s.answer = after(time.Second)
		r := start(t, c, s)
		receipts := []*receipt{r.send("a", 1), r.send("a", 2), r.send("a", 3)}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		doneOnce(t, receipts...)
		r.drain(t)
	})
}

// Nothing is left lying while a writer sleeps, however arrivals, seals and the ends of transactions interleave.
func TestNoBatchIsForgotten(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			c, s := config(), new(seam)
			c.BatchRows, c.Writers = 3, 3
			s.answer = func(ctx context.Context, call int) error {
				return after(time.Duration(call%7)*10*time.Millisecond)(ctx, call)
			}
			r := start(t, c, s)
			var receipts []*receipt
			for range 20 {
				for seq := range 1 + rng.IntN(12) {
					receipts = append(receipts, r.send("a", seq))
				}
				time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			doneOnce(t, receipts...)
			r.drain(t)
		})
	}
}

func TestDrainDoesNotLinger(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := config()
		c.Linger = time.Minute
		r := start(t, c, new(seam))
		got := r.send("a", 1)
		synctest.Wait()
		began := time.Now()
		r.drain(t)
		doneOnce(t, got)
		if waited := time.Since(began); waited != 0 {
			t.Errorf("the drain waited %v", waited)
		}
	})
}

func TestAMessageIsInOneBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := config(), new(seam)
		c.BatchRows, c.Linger = 3, time.Minute
		r := start(t, c, s)
		r.send("a", 1)
		r.send("a", 2)
		m, rows := array("b", 10, 50)
		m.Payload = append(m.Payload[:len(m.Payload)-1], `,"no object"]`...)
		got := new(receipt)
		r.Receive(m, got)
		synctest.Wait()
		doneOnce(t, got)
		w := s.writes()
		if len(w) != 1 || len(w[0].readings) != 52 || len(w[0].rejects) != 1 {
			t.Fatalf("batches %v, want one of 52 readings and a reject", w)
		}
		if !slices.Equal(w[0].readings[2:], rows) {
			t.Errorf("readings %v, want %v", w[0].readings[2:], rows)
		}
		r.drain(t)
	})
}

func TestBatchesAreStoredInOrderOfReceipt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, s := config(), new(seam)
		c.BatchRows = 7
		s.answer = after(time.Second)
		r := start(t, c, s)
		for seq := range 1000 {
			r.send("a", seq)
		}
		r.drain(t)
		seq := 0
		for _, w := range s.writes() {
			for _, row := range w.readings {
				if want := "a/" + strconv.Itoa(seq) + " "; !strings.HasPrefix(row, want) {
					t.Fatalf("row %d is %s", seq, row)
				}
				seq++
			}
		}
		if seq != 1000 {
			t.Errorf("%d rows, want 1000", seq)
		}
	})
}

func TestRejectsAreStoredToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := new(seam)
		r := start(t, config(), s)
		got := new(receipt)
		r.Receive(telemetry.Message{Topic: "elsewhere", Payload: []byte("{"), ReceivedAt: time.Now()}, got)
		r.drain(t)
		doneOnce(t, got)
		if w := s.writes(); len(w) != 1 || !slices.Equal(w[0].rejects, []string{"elsewhere {"}) {
			t.Errorf("batches %v, want the one reject", w)
		}
		if got, want := r.Totals().Quarantined, int64(1); got != want {
			t.Errorf("quarantined %d, want %d", got, want)
		}
	})
}
