package kafka

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"regexp"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"plenum/pkg/feed"
)

// Defaults of Config.
const (
	DefaultTimeout         = 30 * time.Second
	DefaultMaxMessageBytes = 1_000_012 // a topic's max.message.bytes, as Kafka has it by default less its overhead
	DefaultCompression     = "snappy"
)

const longestTimeout = 10 * time.Minute

// Config is a topic and how to reach it.
type Config struct {
	Brokers []string // HOST:PORT of some of the cluster
	Topic   string   // which must exist

	TLS               bool   // also set by the files
	CAFile            string // PEM certificates that the brokers' must come from; empty: the system's
	CertFile, KeyFile string // PEM client certificate and key; both or neither

	SASL               string // plain, scram-sha-256 or scram-sha-512; empty: none
	Username, Password string

	Compression     string        // none, gzip, snappy, lz4 or zstd
	MaxMessageBytes int           // of a batch of records before compression; the topic's max.message.bytes at most
	Timeout         time.Duration // after which a delivery without acknowledgement shows; the records stay on their way
}

var (
	validTopic = regexp.MustCompile(`^[A-Za-z0-9._-]{1,249}$`)
	codecs     = map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
)

// Validate joins every fault, each beginning with the field's key; none shows the password. It reads the files.
func (c Config) Validate() error {
	_, err := c.options()
	return err
}

// faults are of what stands alone.
func (c Config) faults() []error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("brokers: is empty"))
	}
	for _, b := range c.Brokers {
		if host, port, err := net.SplitHostPort(b); err != nil || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("brokers: %q is not HOST:PORT", b))
		}
	}
	if !validTopic.MatchString(c.Topic) || c.Topic == "." || c.Topic == ".." {
		errs = append(errs, fmt.Errorf("topic: %q is no name of a topic: 1 to 249 letters, digits, dots, underscores and hyphens", c.Topic))
	}
	if _, known := codecs[c.Compression]; !known {
		errs = append(errs, fmt.Errorf("compression: %q is none of none, gzip, snappy, lz4, zstd", c.Compression))
	}
	if c.MaxMessageBytes < 1024 || c.MaxMessageBytes > 1<<30 {
		errs = append(errs, fmt.Errorf("max_message_bytes: %d is not from 1024 to %d", c.MaxMessageBytes, 1<<30))
	}
	if c.Timeout <= 0 || c.Timeout > longestTimeout {
		errs = append(errs, fmt.Errorf("timeout: %s is not above 0s and up to %s", c.Timeout, longestTimeout))
	}
	return errs
}

func (c Config) options() ([]kgo.Opt, error) {
	errs := c.faults()
	tlsConfig, err := c.tls()
	errs = append(errs, err)
	mechanism, err := c.mechanism()
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	options := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...), kgo.ClientID("plenum"), kgo.SoftwareNameAndVersion("plenum", "1"), kgo.DisableClientMetrics(),
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerBatchCompression(codecs[c.Compression]), kgo.ProducerBatchMaxBytes(int32(c.MaxMessageBytes)),
		kgo.MaxBufferedRecords(1 << 30), // a page bounds what is buffered
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)), kgo.ProducerLinger(0),
		kgo.DialTimeout(10 * time.Second), kgo.RetryBackoffFn(backoff),
		kgo.MetadataMinAge(time.Second), kgo.UnknownTopicRetries(2), // a topic that does not exist shows within seconds
	}
	if tlsConfig != nil {
		options = append(options, kgo.DialTLSConfig(tlsConfig))
	}
	if mechanism != nil {
		options = append(options, kgo.SASL(mechanism))
	}
	return options, nil
}

// backoff is that of the client's own retries: full jitter, as everywhere, above a little.
func backoff(tries int) time.Duration {
	const least, most = 50 * time.Millisecond, 5 * time.Second
	return least + rand.N(min(least<<min(tries, 20), most))
}

func (c Config) tls() (*tls.Config, error) {
	if !c.TLS && c.CAFile == "" && c.CertFile == "" && c.KeyFile == "" {
		return nil, nil
	}
	return feed.TLSConfig(c.CAFile, c.CertFile, c.KeyFile)
}

func (c Config) mechanism() (sasl.Mechanism, error) {
	if c.SASL == "" {
		if c.Username != "" || c.Password != "" {
			return nil, errors.New("sasl: is not set, but username or password is: plain, scram-sha-256 or scram-sha-512")
		}
		return nil, nil
	}
	if c.Username == "" || c.Password == "" {
		return nil, errors.New("sasl: needs username and password")
	}
	switch c.SASL {
	case "plain":
		return plain.Auth{User: c.Username, Pass: c.Password}.AsMechanism(), nil
	case "scram-sha-256":
		return scram.Auth{User: c.Username, Pass: c.Password}.AsSha256Mechanism(), nil
	case "scram-sha-512":
		return scram.Auth{User: c.Username, Pass: c.Password}.AsSha512Mechanism(), nil
	}
	return nil, fmt.Errorf("sasl: %q is none of plain, scram-sha-256, scram-sha-512", c.SASL)
}
