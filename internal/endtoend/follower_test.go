package endtoend

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
)

// span is the positions of one page of the feed: behind after, up to and with last.
type span struct{ after, last int64 }

// follower reads the feed while its syncjob is killed and started again. A read that fails is tried again from the position
// that was committed, a commit until it is answered, and some pages are not committed at all but read again: so a row may come
// again in a page that was not committed, else never.
type follower struct {
	name string
	from atomic.Pointer[process]

	mu         sync.Mutex
	pages      map[int64]span // by row id, of committed pages
	readings   map[int64]string
	position   int64
	repeated   int     // rows of pages that came again
	unfinished []int64 // ids of a page from position that was not committed
}

// follow starts to read until the test ends or done is called, which returns what went wrong.
func follow(t *testing.T, from *process) (f *follower, done func() error) {
	t.Helper()
	f = &follower{name: "follower", pages: map[int64]span{}, readings: map[int64]string{}}
	f.from.Store(from)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.run(ctx) }()
	return f, sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
}

func (f *follower) run(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		ids, names, last, err := f.page(ctx)
		if err == nil {
			if err := f.keep(ids, names, last); err != nil {
				return err
			}
			if rand.IntN(8) == 0 {
				continue // as a consumer that dies before its commit
			}
			for f.commit(ctx, last) != nil && ctx.Err() == nil {
				<-tick.C
			}
			if ctx.Err() == nil {
				f.committed(ids, last)
			}
		}
		<-tick.C
	}
	return nil
}

// address is where the syncjob that runs now serves, "" while it serves nowhere.
func (f *follower) address() string {
	p := f.from.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.address
}

// page reads one page whole.
func (f *follower) page(ctx context.Context) (ids []int64, names []string, last int64, err error) {
	body, header, err := f.call(ctx, http.MethodGet, "?limit=500&wait=1s&from=earliest", nil)
	if err != nil {
		return nil, nil, 0, err
	}
	if last, err = strconv.ParseInt(header.Get("Plenum-Position"), 10, 64); err != nil {
		return nil, nil, 0, err
	}
	for d := json.NewDecoder(bytes.NewReader(body)); d.More(); {
		var row feedRow
		if err := d.Decode(&row); err != nil {
			return nil, nil, 0, err
		}
		ids, names = append(ids, row.ID), append(names, fmt.Sprintf("%s/%d", row.DeviceID, *row.Seq))
	}
	return ids, names, last, nil
}

// keep compares a page with what came before.
func (f *follower) keep(ids []int64, names []string, last int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if last < f.position {
		return fmt.Errorf("a page from position %d ends at %d", f.position, last)
	}
	if n := len(f.unfinished); n > 0 {
		f.repeated += n
		if len(ids) < n || !slices.Equal(ids[:n], f.unfinished) {
			return fmt.Errorf("a page from position %d came again and does not begin with the %d rows that it had", f.position, n)
		}
	}
	for i, id := range ids {
		if first, again := f.pages[id]; again {
			return fmt.Errorf("row %d came in a page up to %d, and was committed in %+v", id, last, first)
		}
		f.readings[id] = names[i]
	}
	f.unfinished = ids
	return nil
}

func (f *follower) commit(ctx context.Context, last int64) error {
	_, _, err := f.call(ctx, http.MethodPost, "/commit", fmt.Appendf(nil, `{"position":%d}`, last))
	return err
}

func (f *follower) committed(ids []int64, last int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		f.pages[id] = span{f.position, last}
	}
	f.position, f.unfinished = last, nil
}

// call returns the whole answer; one that is not 200 is an error.
func (f *follower) call(ctx context.Context, method, path string, body []byte) ([]byte, http.Header, error) {
	address := f.address()
	if address == "" {
		return nil, nil, fmt.Errorf("syncjob serves no HTTP yet")
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+address+"/api/v1/feed/"+f.name+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer bytes.Buffer
	if _, err := answer.ReadFrom(resp.Body); err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("the feed answers %d: %s", resp.StatusCode, strings.TrimSpace(answer.String()))
	}
	return answer.Bytes(), resp.Header, nil
}

func (f *follower) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.pages)
}

// matches waits for every acknowledged reading, and finds each in one row, and each row at one position: a second reader,
// which takes one batch at a time, meets it within the page that the first had it in.
func (f *follower) matches(t *testing.T, done func() error, publishers ...*publisher) {
	t.Helper()
	want := map[string]bool{}
	for _, p := range publishers {
		for _, reading := range p.acknowledged() {
			want[reading] = true
		}
	}
	for have := -1; have < len(want); {
		devtest.Eventually(t, func() error {
			now := f.count()
			if now <= have && now < len(want) {
				return fmt.Errorf("the feed has given %d rows of %d", now, len(want))
			}
			have = now
			return nil
		})
	}
	if err := done(); err != nil {
		t.Fatal(err)
	}
	for id := range f.pages {
		reading := f.readings[id]
		if !want[reading] {
			t.Fatalf("reading %s came in row %d, and was not acknowledged or came in another", reading, id)
		}
		delete(want, reading)
	}
	if len(want) > 0 {
		t.Fatalf("%d acknowledged readings did not come, for instance %s", len(want), firstKey(want))
	}
	f.atOnePosition(t)
}

// atOnePosition reads all again, one batch a page.
func (f *follower) atOnePosition(t *testing.T) {
	t.Helper()
	at := map[int64]int64{}
	again := &follower{name: "again", pages: map[int64]span{}, readings: map[int64]string{}}
	again.from.Store(f.from.Load())
	for len(at) < len(f.pages) {
		body, header, err := again.call(t.Context(), http.MethodGet, "?limit=1&from=earliest", nil)
		if err != nil || len(body) == 0 {
			t.Fatalf("after %d rows of %d: %d bytes, %v", len(at), len(f.pages), len(body), err)
		}
		position, err := strconv.ParseInt(header.Get("Plenum-Position"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		for d := json.NewDecoder(bytes.NewReader(body)); d.More(); {
			var row feedRow
			if err := d.Decode(&row); err != nil {
				t.Fatal(err)
			}
			first, page := at[row.ID], f.pages[row.ID]
			if first != 0 || position <= page.after || position > page.last {
				t.Fatalf("row %d is at position %d, was at %d, and was committed in %+v", row.ID, position, first, page)
			}
			at[row.ID] = position
		}
		if err := again.commit(t.Context(), position); err != nil {
			t.Fatal(err)
		}
	}
}
