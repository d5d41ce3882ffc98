package feed_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"plenum/pkg/feed"
	"plenum/pkg/store"
)

var failed = map[string]string{"result": "failed"}

// Whatever the target, a pusher behaves like this.

func TestPushInOrderOnce(t *testing.T) {
	t.Parallel()
	eachReceiver(t, func(t *testing.T, d *database, r receiver) {
		d.add(3, 1, 4)
		p := d.push(&spy{Target: r.target()}, func(c *feed.PushConfig) { c.Limit = 4 })
		await(t, r, through(1, 8)...)
		head := d.add(200)
		await(t, r, through(1, 208)...)
		d.awaitPosition(head)
		p.stop()
		seen := p.seen()
		if len(seen) != 3 || len(seen[0].Rows) != 4 || len(seen[2].Rows) != 200 {
			t.Errorf("%d deliveries, want 3: pages of the limit, batches whole", len(seen))
		}
		for i := 1; i < len(seen); i++ {
			if seen[i].After != seen[i-1].Position {
				t.Errorf("delivery %d begins after %d, the one before ended at %d", i, seen[i].After, seen[i-1].Position)
			}
		}
		if rows := p.counted("plenum_push_rows_total", nil); rows != 208 {
			t.Errorf("plenum_push_rows_total %v, want 208", rows)
		}
		if n := p.counted("plenum_push_deliveries_total", map[string]string{"result": "delivered"}); n != 3 {
			t.Errorf("%v deliveries counted, want 3", n)
		}
	})
}

// The target has the page, and the process dies before it can commit: the same rows come again under the same key, although
// there are more by now.
func TestPushAfterACrash(t *testing.T) {
	t.Parallel()
	eachReceiver(t, func(t *testing.T, d *database, r receiver) {
		d.add(2, 1)
		crash := d.push(&spy{Target: r.target(), after: func(ctx context.Context, _ feed.Delivery, err error) error {
			<-ctx.Done()
			return errors.Join(err, ctx.Err())
		}}, nil)
		await(t, r, 1, 2, 3)
		crash.stop()
		head := d.add(2)
		p := d.push(&spy{Target: r.target()}, nil)
		await(t, r, 1, 2, 3, 1, 2, 3, 4, 5)
		d.awaitPosition(head)
		p.stop()
		before, after := crash.seen(), p.seen()
		if len(before) != 1 || len(after) != 2 {
			t.Fatalf("%d deliveries before the crash, %d after it", len(before), len(after))
		}
		if before[0].Key != after[0].Key || after[0].Key == after[1].Key {
			t.Errorf("keys %q, then %q and %q; want the first two alike", before[0].Key, after[0].Key, after[1].Key)
		}
	})
}

func TestPushOutlastsATargetThatIsAway(t *testing.T) {
	t.Parallel()
	eachReceiver(t, func(t *testing.T, d *database, r receiver) {
		r.away(true)
		head := d.add(3, 2)
		p := d.push(&spy{Target: r.target()}, func(c *feed.PushConfig) { c.DeadLetterAfter = 1 }) // which is of no account
		eventually(t, "five failed deliveries", func() bool { return p.counted("plenum_push_deliveries_total", failed) >= 5 })
		d.awaitState("a failure that is written down", func(s store.PushState) bool { return !s.FailingSince.IsZero() && s.Detail != "" && s.Attempts == 0 })
		if p.Status().FailingSince.IsZero() || p.counted("plenum_push_failing", nil) != 1 {
			t.Errorf("status %+v, gauge %v; want a failure", p.Status(), p.counted("plenum_push_failing", nil))
		}
		r.away(false)
		await(t, r, through(1, 5)...)
		d.awaitState("no failure", func(s store.PushState) bool { return s.Position == head && s.FailingSince.IsZero() && s.Detail == "" })
		eventually(t, "the status", func() bool { return p.Status().FailingSince.IsZero() && p.counted("plenum_push_failing", nil) == 0 })
		p.stop()
		if got := r.got(); !slices.Equal(got, through(1, 5)) {
			t.Errorf("got %v", got)
		}
		if began, ended := p.logged("cannot deliver"), p.logged("delivers again"); began != 1 || ended != 1 {
			t.Errorf("logged %d beginnings and %d ends of one failure", began, ended)
		}
	})
}

// Only the batch with the refused row becomes a dead letter; a person has it delivered later.
func TestPushBuriesWhatIsRefused(t *testing.T) {
	t.Parallel()
	eachReceiver(t, func(t *testing.T, d *database, r receiver) {
		first := d.add(2)
		bad := d.add(3)
		head := d.add(2)
		r.refuse(func(seq int64) bool { return seq == 4 })
		p := d.push(&spy{Target: r.target()}, nil)
		d.awaitPosition(head)
		await(t, r, 1, 2, 6, 7)
		dead := d.deadLetters()
		if len(dead) != 1 || dead[0].After != first || dead[0].Position != bad || dead[0].Rows != 3 || dead[0].Attempts != 3 || dead[0].Detail == "" {
			t.Fatalf("dead letters %+v", dead)
		}
		full, _, err := store.ReadDeadLetter(t.Context(), d.pool, dead[0].ID)
		if err != nil || !slices.Equal(seqs(t, full.Body), []int64{3, 4, 5}) {
			t.Errorf("%v: the body is %s", err, full.Body)
		}
		if n := p.counted("plenum_push_deliveries_total", map[string]string{"result": "refused"}); n != 6 {
			t.Errorf("%v refusals, want 3 of the page and 3 of the batch", n)
		}
		d.retry(dead[0].ID)
		eventually(t, "one more refusal", func() bool { return d.deadLetters()[0].Attempts == 4 })
		if again := d.deadLetters()[0]; !again.RetryAt.IsZero() {
			t.Errorf("it is still to be delivered: %+v", again)
		}
		r.refuse(nil)
		d.retry(dead[0].ID)
		await(t, r, 1, 2, 6, 7, 3, 4, 5)
		eventually(t, "no dead letters", func() bool { return len(d.deadLetters()) == 0 })
		if s := d.state(); s.Position != head {
			t.Errorf("the consumer stands at %d, want %d", s.Position, head)
		}
	})
}

// gate holds up a pusher at each delivery that its target has taken: it sends the delivery to at, and goes on when let go.
type gate struct {
	at  chan feed.Delivery
	let chan struct{}
}

func newGate() *gate { return &gate{make(chan feed.Delivery), make(chan struct{})} }

// next waits for the next delivery.
func (g *gate) next(t *testing.T) feed.Delivery {
	t.Helper()
	select {
	case d := <-g.at:
		return d
	case <-time.After(time.Minute):
		t.Fatal("no delivery")
		return feed.Delivery{}
	}
}

// pass lets it go on.
func (g *gate) pass(t *testing.T) {
	t.Helper()
	select {
	case g.let <- struct{}{}:
	case <-time.After(time.Minute):
		t.Fatal("no delivery waits")
	}
}

func (g *gate) after(ctx context.Context, d feed.Delivery, err error) error {
	select {
	case g.at <- d:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-g.let:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestSeekWhileDelivering(t *testing.T) {
	t.Parallel()
	eachReceiver(t, func(t *testing.T, d *database, r receiver) {
		d.add(1)
		second := d.add(1)
		third := d.add(1)
		head := d.add(1)
		g := newGate()
		d.push(&spy{Target: r.target(), after: g.after}, func(c *feed.PushConfig) { c.Limit = 1 })
		seek := func(position int64) {
			d.exec("update feed_consumer set position = $1 where name = 'a'", position)
		}
		g.next(t) // 1 is delivered
		seek(second)
		g.pass(t) // its commit is void: 3 follows
		g.next(t)
		if s := d.state(); s.Position != second {
			t.Errorf("position %d, want %d: the seek was overwritten", s.Position, second)
		}
		seek(0)
		g.pass(t)
		for range 4 { // all over again
			g.next(t)
			g.pass(t)
		}
		await(t, r, 1, 3, 1, 2, 3, 4)
		d.awaitPosition(head)
		if third >= head {
			t.Fatal("positions do not ascend")
		}
	})
}

// A pusher that waits for its target sees a seek, and does not deliver what it held.
func TestSeekWhileTheTargetIsAway(t *testing.T) {
	t.Parallel()
	eachReceiver(t, func(t *testing.T, d *database, r receiver) {
		first := d.add(2)
		head := d.add(2)
		r.away(true)
		p := d.push(&spy{Target: r.target()}, nil)
		eventually(t, "failed deliveries", func() bool { return p.counted("plenum_push_deliveries_total", failed) >= 2 })
		d.exec("update feed_consumer set position = $1, delivering = null where name = 'a'", first)
		eventually(t, "a delivery from there", func() bool { seen := p.seen(); return seen[len(seen)-1].After == first })
		r.away(false)
		await(t, r, 3, 4)
		d.awaitPosition(head)
	})
}

func TestRemoveWhileDelivering(t *testing.T) {
	t.Parallel()
	eachReceiver(t, func(t *testing.T, d *database, r receiver) {
		d.add(1, 1)
		g := newGate()
		p := d.push(&spy{Target: r.target(), after: g.after}, func(c *feed.PushConfig) { c.Limit = 1 })
		g.next(t)
		waiting := d.push(&spy{Target: r.target()}, nil)
		eventually(t, "the other stands by", func() bool { return waiting.Status().Standby != "" })
		d.exec("delete from feed_consumer where name = 'a'")
		g.pass(t)
		p.await()
		waiting.await() // has the lock now, and does not bring it back
		if !p.Status().Removed || !waiting.Status().Removed || p.logged("was removed") != 1 {
			t.Errorf("status %+v and %+v", p.Status(), waiting.Status())
		}
		if s := d.state(); s.Position != -1 {
			t.Errorf("it is back: %+v", s)
		}
		d.push(&spy{Target: r.target()}, nil) // a new start makes it anew
		await(t, r, 1, 1, 2)
	})
}

func TestOneOfTwoPushersDelivers(t *testing.T) {
	t.Parallel()
	eachReceiver(t, func(t *testing.T, d *database, r receiver) {
		first := d.push(&spy{Target: r.target()}, nil)
		d.add(1)
		await(t, r, 1)
		second := d.push(&spy{Target: r.target()}, nil)
		eventually(t, "the second stands by", func() bool { return second.Status().Standby != "" })
		head := d.add(2)
		await(t, r, 1, 2, 3)
		d.awaitPosition(head) // or it would come again
		first.stop()
		d.add(1)
		await(t, r, 1, 2, 3, 4)
		if first.Status().Standby != "" || second.Status().Standby != "" || second.logged("stands by") != 1 || second.logged("pushes now") != 1 {
			t.Errorf("first %+v, second %+v, %d and %d lines", first.Status(), second.Status(), second.logged("stands by"), second.logged("pushes now"))
		}
		if n := len(second.seen()); n != 1 {
			t.Errorf("the second delivered %d pages, want 1", n)
		}
	})
}

// A pusher whose lock is gone breaks off at once, and takes it again.
func TestPushWithoutItsLock(t *testing.T) {
	t.Parallel()
	eachReceiver(t, func(t *testing.T, d *database, r receiver) {
		head := d.add(2)
		g := newGate()
		broken := make(chan error, 10)
		p := d.push(&spy{Target: r.target(), after: func(ctx context.Context, d feed.Delivery, err error) error {
			err = g.after(ctx, d, err)
			broken <- err
			return err
		}}, nil)
		before := g.next(t)
		d.exec("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted and objsubid = 1 and database = (select oid from pg_database where datname = current_database())")
		select {
		case err := <-broken: // nobody has let it go
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the delivery ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the delivery goes on without the lock")
		}
		if s := d.state(); s.Position != 0 {
			t.Errorf("position %d was committed without the lock", s.Position)
		}
		again := g.next(t)
		g.pass(t)
		d.awaitPosition(head)
		if again.Key != before.Key || p.logged("lost the session") != 1 {
			t.Errorf("keys %q and %q, %d lines", before.Key, again.Key, p.logged("lost the session"))
		}
	})
}

func TestAPusherThatHangsHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	eachReceiver(t, func(t *testing.T, d *database, r receiver) {
		other := newWebhook(t)
		r.hang()
		head := d.add(1, 1)
		g := newGate()
		stuck := d.push(&spy{Target: r.target(), after: g.after}, func(c *feed.PushConfig) { c.Name = "stuck" })
		eventually(t, "a delivery that hangs", func() bool { return len(stuck.seen()) > 0 })
		d.push(&spy{Target: other.target()}, nil)
		await(t, other, 1, 2)
		d.awaitPosition(head)
		if got := r.got(); len(got) > 0 {
			t.Errorf("got %v", got)
		}
		stuck.stop() // within its grace
	})
}

// A delivery under way when the pusher is to stop has a moment to end, and is committed then.
func TestPushEndsWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	eachReceiver(t, func(t *testing.T, d *database, r receiver) {
		first := d.add(2)
		d.add(1)
		g := newGate()
		p := d.pushAt(&spy{Target: r.target(), after: g.after}, func(p *feed.Pusher) { p.Hasten(time.Minute) }, func(c *feed.PushConfig) { c.Limit = 1 })
		g.next(t)
		p.cancel()
		g.pass(t)
		p.await()
		if s := d.state(); s.Position != first || s.Delivering != 0 {
			t.Errorf("%+v, want position %d", s, first)
		}
		await(t, r, 1, 2)
	})
}

func (d *database) deadLetters() []store.DeadLetter {
	d.t.Helper()
	all, err := store.DeadLetters(d.t.Context(), d.pool, "a", 100)
	if err != nil {
		d.t.Fatal(err)
	}
	return all
}

func (d *database) retry(id int64) {
	d.t.Helper()
	if known, err := store.RetryDeadLetters(d.t.Context(), d.pool, []int64{id}); err != nil || len(known) != 1 {
		d.t.Fatal(known, err)
	}
}
