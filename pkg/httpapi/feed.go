package httpapi

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"plenum/pkg/feed"
	"plenum/pkg/store"
)

const maxBody = 64 << 10

type feedHandler struct {
	feed     *feed.Feed
	stopping <-chan struct{}
}

// read answers GET /api/v1/feed/{name}: NDJSON rows, and in Plenum-Position what to commit.
func (h feedHandler) read(w http.ResponseWriter, r *http.Request) {
	req, err := readRequest(r)
	if err != nil {
		writeProblem(w, http.StatusBadRequest, err.Error())
		return
	}
	req.Stop = h.stopping
	page, err := h.feed.Read(r.Context(), req)
	if err != nil {
		feedProblem(err).write(w)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Plenum-Position", strconv.FormatInt(page.Position, 10))
	w.Header().Set("Vary", "Accept-Encoding")
	if len(page.Rows) == 0 || !acceptsGzip(r.Header.Values("Accept-Encoding")) {
		writeRows(w, w, page.Rows)
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	z := zippers.Get().(*gzip.Writer)
	defer zippers.Put(z)
	z.Reset(w)
	if writeRows(w, z, page.Rows) {
		_ = z.Close() // as in writeRows
	}
}

func readRequest(r *http.Request) (feed.Request, error) {
	req := feed.Request{Name: consumerName(r), Limit: feed.DefaultLimit}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return req, fmt.Errorf("query: %w", err)
	}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(q)) {
		if err := setParameter(&req, key, q[key][0]); err != nil {
			errs = append(errs, err)
		}
		if len(q[key]) > 1 {
			errs = append(errs, fmt.Errorf("%s: given %d times", key, len(q[key])))
		}
	}
	return req, errors.Join(errs...)
}

func setParameter(req *feed.Request, key, value string) (err error) {
	switch key {
	case "from":
		req.From = value
	case "limit":
		if req.Limit, err = strconv.Atoi(value); err != nil {
			return fmt.Errorf("limit %q is not a whole number", value)
		}
	case "wait":
		if req.Wait, err = time.ParseDuration(value); err != nil {
			return fmt.Errorf("wait %q is not a duration, such as 20s", value)
		}
	default:
		return fmt.Errorf("unknown parameter %q: known are limit, wait and from", key)
	}
	return nil
}

// consumerName is the path's name; chi gives it escaped where the client escaped more than it had to.
func consumerName(r *http.Request) string {
	name := chi.URLParam(r, "name")
	if unescaped, err := url.PathUnescape(name); err == nil && r.URL.RawPath != "" {
		return unescaped
	}
	return name
}

// writeRows writes to a client that, when it has gone, has committed nothing: an error needs no more than to stop. It writes to
// out, which passes on to w.
func writeRows(w http.ResponseWriter, out io.Writer, rows []store.FeedRow) bool {
	const chunk = 64 << 10
	deadline := http.NewResponseController(w)
	buf := make([]byte, 0, chunk+4096)
	for i := range rows {
		buf = feed.AppendRow(buf, &rows[i])
		if len(buf) >= chunk || i == len(rows)-1 {
			if err := deadline.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
				return false
			}
			if _, err := out.Write(buf); err != nil {
				return false
			}
			buf = buf[:0]
		}
	}
	return true
}
