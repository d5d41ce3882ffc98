package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"plenum/pkg/feed"
)

// writeTimeout is how long a client may take to accept a piece of an answer.
const writeTimeout = 30 * time.Second

// Config says what a server serves.
type Config struct {
	Listen  string // host:port
	Health  *Health
	Metrics prometheus.Gatherer
	Feed    *feed.Feed // nil: not served
}

// Server is a listening HTTP server.
type Server struct {
	listener net.Listener
	http     http.Server
	stop     context.CancelFunc // ends long polls
	cut      context.CancelFunc // ends the requests' contexts
}

// ValidateListen returns why addr may not be listened on, naming the key http.listen.
func ValidateListen(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("http.listen: %q is not host:port: %w", addr, err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("http.listen: %q: the port is not a number from 0 to 65535", addr)
	}
	if host != "" && host != "localhost" && net.ParseIP(host) == nil {
		return fmt.Errorf("http.listen: %q: the host is neither an IP address nor localhost", addr)
	}
	return nil
}

// Exposed says whether others than this machine can reach a valid addr: there is no authentication.
func Exposed(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return host != "localhost" && (ip == nil || !ip.IsLoopback())
}

// Listen opens the address, so that a taken one is an error at once; Serve answers.
func Listen(c Config) (*Server, error) {
	if err := ValidateListen(c.Listen); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("http.listen: %w; port 0 takes a free one", err)
	}
	ctx, cut := context.WithCancel(context.Background())
	stopping, stop := context.WithCancel(ctx)
	s := &Server{listener: l, stop: stop, cut: cut}
	s.http = http.Server{
		Handler:           handler(c, stopping.Done()),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      feed.MaxWait + writeTimeout,
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

// Close ends long polls, which answer that nothing came, lets other requests finish until ctx ends, and cuts what
// is left.
func (s *Server) Close(ctx context.Context) error {
	s.stop()
	err := s.http.Shutdown(ctx)
	s.cut()
	if err != nil {
		err = errors.Join(fmt.Errorf("stop HTTP on %s: %w", s.Addr(), err), s.http.Close())
	}
	if closeErr := s.listener.Close(); closeErr != nil && !errors.Is(closeErr, net.ErrClosed) { // open where Serve was not called
		err = errors.Join(err, closeErr)
	}
	return err
}

// handler is the routes. Long polls end when stopping is closed.
func handler(c Config, stopping <-chan struct{}) http.Handler {
	r := chi.NewRouter()
	r.NotFound(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, http.StatusNotFound, "there is nothing at "+r.URL.Path)
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", allowed(r))
		writeProblem(w, http.StatusMethodNotAllowed, r.Method+" is not allowed at "+r.URL.Path)
	})
	for _, method := range []string{http.MethodGet, http.MethodHead} { // load balancers ask with HEAD
		r.Method(method, "/livez", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }))
		r.Method(method, "/readyz", http.HandlerFunc(c.Health.serveReady))
	}
	r.Method(http.MethodGet, "/metrics", promhttp.HandlerFor(c.Metrics, promhttp.HandlerOpts{}))
	if c.Feed == nil {
		elsewhere := func(w http.ResponseWriter, _ *http.Request) {
			writeProblem(w, http.StatusNotFound, "this program does not serve the feed; syncjob does, at its own http.listen")
		}
		r.HandleFunc("/api/v1/feed", elsewhere)
		r.HandleFunc("/api/v1/feed/*", elsewhere)
	} else {
		h := feedHandler{c.Feed, stopping}
		r.Get("/api/v1/feed", h.list)
		r.Get("/api/v1/feed/{name}", h.read)
		r.Put("/api/v1/feed/{name}", h.put)
		r.Delete("/api/v1/feed/{name}", h.remove)
		r.Post("/api/v1/feed/{name}/commit", h.commit)
		r.Post("/api/v1/feed/{name}/seek", h.seek)
	}
	return sameOrigin(r)
}

// allowed lists the methods of the path, as RFC 9110 wants with 405.
func allowed(r *http.Request) string {
	var methods []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
		if chi.RouteContext(r.Context()).Routes.Match(chi.NewRouteContext(), m, r.URL.Path) {
			methods = append(methods, m)
		}
	}
	return strings.Join(methods, ", ")
}

// sameOrigin refuses what a page of another origin makes a browser on this machine send: a loopback address is no
// protection from that.
func sameOrigin(h http.Handler) http.Handler {
	p := http.NewCrossOriginProtection()
	p.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, http.StatusForbidden, "a page of another origin may not do this")
	}))
	return p.Handler(h)
}
