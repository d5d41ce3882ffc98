package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func (s *site) seek(name, body string) answer {
	s.t.Helper()
	return s.do(http.MethodPost, "/api/v1/feed/"+name+"/seek", body)
}

func (s *site) put(name, body string) answer {
	s.t.Helper()
	return s.do(http.MethodPut, "/api/v1/feed/"+name, body)
}

// seqs is what a read of the consumer returns, by sequence number.
func (s *site) seqs(name string) (seqs []int) {
	s.t.Helper()
	for _, line := range s.get("/api/v1/feed/" + name).lines() {
		var row struct{ Seq int }
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			s.t.Fatal(err)
		}
		seqs = append(seqs, row.Seq)
	}
	return seqs
}

func (s *site) overview() (o overview) {
	s.t.Helper()
	a := s.get("/api/v1/feed")
	if a.status != 200 || a.header.Get("Content-Type") != "application/json" {
		s.t.Fatalf("list: %+v", a)
	}
	if err := json.Unmarshal([]byte(a.body), &o); err != nil {
		s.t.Fatal(err)
	}
	return o
}

func TestSeek(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	first := s.store(reading(1, "{}"))
	second := s.store(reading(2, "{}"))
	head := s.store(reading(3, "{}"))
	var at time.Time
	if err := s.pool.QueryRow(t.Context(), "select processed_at from telemetry_batch where feed_position = $1", second).Scan(&at); err != nil {
		t.Fatal(err)
	}
	s.get("/api/v1/feed/a")
	for _, c := range []struct {
		body     string
		position int64
		seqs     []int
	}{
		{positionBody(head), head, nil},
		{positionBody(first), first, []int{2, 3}},
		{positionBody(0), 0, []int{1, 2, 3}},
		{`{"time":"` + at.Format(time.RFC3339Nano) + `"}`, first, []int{2, 3}},
		{`{"time":"2999-01-01T00:00:00+01:00"}`, head, nil},
		{`{"time":"1999-01-01T00:00:00Z"}`, 0, []int{1, 2, 3}},
	} {
		a := s.seek("a", c.body)
		if want := fmt.Sprintf("{\"name\":\"a\",\"position\":%d}\n", c.position); a.status != 200 || a.body != want {
			t.Errorf("seek %s: %+v, want %s", c.body, a, want)
		}
		if diff := cmp.Diff(c.seqs, s.seqs("a")); diff != "" {
			t.Errorf("read after seek %s: %s", c.body, diff)
		}
	}
	// A page that was read before a seek backwards may be committed: the position is not below the consumer's.
	if a := s.commit("a", positionBody(head)); a.status != 200 {
		t.Errorf("commit of a page read before the seek: %+v", a)
	}
	// After a seek forwards it may not.
	s.problem(s.commit("a", positionBody(first)), http.StatusConflict, "a commit does not go back")
}

func TestSeekProblems(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	dropped := s.store(reading(1, "{}"))
	head := s.store(reading(2, "{}"))
	s.get("/api/v1/feed/a")
	for _, body := range []string{
		"", "x", "{}", "[]", "null", `{"position":null}`, `{"position":-1}`, `{"position":"1"}`, `{"position":1,"time":"2026-01-01T00:00:00Z"}`,
		`{"time":"yesterday"}`, `{"time":null}`, `{"time":1}`, `{"position":1,"force":true}`, `{"position":1} 2`, `{"time":"2026-01-01"}`,
	} {
		s.problem(s.seek("a", body), http.StatusBadRequest, "and not both")
	}
	s.problem(s.seek("a%00", positionBody(1)), http.StatusBadRequest, `"a\x00"`)
	for _, body := range []string{positionBody(1), positionBody(head + 1), `{"time":"2026-01-01T00:00:00Z"}`} {
		s.problem(s.seek("nobody", body), http.StatusNotFound, `there is no consumer "nobody"`)
	}
	s.problem(s.seek("a", positionBody(head+1)), http.StatusConflict, fmt.Sprintf("position %d is past the feed's head %d", head+1, head))
	if at := s.overview().Consumers[0].Position; at != 0 {
		t.Errorf("a refused seek moved the consumer to %d", at)
	}
	s.exec("update feed_consumer set position = $1", head)
	s.exec("update feed_horizon set position = $1", dropped)
	members := s.problem(s.seek("a", positionBody(dropped-1)), http.StatusGone, "have been dropped")
	if members["oldest_position"] != float64(dropped) {
		t.Errorf("problem %v, want oldest_position %d", members, dropped)
	}
	if at := s.overview().Consumers[0].Position; at != head {
		t.Errorf("a refused seek moved the consumer to %d", at)
	}
	if a := s.seek("a", positionBody(dropped)); a.status != 200 {
		t.Errorf("seek to the oldest position: %+v", a)
	}
	if n := s.consumers(); n != 1 {
		t.Errorf("%d consumers, want the one that was read", n)
	}
}

// A seek forgets what a pusher was at: the page that was under way is not the next one.
func TestSeekClearsAPush(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	s.store(reading(1, "{}"))
	s.exec(`insert into feed_consumer (name, position, target, delivering, attempts, failing_since, detail)
		values ('erp', 1, 'webhook', 1, 3, '2026-11-22T01:02:03Z', 'status 500')`)
	since, one, target, detail := time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC), int64(1), "webhook", "status 500"
	want := consumer{Name: "erp", Position: 1, Target: &target, Delivering: &one, Attempts: 3, FailingSince: &since, Detail: &detail}
	got := s.overview().Consumers[0]
	want.UpdatedAt = got.UpdatedAt
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	s.problem(s.commit("erp", positionBody(1)), http.StatusConflict, `syncjob pushes to consumer "erp" (webhook)`)
	if a := s.seek("erp", positionBody(0)); a.status != 200 {
		t.Fatalf("seek: %+v", a)
	}
	got = s.overview().Consumers[0]
	want = consumer{Name: "erp", LagBatches: 1, LagSeconds: got.LagSeconds, UpdatedAt: got.UpdatedAt, Target: &target}
	if diff := cmp.Diff(want, got); diff != "" || got.LagSeconds <= 0 {
		t.Error(got.LagSeconds, diff)
	}
}

func TestListPutAndDelete(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	if a := s.get("/api/v1/feed"); a.body != `{"horizon":0,"head":0,"consumers":[]}`+"\n" {
		t.Errorf("an empty feed: %+v", a)
	}
	first := s.store(reading(1, "{}"))
	head := s.store(reading(2, "{}"))
	s.exec("update feed_horizon set position = $1", first)

	created := fmt.Sprintf("{\"name\":\"erp\",\"position\":%d,\"required\":true}\n", first)
	if a := s.put("erp", `{"required":true}`); a.status != http.StatusCreated || a.body != created {
		t.Errorf("put of a new consumer: %+v, want 201 and %s", a, created)
	}
	if a := s.put("erp", `{"required":true}`); a.status != http.StatusOK || a.body != created {
		t.Errorf("put again: %+v, want 200", a)
	}
	if diff := cmp.Diff([]int{2}, s.seqs("erp")); diff != "" { // from means nothing any more
		t.Error(diff)
	}
	s.commit("erp", positionBody(head))
	if a := s.put("erp", `{"required":false}`); a.status != http.StatusOK || a.body != fmt.Sprintf("{\"name\":\"erp\",\"position\":%d,\"required\":false}\n", head) {
		t.Errorf("put of false: %+v", a)
	}
	s.put("late", `{"required":true}`)
	o := s.overview()
	if o.Horizon != first || o.Head != head || len(o.Consumers) != 2 {
		t.Fatalf("%+v", o)
	}
	erp, late := o.Consumers[0], o.Consumers[1]
	if erp.Name != "erp" || erp.Required || erp.Position != head || erp.LagBatches != 0 || erp.LagSeconds != 0 {
		t.Errorf("%+v", erp)
	}
	if late.Name != "late" || !late.Required || late.Position != first || late.LagBatches != head-first || late.LagSeconds <= 0 || time.Since(late.UpdatedAt).Abs() > time.Hour {
		t.Errorf("%+v", late)
	}

	if a := s.do(http.MethodDelete, "/api/v1/feed/erp", ""); a.status != http.StatusNoContent || a.body != "" {
		t.Errorf("delete: %+v", a)
	}
	s.problem(s.do(http.MethodDelete, "/api/v1/feed/erp", ""), http.StatusNotFound, `"erp"`)
	s.problem(s.commit("erp", positionBody(head)), http.StatusNotFound, `"erp"`)
	for _, body := range []string{"", "{}", "null", `{"required":null}`, `{"required":1}`, `{"required":true,"position":1}`, `{"required":true}x`} {
		s.problem(s.put("erp", body), http.StatusBadRequest, `{"required": true}`)
	}
	s.problem(s.put("a%2Fb", `{"required":true}`), http.StatusBadRequest, `"a/b"`)
	s.problem(s.do(http.MethodDelete, "/api/v1/feed/a%2Fb", ""), http.StatusBadRequest, `"a/b"`)
	if n := s.consumers(); n != 1 {
		t.Errorf("%d consumers, want the late one", n)
	}
	s.pool.Close()
	s.problem(s.get("/api/v1/feed"), http.StatusServiceUnavailable, "cannot answer now")
	s.problem(s.put("a", `{"required":true}`), http.StatusServiceUnavailable, "cannot answer now")
	s.problem(s.seek("a", positionBody(1)), http.StatusServiceUnavailable, "cannot answer now")
	s.problem(s.do(http.MethodDelete, "/api/v1/feed/a", ""), http.StatusServiceUnavailable, "cannot answer now")
}
