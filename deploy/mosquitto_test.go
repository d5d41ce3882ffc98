package deploy_test

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"plenum/internal/devenv/devtest"
)

// run returns what a program prints, and ends the test if it fails.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), name, args...)
	command.Env = append(os.Environ(), env...)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(name), err, out)
	}
	return string(out)
}

// The broker of mosquitto/ takes a device's messages below its own id only, and ingest reads them and writes none.
func TestMosquittoConfiguration(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acl, err := os.ReadFile("mosquitto/plenum.acl")
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string]string{
		"plenum.acl":    string(acl),
		"plenum.passwd": "plenum-ingest:a\ncmp-00001:a\ncmp-00002:a\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, nil, "mosquitto_passwd", "-U", filepath.Join(dir, "plenum.passwd"))
	conf, err := os.ReadFile("mosquitto/plenum.conf")
	if err != nil {
		t.Fatal(err)
	}
	broker := devtest.Mosquitto(t, strings.Split(strings.ReplaceAll(string(conf), "/etc/mosquitto/", dir+"/"), "\n")...)
	address, err := url.Parse(broker.URL())
	if err != nil {
		t.Fatal(err)
	}
	as := func(user string) []string {
		return []string{"-h", address.Hostname(), "-p", address.Port(), "-u", user, "-P", "a", "-q", "1"}
	}
	publish := func(user, topic string) {
		t.Helper()
		run(t, nil, "mosquitto_pub", append(as(user), "-t", topic, "-m", user)...)
	}
	// A session that keeps what comes, and one of a device that wants to listen.
	read := func(user, count string, more ...string) string {
		t.Helper()
		args := append(as(user), "-c", "-i", "session-of-"+user, "-v", "-t", "telemetry/+", "-t", "telemetry/+/+")
		return run(t, nil, "mosquitto_sub", append(append(args, "-C", count, "-W", "60"), more...)...)
	}
	read("plenum-ingest", "1", "-E") // -E: leave when the subscription is granted
	read("cmp-00002", "1", "-E")

	publish("cmp-00001", "telemetry/cmp-00002")
	publish("cmp-00001", "telemetry/cmp-00002/fault")
	publish("cmp-00001", "telemetry/cmp-00001/fault/deeper")
	publish("plenum-ingest", "telemetry/plenum-ingest")
	publish("plenum-ingest", "telemetry/plenum-ingest/fault")
	publish("plenum-ingest", "telemetry/cmp-00001")
	publish("cmp-00001", "telemetry/cmp-00001")
	publish("cmp-00002", "telemetry/cmp-00002/performance")

	// In order of arrival: one that should have been refused would be among the first two.
	const want = "telemetry/cmp-00001 cmp-00001\ntelemetry/cmp-00002/performance cmp-00002\n"
	if got := read("plenum-ingest", "2"); got != want {
		t.Errorf("ingest receives:\n%swant:\n%s", got, want)
	}
	for _, stranger := range [][]string{
		{"-u", "cmp-00001", "-P", "wrong"},
		{},
	} {
		args := append([]string{"-h", address.Hostname(), "-p", address.Port(), "-q", "1", "-t", "telemetry/cmp-00001", "-m", "x"}, stranger...)
		if out, err := exec.CommandContext(t.Context(), "mosquitto_pub", args...).CombinedOutput(); err == nil {
			t.Errorf("mosquitto_pub %q is let in: %s", stranger, out)
		}
	}
}
