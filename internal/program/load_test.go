package program

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The names that operators rely on: key, environment variable, default.
func TestEveryKey(t *testing.T) {
	t.Parallel()
	defaults := map[string]string{
		"database.url": "", "database.owner_url": "", "database.read_url": "", "database.schema": "public", "database.migrate": "true",
		"mqtt.brokers": "", "mqtt.client_id": "plenum-ingest", "mqtt.topics": "telemetry/{device_id},telemetry/{device_id}/{kind}",
		"mqtt.share_group": "", "mqtt.connections": "1", "mqtt.qos": "1", "mqtt.username": "", "mqtt.password": "",
		"mqtt.ca_file": "", "mqtt.cert_file": "", "mqtt.key_file": "",
		"mqtt.keepalive": "30s", "mqtt.stall_after": "30s", "mqtt.window_messages": "65536", "mqtt.window_bytes": "67108864",
		"payload.time": "/ts", "payload.metrics": "/metrics", "payload.device_id": "/device_id", "payload.kind": "/kind", "payload.seq": "/seq",
		"payload.time_unit": "ms",
		"ingest.batch_rows": "5000", "ingest.batch_bytes": "8388608", "ingest.linger": "20ms", "ingest.writers": "2",
		"ingest.max_payload_bytes": "262144", "ingest.drain_timeout": "30s",
		"partition.retention_days": "8", "partition.premake_days": "4", "partition.expired": "archive", "partition.archive_days": "90",
		"partition.max_retire_bytes": "0",
		"quarantine.retention_days":  "30", "quarantine.max_bytes": "1073741824",
		"sync.batch_rows": "5000", "sync.workers": "1", "push": "",
		"http.listen": "127.0.0.1:8080", "log.level": "info", "log.format": "",
	}
	secrets := []string{"database.url", "database.owner_url", "database.read_url", "mqtt.password", "push"}
	l := NewLoader("127.0.0.1:8080")
	var help bytes.Buffer
	l.PrintKeys(&help)
	for _, k := range l.keys {
		def, known := defaults[k.name]
		if !known || def != k.def {
			t.Errorf("%s has the default %q, want %q (known: %t)", k.name, k.def, def, known)
		}
		delete(defaults, k.name)
		env := "PLENUM_" + strings.ToUpper(strings.ReplaceAll(k.name, ".", "_"))
		if k.secret != slices.Contains(secrets, k.name) {
			t.Errorf("%s is secret: %t", k.name, k.secret)
		}
		for _, want := range []string{"\n  " + k.name + "\n", "\n        " + env, k.help, k.def} {
			if !strings.Contains(help.String(), want) {
				t.Errorf("help does not say %q", want)
			}
		}
		if k.secret && !strings.Contains(help.String(), env+" or "+env+"_FILE\n") {
			t.Errorf("help does not name %s_FILE", env)
		}
	}
	if len(defaults) > 0 {
		t.Errorf("missing keys: %v", slices.Sorted(maps.Keys(defaults)))
	}
}

func TestDefaultsAreTaken(t *testing.T) {
	t.Parallel()
	s, err := source{env: map[string]string{"PLENUM_DATABASE_URL": "postgres://db/x"}}.load(t)
	if err != nil {
		t.Fatal(err)
	}
	if s.Database.OwnerURL != "postgres://db/x" || s.Database.ReadURL != "postgres://db/x" {
		t.Errorf("owner_url %q and read_url %q, want database.url", s.Database.OwnerURL, s.Database.ReadURL)
	}
	if !s.Database.Migrate || s.Ingest.Linger != 20*time.Millisecond || s.Quarantine.MaxBytes != 1<<30 || s.MQTT.Connections != 1 ||
		!slices.Equal(s.MQTT.Topics, []string{"telemetry/{device_id}", "telemetry/{device_id}/{kind}"}) || s.MQTT.Brokers != nil {
		t.Errorf("defaults %+v", s)
	}
	empty, err := source{yaml: "# nothing\n"}.load(t)
	if err != nil || empty.Sync.Workers != 1 {
		t.Errorf("an empty file: %v, %+v", err, empty)
	}
}

// Flag before environment before file before default, for keys of every type.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	all := source{
		args: []string{
			"--database.url", "flag", "--database.migrate", "false", "--mqtt.brokers", "tcp://flag, tcp://two", "--mqtt.connections", "3",
			"--ingest.linger", "3s", "--quarantine.max_bytes", "3 MiB", "--log.level", "flag",
		},
		env: map[string]string{
			"PLENUM_DATABASE_URL": "env", "PLENUM_DATABASE_MIGRATE": "true", "PLENUM_MQTT_BROKERS": "tcp://env", "PLENUM_MQTT_CONNECTIONS": "2",
			"PLENUM_INGEST_LINGER": "2s", "PLENUM_QUARANTINE_MAX_BYTES": "2KiB", "PLENUM_LOG_LEVEL": "env",
		},
		yaml: `
database: {url: file, migrate: false}
mqtt:
  brokers: [tcp://file, "tcp://second"]
  connections: 1
ingest.linger: 1s
quarantine.max_bytes: 1
log:
  level: file
`,
	}
	got := func(s source) []any {
		t.Helper()
		v, err := s.load(t)
		if err != nil {
			t.Fatal(err)
		}
		return []any{v.Database.URL, v.Database.Migrate, v.MQTT.Brokers, v.MQTT.Connections, v.Ingest.Linger, v.Quarantine.MaxBytes, v.Log.Level}
	}
	for _, c := range []struct {
		name string
		from source
		want []any
	}{
		{"flags", all, []any{"flag", false, []string{"tcp://flag", "tcp://two"}, 3, 3 * time.Second, int64(3 << 20), "flag"}},
		{"environment", source{env: all.env, yaml: all.yaml}, []any{"env", true, []string{"tcp://env"}, 2, 2 * time.Second, int64(2 << 10), "env"}},
		{"file", source{yaml: all.yaml}, []any{"file", false, []string{"tcp://file", "tcp://second"}, 1, time.Second, int64(1), "file"}},
		{"defaults", source{}, []any{"", true, []string(nil), 1, 20 * time.Millisecond, int64(1 << 30), "info"}},
	} {
		if diff := cmp.Diff(c.want, got(c.from)); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
	emptied, err := source{args: []string{"--payload.metrics", ""}, yaml: "payload: {seq: \"\"}"}.load(t)
	if err != nil || emptied.Payload.Metrics != "" || emptied.Payload.Seq != "" {
		t.Errorf("empty values: %v, %+v", err, emptied.Payload)
	}
}

func TestTheConfigurationFilesPath(t *testing.T) {
	t.Parallel()
	path := file(t, "log: {level: warn}")
	s, err := source{env: map[string]string{"PLENUM_CONFIG": path}}.load(t)
	if err != nil || s.Log.Level != "warn" {
		t.Errorf("PLENUM_CONFIG: %v, log.level %q", err, s.Log.Level)
	}
	_, err = source{args: []string{"--config", path + ".none"}}.load(t)
	fails(t, err, "--config", path+".none")
}

func TestSecretsFromFiles(t *testing.T) {
	t.Parallel()
	path := file(t, "two words\r\n")
	s, err := source{env: map[string]string{"PLENUM_MQTT_PASSWORD_FILE": path}, yaml: "mqtt.password: file"}.load(t)
	if err != nil || s.MQTT.Password != "two words" {
		t.Errorf("%v, password %q", err, s.MQTT.Password)
	}
	s, err = source{env: map[string]string{"PLENUM_MQTT_PASSWORD_FILE": path}, args: []string{"--mqtt.password", "flag"}}.load(t)
	if err != nil || s.MQTT.Password != "flag" {
		t.Errorf("%v, password %q", err, s.MQTT.Password)
	}
	_, err = source{env: map[string]string{"PLENUM_MQTT_PASSWORD_FILE": path, "PLENUM_MQTT_PASSWORD": "hunter2"}}.load(t)
	fails(t, err, "mqtt.password", "both PLENUM_MQTT_PASSWORD and PLENUM_MQTT_PASSWORD_FILE")
	_, err = source{env: map[string]string{"PLENUM_DATABASE_URL_FILE": path + ".none"}}.load(t)
	fails(t, err, "database.url", path+".none")
	s, err = source{env: map[string]string{"PLENUM_LOG_LEVEL_FILE": path}}.load(t) // no secret
	if err != nil || s.Log.Level != "info" {
		t.Errorf("%v, log.level %q", err, s.Log.Level)
	}
}

// fails fails unless err is a usage error that says all of want.
func fails(t *testing.T, err error, want ...string) {
	t.Helper()
	if ExitCode(err) != ExitUsage {
		t.Errorf("exit code %d of %v, want %d", ExitCode(err), err, ExitUsage)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\ndoes not say %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a secret is shown: %v", err)
	}
}

func TestFaultsOfTheFile(t *testing.T) {
	t.Parallel()
	for yaml, want := range map[string]string{
		"mqtt: {clientid: x}":                       `unknown key "mqtt.clientid"`,
		"mqtt.client_id.x: y":                       `unknown key "mqtt.client_id.x"`,
		"mqtt: {client_id: {x: y}}":                 "mqtt.client_id: is no plain value",
		"nothing:":                                  `unknown key "nothing"`,
		"mqtt: x":                                   `unknown key "mqtt"`,
		"Log.level: info":                           `unknown key "Log.level"`,
		"a: 1\nb: {c: 1}":                           "unknown key \"b.c\"",
		"log: {level: info, level: warn}":           "log.level: given twice",
		"log.level: info\nlog.level: warn":          "log.level: given twice",
		"log: {level: info}\nlog.level: warn":       "log.level: given twice",
		"log: {level: info}\nlog: {level: warn}":    "log.level: given twice",
		"log: {level: info}\n---\nlog: {format: x}": "more than one document",
		"- log.level":                               "holds no keys",
		"hunter2":                                   "holds no keys",
		"log: {level: [info, warn]}":                "log.level: is no plain value",
		"mqtt: {brokers: [{url: x}]}":               "mqtt.brokers: is no plain value",
		"mqtt: {brokers: [[x]]}":                    "mqtt.brokers: is no plain value",
		"mqtt: &a {x: *a}":                          `unknown key "mqtt.x"`, // no endless descent
		"mqtt: {client_id: &a x, username: *a}":     "mqtt.username: is no plain value",
		"log: {level: info":                         "line 1",
		"mqtt: {password: *hunter2}":                "quote a value that begins with *",
		"mqtt: {password: {hunter2}}":               "mqtt.password: is no plain value",
		"mqtt: {password: [hunter2]}":               "mqtt.password: is no plain value",
		"mqtt: {password:hunter2}":                  `unknown key "mqtt.password"`,
		"mqtt:\n  password: a: hunter2":             "line 2",
	} {
		_, err := source{yaml: yaml}.load(t)
		if err == nil {
			t.Errorf("%q is no fault", yaml)
			continue
		}
		fails(t, err, "--config: ", want)
	}
}

func TestEveryFaultIsReported(t *testing.T) {
	t.Parallel()
	path := file(t, "mqtt: {clientid: x, keepalive: soon}\nsync: {workers: 0}\npartition: {expired: burn}")
	_, _, err := daemon(t, map[string]string{
		"PLENUM_CONFIG": path, "PLENUM_DATABASE_MIGRATE": "perhaps", "PLENUM_MQTT_QOS": "2", "PLENUM_INGEST_WRITERS": "many",
		"PLENUM_QUARANTINE_MAX_BYTES": "9 MB", "PLENUM_PAYLOAD_TIME_UNIT": "h", "PLENUM_MQTT_BROKERS": "http://broker",
		"PLENUM_DATABASE_OWNER_URL": "postgres://u:hunter2@h:port/db", "PLENUM_MQTT_TOPICS": "a/#/b", "PLENUM_LOG_LEVEL": "loud",
	}, "--http.listen", "example.com:80", "--log.format", "xml", "--ingest.linger", "-1s", "--ingest.drain_timeout", "0s",
		"--ingest.batch_rows", "0", "--partition.premake_days", "0", "--database.schema", "")
	fails(t, err,
		`unknown key "mqtt.clientid"`, `mqtt.keepalive: "soon"`, `partition.expired: "burn"`,
		`database.migrate: "perhaps"`, "mqtt.qos: 2", `ingest.writers: "many"`, `quarantine.max_bytes: "9 MB"`, `payload.time_unit "h"`,
		"database.url: is not set", "database.owner_url: ", "a/#/b", `log.level: "loud"`,
		`http.listen: "example.com:80"`, "ingest.linger: -1s", "ingest.drain_timeout: 0s", "ingest.batch_rows: 0", "partition.premake_days: 0",
		"database.schema: is empty")
}

func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"hunter2", "postgres://u:hunter2@host:port/db", "postgres://u:hun%zzter2@h/db", "postgres://u:hunter2/x@h:5432/db",
		"host=h password=hunter2 port=x", "host=h password = hunter2 port=x", "password='hunter2", "password=hunter2 host",
		"mysql://u:hunter2@h/db", "u:hunter2@h:5432/db", "postgres://u:hunter2@h/db?sslmode=bogus", "postgres://h/db?password=hunter2&sslmode=x",
		"postgres://u:hunter2@h/db?pool_max_conns=x", "postgres://u:`: hunter2@h:x/db",
	} {
		for _, key := range []string{"database.url", "database.owner_url", "database.read_url"} {
			args := []string{"--mqtt.brokers", "tcp://localhost", "--" + key, url}
			if key != "database.url" {
				args = append(args, "--database.url", "postgres://localhost/x")
			}
			_, _, err := daemon(t, nil, args...)
			fails(t, err, key+": ")
			if strings.Contains(err.Error(), "zter2") {
				t.Errorf("a secret is shown: %v", err)
			}
		}
	}
	for _, broker := range []string{"tcp://u:hunter2@h:port", "tcp://u:hun%zzter2@h", "http://u:hunter2@h", "tcp://:hunter2@h", "tcp://u:hunter2@h/path", "u:hunter2@h"} {
		_, _, err := daemon(t, nil, "--database.url", "postgres://localhost/x", "--mqtt.brokers", broker)
		fails(t, err, "mqtt.brokers")
	}
	_, _, err := daemon(t, map[string]string{"PLENUM_MQTT_PASSWORD": "hunter2"}, "--database.url", "postgres://localhost/x", "--mqtt.brokers", "tcp://h")
	fails(t, err, "mqtt.password")
}
