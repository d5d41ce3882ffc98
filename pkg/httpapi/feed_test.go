package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/telemetry"
)

func TestReadAndCommit(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	empty := s.get("/api/v1/feed/erp")
	if empty.status != 200 || empty.body != "" || empty.position() != "0" || empty.header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("a read of nothing: %+v", empty)
	}
	first := s.store(reading(1, "{}"), reading(2, "{}"))
	second := s.store(reading(3, "{}"))
	for range 2 {
		a := s.get("/api/v1/feed/erp?limit=1")
		if len(a.lines()) != 2 || a.position() != fmt.Sprint(first) {
			t.Errorf("read of the first batch: %+v", a)
		}
	}
	done := s.commit("erp", positionBody(first))
	if want := fmt.Sprintf("{\"name\":\"erp\",\"position\":%d}\n", first); done.status != 200 || done.body != want || done.header.Get("Content-Type") != "application/json" {
		t.Errorf("commit: %+v, want %s", done, want)
	}
	if a := s.get("/api/v1/feed/%65rp"); len(a.lines()) != 1 || a.position() != fmt.Sprint(second) {
		t.Errorf("read of the second batch: %+v", a)
	}
	if a := s.commit("erp", positionBody(second)); a.status != 200 {
		t.Errorf("commit: %+v", a)
	}
	if a := s.get("/api/v1/feed/erp"); a.status != 200 || a.body != "" || a.position() != fmt.Sprint(second) {
		t.Errorf("a read of nothing: %+v", a)
	}
}

func TestARowAsItIsSent(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	r := telemetry.Reading{
		DeviceID: "<Größe> \"1\" \\ \u0001\n\u2028😀", Kind: "par\tam", Seq: telemetry.NoSeq,
		RecordedAt: time.Date(2026, 11, 22, 1, 2, 3, 456789000, time.UTC),
		Metrics:    []byte(`{"a":1.10,"b":1e5,"c":0.1,"d":123456789012345678901234567890,"e":-0.0,"f":1.5e-7,"g":"ü\u0001\n\"","h":[null,true,{}]}`),
	}
	whole := reading(1<<53-1, "{}")
	whole.RecordedAt = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s.store(r, whole)
	lines := s.get("/api/v1/feed/a").lines()
	if len(lines) != 2 {
		t.Fatalf("%d lines: %q", len(lines), lines)
	}
	var row struct {
		ID           json.Number     `json:"id"`
		DeviceID     string          `json:"device_id"`
		Kind         string          `json:"kind"`
		Seq          *int64          `json:"seq"`
		RecordedAt   string          `json:"recorded_at"`
		LastModified time.Time       `json:"last_modified"`
		Payload      json.RawMessage `json:"payload"`
	}
	d := json.NewDecoder(strings.NewReader(lines[0]))
	d.DisallowUnknownFields()
	if err := d.Decode(&row); err != nil {
		t.Fatalf("%s: %v", lines[0], err)
	}
	if row.DeviceID != r.DeviceID || row.Kind != r.Kind || row.Seq != nil || !strings.Contains(lines[0], `"seq":null`) {
		t.Errorf("row %s", lines[0])
	}
	if row.RecordedAt != "2026-11-22T01:02:03.456789Z" || time.Since(row.LastModified).Abs() > time.Hour || row.LastModified.Location() != time.UTC {
		t.Errorf("times of %s", lines[0])
	}
	const payload = `{"a": 1.10, "b": 100000, "c": 0.1, "d": 123456789012345678901234567890, "e": 0.0, "f": 0.00000015, "g": "ü\u0001\n\"", "h": [null, true, {}]}`
	if string(row.Payload) != payload {
		t.Errorf("payload %s, want %s", row.Payload, payload)
	}
	want := `"device_id":"cmp-00001","kind":"performance","seq":9007199254740991,"recorded_at":"2026-01-02T03:04:05Z","last_modified":"`
	if !strings.HasPrefix(lines[1], `{"id":`) || !strings.Contains(lines[1], want) || !strings.HasSuffix(lines[1], `Z","payload":{}}`) {
		t.Errorf("row %s", lines[1])
	}
}

// An answer longer than the buffer that it is written through.
func TestManyRows(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	pad := strings.Repeat("x", 1000)
	readings := make([]telemetry.Reading, 500)
	for i := range readings {
		readings[i] = reading(int64(i), `{"pad":"`+pad+`"}`)
	}
	s.store(readings...)
	lines := s.get("/api/v1/feed/a").lines()
	if len(lines) != len(readings) {
		t.Fatalf("%d lines, want %d", len(lines), len(readings))
	}
	for i, line := range lines {
		var row struct{ Seq int }
		if err := json.Unmarshal([]byte(line), &row); err != nil || row.Seq != i {
			t.Fatalf("line %d: %v: %s", i, err, line)
		}
	}
}

func TestReadProblems(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	for path, want := range map[string]string{
		"a?limit=x":          `limit "x"`,
		"a?limit=1e3":        `limit "1e3"`,
		"a?limit=":           `limit ""`,
		"a?limit=0":          "limit 0",
		"a?limit=-1":         "limit -1",
		"a?limit=100001":     "limit 100001",
		"a?wait=20":          `wait "20"`,
		"a?wait=-1s":         "wait -1s",
		"a?wait=61s":         "wait 1m1s",
		"a?from=now":         `from "now"`,
		"a?limits=1":         `unknown parameter "limits"`,
		"a?limit=1&limit=2":  "limit: given 2 times",
		"a?limit=%zz":        "query",
		"a?limit=1;wait=2s":  "query",
		".a":                 `".a"`,
		"a%2Fb":              `"a/b"`,
		"a%00":               `"a\x00"`,
		"a%20b":              `"a b"`,
		"%FF":                `"\xff"`,
		"a?limit=x&wait=y":   `wait "y"`,
		"a?wait=y&limit=x&z": `unknown parameter "z"`,
	} {
		s.problem(s.get("/api/v1/feed/"+path), http.StatusBadRequest, want)
	}
	if n := s.consumers(); n != 0 {
		t.Errorf("refused reads created %d consumers", n)
	}
}

func (s *site) consumers() (n int) {
	s.t.Helper()
	if err := s.pool.QueryRow(s.t.Context(), "select count(*) from feed_consumer").Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

func TestCommitProblems(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	first := s.store(reading(1, "{}"))
	head := s.store(reading(2, "{}"))
	s.get("/api/v1/feed/a")
	for _, body := range []string{
		"", "x", "{}", "[]", "null", "1", `{"position":null}`, `{"position":"1"}`, `{"position":1.5}`, `{"position":-1}`,
		`{"position":9223372036854775808}`, `{"position":1,"force":true}`, `{"position":1} {}`, `{"position":1}x`,
		`{"position":1}` + strings.Repeat(" ", maxBody), "{\"position\":\xff}",
	} {
		s.problem(s.commit("a", body), http.StatusBadRequest, `{"position": N}`)
	}
	s.problem(s.commit("a%00", positionBody(1)), http.StatusBadRequest, `"a\x00"`)
	s.problem(s.commit("other", positionBody(1)), http.StatusNotFound, `"other"`)
	s.problem(s.commit("a", positionBody(head+1)), http.StatusConflict, fmt.Sprintf("position %d is past the feed's head %d", head+1, head))
	s.problem(s.commit("a", "{\"position\":9223372036854775807}"), http.StatusConflict, "past the feed's head")
	if a := s.commit("a", " "+positionBody(head)+"\n"); a.status != 200 {
		t.Errorf("commit: %+v", a)
	}
	s.problem(s.commit("a", positionBody(first)), http.StatusConflict, fmt.Sprintf("stands at %d", head))
	if n := s.consumers(); n != 1 {
		t.Errorf("%d consumers, want the one that was read", n)
	}
}

func TestGone(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	s.get("/api/v1/feed/a")
	dropped := s.store(reading(1, "{}"))
	s.store(reading(2, "{}"))
	s.exec("update feed_horizon set position = $1", dropped)
	members := s.problem(s.get("/api/v1/feed/a"), http.StatusGone, "have been dropped")
	if members["oldest_position"] != float64(dropped) {
		t.Errorf("problem %v, want oldest_position %d", members, dropped)
	}
	if a := s.commit("a", positionBody(dropped)); a.status != 200 {
		t.Errorf("commit of the oldest position: %+v", a)
	}
	if a := s.get("/api/v1/feed/a"); len(a.lines()) != 1 {
		t.Errorf("read from the oldest position: %+v", a)
	}
}

func TestUnavailable(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	s.store(reading(1, "{}"), reading(2, "{}"))
	s.exec("delete from telemetry where seq = 2")
	members := s.problem(s.get("/api/v1/feed/a"), http.StatusServiceUnavailable, "has 1 rows, the ledger counts 2")
	if _, ok := members["oldest_position"]; ok {
		t.Errorf("oldest_position in %v", members)
	}
	s.pool.Close()
	s.problem(s.get("/api/v1/feed/a"), http.StatusServiceUnavailable, "cannot answer now")
	s.problem(s.commit("a", positionBody(1)), http.StatusServiceUnavailable, "cannot answer now")
}

func TestLongPoll(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	began := time.Now()
	a := s.get("/api/v1/feed/a?wait=300ms")
	if waited := time.Since(began); a.status != 200 || a.body != "" || a.position() != "0" || waited < 300*time.Millisecond {
		t.Errorf("after %v: %+v", waited, a)
	}
	answers := s.later("/api/v1/feed/a?wait=60s")
	s.store(reading(1, "{}"))
	if a := <-answers; len(a.lines()) != 1 {
		t.Errorf("a long poll: %+v", a)
	}
	if waited := time.Since(began); waited > 40*time.Second {
		t.Errorf("the rows came after %v", waited)
	}
}

func TestAStopEndsLongPolls(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	answers := s.later("/api/v1/feed/a?wait=60s")
	devtest.Eventually(t, func() error { // the poll is under way
		if s.consumers() == 0 {
			return errors.New("there is no consumer")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := s.server.Close(ctx); err != nil {
		t.Error(err)
	}
	if a := <-answers; a.status != 200 || a.body != "" || a.position() != "0" {
		t.Errorf("the long poll: %+v", a)
	}
}

// A request under way when the server stops is answered: its context outlives the stop.
func TestAStopLetsReadsFinish(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	s.store(reading(1, "{}"))
	s.get("/api/v1/feed/a")
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), "lock table telemetry_batch"); err != nil {
		t.Fatal(err)
	}
	answers, closed := s.later("/api/v1/feed/a"), make(chan error, 1)
	devtest.Eventually(t, func() error {
		const q = `select 1 from pg_locks where relation = 'telemetry_batch'::regclass and not granted`
		var waits int
		return s.pool.QueryRow(t.Context(), q).Scan(&waits)
	})
	go func() { closed <- s.server.Close(context.WithoutCancel(t.Context())) }()
	devtest.Eventually(t, func() error {
		if _, err := s.try(http.MethodGet, "/livez", ""); err == nil {
			return errors.New("the server still takes connections")
		}
		return nil
	})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := <-answers; a.status != 200 || len(a.lines()) != 1 {
		t.Errorf("a read during the stop: %+v", a)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestPagesOfOtherOriginsCannotCommit(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	head := s.store(reading(1, "{}"))
	s.get("/api/v1/feed/a")
	a := s.do(http.MethodPost, "/api/v1/feed/a/commit", positionBody(head), "Sec-Fetch-Site", "cross-site", "Content-Type", "text/plain")
	s.problem(a, http.StatusForbidden, "another origin")
	if a := s.get("/api/v1/feed/a"); len(a.lines()) != 1 {
		t.Errorf("after the refused commit: %+v", a)
	}
}
