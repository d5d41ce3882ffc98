package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestReadiness(t *testing.T) {
	t.Parallel()
	warning := Finding{"partitions", false, "runway is 2 days"}
	failing := Finding{"mqtt", true, "not connected to tcp://localhost:1883"}
	for _, c := range []struct {
		findings []Finding
		status   string
		code     int
	}{
		{nil, "ready", 200},
		{[]Finding{warning}, "warning", 200},
		{[]Finding{failing}, "failing", 503},
		{[]Finding{failing, warning}, "failing", 503},
		{[]Finding{warning, failing, warning}, "failing", 503},
	} {
		h := new(Health)
		for _, f := range c.findings {
			h.Add(func(ctx context.Context) []Finding {
				if _, ok := ctx.Deadline(); !ok {
					t.Error("a check is asked without a deadline")
				}
				return []Finding{f}
			})
		}
		h.Add(func(context.Context) []Finding { return nil })
		a := serve(t, Config{Health: h}).get("/readyz")
		var body struct {
			Status   string
			Findings *[]Finding
		}
		if err := json.Unmarshal([]byte(a.body), &body); err != nil || body.Findings == nil {
			t.Fatalf("body %s: %v", a.body, err)
		}
		if a.status != c.code || body.Status != c.status || !slices.Equal(*body.Findings, c.findings) || a.header.Get("Content-Type") != "application/json" {
			t.Errorf("%v: %d %s", c.findings, a.status, a.body)
		}
	}
}

func TestLivenessAsksNothing(t *testing.T) {
	t.Parallel()
	h := new(Health)
	h.Add(func(context.Context) []Finding {
		t.Error("/livez asked a check")
		return nil
	})
	if a := serve(t, Config{Health: h}).get("/livez"); a.status != 200 || a.body != "ok\n" {
		t.Errorf("/livez: %+v", a)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "plenum_test_total", Help: "A test."})
	reg.MustRegister(c)
	c.Add(3)
	if a := serve(t, Config{Metrics: reg}).get("/metrics"); a.status != 200 || !strings.Contains(a.body, "\nplenum_test_total 3\n") {
		t.Errorf("/metrics: %+v", a)
	}
}

func TestWhatIsNotServed(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	for _, path := range []string{"/", "/nothing", "/livez/"} {
		s.problem(s.get(path), http.StatusNotFound, "there is nothing at "+path)
	}
	for _, path := range []string{"/api/v1/feed", "/api/v1/feed/a", "/api/v1/feed/a/commit"} {
		s.problem(s.get(path), http.StatusNotFound, "this program does not serve the feed; syncjob does")
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if a := s.do(http.MethodHead, path, ""); a.status != http.StatusOK || a.body != "" {
			t.Errorf("HEAD %s: %+v", path, a)
		}
	}
	a := s.do(http.MethodPost, "/readyz", "")
	s.problem(a, http.StatusMethodNotAllowed, "POST is not allowed at /readyz")
	if allow := a.header.Get("Allow"); allow != "GET" {
		t.Errorf("Allow is %q, want GET", allow)
	}
}

func TestFeedMethods(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	for path, want := range map[string]string{
		"/api/v1/feed": "GET", "/api/v1/feed/a": "GET, PUT, DELETE", "/api/v1/feed/a/commit": "POST", "/api/v1/feed/a/seek": "POST",
	} {
		a := s.do(http.MethodPatch, path, "{}")
		s.problem(a, http.StatusMethodNotAllowed, "PATCH is not allowed at "+path)
		if allow := a.header.Get("Allow"); allow != want {
			t.Errorf("Allow of %s is %q, want %s", path, allow, want)
		}
	}
}

func TestListenAddresses(t *testing.T) {
	t.Parallel()
	exposed := map[string]bool{
		"127.0.0.1:0": false, "127.0.0.1:8080": false, "127.9.9.9:1": false, "[::1]:8080": false, "localhost:8080": false,
		"[::ffff:127.0.0.1]:80": false, ":8080": true, "0.0.0.0:8080": true, "[::]:8080": true, "10.0.0.1:8080": true,
	}
	for addr, want := range exposed {
		if err := ValidateListen(addr); err != nil || Exposed(addr) != want {
			t.Errorf("%s: %v, exposed %v, want %v", addr, err, Exposed(addr), want)
		}
	}
	for _, addr := range []string{
		"", "example.com:80", "localhost.example.com:80", "*:80",
		"127.0.0.1", "localhost", "::1:8080", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:http", "127.1:80",
	} {
		err := ValidateListen(addr)
		if err == nil || !strings.HasPrefix(err.Error(), "http.listen: ") || !strings.Contains(err.Error(), `"`+addr+`"`) {
			t.Errorf("%q: %v, want an error that names http.listen and the address", addr, err)
		}
		if s, err := Listen(Config{Listen: addr}); err == nil {
			t.Errorf("listening on %q, at %s", addr, s.Addr())
		}
	}
}

func TestATakenPort(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	_, err := Listen(Config{Listen: s.server.Addr()})
	if err == nil || !strings.Contains(err.Error(), "http.listen") || !strings.Contains(err.Error(), s.server.Addr()) ||
		!strings.Contains(err.Error(), "address already in use") {
		t.Errorf("listening twice on %s: %v", s.server.Addr(), err)
	}
}

// Close frees the port also where Serve was never called, and twice is once.
func TestCloseWithoutServe(t *testing.T) {
	t.Parallel()
	s, err := Listen(Config{Listen: "127.0.0.1:0", Health: new(Health), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.listener.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is not closed: %v", err)
	}
}
