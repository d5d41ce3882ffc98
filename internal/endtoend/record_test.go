package endtoend

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"

	"plenum/internal/devenv/devtest"
)

// span is the positions of one page of the feed: behind after, up to and with last.
type span struct{ after, last int64 }

// record is what one consumer has got. A page may come again as long as it was not committed, then it begins as it did; a row
// of a committed page never does.
type record struct {
	mu         sync.Mutex
	pages      map[int64]span // by row id, of committed pages
	readings   map[int64]string
	position   int64
	repeated   int     // rows of pages that came again
	unfinished []int64 // ids of a page from position that was not committed
}

func newRecord() *record { return &record{pages: map[int64]span{}, readings: map[int64]string{}} }

// keep compares a page with what came before.
func (r *record) keep(rows []feedRow, last int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last < r.position {
		return fmt.Errorf("a page from position %d ends at %d", r.position, last)
	}
	ids := make([]int64, len(rows))
	for i, row := range rows {
		ids[i] = row.ID
	}
	if n := len(r.unfinished); n > 0 {
		r.repeated += n
		if len(ids) < n || !slices.Equal(ids[:n], r.unfinished) {
			return fmt.Errorf("a page from position %d came again and does not begin with the %d rows that it had", r.position, n)
		}
	}
	for _, row := range rows {
		if first, again := r.pages[row.ID]; again {
			return fmt.Errorf("row %d came in a page up to %d, and was committed in %+v", row.ID, last, first)
		}
		r.readings[row.ID] = row.reading()
	}
	r.unfinished = ids
	return nil
}

// committed says that the page that was kept last is committed.
func (r *record) committed(last int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range r.unfinished {
		r.pages[id] = span{r.position, last}
	}
	r.position, r.unfinished = last, nil
}

// skip says that the consumer was told to go on from position, what is before being gone.
func (r *record) skip(position int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.position, r.unfinished = position, nil
}

func (r *record) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pages)
}

// await waits until n rows are committed, as long as their number grows.
func (r *record) await(t *testing.T, n int) {
	t.Helper()
	for have := -1; have < n; {
		devtest.Eventually(t, func() error {
			now := r.count()
			if now <= have && now < n {
				return fmt.Errorf("the consumer has committed %d rows of %d", now, n)
			}
			have = now
			return nil
		})
	}
}

// holds finds each of the readings in one committed row, and no other.
func (r *record) holds(t *testing.T, want map[string]bool) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := make(map[string]bool, len(want))
	for id := range r.pages {
		reading := r.readings[id]
		if !want[reading] || seen[reading] {
			t.Fatalf("reading %s came in row %d, and was not acknowledged or came in another", reading, id)
		}
		seen[reading] = true
	}
	for reading := range want {
		if !seen[reading] {
			t.Fatalf("%d of %d acknowledged readings did not come, for instance %s", len(want)-len(seen), len(want), reading)
		}
	}
}

// acknowledged is what the publishers' records have, each "device/seq".
func acknowledged(publishers ...*publisher) map[string]bool {
	all := map[string]bool{}
	for _, p := range publishers {
		for _, reading := range p.acknowledged() {
			all[reading] = true
		}
	}
	return all
}

func (r feedRow) reading() string {
	if r.Seq == nil {
		return fmt.Sprintf("%s/%d without seq", r.DeviceID, r.ID)
	}
	return fmt.Sprintf("%s/%d", r.DeviceID, *r.Seq)
}

func decodeRows(ndjson []byte) (rows []feedRow, err error) {
	for d := json.NewDecoder(bytes.NewReader(ndjson)); d.More(); {
		var row feedRow
		if err := d.Decode(&row); err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}
