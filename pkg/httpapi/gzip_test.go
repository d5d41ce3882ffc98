package httpapi

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"plenum/pkg/telemetry"
)

func TestAcceptEncoding(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]bool{
		"": false, "gzip": true, "x-gzip": true, "GZip": true, "deflate, gzip;q=1.0, *;q=0.5": true, "br;q=1, gzip;q=0.1": true,
		"gzip;q=0": false, "gzip; q=0.000": false, "gzip ; Q=0": false, "identity": false, "deflate": false, "*": true, "*;q=0": false,
		"*, gzip;q=0": false, "*;q=0, gzip": true, "identity;q=1, gzip;q=0.5": false, "identity;q=0.5, gzip;q=0.5": true, "identity;q=0, *": true,
		"gzip;q=x": false, "gzip;q=2": false, "gzip;q=-1": false, "gzip;q=NaN": false, "gzip;foo=bar": true, ",": false, "gzipped": false, ";;;, =": false,
	} {
		if got := acceptsGzip([]string{header}); got != want {
			t.Errorf("Accept-Encoding %q: gzip %t, want %t", header, got, want)
		}
	}
	if !acceptsGzip([]string{"deflate", "gzip"}) {
		t.Error("the second header is not read")
	}
}

// Several at once: their writers come from one pool.
func TestGzip(t *testing.T) {
	t.Parallel()
	s := serveFeed(t)
	none := s.do(http.MethodGet, "/api/v1/feed/a", "", "Accept-Encoding", "gzip")
	if none.body != "" || none.header.Get("Content-Encoding") != "" || none.position() != "0" {
		t.Errorf("no rows: %+v", none)
	}
	readings := make([]telemetry.Reading, 500)
	for i := range readings {
		readings[i] = reading(int64(i), `{"pad":"`+strings.Repeat("x", i)+`"}`)
	}
	head := s.store(readings...)
	plain := s.do(http.MethodGet, "/api/v1/feed/a", "", "Accept-Encoding", "identity")
	if len(plain.lines()) != 500 || plain.header.Get("Content-Encoding") != "" || plain.header.Get("Vary") != "Accept-Encoding" {
		t.Fatalf("identity: %d lines, %v", len(plain.lines()), plain.header)
	}
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for range 5 {
				a, err := s.try(http.MethodGet, "/api/v1/feed/a", "", "Accept-Encoding", "br, gzip")
				if err != nil {
					t.Error(err)
					return
				}
				if a.header.Get("Content-Encoding") != "gzip" || a.header.Get("Vary") != "Accept-Encoding" || a.position() != fmt.Sprint(head) || len(a.body) > len(plain.body)/5 {
					t.Errorf("%v, %d bytes of %d", a.header, len(a.body), len(plain.body))
				}
				z, err := gzip.NewReader(strings.NewReader(a.body))
				if err != nil {
					t.Error(err)
					return
				}
				if body, err := io.ReadAll(z); err != nil || string(body) != plain.body {
					t.Errorf("%d bytes, want the %d without gzip: %v", len(body), len(plain.body), err)
				}
			}
		})
	}
	readers.Wait()
	s.exec("delete from telemetry where seq = 7")
	s.problem(s.do(http.MethodGet, "/api/v1/feed/a", "", "Accept-Encoding", "gzip"), http.StatusServiceUnavailable, "has 499 rows")
}
