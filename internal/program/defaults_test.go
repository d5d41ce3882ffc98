package program

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"plenum/pkg/telemetry"
)

// The keys' defaults are those of the decoder as a library: there is one message format.
func TestDefaultsAreTheDecoders(t *testing.T) {
	t.Parallel()
	s, err := source{args: []string{"--database.url", "postgres://127.0.0.1:1/none"}}.load(t)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(telemetry.DefaultConfig(), s.telemetry()); diff != "" {
		t.Error(diff)
	}
}
