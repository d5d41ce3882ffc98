package feed

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"plenum/pkg/store"
)

// waiters is a Feed without a database, whose looks see head and positions.
type waiters struct {
	*Feed
	head  atomic.Int64
	asked atomic.Int64
	slow  time.Duration // what a look takes; it sees what was there when it began
	err   error
}

func newWaiters() *waiters {
	w := &waiters{Feed: New(nil, nil)}
	w.looks.ask = func(context.Context) (seen, error) {
		w.asked.Add(1)
		s := seen{head: w.head.Load(), positions: map[string]int64{"a": 0, "moved": 7}}
		time.Sleep(w.slow)
		return s, w.err
	}
	return w
}

// sleepAt waits as a reader at position 0, and returns what sleep does.
func (w *waiters) sleepAt(ctx context.Context, name string, awake <-chan struct{}, wait time.Duration) (int64, bool, error) {
	return w.sleep(ctx, awake, store.Consumer{Name: name}, nil, time.Now().Add(wait), true)
}

// What commits between a reader's look and its wait wakes it: it took the wake before it looked.
func TestNoWakeIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWaiters()
		w.Poll(time.Hour, time.Hour)
		began := time.Now()
		awake := w.waker.next()
		w.head.Store(1) // behind the reader's look …
		w.waker.wake()  // … and before its wait
		if _, ended, err := w.sleepAt(t.Context(), "a", awake, MaxWait); ended || err != nil || time.Since(began) != 0 {
			t.Errorf("ended %t after %v, %v", ended, time.Since(began), err)
		}
	})
}

// A look that began before a wake may have missed what it is about: the reader gets one that began after.
func TestALookUnderWayIsNotEnough(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWaiters()
		w.Poll(time.Hour, time.Hour)
		w.slow = time.Second
		began := time.Now()
		var readers sync.WaitGroup
		for range 2 {
			awake := w.waker.next()
			readers.Go(func() {
				if _, ended, err := w.sleepAt(t.Context(), "a", awake, MaxWait); ended || err != nil {
					t.Errorf("ended %t, %v", ended, err)
				}
			})
			time.Sleep(time.Millisecond)
			w.waker.wake() // of another's commit: the look begins
			synctest.Wait()
			w.head.Store(1)
		}
		readers.Wait()
		if waited := time.Since(began); waited != 2001*time.Millisecond {
			t.Errorf("woken after %v, want the end of the second look, 2.001s", waited)
		}
	})
}

// However many wait, a wake is one look, and a poll at most two a round.
func TestReadersShareALook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWaiters()
		w.waker.setHears(true)
		var readers sync.WaitGroup
		for i := range 1000 {
			awake := w.waker.next()
			readers.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond / 2) // they have not all begun at once
				if _, ended, err := w.sleepAt(t.Context(), "a", awake, 10*time.Minute); ended || err != nil {
					t.Errorf("ended %t, %v", ended, err)
				}
			})
		}
		time.Sleep(time.Second)
		synctest.Wait()
		before := w.asked.Load()
		time.Sleep(time.Minute)
		synctest.Wait()
		if polls := w.asked.Load() - before; polls < 60 || polls > 121 {
			t.Errorf("%d looks in a minute, want 60 to 120", polls)
		}
		before = w.asked.Load()
		time.Sleep(time.Millisecond / 4) // no reader's own look is due at this instant
		w.head.Store(1)
		w.waker.wake()
		readers.Wait()
		if asked := w.asked.Load() - before; asked != 1 {
			t.Errorf("%d looks for one wake", asked)
		}
	})
}

func TestHowOftenReadersLook(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		hears, standby bool
		want           time.Duration
	}{{true, false, time.Second}, {false, false, 50 * time.Millisecond}, {true, true, 50 * time.Millisecond}, {false, true, 50 * time.Millisecond}} {
		f := New(nil, nil)
		f.waker.setHears(c.hears)
		f.waker.setStandby(c.standby)
		if got := f.waker.pause(); got != c.want {
			t.Errorf("hears %t, standby %t: each %v, want %v", c.hears, c.standby, got, c.want)
		}
	}
}

func TestWhatEndsAWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWaiters()
		awake := w.waker.next()
		began := time.Now()
		if _, ended, err := w.sleepAt(t.Context(), "a", awake, 20*time.Second); !ended || err != nil || time.Since(began) != 20*time.Second {
			t.Errorf("no rows: ended %t after %v, %v", ended, time.Since(began), err)
		}
		if moved, ended, err := w.sleepAt(t.Context(), "moved", awake, 20*time.Second); moved != 7 || ended || err != nil {
			t.Errorf("a consumer that was sought: to %d, ended %t, %v", moved, ended, err)
		}
		var unknown *UnknownError
		if _, _, err := w.sleepAt(t.Context(), "removed", awake, 20*time.Second); !errors.As(err, &unknown) {
			t.Errorf("a consumer that was removed: %v", err)
		}
		w.err = errors.New("away")
		if _, _, err := w.sleepAt(t.Context(), "a", awake, 20*time.Second); !errors.Is(err, w.err) {
			t.Errorf("a look that failed: %v", err)
		}
		w.err = nil
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := w.sleepAt(ctx, "a", awake, 20*time.Second); !errors.Is(err, context.Canceled) {
			t.Errorf("a context that ended: %v", err)
		}
	})
}
