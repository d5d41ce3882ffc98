package program

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"plenum/pkg/httpapi"
	"plenum/pkg/ingest"
	"plenum/pkg/mqtt"
	"plenum/pkg/syncjob"
	"plenum/pkg/telemetry"
)

func (s Settings) telemetry() telemetry.Config {
	p := s.Payload
	return telemetry.Config{
		Topics: s.MQTT.Topics, Time: p.Time, Metrics: p.Metrics, DeviceID: p.DeviceID, Kind: p.Kind, Seq: p.Seq,
		TimeUnit: p.TimeUnit, MaxPayloadBytes: s.Ingest.MaxPayloadBytes,
	}
}

// mqtt leaves Filters empty: they come from the decoder.
func (s Settings) mqtt(filters []string) mqtt.Config {
	m := s.MQTT
	return mqtt.Config{
		Brokers: m.Brokers, ClientID: m.ClientID, Filters: filters, ShareGroup: m.ShareGroup, Connections: m.Connections,
		AtMostOnce: m.QoS == 0, Username: m.Username, Password: m.Password,
		CAFile: m.CAFile, CertFile: m.CertFile, KeyFile: m.KeyFile, KeepAlive: m.KeepAlive, StallAfter: m.StallAfter,
		WindowMessages: m.WindowMessages, WindowBytes: m.WindowBytes,
		MaxPacketBytes: max(mqtt.DefaultMaxPacketBytes, 2*s.Ingest.MaxPayloadBytes),
	}
}

func (s Settings) ingest() ingest.Config {
	i := s.Ingest
	return ingest.Config{BatchRows: i.BatchRows, BatchBytes: i.BatchBytes, Linger: i.Linger, Writers: i.Writers}
}

func (s Settings) sync() syncjob.Config {
	return syncjob.Config{BatchRows: s.Sync.BatchRows, Workers: s.Sync.Workers}
}

// ValidateIngest returns every fault of what the ingest daemon uses, as one UsageError.
func (s Settings) ValidateIngest() error {
	var filters []string
	errs := []error{s.validateShared(), s.ingest().Validate(), s.telemetry().Validate()}
	if d, err := telemetry.NewDecoder(s.telemetry()); err == nil {
		filters = d.Filters()
		_, mqttErr := mqtt.New(s.mqtt(filters), nil, nil, zap.NewNop(), prometheus.NewRegistry()) // also reads the TLS files
		errs = append(errs, mqttErr)
	}
	if s.MQTT.QoS != 0 && s.MQTT.QoS != 1 {
		errs = append(errs, fmt.Errorf("mqtt.qos: %d is neither 0 nor 1", s.MQTT.QoS))
	}
	if s.MQTT.KeepAlive == 0 {
		errs = append(errs, errors.New("mqtt.keepalive: 0s is not above 0s"))
	}
	if s.MQTT.StallAfter == 0 {
		errs = append(errs, errors.New("mqtt.stall_after: 0s is not above 0s"))
	}
	if s.MQTT.WindowMessages < 1 {
		errs = append(errs, fmt.Errorf("mqtt.window_messages: %d is less than 1", s.MQTT.WindowMessages))
	}
	if s.MQTT.WindowBytes < s.Ingest.MaxPayloadBytes {
		errs = append(errs, fmt.Errorf("mqtt.window_bytes: %d is less than ingest.max_payload_bytes, %d", s.MQTT.WindowBytes, s.Ingest.MaxPayloadBytes))
	}
	if s.Ingest.DrainTimeout <= 0 {
		errs = append(errs, fmt.Errorf("ingest.drain_timeout: %s is not above 0s", s.Ingest.DrainTimeout))
	}
	return usage(append(errs, s.validatePartitions())...)
}

// ValidateSync returns every fault of what the sync daemon uses, as one UsageError.
func (s Settings) ValidateSync() error {
	_, pushErr := s.push()
	return usage(s.validateShared(), s.sync().Validate(), pushErr)
}

// Validate returns every fault, as one UsageError.
func (s Settings) Validate() error {
	_, pushErr := s.push()
	return usage(s.ValidateIngest(), s.sync().Validate(), pushErr)
}

func (s Settings) validateShared() error {
	_, logErr := NewLogger(s, zapcore.AddSync(io.Discard), false)
	errs := []error{httpapi.ValidateListen(s.HTTP.Listen), logErr, checkURL("database.url", s.Database.URL)}
	if s.Database.OwnerURL != s.Database.URL {
		errs = append(errs, checkURL("database.owner_url", s.Database.OwnerURL))
	}
	if s.Database.ReadURL != s.Database.URL {
		errs = append(errs, checkURL("database.read_url", s.Database.ReadURL))
	}
	if s.Database.Schema == "" {
		errs = append(errs, errors.New("database.schema: is empty"))
	}
	return errors.Join(errs...)
}

// checkURL returns why a connection string is none, without any of it: pgx does not recognize every password in one.
func checkURL(key, url string) error {
	if url == "" {
		return fmt.Errorf("%s: is not set", key)
	}
	_, err := pgxpool.ParseConfig(url)
	if err == nil {
		return nil
	}
	reason := err.Error() // cannot parse `URL`: reason
	if i := strings.LastIndex(reason, "`: "); i >= 0 {
		reason = reason[i+len("`: "):]
	}
	return fmt.Errorf("%s: cannot be read as a connection URL: %s", key, reason)
}

func (s Settings) validatePartitions() error {
	var errs []error
	between := func(key string, v, least, most int) {
		if v < least || v > most {
			errs = append(errs, fmt.Errorf("%s: %d is not from %d to %d", key, v, least, most))
		}
	}
	const century = 36525
	p := s.Partition
	between("partition.retention_days", p.RetentionDays, 2, century) // a repeat is looked for in yesterday too
	between("partition.premake_days", p.PremakeDays, 1, 366)
	between("partition.archive_days", p.ArchiveDays, 1, century)
	between("quarantine.retention_days", s.Quarantine.RetentionDays, 1, century)
	switch {
	case p.Expired != "archive" && p.Expired != "drop":
		errs = append(errs, fmt.Errorf("partition.expired: %q is neither archive nor drop", p.Expired))
	case p.Expired == "archive" && p.ArchiveDays <= p.RetentionDays:
		errs = append(errs, fmt.Errorf("partition.archive_days: %d is not above partition.retention_days, %d: both count from today", p.ArchiveDays, p.RetentionDays))
	}
	return errors.Join(errs...)
}

func usage(errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return &UsageError{err}
	}
	return nil
}
