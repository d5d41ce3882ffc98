package endtoend

import (
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
)

// TestPoison has a constraint, made by hand, refuse one device of five: its readings alone are quarantined, and say why.
func TestPoison(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	ingest := s.ingest().awaitReady()
	s.exec(fmt.Sprintf("alter table telemetry_p%s add constraint no_poison check (device_id <> 'cmp-00003')", time.Now().UTC().Format("20060102")))
	n := size(1000)
	p := s.simulate("--devices", "5", "--total", strconv.Itoa(n), "--rate", strconv.Itoa(n/4))
	p.wait()
	want := map[string]bool{}
	for _, reading := range p.acknowledged() {
		if filepath.Dir(reading) != "cmp-00003" {
			want[reading] = true
		}
	}
	s.awaitRows(len(want))
	devtest.Eventually(t, func() error {
		if got := s.count("telemetry_quarantine"); got < n/5 {
			return fmt.Errorf("%d readings in quarantine of %d", got, n/5)
		}
		return nil
	})
	s.exactly(want)
	const poison = `telemetry_quarantine where code = 'rejected_by_database' and detail like '%no_poison%' and topic = 'telemetry/cmp-00003'`
	if all, named := s.count("telemetry_quarantine"), s.count(poison); all != n/5 || named != n/5 {
		t.Errorf("%d readings are in quarantine, %d of them name the constraint; %d are of the device", all, named, n/5)
	}
	if got := s.count("(select distinct payload from " + poison + ") t"); got != n/5 {
		t.Errorf("%d different payloads are in quarantine, of %d readings", got, n/5)
	}
	if err := ingest.ready(200); err != nil {
		t.Error(err)
	}
	s.balanced(ingest)
	figure(t, "poison rows: a constraint made by hand refuses every fifth of %d readings: these alone are in quarantine, as rejected_by_database with its name", n)
}
