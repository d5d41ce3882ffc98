package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/feed"
	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

func TestMain(m *testing.M) { devtest.Main(m) }

// site is a server that serves, over a migrated database if it has one.
type site struct {
	t      *testing.T
	server *Server
	pool   *pgxpool.Pool
}

// serve serves c on a free port until the test ends.
func serve(t *testing.T, c Config) *site {
	t.Helper()
	c.Listen = "127.0.0.1:0"
	if c.Health == nil {
		c.Health = new(Health)
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	server, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(server.Close(ctx), <-served); err != nil {
			t.Error(err)
		}
	})
	return &site{t: t, server: server}
}

func serveFeed(t *testing.T) *site {
	t.Helper()
	pool, err := store.Open(t.Context(), store.Config{URL: devtest.Database(t), Schema: "public", Program: "test", Connections: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := store.Migrate(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	s := serve(t, Config{Feed: feed.New(pool, pool)})
	s.pool = pool
	day := time.Now().UTC().Truncate(24 * time.Hour)
	for _, table := range []string{"telemetry", "telemetry_batch"} {
		s.exec(fmt.Sprintf("create table %s_p partition of %[1]s for values from ('%s') to ('%s')", table,
			day.AddDate(0, 0, -1).Format(time.DateOnly), day.AddDate(0, 0, 3).Format(time.DateOnly)))
	}
	return s
}

func (s *site) exec(sql string, args ...any) {
	s.t.Helper()
	if _, err := s.pool.Exec(s.t.Context(), sql, args...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

// store commits the readings as one batch, marks it, and returns its position.
func (s *site) store(readings ...telemetry.Reading) int64 {
	s.t.Helper()
	ctx := s.t.Context()
	w := store.NewWriter(s.pool, "test", func(context.Context) error { return errors.New("no partition") })
	if _, err := w.Write(ctx, &telemetry.Batch{Readings: readings}); err != nil {
		s.t.Fatal(err)
	}
	if _, err := store.NewMarker(s.pool).Mark(ctx, len(readings)); err != nil {
		s.t.Fatal(err)
	}
	var head int64
	if err := s.pool.QueryRow(ctx, "select max(feed_position) from telemetry_batch").Scan(&head); err != nil {
		s.t.Fatal(err)
	}
	return head
}

func reading(seq int64, metrics string) telemetry.Reading {
	return telemetry.Reading{DeviceID: "cmp-00001", Kind: "performance", RecordedAt: time.Now().UTC().Truncate(time.Microsecond), Seq: seq, Metrics: []byte(metrics)}
}

// answer is what a request was answered.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) position() string { return a.header.Get("Plenum-Position") }

func (a answer) lines() []string {
	if a.body == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(a.body, "\n"), "\n")
}

func (s *site) do(method, path, body string, headers ...string) answer {
	s.t.Helper()
	a, err := s.try(method, path, body, headers...)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *site) try(method, path, body string, headers ...string) (answer, error) {
	r, err := http.NewRequestWithContext(s.t.Context(), method, "http://"+s.server.Addr()+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}

// later gets path in the background.
func (s *site) later(path string) <-chan answer {
	answers := make(chan answer, 1)
	go func() {
		a, err := s.try(http.MethodGet, path, "")
		if err != nil {
			s.t.Error(err)
		}
		answers <- a
	}()
	return answers
}

func (s *site) get(path string) answer {
	s.t.Helper()
	return s.do(http.MethodGet, path, "")
}

func (s *site) commit(name string, body string) answer {
	s.t.Helper()
	return s.do(http.MethodPost, "/api/v1/feed/"+name+"/commit", body)
}

func positionBody(p int64) string { return `{"position":` + strconv.FormatInt(p, 10) + `}` }

// problem fails unless a is a problem of that status whose detail holds want, and returns its members.
func (s *site) problem(a answer, status int, want string) map[string]any {
	s.t.Helper()
	var members map[string]any
	if err := json.Unmarshal([]byte(a.body), &members); err != nil {
		s.t.Errorf("status %d, body %q: %v", a.status, a.body, err)
		return nil
	}
	if a.status != status || a.header.Get("Content-Type") != "application/problem+json" {
		s.t.Errorf("status %d and %s, want %d and application/problem+json; body %s", a.status, a.header.Get("Content-Type"), status, a.body)
	}
	if members["type"] != "about:blank" || members["title"] != http.StatusText(status) || members["status"] != float64(status) {
		s.t.Errorf("problem %v of status %d", members, status)
	}
	if detail, _ := members["detail"].(string); !strings.Contains(detail, want) {
		s.t.Errorf("detail %q does not say %q", detail, want)
	}
	return members
}
