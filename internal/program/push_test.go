package program

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"plenum/pkg/feed"
	"plenum/pkg/feed/kafka"
	"plenum/pkg/feed/webhook"
)

const pushYAML = `
push:
  - name: erp
    from: latest
    limit: 500
    dead_letter_after: 3
    required: true
    webhook:
      url: https://erp.example/in
      secret: [whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw, an old secret of some length]
      headers: {X-Site: "7"}
      headers_file: {Authorization: FILE}
      timeout: 5s
  - name: lake
    kafka:
      brokers: [kafka-1:9092, "kafka-2:9092"]
      topic: rows
      sasl: scram-sha-512
      username: plenum
      password_file: FILE
      compression: zstd
      max_message_bytes: 2000000
`

// pushWant is what pushYAML says.
var pushWant = []pushItem{
	{
		PushConfig: feed.PushConfig{Name: "erp", Target: "webhook", From: "latest", Limit: 500, DeadLetterAfter: 3, Required: true},
		webhook: &webhook.Config{
			URL: "https://erp.example/in", Secrets: []string{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "an old secret of some length"},
			Headers: map[string]string{"X-Site": "7", "Authorization": "hunter2"}, Timeout: 5 * time.Second,
		},
	},
	{
		PushConfig: feed.PushConfig{Name: "lake", Target: "kafka", Limit: 1000, DeadLetterAfter: 10},
		kafka: &kafka.Config{
			Brokers: []string{"kafka-1:9092", "kafka-2:9092"}, Topic: "rows", SASL: "scram-sha-512", Username: "plenum", Password: "hunter2",
			Compression: "zstd", MaxMessageBytes: 2_000_000, Timeout: 30 * time.Second,
		},
	},
}

// The same list from the file, as text, from a file of its own and as JSON.
func TestPushFromEverywhere(t *testing.T) {
	t.Parallel()
	text := strings.ReplaceAll(pushYAML, "FILE", file(t, "hunter2\n"))
	alone := strings.Replace(text, "\npush:\n", "", 1)
	for name, from := range map[string]source{
		"file":        {yaml: "log: {level: warn}\n" + text},
		"environment": {env: map[string]string{"PLENUM_PUSH": alone}, yaml: "push: [{name: x}]"},
		"file of its own": {
			env: map[string]string{"PLENUM_PUSH_FILE": file(t, alone)},
		},
		"flag": {args: []string{"--push", alone}, env: map[string]string{"PLENUM_PUSH": "hunter2"}},
	} {
		s, err := from.load(t)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := s.push()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(pushWant, got, cmp.AllowUnexported(pushItem{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	s, err := source{args: []string{"--push", `[{"name": "x", "kafka": {"brokers": "h:1", "topic": "t"}}]`}}.load(t)
	if got, pushErr := s.push(); errors.Join(err, pushErr) != nil || len(got) != 1 || got[0].kafka.Brokers[0] != "h:1" {
		t.Errorf("JSON: %+v, %v", got, errors.Join(err, pushErr))
	}
	for _, none := range []string{"push:", "push: []", "push: null", `push: ""`, "log: {level: warn}"} {
		s, err := source{yaml: none}.load(t)
		if got, pushErr := s.push(); errors.Join(err, pushErr) != nil || len(got) != 0 {
			t.Errorf("%q: %+v, %v", none, got, errors.Join(err, pushErr))
		}
	}
}

func TestFaultsOfPush(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "none")
	s, err := source{yaml: `
push:
  - {name: a/b, limit: 0, from: yesterday, dead_letter_after: 0, webhook: {url: "ftp://hunter2", secret: hunter2}}
  - {name: erp, limt: 5, limit: many, required: perhaps, webhook: {url: "http://h", uri: hunter2, timeout: soon, secret: {x: hunter2}}}
  - {name: erp, kafka: {brokers: [h], topic: "a b", password: hunter2, password_file: x, sasl: hmm}}
  - {name: both, kafka: {brokers: ["h:1"], topic: t}, webhook: {url: http://h}}
  - {name: neither}
  - {name: files, webhook: {url_file: ` + missing + `, secret_file: ` + missing + `, headers_file: {Authorization: ` + missing + `}}}
  - {name: twice, name: twice, kafka: {brokers: ["h:1"], topic: t}}
  - hunter2
  - {kafka: [hunter2]}
`}.load(t)
	if err != nil {
		t.Fatal(err)
	}
	err = s.ValidateSync()
	fails(t, err,
		`push[0] (a/b).name: consumer name "a/b"`, "push[0] (a/b).limit: 0 is not", `push[0] (a/b).from: from "yesterday"`, "push[0] (a/b).dead_letter_after: 0",
		"push[0] (a/b).webhook.url: is no http", "push[0] (a/b).webhook.secret: is shorter",
		`push[1] (erp): unknown field "limt"; known are dead_letter_after, from, kafka`, `push[1] (erp).limit: "many"`, `push[1] (erp).required: "perhaps"`,
		`push[1] (erp).webhook: unknown field "uri"`, `push[1] (erp).webhook.timeout: "soon"`, "push[1] (erp).webhook.secret: is no plain value",
		"push[2] (erp).name: push[1] has it too", "push[2] (erp).kafka.password: is given, and as a file too",
		"push[3] (both): has both kafka and webhook", "push[4] (neither): has neither kafka nor webhook",
		"push[5] (files).webhook.url_file: ", "push[5] (files).webhook.secret_file: ", "push[5] (files).webhook.headers.Authorization_file: ", missing,
		"push[6] (twice).name: given twice", "push[7]: is no mapping", "push[8].kafka: is no mapping", "push[8].name: ")
	fails(t, s.Validate(), "push[4] (neither)")
	if err := s.ValidateIngest(); err != nil && strings.Contains(err.Error(), "push") {
		t.Errorf("ingest minds the key: %v", err)
	}
	for yaml, want := range map[string]string{
		"push: {name: x}": "push: is no list", "push: hunter2": "push: is no list", `push: "[hunter2"`: "push: ", "push.x: hunter2": `unknown key "push.x"`,
		`push: "*hunter2"`: "quote a value", `push: "[]\n---\n[]"`: "more than one document",
		"push: [{name: x, kafka: {brokers: ['h'], topic: t}}]": `push[0] (x).kafka.brokers: "h" is not HOST:PORT`,
	} {
		s, err := source{yaml: yaml}.load(t)
		if err == nil {
			err = s.ValidateSync()
		}
		fails(t, err, want)
	}
}

func TestPushFindings(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	got := pushFindings([]feed.PushStatus{
		{Name: "well"},
		{Name: "waits", Standby: "another"},
		{Name: "short", FailingSince: now.Add(-59 * time.Second), Detail: "x"},
		{Name: "long", FailingSince: now.Add(-time.Minute), Detail: "nobody answers"},
		{Name: "gone", Removed: true},
	}, now)
	want := []string{"long: nothing was delivered since 2026-11-22T11:59:00Z: nobody answers", "gone: the consumer was removed"}
	if len(got) != len(want) {
		t.Fatalf("%+v, want %q", got, want)
	}
	for i, f := range got {
		if f.Failing || f.Component != "push" || !strings.HasPrefix(f.Message, want[i]) {
			t.Errorf("%+v, want a warning %q", f, want[i])
		}
	}
}

// The daemon that does not push starts whatever the key says, and cannot read the secrets.
func TestIngestIgnoresPush(t *testing.T) {
	t.Parallel()
	_, _, err := daemon(t, map[string]string{"PLENUM_PUSH": "[{name: x, webhook: {url_file: " + os.DevNull + "/none}}]"},
		"--database.url", "postgres://localhost/x", "--mqtt.brokers", "tcp://h")
	if err != nil {
		t.Error(err)
	}
}
