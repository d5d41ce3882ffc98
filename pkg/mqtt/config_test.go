package mqtt_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/zap"

	"plenum/pkg/mqtt"
)

func valid() mqtt.Config {
	return mqtt.Config{Brokers: []string{"tcp://127.0.0.1"}, ClientID: "plenum-ingest", Filters: []string{"telemetry/+", "telemetry/+/+"}}
}

func TestValidateNamesKeyAndValue(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*mqtt.Config)
		want   string // "" is no fault
	}{
		"valid":               {func(*mqtt.Config) {}, ""},
		"share group":         {func(c *mqtt.Config) { c.ShareGroup, c.Connections = "ingest", 8 }, ""},
		"divided":             {func(c *mqtt.Config) { c.Connections = 2 }, ""},
		"IPv6, path":          {func(c *mqtt.Config) { c.Brokers = []string{"wss://[::1]/mqtt", "MQTTS://host:1"} }, ""},
		"no brokers":          {func(c *mqtt.Config) { c.Brokers = nil }, "mqtt.brokers: none"},
		"scheme":              {func(c *mqtt.Config) { c.Brokers = []string{"http://host"} }, `mqtt.brokers: "http://host": the scheme`},
		"host":                {func(c *mqtt.Config) { c.Brokers = []string{"tcp://:1883"} }, `mqtt.brokers: "tcp://:1883" names no host`},
		"bare host":           {func(c *mqtt.Config) { c.Brokers = []string{"localhost:1883"} }, `mqtt.brokers: "localhost:1883": the scheme`},
		"path":                {func(c *mqtt.Config) { c.Brokers = []string{"tcp://host/mqtt"} }, "only ws and wss URLs have a path"},
		"not a URL":           {func(c *mqtt.Config) { c.Brokers = []string{"tcp://u:secret@host:port"} }, `"tcp://xxxxx@host:port" is not a URL`},
		"client id":           {func(c *mqtt.Config) { c.ClientID = "" }, "mqtt.client_id: empty"},
		"long client id":      {func(c *mqtt.Config) { c.ClientID = strings.Repeat("x", 65534) }, "mqtt.client_id: 65536 bytes"},
		"client id with NUL":  {func(c *mqtt.Config) { c.ClientID = "a\x00" }, `mqtt.client_id: "a\x00-0"`},
		"no filters":          {func(c *mqtt.Config) { c.Filters = nil }, "mqtt.topics: none"},
		"empty filter":        {func(c *mqtt.Config) { c.Filters = []string{""} }, `mqtt.topics "": empty`},
		"wildcard in a level": {func(c *mqtt.Config) { c.Filters = []string{"a/b+"} }, `mqtt.topics "a/b+": a wildcard`},
		"early #":             {func(c *mqtt.Config) { c.Filters = []string{"#/a"} }, `mqtt.topics "#/a": # must be`},
		"twice":               {func(c *mqtt.Config) { c.Filters = []string{"a", "a"} }, `mqtt.topics "a": given twice`},
		"share in a filter":   {func(c *mqtt.Config) { c.Filters = []string{"$share/g/a"} }, `mqtt.topics "$share/g/a": give`},
		"share group with /":  {func(c *mqtt.Config) { c.ShareGroup = "a/b" }, `mqtt.share_group "a/b"`},
		"connections":         {func(c *mqtt.Config) { c.Connections = 3 }, "mqtt.connections 3: more than the 2 topic filters"},
		"negative":            {func(c *mqtt.Config) { c.Connections = -1 }, "mqtt.connections -1"},
		"password alone":      {func(c *mqtt.Config) { c.Password = "secret" }, "mqtt.password: given without mqtt.username"},
		"certificate alone":   {func(c *mqtt.Config) { c.CertFile = "c.crt" }, `mqtt.key_file: empty, with mqtt.cert_file "c.crt"`},
		"key alone":           {func(c *mqtt.Config) { c.KeyFile = "c.key" }, `mqtt.cert_file: empty, with mqtt.key_file "c.key"`},
		"keep-alive":          {func(c *mqtt.Config) { c.KeepAlive = 1500 * time.Millisecond }, "mqtt.keepalive: 1.5s"},
		"stall after":         {func(c *mqtt.Config) { c.StallAfter = -time.Second }, "mqtt.stall_after: -1s"},
		"small packet limit":  {func(c *mqtt.Config) { c.MaxPacketBytes = 128 << 10 }, "mqtt packet limit of 131072 bytes"},
		"packet limit":        {func(c *mqtt.Config) { c.MaxPacketBytes = 1 << 28 }, "mqtt packet limit of 268435456 bytes"},
	} {
		c := valid()
		test.change(&c)
		err := c.Validate()
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: error %v, want %q", name, err, test.want)
		case err != nil && strings.Contains(err.Error(), "secret"):
			t.Errorf("%s: the error shows a password: %v", name, err)
		}
	}
}

func TestValidateJoinsAllFaults(t *testing.T) {
	t.Parallel()
	err := mqtt.Config{Brokers: []string{"x://"}, ShareGroup: "#"}.Validate()
	for _, key := range []string{"mqtt.brokers", "mqtt.client_id", "mqtt.topics", "mqtt.share_group"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("error %v lacks %s", err, key)
		}
	}
}

func TestNewNamesFaultyTLSFiles(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*mqtt.Config){
		"mqtt.ca_file: open /nowhere":      func(c *mqtt.Config) { c.CAFile = "/nowhere" },
		"empty.pem\": holds no PEM":        func(c *mqtt.Config) { c.CAFile = empty },
		`mqtt.cert_file "/nowhere", mqtt.`: func(c *mqtt.Config) { c.CertFile, c.KeyFile = "/nowhere", empty },
	} {
		c := valid()
		change(&c)
		_, err := mqtt.New(c, nil, func(mqtt.Delivery) {}, zap.NewNop(), prometheus.NewPedanticRegistry())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestMetricsAreWellNamed(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	if _, err := mqtt.New(valid(), nil, func(mqtt.Delivery) {}, zap.NewNop(), reg); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if _, err := mqtt.New(valid(), nil, func(mqtt.Delivery) {}, zap.NewNop(), reg); err == nil {
		t.Error("registered twice without an error")
	}
}
