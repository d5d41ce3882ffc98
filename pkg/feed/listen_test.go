package feed_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/feed"
	"plenum/pkg/store"
)

// listen runs a Listener of the database's feed until the returned function is called.
func (d *database) listen(log *zap.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(d.t.Context())
	l := feed.NewListener(d.feed, log, prometheus.NewRegistry())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	d.t.Cleanup(stop)
	return stop
}

func (d *database) awaitHearing() {
	d.t.Helper()
	devtest.Eventually(d.t, func() error {
		if !d.feed.Hears() {
			return errors.New("the listener does not hear")
		}
		return nil
	})
}

// later reads in the background, with a wait as long as may be.
func (d *database) later(name string) <-chan feed.Page {
	pages := make(chan feed.Page, 1)
	go func() {
		page, err := d.feed.Read(d.t.Context(), feed.Request{Name: name, Limit: 10, Wait: feed.MaxWait})
		if err != nil {
			d.t.Error(err)
		}
		pages <- page
	}()
	devtest.Eventually(d.t, func() error { // the read is under way
		var there bool
		err := d.pool.QueryRow(d.t.Context(), "select exists (select from feed_consumer where name = $1)", name).Scan(&there)
		if err == nil && !there {
			err = errors.New("the consumer is not created")
		}
		return err
	})
	return pages
}

// woken is the page of a read that was woken: at the end of its wait each looks once more, woken or not.
func (d *database) woken(page <-chan feed.Page) feed.Page {
	d.t.Helper()
	select {
	case p := <-page:
		return p
	case <-time.After(feed.MaxWait / 2):
		d.t.Fatal("the read was not woken")
		return feed.Page{}
	}
}

// Nothing but the NOTIFY can wake the readers: by themselves they look once an hour.
func TestANotifyWakes(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.feed.Poll(time.Hour, time.Hour)
	d.listen(zap.NewNop())
	d.awaitHearing()
	var pages []<-chan feed.Page
	for i := range 20 {
		pages = append(pages, d.later(fmt.Sprint("reader-", i)))
	}
	d.exec("select pg_notify('plenum_feed', 'another schema')")
	head := d.add(2)
	for _, p := range pages {
		select {
		case page := <-p:
			t.Fatalf("a read ended with %d rows before the NOTIFY", len(page.Rows))
		default:
		}
	}
	if err := store.NotifyFeed(t.Context(), d.pool); err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		if page := d.woken(p); len(page.Rows) != 2 || page.Position != head {
			t.Errorf("%d rows up to %d, want 2 up to %d", len(page.Rows), page.Position, head)
		}
	}
}

// A NOTIFY for another schema of the database wakes nobody.
func TestANotifyForOthersDoesNotWake(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	reg := prometheus.NewRegistry()
	l := feed.NewListener(d.feed, zap.NewNop(), reg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Run(ctx)
	}()
	wakes := func(want float64) {
		t.Helper()
		devtest.Eventually(t, func() error {
			if got := counter(t, reg, "plenum_feed_wakes_total"); got != want {
				return fmt.Errorf("%v wakes, want %v", got, want)
			}
			return nil
		})
	}
	wakes(1) // the listener's own
	d.exec("select pg_notify('plenum_feed', 'another schema')")
	d.exec("select pg_notify('other', 'public')")
	d.exec("select pg_notify('plenum_feed', 'public')") // they come in order
	wakes(2)
	cancel()
	<-done
}

func counter(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// The listener's backend dies again and again: reads go on, and in the end it listens as at first.
func TestReadsGoOnWithoutTheListener(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	core, logs := observer.New(zap.InfoLevel)
	stop := d.listen(zap.New(core))
	rows := 0
	for range 5 {
		d.awaitHearing()
		page := d.later("a")
		d.exec(`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query = 'listen plenum_feed'`)
		head := d.add(1)
		if got := <-page; len(got.Rows) != 1 || *got.Rows[0].Seq != int64(rows+1) {
			t.Fatalf("round %d: %d rows", rows, len(got.Rows))
		}
		d.commit("a", head)
		rows++
	}
	d.awaitHearing()
	d.feed.Poll(time.Hour, time.Hour)
	page := d.later("b")
	if err := store.NotifyFeed(t.Context(), d.pool); err != nil {
		t.Fatal(err)
	}
	if got := d.woken(page); len(got.Rows) != rows {
		t.Errorf("%d rows, want %d", len(got.Rows), rows)
	}
	stop()
	if d.feed.Hears() {
		t.Error("a stopped listener counts as listening")
	}
	for _, e := range logs.All() {
		t.Log(e.Message, e.ContextMap())
	}
	if n := logs.Len(); n < 2 || n > 10 {
		t.Errorf("%d log lines for 5 losses", n)
	}
}

// A seek wakes the consumer's reader, which goes on from there; one that is removed is told so.
func TestAWaitingReaderFollowsASeek(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.feed.Poll(time.Hour, time.Hour)
	head := d.add(1, 1)
	d.read(feed.Request{Name: "a"}, 0, 2)
	d.commit("a", head)
	page := d.later("a")
	d.exec("insert into feed_consumer (name, position) values ('b', 0)")
	if err := d.feed.Seek(t.Context(), "b", head); err != nil { // another's seek is nothing to it
		t.Fatal(err)
	}
	if err := d.feed.Seek(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	if got := d.woken(page); len(got.Rows) != 1 || got.Position != head {
		t.Errorf("%d rows up to %d, want the last, up to %d", len(got.Rows), got.Position, head)
	}
	d.commit("a", head)
	ended := make(chan error, 1)
	waiting := make(chan struct{})
	go func() {
		close(waiting)
		_, err := d.feed.Read(t.Context(), feed.Request{Name: "a", From: "latest", Limit: 1, Wait: feed.MaxWait})
		ended <- err
	}()
	<-waiting
	devtest.Eventually(t, func() error {
		if err := d.feed.Remove(t.Context(), "a"); err != nil && !isUnknown(err) {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if !isUnknown(err) {
				t.Fatalf("a read of a consumer that was removed: %v", err)
			}
			return nil
		default:
			return errors.New("the read waits")
		}
	})
}

func isUnknown(err error) bool {
	var unknown *feed.UnknownError
	return errors.As(err, &unknown)
}
