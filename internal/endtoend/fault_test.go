package endtoend

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

// size is a count of readings: n in the suite, ten times that where PLENUM_PROVE is set.
func size(n int) int {
	if os.Getenv("PLENUM_PROVE") != "" {
		return 10 * n
	}
	return n
}

// figure prints a line for docs/proof.md.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf("proof: "+format, args...)
}

// TestTerminateUnderLoad stops both daemons again and again while readings arrive: each stop drains and exits 0,
// and what was acknowledged to the publisher comes once.
func TestTerminateUnderLoad(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.ingest().awaitReady().terminate() // the session is there before the first reading
	n := size(10_000)
	p := s.simulate("--devices", "20", "--total", fmt.Sprint(n), "--rate", "1000")
	stops := 0
	for done := 0; done < n; done = len(p.acknowledged()) {
		ingest, syncjob := s.ingest().awaitReady(), s.syncjob().awaitReady()
		p.await(min(n, done+1000))
		if code := ingest.terminate(); code != 0 {
			t.Fatalf("ingest exits %d:\n%s", code, ingest.text())
		}
		if code := syncjob.terminate(); code != 0 {
			t.Fatalf("syncjob exits %d:\n%s", code, syncjob.text())
		}
		stops++
	}
	p.wait()
	s.ingest()
	r := &reader{t: t, from: s.syncjob().awaitReady(), name: "test"}
	r.matches(p)
	if stops < 2 {
		t.Errorf("the daemons were stopped %d times under load", stops)
	}
	figure(t, "SIGTERM under load: %d stops of each daemon during %d readings, all exit 0; every acknowledged reading came once", stops, n)
}

// TestDatabaseUnreachable starts the daemons before their database: they say so, stay alive, and get ready when it comes.
func TestDatabaseUnreachable(t *testing.T) {
	t.Parallel()
	config := devtest.Config()
	config.Dir = t.TempDir()
	postgres, err := devenv.StartPostgres(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := postgres.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := newSystemOn(t, postgres, postgres.URL("postgres"))
	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	ingest, syncjob := s.ingest(), s.syncjob()
	for _, p := range []*process{ingest, syncjob} {
		devtest.Eventually(t, func() error {
			code, body, _ := p.get("/readyz")
			if code != 503 || !strings.Contains(body, "refused") {
				return fmt.Errorf("%s: /readyz answers %d: %s", p.name, code, body)
			}
			return nil
		})
		if code, _, _ := p.get("/livez"); code != 200 {
			t.Errorf("%s: /livez answers %d", p.name, code)
		}
	}
	if err := postgres.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	ingest.awaitReady()
	syncjob.awaitReady()
	p := s.simulate("--devices", "2", "--total", "500")
	p.wait()
	(&reader{t: t, from: syncjob, name: "test"}).matches(p)
	// Away again, while no reading comes that could not be stored.
	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*process{ingest, syncjob} {
		devtest.Eventually(t, func() error {
			if code, body, _ := p.get("/readyz"); code != 503 {
				return fmt.Errorf("%s: /readyz answers %d: %s", p.name, code, body)
			}
			return nil
		})
	}
	if err := postgres.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	ingest.awaitReady()
	syncjob.awaitReady()
	for _, p := range []*process{ingest, syncjob} {
		if !strings.Contains(p.text(), "trying again") {
			t.Errorf("%s does not say that it waits:\n%s", p.name, p.text())
		}
	}
}

// TestBrokerUnreachable starts ingest before its broker.
func TestBrokerUnreachable(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	if err := s.broker.Stop(); err != nil {
		t.Fatal(err)
	}
	ingest := s.ingest()
	devtest.Eventually(t, func() error {
		code, body, _ := ingest.get("/readyz")
		if code != 503 || !strings.Contains(body, `"mqtt"`) || !strings.Contains(body, "refused") {
			return fmt.Errorf("/readyz answers %d: %s", code, body)
		}
		return nil
	})
	if err := s.broker.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	ingest.awaitReady()
	p := s.simulate("--devices", "2", "--total", "500")
	p.wait()
	(&reader{t: t, from: s.syncjob(), name: "test"}).matches(p)
}

// TestNoPartitionForToday drops today's partitions by hand: the next batch makes them and lands.
func TestNoPartitionForToday(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.ingest().awaitReady()
	syncjob := s.syncjob().awaitReady()
	r := &reader{t: t, from: syncjob, name: "test"}
	first := s.simulate("--devices", "1", "--total", "100")
	first.wait()
	r.matches(first)
	var telemetry, ledger, quarantine string
	const q = `select format('telemetry_p%1$s', d), format('telemetry_batch_p%1$s', d), format('telemetry_quarantine_p%1$s', d)
		from to_char(now() at time zone 'UTC', 'YYYYMMDD') d`
	if err := s.query(q, nil, &telemetry, &ledger, &quarantine); err != nil {
		t.Fatal(err)
	}
	s.exec(fmt.Sprintf("drop table %s, %s, %s", telemetry, ledger, quarantine))
	second := s.simulate("--devices", "2", "--total", "100")
	second.wait()
	s.publish("telemetry/cmp-00001", []string{"no JSON"})
	after := &reader{t: t, from: syncjob, name: "test", position: r.position}
	after.readUntil(len(second.acknowledged()))
	after.once()
	devtest.Eventually(t, func() error {
		if n := s.count("telemetry_quarantine"); n != 1 {
			return fmt.Errorf("%d messages in quarantine", n)
		}
		return nil
	})
}

// TestClientIDTaken starts a second ingest with the client id of the first.
func TestClientIDTaken(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	first := s.ingest().awaitReady()
	// What is refused changes nothing, whatever it is configured to do.
	second := s.ingest("PLENUM_PARTITION_RETENTION_DAYS=2", "PLENUM_PARTITION_EXPIRED=drop")
	if code := second.exitCode(); code != 4 {
		t.Fatalf("the second ingest exits %d", code)
	}
	holder := fmt.Sprintf(":%d,", first.cmd.Process.Pid)
	if log := second.text(); !strings.Contains(log, "plenum-ingest-0") || !strings.Contains(log, holder) {
		t.Errorf("the second ingest does not name the holder %q:\n%s", holder, log)
	}
	first.awaitReady()
	if n := s.count("partition_policy where table_name = 'telemetry' and retention = 8 and expired = 'archive'"); n != 1 {
		t.Error("the refused ingest has changed the policy of telemetry")
	}
}

// TestSlowClient terminates both daemons while a client of each has sent half a request: they stop in order all the same.
func TestSlowClient(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	for _, p := range []*process{s.ingest().awaitReady(), s.syncjob().awaitReady()} {
		u, err := url.Parse(p.url(""))
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := c.Write([]byte("GET /metrics HTTP/1.1\r\nHost: x\r\n")); err != nil {
			t.Fatal(err)
		}
		if code := p.terminate(); code != 0 {
			t.Errorf("%s exits %d:\n%s", p.name, code, p.text())
		}
	}
}

// TestSetup has each fault of the set-up end a daemon with exit code 2 and a message that says what to do.
func TestSetup(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.ingest().awaitReady().terminate()
	u, err := url.Parse(s.role("ingest"))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("plenum_ingest", "hunter2")
	for _, c := range []struct {
		name  string
		env   []string
		wants []string
	}{
		{"configuration", []string{"PLENUM_MQTT_CONNECTIONS=x", "PLENUM_INGEST_LINGER=soon", "PLENUM_LOG_LEVEL=info"}, []string{"mqtt.connections", `"x"`, "ingest.linger", `"soon"`}},
		{"password", []string{"PLENUM_DATABASE_URL=" + u.String()}, []string{"plenum_ingest", "28P01"}},
		{"schema", []string{"PLENUM_DATABASE_SCHEMA=nowhere"}, []string{"database.schema", `"nowhere"`}},
		{"rights", []string{"PLENUM_DATABASE_URL=" + s.role("sync")}, []string{"grant insert on telemetry to", "plenum_sync"}},
		{"limits", []string{"PLENUM_PARTITION_PREMAKE_DAYS=3000", "PLENUM_PARTITION_RETENTION_DAYS=99999999999", "PLENUM_MQTT_WINDOW_MESSAGES=0", "PLENUM_MQTT_CA_FILE=/nope"}, []string{"partition.premake_days: 3000", "partition.retention_days: 99999999999", "mqtt.window_messages: 0", "/nope"}},
		{"log level", []string{"PLENUM_LOG_LEVEL=fatal"}, []string{"log.level", `"fatal"`}},
		{"owner", []string{"PLENUM_DATABASE_OWNER_URL=" + s.role("ingest")}, []string{"database.owner_url", "plenum_ingest"}},
	} {
		p := s.ingest(c.env...)
		if code := p.exitCode(); code != 2 {
			t.Errorf("%s: ingest exits %d:\n%s", c.name, code, p.text())
		}
		for _, want := range c.wants {
			if !strings.Contains(p.text(), want) {
				t.Errorf("%s: %q is not named:\n%s", c.name, want, p.text())
			}
		}
		if strings.Contains(p.text(), "hunter2") || strings.Contains(p.text(), ":"+s.password+"@") {
			t.Errorf("%s: the password is printed:\n%s", c.name, p.text())
		}
	}
}

// TestRightsOfSync has syncjob wait a while for its rights, which a migration may be about to grant, and then name them.
func TestRightsOfSync(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.ingest().awaitReady().terminate()
	s.exec(`revoke select on plenum_migration from plenum_sync`)
	if p := s.syncjob(); p.exitCode() != 2 || !strings.Contains(p.text(), `grant select on plenum_migration, schema_compatibility to "plenum_sync"`) {
		t.Errorf("syncjob exits %d:\n%s", p.exitCode(), p.text())
	}
	s.exec(`grant select on plenum_migration to plenum_sync; revoke update (processed) on telemetry from plenum_sync`)
	if p := s.syncjob(); p.exitCode() != 2 || !strings.Contains(p.text(), `grant update (processed) on telemetry to "plenum_sync"`) {
		t.Errorf("syncjob exits %d:\n%s", p.exitCode(), p.text())
	}
}

// TestNewerSchema runs the daemons on schemas that a later release left: one they can work on, and one they cannot.
func TestNewerSchema(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.ingest().awaitReady().terminate()
	s.exec(`insert into plenum_migration (version_id, is_applied) values (900, true)`)
	ingest, syncjob := s.ingest().awaitReady(), s.syncjob().awaitReady()
	p := s.simulate("--devices", "1", "--total", "100")
	p.wait()
	(&reader{t: t, from: syncjob, name: "test"}).matches(p)
	ingest.terminate()
	syncjob.terminate()
	s.exec(`update schema_compatibility set oldest = 900`)
	for _, p := range []*process{s.ingest(), s.syncjob()} {
		if code := p.exitCode(); code != 2 || !strings.Contains(p.text(), "900") || !strings.Contains(p.text(), "knows 3") {
			t.Errorf("%s exits %d:\n%s", p.name, code, p.text())
		}
	}
}
