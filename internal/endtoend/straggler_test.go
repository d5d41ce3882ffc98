package endtoend

import (
	"fmt"
	"testing"
	"time"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

// TestMidnightStragglers has a transaction begin before midnight and stop half-way, and another store the same reading after
// midnight meanwhile: whatever the first waited for, there is one row in the end.
func TestMidnightStragglers(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -4).Add(-time.Hour) // of the devices
	element := func(seq int) string {
		return fmt.Sprintf(`{"ts":%d,"seq":%d,"metrics":{"pressure_bar":7.5}}`, now.UnixMilli(), seq)
	}
	for _, c := range []struct {
		name, hold, late string
		rejects          int
	}{
		{
			"before its ledger line", // it waits for a reading that another session is inserting
			fmt.Sprintf(`insert into telemetry (recorded_at, seq, device_id, kind, payload)
				values ('epoch'::timestamptz + interval '%d milliseconds', 2, 'late', 'parameters', '{}')`, now.UnixMilli()),
			"[" + element(1) + "," + element(2) + "]", 0,
		},
		{"behind its ledger line", "lock table telemetry_quarantine in access exclusive mode", "[" + element(1) + "," + element(2) + ",5]", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, clock, midnight := newSystemWithClock(t)
			ingest := s.ingest("PLENUM_INGEST_WRITERS=2").awaitReady()
			devtest.Eventually(t, func() error { // else what is held would keep tomorrow's partitions from being made
				const premade = `pg_inherits where inhparent in ('telemetry'::regclass, 'telemetry_batch'::regclass, 'telemetry_quarantine'::regclass)`
				if n := s.count(premade); n < 3*5 {
					return fmt.Errorf("%d partitions are there of %d", n, 3*5)
				}
				return nil
			})
			clock.set(midnight.Add(-time.Minute))
			release := s.hold(c.hold)
			s.send(devenv.Message{Topic: "telemetry/late", Payload: []byte(c.late)})
			waiting := func(kind string) int {
				return s.count(fmt.Sprintf("pg_locks l join pg_stat_activity a using (pid) where not l.granted and l.locktype %s and a.usename = 'plenum_ingest'", kind))
			}
			devtest.Eventually(t, func() error {
				if waiting("<> 'advisory'") == 0 {
					return fmt.Errorf("ingest does not wait for what is held")
				}
				return nil
			})
			clock.set(midnight.Add(time.Second))
			s.send(devenv.Message{Topic: "telemetry/late", Payload: []byte(element(1))})
			devtest.Eventually(t, func() error { // until the second has stored it, or waits for the first
				if waiting("= 'advisory'")+s.count("telemetry") == 0 {
					return fmt.Errorf("the second transaction has not come so far")
				}
				return nil
			})
			release()
			s.awaitRows(2)
			s.balanced(ingest)
			s.exactly(map[string]bool{"late/1": true, "late/2": true})
			if got := s.count("telemetry_quarantine"); got != c.rejects {
				t.Errorf("%d messages are in quarantine of %d", got, c.rejects)
			}
			figure(t, "midnight: a transaction of yesterday that is held up %s, and one of today with the same reading: one row", c.name)
		})
	}
}
