package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestReadyz(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write([]byte("the reason"))
	}))
	t.Cleanup(server.Close)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()

	for _, test := range []struct {
		name, stdout, fault string
		args                []string
	}{
		{name: "ready", args: []string{server.URL + "/readyz"}, stdout: "the reason"},
		{name: "not ready", args: []string{server.URL + "/other"}, stdout: "the reason", fault: "503"},
		{name: "nobody there", args: []string{closed.URL}, fault: "connection refused"},
		{name: "no URL", fault: "usage"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var stdout strings.Builder
			err := run(context.Background(), test.args, &stdout)
			if stdout.String() != test.stdout {
				t.Errorf("printed %q, want %q", stdout.String(), test.stdout)
			}
			switch {
			case test.fault == "" && err != nil:
				t.Error(err)
			case test.fault != "" && (err == nil || !strings.Contains(err.Error(), test.fault)):
				t.Errorf("error %v, want %q", err, test.fault)
			}
		})
	}
}
