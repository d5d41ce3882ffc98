package feed_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"plenum/pkg/feed"
	"plenum/pkg/store"
)

func TestAReadWithoutCommitIsRepeated(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.add(3, 2)
	for range 3 {
		d.read(feed.Request{Name: "a"}, 0, 5)
	}
	page := d.read(feed.Request{Name: "a", Limit: 1}, 0, 3)
	d.commit("a", page.Position)
	d.commit("a", page.Position) // the same again is no error
	page = d.read(feed.Request{Name: "a"}, 3, 2)
	d.commit("a", page.Position)
	if again := d.read(feed.Request{Name: "a"}, 0, 0); again.Position != page.Position {
		t.Errorf("position %d with no rows, want %d", again.Position, page.Position)
	}
	d.add(4)
	d.read(feed.Request{Name: "a"}, 5, 4)
}

func TestBatchesAreWhole(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.add(10, 1, 1, 10)
	for _, c := range []struct{ limit, rows int }{{1, 10}, {9, 10}, {10, 10}, {11, 11}, {12, 12}, {13, 22}, {22, 22}, {100, 22}} {
		d.read(feed.Request{Name: "a", Limit: c.limit}, 0, c.rows)
	}
}

func TestWhereAConsumerBegins(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.add(2)
	second := d.add(3)
	var at time.Time
	if err := d.pool.QueryRow(t.Context(), "select processed_at from telemetry_batch where feed_position = $1", second).Scan(&at); err != nil {
		t.Fatal(err)
	}
	d.add(4)
	d.read(feed.Request{Name: "default"}, 0, 9)
	d.read(feed.Request{Name: "earliest", From: "earliest"}, 0, 9)
	d.read(feed.Request{Name: "latest", From: "latest"}, 0, 0)
	d.read(feed.Request{Name: "time", From: at.Format(time.RFC3339Nano)}, 2, 7)
	d.read(feed.Request{Name: "zone", From: at.In(time.FixedZone("", 5400)).Format(time.RFC3339Nano)}, 2, 7)
	d.read(feed.Request{Name: "later", From: at.Add(time.Microsecond).Format(time.RFC3339Nano)}, 5, 4)
	d.read(feed.Request{Name: "past", From: "1970-01-01T00:00:00Z"}, 0, 9)
	d.read(feed.Request{Name: "future", From: "2999-01-01T00:00:00Z"}, 0, 0)
	d.read(feed.Request{Name: "latest", From: "earliest"}, 0, 0) // it exists: from means nothing
	d.add(1)
	d.read(feed.Request{Name: "latest"}, 9, 1)
	d.read(feed.Request{Name: "future"}, 9, 1)
	d.exec("update feed_horizon set position = $1", second)
	d.read(feed.Request{Name: "new", From: "earliest"}, 5, 5)
	d.read(feed.Request{Name: "old", From: "1970-01-01T00:00:00Z"}, 5, 5)
}

func TestCommitRefuses(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	first := d.add(1)
	head := d.add(1)
	var unknown *feed.UnknownError
	if err := d.feed.Commit(t.Context(), "a", 0); !errors.As(err, &unknown) || unknown.Name != "a" {
		t.Errorf("commit of an unknown consumer: %v", err)
	}
	d.read(feed.Request{Name: "a"}, 0, 2)
	d.commit("a", head)
	var position *feed.PositionError
	if err := d.feed.Commit(t.Context(), "a", first); !errors.As(err, &position) || position.Current != head {
		t.Errorf("commit backwards: %v", err)
	}
	if err := d.feed.Commit(t.Context(), "a", head+1); !errors.As(err, &position) || position.Head != head {
		t.Errorf("commit past the head: %v", err)
	}
	var request *feed.RequestError
	if err := d.feed.Commit(t.Context(), "a\x00", head); !errors.As(err, &request) {
		t.Errorf("commit of a bad name: %v", err)
	}
	d.read(feed.Request{Name: "a"}, 2, 0)
}

// However two readers of one consumer commit at once, it stands at the higher position.
func TestTwoReadersOfAConsumer(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.add(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
	d.read(feed.Request{Name: "a", Limit: 1}, 0, 1)
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				page, err := d.feed.Read(t.Context(), feed.Request{Name: "a", Limit: 1})
				if err != nil {
					t.Error(err)
				}
				if err != nil || len(page.Rows) == 0 {
					return
				}
				var behind *feed.PositionError // the other one was faster
				if err := d.feed.Commit(t.Context(), "a", page.Position); err != nil && !(errors.As(err, &behind) && behind.Current > behind.Position) {
					t.Error(err)
				}
			}
		})
	}
	readers.Wait()
	d.read(feed.Request{Name: "a"}, 10, 0)
	d.read(feed.Request{Name: "b"}, 0, 10) // another consumer sees all
}

func TestALongPollEndsWithRows(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.read(feed.Request{Name: "a"}, 0, 0)
	got := make(chan feed.Page)
	go func() {
		page, err := d.feed.Read(t.Context(), feed.Request{Name: "a", Limit: 10, Wait: feed.MaxWait})
		if err != nil {
			t.Error(err)
		}
		got <- page
	}()
	began := time.Now()
	head := d.add(2)
	if page := <-got; len(page.Rows) != 2 || page.Position != head {
		t.Errorf("%d rows and position %d, want 2 and %d", len(page.Rows), page.Position, head)
	}
	if waited := time.Since(began); waited > feed.MaxWait/2 {
		t.Errorf("the rows came after %v", waited)
	}
}

func TestALongPollEndsWithoutRows(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	began := time.Now()
	d.read(feed.Request{Name: "a", Wait: 200 * time.Millisecond}, 0, 0)
	if waited := time.Since(began); waited < 200*time.Millisecond {
		t.Errorf("waited %v, want 200ms", waited)
	}
	stop := make(chan struct{})
	close(stop)
	d.read(feed.Request{Name: "a", Wait: feed.MaxWait, Stop: stop}, 0, 0)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	if _, err := d.feed.Read(ctx, feed.Request{Name: "a", Limit: 1, Wait: feed.MaxWait}); !errors.Is(err, context.Canceled) {
		t.Errorf("a read whose context ended returned %v", err)
	}
}

func TestDroppedRowsAreTold(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	first := d.add(1)
	d.add(1)
	head := d.add(1)
	d.read(feed.Request{Name: "begun"}, 0, 3)
	d.read(feed.Request{Name: "passed"}, 0, 3)
	d.commit("passed", first)
	d.exec("update feed_horizon set position = $1", first)
	var gone *feed.GoneError
	_, err := d.feed.Read(t.Context(), feed.Request{Name: "begun", Limit: 1})
	if !errors.As(err, &gone) || gone.Oldest != first || gone.Position != 0 {
		t.Fatalf("read behind the horizon: %v, want the oldest position %d", err, first)
	}
	d.read(feed.Request{Name: "passed"}, 1, 2)
	d.exec("delete from telemetry where seq = 1; delete from telemetry_batch where feed_position = " + itoa(first))
	if _, err = d.feed.Read(t.Context(), feed.Request{Name: "begun", Limit: 1}); !errors.As(err, &gone) {
		t.Errorf("read after the rows were dropped: %v", err)
	}
	d.commit("begun", gone.Oldest) // how a consumer goes on
	d.read(feed.Request{Name: "begun"}, 1, 2)
	d.commit("begun", head)
}

func TestMissingRowsAreNoPage(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.add(2)
	damaged := d.add(3)
	d.exec("delete from telemetry where seq = 4")
	var incomplete *store.IncompleteError
	_, err := d.feed.Read(t.Context(), feed.Request{Name: "a", Limit: 100})
	if !errors.As(err, &incomplete) || incomplete.Position != damaged || incomplete.Found != 2 || incomplete.Want != 3 {
		t.Errorf("read of a damaged batch: %v", err)
	}
	d.read(feed.Request{Name: "a", Limit: 1}, 0, 2) // what is before it can be read
}

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	f := feed.New(nil, nil) // nothing is asked of a database
	good := feed.Request{Name: "a", Limit: 1}
	for name, change := range map[string]func(*feed.Request){
		"no name":       func(r *feed.Request) { r.Name = "" },
		"long name":     func(r *feed.Request) { r.Name = strings.Repeat("a", 65) },
		"dot first":     func(r *feed.Request) { r.Name = ".a" },
		"slash":         func(r *feed.Request) { r.Name = "a/b" },
		"line feed":     func(r *feed.Request) { r.Name = "a\n" },
		"NUL":           func(r *feed.Request) { r.Name = "a\x00" },
		"no limit":      func(r *feed.Request) { r.Limit = 0 },
		"minus limit":   func(r *feed.Request) { r.Limit = -1 },
		"over limit":    func(r *feed.Request) { r.Limit = feed.MaxLimit + 1 },
		"negative wait": func(r *feed.Request) { r.Wait = -1 },
		"over wait":     func(r *feed.Request) { r.Wait = feed.MaxWait + 1 },
		"from a word":   func(r *feed.Request) { r.From = "yesterday" },
		"from a day":    func(r *feed.Request) { r.From = "2026-11-22" },
	} {
		r := good
		change(&r)
		var request *feed.RequestError
		if _, err := f.Read(t.Context(), r); !errors.As(err, &request) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a person does to the ledger makes no consumer commit in vain: where it stands, it may stand.
func TestCommitWhereTheHeadWentBack(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.add(1)
	head := d.add(1)
	d.read(feed.Request{Name: "a"}, 0, 2)
	d.commit("a", head)
	d.exec("delete from telemetry_batch")
	d.commit("a", head)
	var position *feed.PositionError
	if err := d.feed.Commit(t.Context(), "a", head+1); !errors.As(err, &position) {
		t.Errorf("commit past the head: %v", err)
	}
}
