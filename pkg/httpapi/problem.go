package httpapi

import (
	"encoding/json"
	"errors"
	"net/http"

	"plenum/pkg/feed"
	"plenum/pkg/store"
)

// problem is RFC 9457's body, with the one extension member that a consumer needs.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Oldest *int64 `json:"oldest_position,omitempty"` // with 410: where reading is possible again
}

func writeProblem(w http.ResponseWriter, status int, detail string) {
	problem{Status: status, Detail: detail}.write(w)
}

func (p problem) write(w http.ResponseWriter) {
	p.Type, p.Title = "about:blank", http.StatusText(p.Status)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client has gone: nothing to tell it
}

// feedProblem is the answer to an error of the feed. What is nobody's fault here is 503: try again.
func feedProblem(err error) problem {
	var (
		request    *feed.RequestError
		unknown    *feed.UnknownError
		gone       *feed.GoneError
		position   *feed.PositionError
		pushed     *feed.PushedError
		incomplete *store.IncompleteError
	)
	p := problem{Status: http.StatusServiceUnavailable, Detail: err.Error()}
	switch {
	case errors.As(err, &request):
		p.Status = http.StatusBadRequest
	case errors.As(err, &unknown):
		p.Status, p.Detail = http.StatusNotFound, p.Detail+"; its first read creates it"
	case errors.As(err, &position), errors.As(err, &pushed):
		p.Status = http.StatusConflict
	case errors.As(err, &gone):
		p.Status, p.Oldest = http.StatusGone, &gone.Oldest
	case errors.As(err, &incomplete):
	default:
		p.Detail = "the feed cannot answer now: " + err.Error()
	}
	return p
}
