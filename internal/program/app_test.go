package program

import (
	"testing"

	"go.uber.org/zap"
)

// Readiness fails from the first moment until each daemon of the process has begun and added its own checks.
func TestReadinessFromTheStart(t *testing.T) {
	t.Parallel()
	s, err := source{args: []string{"--database.url", "postgres://127.0.0.1:1/none"}}.load(t)
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewApp(t.Context(), "test", s, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	failing := func(want bool, when string) {
		t.Helper()
		if got := a.Health.Failing(t.Context()); got != want {
			t.Errorf("%s: failing %v: %v", when, got, a.Health.Findings(t.Context()))
		}
	}
	failing(true, "before any daemon has begun")
	ingest := a.begin("ingest")
	syncjob := a.begin("syncjob")
	failing(true, "while both begin")
	ingest()
	failing(true, "while one begins")
	syncjob()
	failing(false, "when both have begun")
}
