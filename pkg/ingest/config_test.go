package ingest_test

import (
	"strings"
	"testing"
	"time"

	"plenum/pkg/ingest"
)

func TestValidateNamesEveryFault(t *testing.T) {
	t.Parallel()
	if err := config().Validate(); err != nil {
		t.Error(err)
	}
	err := ingest.Config{BatchRows: -3, BatchBytes: 1 << 40, Linger: time.Hour, Writers: 99}.Validate()
	if err == nil {
		t.Fatal("four faults and no error")
	}
	for _, want := range []string{
		"ingest.batch_rows: -3 ", "ingest.batch_bytes: 1099511627776 ", "ingest.linger: 1h0m0s ", "ingest.writers: 99 ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %q", err, want)
		}
	}
	if _, err := ingest.New(ingest.Config{}, nil, nil, nil, nil); err == nil {
		t.Error("New takes a config with faults")
	}
}
