package endtoend

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"plenum/internal/devenv/devtest"
)

// endpoint takes what is pushed to it, and remembers what came under which key.
type endpoint struct {
	*httptest.Server
	mu     sync.Mutex
	refuse string // a device whose rows it refuses
	pages  map[string]string
	keys   []string // in order of arrival, repeats included
}

func newEndpoint(t *testing.T) *endpoint {
	e := &endpoint{pages: map[string]string{}}
	e.Server = httptest.NewServer(e)
	t.Cleanup(e.Close)
	return e
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.refuse != "" && bytes.Contains(body, []byte(`"device_id":"`+e.refuse+`"`)) {
		http.Error(w, "no such device", http.StatusBadRequest)
		return
	}
	key := r.Header.Get("Idempotency-Key")
	if before, again := e.pages[key]; again && before != string(body) {
		http.Error(w, "another page under one key", http.StatusConflict)
		return
	}
	e.pages[key] = string(body)
	e.keys = append(e.keys, key)
}

func (e *endpoint) accept(refuse string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.refuse = refuse
}

// rows are those of each key once, in order of arrival.
func (e *endpoint) rows(t *testing.T) (all []feedRow) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	seen := map[string]bool{}
	for _, key := range e.keys {
		if seen[key] {
			continue
		}
		seen[key] = true
		for d := json.NewDecoder(strings.NewReader(e.pages[key])); d.More(); {
			var row feedRow
			if err := d.Decode(&row); err != nil {
				t.Fatal(err)
			}
			all = append(all, row)
		}
	}
	return all
}

func (e *endpoint) await(t *testing.T, n int) []feedRow {
	t.Helper()
	var rows []feedRow
	devtest.Eventually(t, func() error {
		if rows = e.rows(t); len(rows) < n {
			return fmt.Errorf("%d rows, want %d", len(rows), n)
		}
		return nil
	})
	return rows
}

// TestPushOutlivesSyncjob kills the one that pushes while it pushes: the other takes over, and what comes again comes under
// the same key.
func TestPushOutlivesSyncjob(t *testing.T) {
	t.Parallel()
	s, e := newSystem(t), newEndpoint(t)
	push := "PLENUM_PUSH=[{name: erp, limit: 1, webhook: {url: " + e.URL + "}}]"
	s.ingest("PLENUM_INGEST_BATCH_ROWS=3").awaitReady()
	first := s.syncjob(push).awaitReady()
	messages := func(from, n int) (lines []string) {
		for i := range n {
			lines = append(lines, fmt.Sprintf(`{"ts":%d,"seq":%d,"metrics":{}}`, 1_790_000_000_000+from+i, from+i))
		}
		return lines
	}
	s.publish("telemetry/a", messages(0, 300))
	e.await(t, 30)
	second := s.syncjob(push).awaitReady()
	first.kill()
	s.publish("telemetry/a", messages(300, 100))
	rows := e.await(t, 400)
	if len(rows) != 400 {
		t.Errorf("%d rows under keys of their own, want 400", len(rows))
	}
	for i, row := range rows[1:] {
		if row.ID <= rows[i].ID && row.LastModified.Equal(rows[i].LastModified) {
			t.Fatalf("row %d comes after row %d", row.ID, rows[i].ID)
		}
	}
	if code := second.terminate(); code != 0 {
		t.Errorf("syncjob exits %d", code)
	}
	expect := s.expect()
	var position, head int64
	if err := s.query("select position, (select max(feed_position) from telemetry_batch) from feed_consumer where name = 'erp'", nil, &position, &head); err != nil || position != head {
		t.Errorf("%v: position %d, want %d", err, position, head)
	}
	expect(0, "none", "feed", "dead", "list")
}

// TestToolDeadLetters walks an operator's commands over what a target refused.
func TestToolDeadLetters(t *testing.T) {
	t.Parallel()
	s, e := newSystem(t), newEndpoint(t)
	expect := s.expect()
	e.accept("bad")
	s.ingest().awaitReady()
	sync := s.syncjob("PLENUM_PUSH=[{name: erp, dead_letter_after: 1, webhook: {url: " + e.URL + "}}]").awaitReady()
	for i, device := range []string{"good", "bad", "bad", "good"} {
		s.publish("telemetry/"+device, []string{fmt.Sprintf(`{"ts":1790000000000,"seq":%d,"metrics":{"x":"ü"}}`, i)})
	}
	e.await(t, 2)
	var listed []struct {
		ID       int64
		Consumer string
		Rows     int
		Attempts int
		Detail   string
	}
	list := func(n int) {
		t.Helper()
		devtest.Eventually(t, func() error {
			listed = nil
			_, out, _ := s.ctl("feed", "dead", "list", "--output", "json")
			if err := json.Unmarshal([]byte(out), &listed); err != nil || len(listed) != n {
				return fmt.Errorf("%w: want %d: %s", err, n, out)
			}
			return nil
		})
	}
	list(2)
	newest, oldest := fmt.Sprint(listed[0].ID), fmt.Sprint(listed[1].ID)
	if listed[0].Consumer != "erp" || listed[0].Rows != 1 || !strings.Contains(listed[0].Detail, "400 Bad Request") || listed[0].ID < listed[1].ID {
		t.Errorf("%+v", listed)
	}
	expect(0, `no such device`, "feed", "dead", "list", "erp")
	if out := expect(3, "feed: erp: 2 dead letters until a person retries or purges; plenumctl feed dead list erp\n", "doctor", "--sample", "0"); strings.Contains(out, "no process pushes") {
		t.Errorf("it pushes, and the doctor says:\n%s", out)
	}
	expect(0, "none", "feed", "dead", "list", "other")
	expect(0, "older ones", "feed", "dead", "list", "--limit", "1")
	expect(0, `"device_id":"bad"`, "feed", "dead", "show", oldest)
	if out := expect(0, "", "feed", "dead", "show", "--raw", oldest); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"payload":{"x": "ü"}`) {
		t.Errorf("the rows are %q", out)
	}
	expect(2, "there is no dead letter 99", "feed", "dead", "show", "99")
	expect(2, "one ID is needed", "feed", "dead", "show")
	expect(2, "say which", "feed", "dead", "retry")
	expect(2, "say which", "feed", "dead", "purge")
	expect(2, "is not the id", "feed", "dead", "purge", "all")
	expect(3, "there is no dead letter 99", "feed", "dead", "retry", "99")
	expect(0, "1 will be delivered once more", "feed", "dead", "retry", oldest)
	devtest.Eventually(t, func() error { // and is refused
		_, out, _ := s.ctl("feed", "dead", "show", "--output", "json", oldest)
		if !strings.Contains(out, `"attempts": 2`) || !strings.Contains(out, `"retry_at": null`) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	e.accept("")
	expect(0, "1 will be delivered once more", "feed", "dead", "retry", oldest)
	list(1)
	if rows := e.await(t, 3); rows[2].DeviceID != "bad" {
		t.Errorf("rows %+v", rows)
	}
	expect(0, "deleted 1 of 2 dead letters", "feed", "dead", "purge", newest, "99", newest)
	expect(0, "none", "feed", "dead", "list")
	expect(0, "nothing found", "doctor", "--sample", "0")
	_, metrics, _ := sync.get("/metrics")
	for _, want := range []string{`plenum_push_rows_total{consumer="erp"} 3`, `plenum_push_failing{consumer="erp"} 0`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("there is no %s", want)
		}
	}
}
