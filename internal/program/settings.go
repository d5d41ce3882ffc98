package program

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Settings is the value of every key.
type Settings struct {
	Database struct {
		URL, OwnerURL, ReadURL, Schema string
		Migrate                        bool
	}
	MQTT struct {
		Brokers, Topics             []string
		ClientID, ShareGroup        string
		Connections, QoS            int
		Username, Password          string
		CAFile, CertFile, KeyFile   string
		KeepAlive, StallAfter       time.Duration
		WindowMessages, WindowBytes int
	}
	Payload struct{ Time, Metrics, DeviceID, Kind, Seq, TimeUnit string }
	Ingest  struct {
		BatchRows, BatchBytes, Writers, MaxPayloadBytes int
		Linger, DrainTimeout                            time.Duration
	}
	Partition struct {
		RetentionDays, PremakeDays, ArchiveDays int
		Expired                                 string
		MaxRetireBytes                          int64
	}
	Quarantine struct {
		RetentionDays int
		MaxBytes      int64
	}
	Sync struct{ BatchRows, Workers int }
	Push string // YAML; push reads it, since ingest need not
	HTTP struct{ Listen string }
	Log  struct{ Level, Format string }
}

// A key is one setting: its flag is --name, its environment variable PLENUM_NAME, its place in the file the path
// that the dots make.
type key struct {
	name   string
	def    string
	help   string
	secret bool
	list   bool
	tree   bool // the value is YAML: nested in the file, as text elsewhere
	set    func(value string) error
}

func (k key) env() string {
	return "PLENUM_" + strings.ToUpper(strings.ReplaceAll(k.name, ".", "_"))
}

// keys lists every key with the field of s that it sets. listen is http.listen's default, which differs by program.
func (s *Settings) keys(listen string) []key {
	return []key{
		secret("database.url", &s.Database.URL, "PostgreSQL, as a URL; not through a transaction pooler"),
		secret("database.owner_url", &s.Database.OwnerURL, "the same database as the tables' owner, for migrations and partitions; not through a transaction pooler (default database.url)"),
		secret("database.read_url", &s.Database.ReadURL, "a replica, for feed reads (default database.url)"),
		text("database.schema", &s.Database.Schema, "public", "schema of all tables"),
		boolean("database.migrate", &s.Database.Migrate, "true", "ingest migrates the schema at its start"),

		list("mqtt.brokers", &s.MQTT.Brokers, "", "comma-separated URLs: tcp, ssl, ws, wss"),
		text("mqtt.client_id", &s.MQTT.ClientID, "plenum-ingest", "connection n has this client id with -n, from 0"),
		list("mqtt.topics", &s.MQTT.Topics, "telemetry/{device_id},telemetry/{device_id}/{kind}", "comma-separated topic templates"),
		text("mqtt.share_group", &s.MQTT.ShareGroup, "", "subscribe as a member of this share group"),
		integer("mqtt.connections", &s.MQTT.Connections, "1", "connections to the broker; more than 1 needs a share group or topics that split"),
		integer("mqtt.qos", &s.MQTT.QoS, "1", "0 or 1, of the subscriptions"),
		text("mqtt.username", &s.MQTT.Username, "", "user name for the broker"),
		secret("mqtt.password", &s.MQTT.Password, "password for the broker"),
		text("mqtt.ca_file", &s.MQTT.CAFile, "", "PEM certificates that the broker's must come from"),
		text("mqtt.cert_file", &s.MQTT.CertFile, "", "PEM client certificate"),
		text("mqtt.key_file", &s.MQTT.KeyFile, "", "PEM key of the client certificate"),
		duration("mqtt.keepalive", &s.MQTT.KeepAlive, "30s", "MQTT keepalive"),
		duration("mqtt.stall_after", &s.MQTT.StallAfter, "30s", "a message that holds up its connection's acknowledgements for longer is named"),
		integer("mqtt.window_messages", &s.MQTT.WindowMessages, "65536", "messages that a connection may hold unacknowledged; more than the broker's in-flight window"),
		integer("mqtt.window_bytes", &s.MQTT.WindowBytes, "67108864", "bytes that a connection may hold unacknowledged"),

		text("payload.time", &s.Payload.Time, "/ts", "JSON pointer to the device's time"),
		text("payload.metrics", &s.Payload.Metrics, "/metrics", "JSON pointer to the object that is stored; empty: the whole object"),
		text("payload.device_id", &s.Payload.DeviceID, "/device_id", "JSON pointer"),
		text("payload.kind", &s.Payload.Kind, "/kind", "JSON pointer"),
		text("payload.seq", &s.Payload.Seq, "/seq", "JSON pointer"),
		text("payload.time_unit", &s.Payload.TimeUnit, "ms", "s, ms, us, ns, rfc3339, or arrival (the time of receipt; repeats are then stored again)"),

		integer("ingest.batch_rows", &s.Ingest.BatchRows, "5000", "rows of a transaction"),
		integer("ingest.batch_bytes", &s.Ingest.BatchBytes, "8388608", "payload bytes of a transaction"),
		duration("ingest.linger", &s.Ingest.Linger, "20ms", "how long a batch's first message waits for others"),
		integer("ingest.writers", &s.Ingest.Writers, "2", "transactions at once"),
		integer("ingest.max_payload_bytes", &s.Ingest.MaxPayloadBytes, "262144", "a longer payload is quarantined"),
		duration("ingest.drain_timeout", &s.Ingest.DrainTimeout, "30s", "how long a stop may take to store what is queued"),

		integer("partition.retention_days", &s.Partition.RetentionDays, "8", "days kept live, today included"),
		integer("partition.premake_days", &s.Partition.PremakeDays, "4", "days created ahead"),
		text("partition.expired", &s.Partition.Expired, "archive", "archive or drop, for a day past its retention"),
		integer("partition.archive_days", &s.Partition.ArchiveDays, "90", "days kept in all, counted from today; a day of the archive older than that is dropped"),
		size("partition.max_retire_bytes", &s.Partition.MaxRetireBytes, "0", "most that one round archives, detaches or drops of one table, 0 for no limit; a day that is larger alone stays"),
		integer("quarantine.retention_days", &s.Quarantine.RetentionDays, "30", "days kept in quarantine"),
		size("quarantine.max_bytes", &s.Quarantine.MaxBytes, "1073741824", "size of the quarantine; past it, a message's bytes are dropped"),

		integer("sync.batch_rows", &s.Sync.BatchRows, "5000", "rows of a marking transaction"),
		integer("sync.workers", &s.Sync.Workers, "1", "marking transactions at once"),

		tree("push", &s.Push, "consumers that syncjob pushes to, each to kafka or a webhook: a list in the file, elsewhere the same as YAML or JSON text; see docs/operations.md"),

		text("http.listen", &s.HTTP.Listen, listen, "IP address and port; there is no authentication, so others than loopback are warned of"),
		text("log.level", &s.Log.Level, "info", "debug, info, warn or error"),
		text("log.format", &s.Log.Format, "", "json or console (default console on a terminal)"),
	}
}

func text(name string, p *string, def, help string) key {
	return key{name: name, def: def, help: help, set: func(v string) error { *p = v; return nil }}
}

func secret(name string, p *string, help string) key {
	k := text(name, p, "", help)
	k.secret = true
	return k
}

func tree(name string, p *string, help string) key {
	k := secret(name, p, help)
	k.tree = true
	return k
}

func list(name string, p *[]string, def, help string) key {
	return key{name: name, def: def, help: help, list: true, set: func(v string) error {
		*p = nil
		for _, item := range strings.Split(v, ",") {
			if item = strings.TrimSpace(item); item != "" {
				*p = append(*p, item)
			}
		}
		return nil
	}}
}

func boolean(name string, p *bool, def, help string) key {
	return key{name: name, def: def, help: help, set: func(v string) (err error) {
		if *p, err = strconv.ParseBool(v); err != nil {
			return fmt.Errorf("%q is neither true nor false", v)
		}
		return nil
	}}
}

func integer(name string, p *int, def, help string) key {
	return key{name: name, def: def, help: help, set: func(v string) (err error) {
		if *p, err = strconv.Atoi(v); err != nil {
			return fmt.Errorf("%q is not a whole number", v)
		}
		return nil
	}}
}

// size is an integer with an optional unit KiB, MiB or GiB.
func size(name string, p *int64, def, help string) key {
	return key{name: name, def: def, help: help, set: func(v string) error {
		digits, factor := v, int64(1)
		for unit, f := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
			if rest, ok := strings.CutSuffix(v, unit); ok {
				digits, factor = strings.TrimSpace(rest), f
			}
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 0 || n > (1<<62)/factor {
			return fmt.Errorf("%q is not a number of bytes, such as 1048576 or 64 MiB", v)
		}
		*p = n * factor
		return nil
	}}
}

func duration(name string, p *time.Duration, def, help string) key {
	return key{name: name, def: def, help: help, set: func(v string) (err error) {
		if *p, err = time.ParseDuration(v); err != nil {
			return fmt.Errorf("%q is not a duration, such as 20ms or 30s", v)
		}
		return nil
	}}
}
