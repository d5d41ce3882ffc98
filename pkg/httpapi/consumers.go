package httpapi

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"plenum/pkg/store"
)

// overview is the body of GET /api/v1/feed.
type overview struct {
	Horizon   int64      `json:"horizon"` // the oldest position to read from
	Head      int64      `json:"head"`
	Consumers []consumer `json:"consumers"`
}

type consumer struct {
	Name       string    `json:"name"`
	Position   int64     `json:"position"`
	Required   bool      `json:"required"`
	UpdatedAt  time.Time `json:"updated_at"`
	LagBatches int64     `json:"lag_batches"`
	LagSeconds float64   `json:"lag_seconds"`

	// Of a consumer that syncjob pushes to; null for others.
	Target       *string    `json:"target"`
	Pusher       *string    `json:"pusher"` // the process that pushes; null: none does
	Delivering   *int64     `json:"delivering"`
	Attempts     int        `json:"attempts"`
	FailingSince *time.Time `json:"failing_since"`
	Detail       *string    `json:"detail"`
}

// list answers GET /api/v1/feed.
func (h feedHandler) list(w http.ResponseWriter, r *http.Request) {
	o, err := h.feed.Overview(r.Context())
	if err != nil {
		feedProblem(err).write(w)
		return
	}
	body := overview{o.Horizon, o.Head, make([]consumer, len(o.Consumers))}
	for i, c := range o.Consumers {
		body.Consumers[i] = consumerOf(c)
	}
	writeJSON(w, http.StatusOK, body)
}

func consumerOf(c store.ConsumerLag) consumer {
	out := consumer{
		Name: c.Name, Position: c.Position, Required: c.Required, UpdatedAt: c.UpdatedAt.UTC(), LagBatches: c.Batches, LagSeconds: c.Oldest.Seconds(),
		Target: c.Target, Delivering: c.Delivering, Attempts: c.Attempts, Detail: c.Detail,
	}
	if c.Pusher != "" {
		out.Pusher = &c.Pusher
	}
	if c.FailingSince != nil {
		since := c.FailingSince.UTC()
		out.FailingSince = &since
	}
	return out
}

// consumerAt is the answer to what moves a consumer.
type consumerAt struct {
	Name     string `json:"name"`
	Position int64  `json:"position"`
}

// commit answers POST /api/v1/feed/{name}/commit with {"position": N}.
func (h feedHandler) commit(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Position *int64 `json:"position"`
	}
	if err := decodeBody(w, r, &body); err != nil || body.Position == nil || *body.Position < 0 {
		writeProblem(w, http.StatusBadRequest, `the body must be {"position": N}, N being a Plenum-Position that a read returned`)
		return
	}
	name := consumerName(r)
	if err := h.feed.Commit(r.Context(), name, *body.Position); err != nil {
		feedProblem(err).write(w)
		return
	}
	writeJSON(w, http.StatusOK, consumerAt{name, *body.Position})
}

// seek answers POST /api/v1/feed/{name}/seek with {"position": N} or {"time": RFC3339}.
func (h feedHandler) seek(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Position *int64     `json:"position"`
		Time     *time.Time `json:"time"`
	}
	err := decodeBody(w, r, &body)
	if err != nil || (body.Position == nil) == (body.Time == nil) || (body.Position != nil && *body.Position < 0) {
		writeProblem(w, http.StatusBadRequest, `the body must be {"position": N}, N from 0, or {"time": T}, T in RFC 3339, and not both`)
		return
	}
	at := consumerAt{Name: consumerName(r)}
	if body.Position != nil {
		at.Position, err = *body.Position, h.feed.Seek(r.Context(), at.Name, *body.Position)
	} else {
		at.Position, err = h.feed.SeekTime(r.Context(), at.Name, *body.Time)
	}
	if err != nil {
		feedProblem(err).write(w)
		return
	}
	writeJSON(w, http.StatusOK, at)
}

// declared is the answer to PUT.
type declared struct {
	Name     string `json:"name"`
	Position int64  `json:"position"`
	Required bool   `json:"required"`
}

// put answers PUT /api/v1/feed/{name} with {"required": true} or false: 201 where that created the consumer.
func (h feedHandler) put(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Required *bool `json:"required"`
	}
	if err := decodeBody(w, r, &body); err != nil || body.Required == nil {
		writeProblem(w, http.StatusBadRequest, `the body must be {"required": true} or {"required": false}: whether rows are kept until the consumer has passed them`)
		return
	}
	c, created, err := h.feed.Require(r.Context(), consumerName(r), *body.Required)
	if err != nil {
		feedProblem(err).write(w)
		return
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	writeJSON(w, status, declared{c.Name, c.Position, c.Required})
}

// remove answers DELETE /api/v1/feed/{name}.
func (h feedHandler) remove(w http.ResponseWriter, r *http.Request) {
	if err := h.feed.Remove(r.Context(), consumerName(r)); err != nil {
		feedProblem(err).write(w)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client has gone: nothing to tell it
}

// decodeBody reads exactly one JSON value without unknown members.
func decodeBody(w http.ResponseWriter, r *http.Request, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}
