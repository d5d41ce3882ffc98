package endtoend

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"plenum/internal/devenv/devtest"
)

// TestToolSessions finds the session that nobody comes back to, and refuses to drain one that somebody uses, or will.
func TestToolSessions(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	expect(1, "run plenumctl migrate up", "doctor")
	expect(0, "version", "migrate", "up")
	expect(0, "none", "sessions", "list")
	expect(0, "nothing found", "doctor", "--sample", "0")
	ingest := s.ingest().awaitReady()
	s.exec(`insert into mqtt_session (client_id, filters) values ('plenum-ingest-0', '{telemetry/+}'), ('plenum-ingest-1', '{telemetry/+,$share/g/x}'),
		('other-0', '{a}') on conflict (client_id) do nothing`)

	type session struct {
		ID      string `json:"client_id"`
		Use     string
		Holder  string
		Filters []string
	}
	uses := func(want string, args ...string) (listed []session) {
		t.Helper()
		out := expect(0, "", append([]string{"sessions", "list", "--output", "json"}, args...)...)
		if err := json.Unmarshal([]byte(out), &listed); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range listed {
			got = append(got, l.ID+" "+l.Use)
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("sessions are %q, want %q", text, want)
		}
		return listed
	}
	listed := uses("other-0 orphaned, plenum-ingest-0 in use, plenum-ingest-1 orphaned")
	if !strings.HasPrefix(listed[1].Holder, "plenum-ingest@") || listed[0].Holder != "" || len(listed[2].Filters) != 2 {
		t.Errorf("%+v", listed)
	}
	expect(0, "nobody", "sessions", "list")
	uses("other-0 orphaned, plenum-ingest-0 in use, plenum-ingest-1 configured", "--mqtt.connections", "2")
	uses("other-0 configured, plenum-ingest-0 in use, plenum-ingest-1 orphaned", "--mqtt.client_id", "other")

	const found = "plenum-ingest-1 is not configured and no process holds it: its session at the broker still queues messages; plenumctl sessions drain plenum-ingest-1\n"
	if out := expect(3, found, "doctor", "--sample", "0"); strings.Count(out, "\n") != 2 {
		t.Errorf("the doctor says:\n%s", out)
	}
	expect(3, `"do": "plenumctl sessions drain other-0"`, "doctor", "--sample", "0", "--output", "json", "--mqtt.connections", "2")
	s.exec(`delete from mqtt_session where client_id = 'other-0'`)
	expect(0, "nothing found", "doctor", "--sample", "0", "--mqtt.connections", "2")

	drain := func(code int, want string, args ...string) {
		t.Helper()
		expect(code, want, append([]string{"sessions", "drain", "--mqtt.brokers", s.broker.URL()}, args...)...)
	}
	drain(2, "one CLIENT_ID is needed")
	drain(2, "one CLIENT_ID is needed", "a", "b")
	drain(2, "--quiet", "a", "--quiet", "0s")
	drain(2, "is configured: ingest comes back to its session", "plenum-ingest-0")
	drain(4, "is in use by another process: plenum-ingest@", "plenum-ingest-0", "--force")
	drain(4, "is in use by another process: plenum-ingest@", "plenum-ingest-0", "--mqtt.client_id", "other")
	if code := ingest.terminate(); code != 0 {
		t.Errorf("ingest exits %d", code)
	}
}

// TestToolSessionsDrain takes a connection away from an ingest: what waits in the session of the other one is stored, and
// the session ends.
func TestToolSessionsDrain(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	both := s.ingest("PLENUM_MQTT_CONNECTIONS=2").awaitReady()
	devtest.Eventually(t, func() error {
		if n := both.metric("plenum_mqtt_connected"); n != 2 {
			return fmt.Errorf("%v connections are up", n)
		}
		return nil
	})
	both.terminate()
	send := func(first int) {
		t.Helper()
		lines := make([]string, 50)
		for i := range lines {
			lines[i] = fmt.Sprintf(`{"ts": 1732300000123, "seq": %d, "metrics": {}}`, first+i)
		}
		s.publish("telemetry/pump-7", lines)
		s.publish("telemetry/pump-7/fault", lines)
	}
	send(0)
	ingest := s.ingest().awaitReady() // has both filters now, and what waited for one
	send(1000)
	devtest.Eventually(t, func() error {
		if n := s.count("telemetry"); n < 150 {
			return fmt.Errorf("%d rows are stored", n)
		}
		return nil
	})
	expect := s.expect()
	expect(3, "plenumctl sessions drain plenum-ingest-1\n", "doctor", "--sample", "0")
	drain := []string{"sessions", "drain", "plenum-ingest-1", "--quiet", "1s", "--mqtt.brokers", s.broker.URL()}
	expect(0, "plenum-ingest-1: 100 messages received, 50 rows stored, 50 stored before, 0 quarantined\nplenum-ingest-1: the session is ended\n", drain...)
	if n := s.count("telemetry"); n != 200 {
		t.Errorf("%d rows are stored, want 200", n)
	}
	expect(0, "nothing found", "doctor", "--sample", "0")
	expect(1, `the broker has no session of "plenum-ingest-1"`, drain...)
	expect(0, "plenum-ingest-1: the broker had no session; the client id is forgotten\n", append(drain, "--force")...)
	expect(0, `"forgotten": true`, append(drain, "--force", "--output", "json")...)
	if code := ingest.terminate(); code != 0 {
		t.Errorf("ingest exits %d", code)
	}
}
