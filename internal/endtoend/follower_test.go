package endtoend

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// follower reads the feed while its syncjob is killed and started again. A read that fails is tried again from the position
// that was committed, a commit until it is answered, and some pages are not committed at all but read again.
type follower struct {
	*record
	name string
	from atomic.Pointer[process]
}

func newFollower(name string, from *process) *follower {
	f := &follower{record: newRecord(), name: name}
	f.from.Store(from)
	return f
}

// follow starts to read until the test ends or done is called, which returns what went wrong.
func follow(t *testing.T, from *process) (f *follower, done func() error) {
	t.Helper()
	f = newFollower("follower", from)
	return f, f.start(t)
}

func (f *follower) start(t *testing.T) (done func() error) {
	t.Helper()
	return inBackground(t, f.run)
}

// inBackground runs until the test ends or done is called, which returns what went wrong.
func inBackground(t *testing.T, run func(context.Context) error) (done func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	return sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
}

func (f *follower) run(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		rows, last, err := f.page(ctx)
		if err == nil {
			if err := f.keep(rows, last); err != nil {
				return err
			}
			if rand.IntN(8) == 0 {
				continue // as a consumer that dies before its commit
			}
			for f.commit(ctx, last) != nil && ctx.Err() == nil {
				<-tick.C
			}
			if ctx.Err() == nil {
				f.committed(last)
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
func (f *follower) page(ctx context.Context) (rows []feedRow, last int64, err error) {
	body, header, err := f.call(ctx, http.MethodGet, "?limit=500&wait=1s&from=earliest", nil)
	if err != nil {
		return nil, 0, err
	}
	if last, err = strconv.ParseInt(header.Get("Plenum-Position"), 10, 64); err != nil {
		return nil, 0, err
	}
	rows, err = decodeRows(body)
	return rows, last, err
}

func (f *follower) commit(ctx context.Context, last int64) error {
	_, _, err := f.call(ctx, http.MethodPost, "/commit", fmt.Appendf(nil, `{"position":%d}`, last))
	return err
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

// matches waits for every acknowledged reading, and finds each in one row, and each row at one position: a second reader,
// which takes one batch at a time, meets it within the page that the first had it in.
func (f *follower) matches(t *testing.T, done func() error, publishers ...*publisher) {
	t.Helper()
	want := acknowledged(publishers...)
	f.await(t, len(want))
	if err := done(); err != nil {
		t.Fatal(err)
	}
	f.holds(t, want)
	f.atOnePosition(t)
}

// atOnePosition reads all again, one batch a page.
func (f *follower) atOnePosition(t *testing.T) {
	t.Helper()
	at := map[int64]int64{}
	again := &follower{name: "again"}
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
		rows, err := decodeRows(body)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
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
