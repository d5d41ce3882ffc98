package endtoend

import (
	"fmt"
	"testing"
)

// TestTwoOfEach runs two ingest and two syncjob at once, on disjoint topics and as a share group: nothing comes twice,
// nothing is missing, and the feed, read through both syncjobs in turn, has neither gap nor reorder.
func TestTwoOfEach(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		first, second []string
	}{
		{
			"disjoint topics",
			[]string{"PLENUM_MQTT_CLIENT_ID=a", "PLENUM_MQTT_TOPICS=telemetry/{device_id}"},
			[]string{"PLENUM_MQTT_CLIENT_ID=b", "PLENUM_MQTT_TOPICS=other/{device_id}"},
		},
		{
			"share group",
			[]string{"PLENUM_MQTT_CLIENT_ID=a", "PLENUM_MQTT_SHARE_GROUP=plenum"},
			[]string{"PLENUM_MQTT_CLIENT_ID=b", "PLENUM_MQTT_SHARE_GROUP=plenum", "PLENUM_MQTT_CONNECTIONS=2"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t)
			first, second := s.ingest(c.first...).awaitReady(), s.ingest(c.second...).awaitReady()
			syncs := []*process{s.syncjob().awaitReady(), s.syncjob("PLENUM_SYNC_WORKERS=3", "PLENUM_SYNC_BATCH_ROWS=100").awaitReady()}
			n := size(5000)
			p := s.simulate("--devices", "20", "--total", fmt.Sprint(n), "--rate", "3000")
			more := 0
			if c.name == "disjoint topics" {
				more = 300
				s.publish("other/pump-1", generated(more))
			}
			r := &reader{t: t, name: "test"}
			for i := 0; len(r.rows) < n+more; i++ {
				r.from = syncs[i%2]
				r.readOnce()
				if i > 100_000 {
					t.Fatalf("%d of %d rows have come", len(r.rows), n+more)
				}
			}
			p.wait()
			r.once()
			if got := s.count("telemetry"); got != n+more || len(r.rows) != n+more {
				t.Fatalf("%d rows are stored and %d came, of %d", got, len(r.rows), n+more)
			}
			if got := first.metric("plenum_mqtt_messages_received_total") + second.metric("plenum_mqtt_messages_received_total"); got != float64(n+more) {
				t.Errorf("the two ingest received %v messages of %d", got, n+more)
			}
			stored := [2]float64{first.metric(`plenum_ingest_rows_total{result="stored"}`), second.metric(`plenum_ingest_rows_total{result="stored"}`)}
			marked := [2]float64{syncs[0].metric("plenum_sync_rows_processed_total"), syncs[1].metric("plenum_sync_rows_processed_total")}
			if stored[0] == 0 || stored[1] == 0 || stored[0]+stored[1] != float64(n+more) || marked[0]+marked[1] != float64(n+more) {
				t.Errorf("the two ingest stored %v, the two syncjob marked %v, of %d", stored, marked, n+more)
			}
			figure(t, "two ingest (%s) and two syncjob: %d readings, each came once in position order; stored %v, marked %v", c.name, n+more, stored, marked)
		})
	}
}

func generated(n int) []string {
	lines := make([]string, n)
	for i := range lines {
		lines[i] = fmt.Sprintf(`{"ts":%d,"seq":%d,"metrics":{"pressure_bar":%d.5}}`, 1795000000000+i, i, i%9)
	}
	return lines
}
