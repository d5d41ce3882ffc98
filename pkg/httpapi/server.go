package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"plenum/pkg/feed"
)

// Config says what a server serves.
type Config struct {
	Listen  string // host:port; the host is a loopback address
	Health  *Health
	Metrics prometheus.Gatherer
	Feed    *feed.Feed // nil: not served
}

// Server is a listening HTTP server.
type Server struct {
	listener net.Listener
	http     http.Server
	cancel   context.CancelFunc
}

// ValidateListen returns why addr may not be listened on, naming the key http.listen.
func ValidateListen(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("http.listen: %q: %w", addr, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("http.listen: %q is no loopback address; there is no authentication yet, so put a proxy before it", addr)
	}
	return nil
}

// Listen opens the address, so that a taken one is an error at once; Serve answers.
func Listen(c Config) (*Server, error) {
	if err := ValidateListen(c.Listen); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("http.listen: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{listener: l, cancel: cancel}
	s.http = http.Server{
		Handler:           Handler(c),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	return s, nil
}

// Addr is the address listened on, with the port that was chosen if it was 0.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Serve answers until Close.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", s.Addr(), err)
	}
	return nil
}

// Close ends long polls, lets other requests finish until ctx ends, and cuts what is left.
func (s *Server) Close(ctx context.Context) error {
	s.cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// Handler is the routes alone.
func Handler(c Config) http.Handler {
	r := chi.NewRouter()
	r.NotFound(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, http.StatusNotFound, "there is nothing at "+r.URL.Path)
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, http.StatusMethodNotAllowed, r.Method+" is not allowed at "+r.URL.Path)
	})
	r.Get("/livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	r.Get("/readyz", c.Health.serveReady)
	r.Method(http.MethodGet, "/metrics", promhttp.HandlerFor(c.Metrics, promhttp.HandlerOpts{}))
	if c.Feed != nil {
		h := feedHandler{c.Feed}
		r.Get("/api/v1/feed/{name}", h.read)
		r.Post("/api/v1/feed/{name}/commit", h.commit)
	}
	return r
}
