package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"
)

// A Finding is one thing that is not as it should be.
type Finding struct {
	Component string `json:"component"` // mqtt, database, ingest, sync, partitions
	Failing   bool   `json:"failing"`   // the program cannot do its work
	Message   string `json:"message"`   // what is wrong, and what to do where that is known
}

// Check returns what it finds wrong at the moment; it must not block beyond its context.
type Check func(context.Context) []Finding

// Health joins the checks of a program's parts. The zero value has none and is ready.
type Health struct {
	mu     sync.Mutex
	checks []Check
}

// Add adds a check.
func (h *Health) Add(c Check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks = append(h.checks, c)
}

// Findings asks every check.
func (h *Health) Findings(ctx context.Context) []Finding {
	h.mu.Lock()
	checks := h.checks[:len(h.checks):len(h.checks)]
	h.mu.Unlock()
	findings := []Finding{}
	for _, c := range checks {
		findings = append(findings, c(ctx)...)
	}
	return findings
}

// Failing says whether the program cannot do its work.
func (h *Health) Failing(ctx context.Context) bool {
	return slices.ContainsFunc(h.Findings(ctx), func(f Finding) bool { return f.Failing })
}

// readiness is the body of /readyz.
type readiness struct {
	Status   string    `json:"status"` // ready, warning or failing
	Findings []Finding `json:"findings"`
}

func (h *Health) serveReady(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 3*time.Second)
	defer cancel()
	body, code := readiness{"ready", h.Findings(ctx)}, http.StatusOK
	for _, f := range body.Findings {
		switch {
		case f.Failing:
			body.Status, code = "failing", http.StatusServiceUnavailable
		case body.Status == "ready":
			body.Status = "warning"
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client has gone: nothing to tell it
}
