package endtoend

import (
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// ctl runs plenumctl as the owner and returns its exit code and output.
func (s *system) ctl(args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	return s.ctlWith("", args...)
}

// ctlWith is ctl with a standard input.
func (s *system) ctlWith(stdin string, args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "plenumctl"), args...)
	cmd.Env = []string{"PLENUM_DATABASE_OWNER_URL=" + s.role("owner")}
	cmd.Stdin = strings.NewReader(stdin)
	return output(s.t, cmd)
}

// output runs a command and returns its exit code and output.
func output(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// expect returns a function that runs plenumctl and fails where the exit code differs or the output does not say want.
func (s *system) expect() func(code int, want string, args ...string) string {
	return func(code int, want string, args ...string) string {
		s.t.Helper()
		got, out, errs := s.ctl(args...)
		if got != code || !strings.Contains(out+errs, want) {
			s.t.Errorf("plenumctl %s exits %d, want %d and %q:\n%s%s", strings.Join(args, " "), got, code, want, out, errs)
		}
		return out
	}
}

// TestTool walks an operator's commands over a database from empty to kept, with the exit code of each.
func TestTool(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	expect(0, "Usage", "--help")
	expect(0, "plenumctl", "--version")
	expect(2, "no command", []string{}...)
	expect(0, "plenumctl partitions apply", "partitions", "--help")
	expect(2, `unknown command "partitions vanish"`, "partitions", "vanish")
	expect(2, "unexpected argument", "partitions", "list", "telemetry")
	expect(2, "flag provided but not defined", "partitions", "list", "--tabel", "x")
	expect(0, "--devices", "simulate", "--help")
	expect(2, "database.url: is not set", "config", "check")
	expect(0, "the configuration is valid", "config", "check", "--database.url", "postgres://h/d", "--mqtt.brokers", "tcp://h:1883")

	expect(3, "run plenumctl migrate up", "migrate", "status")
	expect(1, "run plenumctl migrate up", "partitions", "list")
	expect(0, "version 3, was 0", "migrate", "up")
	expect(0, "version 3, was 3", "migrate", "up")
	expect(0, "up to date", "migrate", "status")

	expect(3, "premake", "partitions", "check")
	plan := expect(0, "attach partition", "partitions", "plan", "--table", "telemetry")
	if tomorrow := time.Now().UTC().AddDate(0, 0, 1).Format("20060102"); !strings.Contains(plan, "telemetry_p"+tomorrow) || !strings.Contains(strings.ToUpper(plan), "SHARE UPDATE EXCLUSIVE") {
		t.Errorf("the plan names neither tomorrow's partition nor the lock:\n%s", plan)
	}
	expect(2, `"nowhere" has no partition policy`, "partitions", "plan", "--table", "nowhere")
	expect(0, "done", "partitions", "apply")
	expect(0, "nothing found", "partitions", "check")
	expect(0, "nothing to do", "partitions", "apply")

	var listed []struct{ Table, Partition, State string }
	if err := json.Unmarshal([]byte(expect(0, "[", "partitions", "list", "--table", "telemetry", "--output", "json")), &listed); err != nil || len(listed) != 5 {
		t.Errorf("%d partitions of telemetry are listed, want today's and 4 premade: %v", len(listed), err)
	}
	expect(2, "--output", "partitions", "list", "--output", "xml")
	expect(2, "--first-device: 0", "simulate", "--broker", s.broker.URL(), "--first-device", "0")
	expect(2, "--qos", "simulate", "--broker", s.broker.URL(), "--qos", "2")
	expect(2, "database.url and mqtt.brokers must not be set", "demo", "--mqtt.brokers", s.broker.URL())
}

// TestTry decodes as ingest would, without a database or a broker.
func TestTry(t *testing.T) {
	t.Parallel()
	try := func(code int, payload, want string, args ...string) {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, "plenumctl"), append([]string{"try"}, args...)...)
		cmd.Stdin = strings.NewReader(payload)
		got, out, errs := output(t, cmd)
		if got != code || out+errs != want {
			t.Errorf("try %s exits %d, want %d:\n%s%s", strings.Join(args, " "), got, code, out, cmp.Diff(want, out+errs))
		}
	}
	const row = `{"device_id":"pump-7","kind":"fault","seq":42,"recorded_at":"2024-11-22T18:26:40.123Z","payload":{"a":"<b>","c":1e2}}` + "\n"
	const element = `{"ts": 1732300000123, "seq": 42, "metrics": {"a": "<b>", "c": 1e2}}`
	try(0, element, row, "--topic", "telemetry/pump-7/fault")
	try(0, element, row, "--retained", "--topic", "telemetry/pump-7/fault")
	try(3, "["+element+`, {"ts": 13, "metrics": {}}]`, row+"quarantine  bad_time  element 1: /ts: 13 is before 2000-01-01\n", "--topic", "telemetry/pump-7/fault")
	try(3, "", "quarantine  not_json  payload: empty\n", "--topic", "telemetry/pump-7")
	try(3, element, "quarantine  too_large  payload: 67 bytes is more than 20\n", "--topic", "telemetry/pump-7", "--ingest.max_payload_bytes", "20")
	try(0, strings.ReplaceAll(element, "1732300000123", "1732300000"), strings.ReplaceAll(row, ".123Z", "Z"),
		"--topic", "telemetry/pump-7/fault", "--payload.time_unit", "s")
	try(3, "1", "{\n  \"rejects\": [\n    {\n      \"code\": \"topic_mismatch\",\n      \"detail\": \"topic: \\\"a/b\\\" matches none of mqtt.topics\",\n"+
		"      \"topic\": \"a/b\"\n    }\n  ],\n  \"rows\": []\n}\n", "--topic", "a/b", "--output", "json")
	try(2, element, "plenumctl: --topic: the topic of the message is needed; see plenumctl try --help\n")
	try(2, element, "plenumctl: --topic: \"telemetry/+\" is a filter, and a message comes on one topic\n", "--topic", "telemetry/+")
	try(2, element, "plenumctl: payload.time_unit \"x\": is none of ms, s, us, ns, rfc3339, arrival\n", "--topic", "a", "--payload.time_unit", "x")
	try(2, element, "plenumctl: --output: \"xml\" is neither text nor json\n", "--topic", "a", "--output", "xml")
}
