package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"plenum/pkg/feed"
	"plenum/pkg/store"
)

const maxBody = 64 << 10

type feedHandler struct{ feed *feed.Feed }

// read answers GET /api/v1/feed/{name}: NDJSON rows, and in Plenum-Position what to commit.
func (h feedHandler) read(w http.ResponseWriter, r *http.Request) {
	req, err := readRequest(r)
	if err != nil {
		writeProblem(w, http.StatusBadRequest, err.Error())
		return
	}
	page, err := h.feed.Read(r.Context(), req)
	if r.Context().Err() != nil && err != nil {
		writeProblem(w, http.StatusServiceUnavailable, "the server is stopping; read again")
		return
	}
	if err != nil {
		feedProblem(err).write(w)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Plenum-Position", strconv.FormatInt(page.Position, 10))
	writeRows(w, page.Rows)
}

func readRequest(r *http.Request) (feed.Request, error) {
	q := r.URL.Query()
	req := feed.Request{Name: chi.URLParam(r, "name"), From: q.Get("from"), Limit: feed.DefaultLimit}
	var errs []error
	for key, values := range q {
		var err error
		switch key {
		case "from":
		case "limit":
			req.Limit, err = strconv.Atoi(values[0])
		case "wait":
			req.Wait, err = time.ParseDuration(values[0])
		default:
			err = errors.New("unknown parameter; known are limit, wait and from")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s=%q: %w", key, values[0], err))
		}
	}
	return req, errors.Join(errs...)
}

// writeRows copies payload as PostgreSQL printed it: numbers keep every digit.
func writeRows(w io.Writer, rows []store.FeedRow) {
	const chunk = 64 << 10
	buf := make([]byte, 0, chunk+4096)
	for i := range rows {
		buf = appendRow(buf, &rows[i])
		if len(buf) >= chunk {
			if _, err := w.Write(buf); err != nil {
				return // the client has gone; it has committed nothing
			}
			buf = buf[:0]
		}
	}
	_, _ = w.Write(buf)
}

func appendRow(buf []byte, r *store.FeedRow) []byte {
	buf = strconv.AppendInt(append(buf, `{"id":`...), r.ID, 10)
	buf = appendString(append(buf, `,"device_id":`...), r.DeviceID)
	buf = appendString(append(buf, `,"kind":`...), r.Kind)
	buf = append(buf, `,"seq":`...)
	if r.Seq == nil {
		buf = append(buf, "null"...)
	} else {
		buf = strconv.AppendInt(buf, *r.Seq, 10)
	}
	buf = r.RecordedAt.UTC().AppendFormat(append(buf, `,"recorded_at":"`...), time.RFC3339Nano)
	buf = r.LastModified.UTC().AppendFormat(append(buf, `","last_modified":"`...), time.RFC3339Nano)
	buf = append(append(buf, `","payload":`...), r.Payload...)
	return append(buf, "}\n"...)
}

func appendString(buf []byte, s string) []byte {
	quoted, err := json.Marshal(s)
	if err != nil { // no string makes Marshal fail
		return append(buf, `""`...)
	}
	return append(buf, quoted...)
}

// commit answers POST /api/v1/feed/{name}/commit with {"position": N}.
func (h feedHandler) commit(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Position *int64 `json:"position"`
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil || body.Position == nil || *body.Position < 0 {
		writeProblem(w, http.StatusBadRequest, `the body must be {"position": N}, N being a Plenum-Position that a read returned`)
		return
	}
	if err := h.feed.Commit(r.Context(), chi.URLParam(r, "name"), *body.Position); err != nil {
		feedProblem(err).write(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, "{\"name\":%q,\"position\":%d}\n", chi.URLParam(r, "name"), *body.Position)
}
