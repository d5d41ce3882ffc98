package mqtt

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Defaults of Config's fields: what a zero value means.
const (
	DefaultKeepAlive      = 30 * time.Second
	DefaultDialTimeout    = 10 * time.Second
	DefaultMaxBackoff     = 30 * time.Second
	DefaultWindowMessages = 1 << 16
	DefaultWindowBytes    = 64 << 20
	DefaultMaxPacketBytes = 8 << 20
	DefaultStallAfter     = 30 * time.Second
)

const (
	maxStringBytes = 65535       // MQTT 1.5.3: a string's length is a 16-bit number
	maxPacket      = 256<<20 - 1 // MQTT 2.2.3: the largest remaining length
	minMaxPacket   = 256 << 10   // the longest topic and keptPayload, with room to spare
	maxConnections = 1024
)

// Config says where to connect and how much to hold. The zero value of an optional field is its default.
type Config struct {
	// Brokers are URLs tried in turn: tcp or mqtt (port 1883), ssl, tls or mqtts (8883), ws (80), wss (443).
	// A user name and password in a URL go before Username and Password.
	Brokers []string
	// ClientID is the stem of the client ids: connection n is "<ClientID>-<n>", from 0.
	ClientID string
	// Filters are the topic filters to subscribe to, without a $share prefix.
	Filters []string
	// ShareGroup, if not empty, makes each subscription "$share/<ShareGroup>/<filter>".
	ShareGroup string
	// Connections is how many connections to hold, 1 if 0. Without a share group the filters are divided among them.
	Connections int
	// AtMostOnce subscribes with QoS 0. Otherwise it is QoS 1: each message has the QoS that it was published with, at most 1.
	AtMostOnce bool

	// Username and Password are sent in CONNECT if Username is not empty.
	Username, Password string
	// CAFile holds the PEM certificates that a broker's must come from; empty: those of the system.
	CAFile string
	// CertFile and KeyFile are this client's PEM certificate and key, both or neither.
	CertFile, KeyFile string

	// KeepAlive is MQTT's, in whole seconds from 1 to 65535. Half of it is how long reading may stand still.
	KeepAlive time.Duration
	// DialTimeout bounds opening a connection, and then again waiting for CONNACK, for SUBACK and for UNSUBACK, and each call
	// of Sessions.
	DialTimeout time.Duration
	// MaxBackoff bounds the wait between two attempts to connect.
	MaxBackoff time.Duration

	// WindowMessages and WindowBytes bound what one connection has read and not acknowledged. When either is reached,
	// reading stops until there is room; one packet always fits into an empty window. WindowMessages should be more than the
	// broker keeps in flight (Mosquitto: max_inflight_messages), else the broker fills it and reading keeps stopping.
	WindowMessages, WindowBytes int
	// MaxPacketBytes is the largest packet read, fixed header included, at least 256 KiB. Of a larger message only the first
	// 64 KiB of the payload are delivered, with its Length; it counts as much in the window.
	MaxPacketBytes int
	// StallAfter is how long the oldest message of a connection may hold up its acknowledgements until it is named.
	StallAfter time.Duration
}

func (c Config) withDefaults() Config {
	orInt := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	orDuration := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	orInt(&c.Connections, 1)
	orInt(&c.WindowMessages, DefaultWindowMessages)
	orInt(&c.WindowBytes, DefaultWindowBytes)
	orInt(&c.MaxPacketBytes, DefaultMaxPacketBytes)
	orDuration(&c.KeepAlive, DefaultKeepAlive)
	orDuration(&c.DialTimeout, DefaultDialTimeout)
	orDuration(&c.MaxBackoff, DefaultMaxBackoff)
	orDuration(&c.StallAfter, DefaultStallAfter)
	return c
}

// Validate returns all faults, joined, each naming the key and the value. It opens no file; New does.
func (c Config) Validate() error {
	c = c.withDefaults()
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	longest := c.ClientID
	if longest != "" {
		longest = clientID(longest, max(c.Connections-1, 0))
	}
	if err := checkClientID(longest); err != nil {
		fault("mqtt.client_id: %w", err)
	}
	c.validateFilters(fault)
	return errors.Join(append(faults, c.validateConnection())...)
}

// validateConnection returns the faults of everything but the client id and the filters.
func (c Config) validateConnection() error {
	c = c.withDefaults()
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if len(c.Brokers) == 0 {
		fault("mqtt.brokers: none given; expected URLs such as tcp://localhost:1883")
	}
	for _, raw := range c.Brokers {
		if _, err := parseBroker(raw); err != nil {
			fault("mqtt.brokers: %w", err)
		}
	}
	c.validateIdentity(fault)
	c.validateLimits(fault)
	return errors.Join(faults...)
}

// validateIdentity is about what a broker knows the client by, but for its id.
func (c Config) validateIdentity(fault func(string, ...any)) {
	for key, value := range map[string]string{"mqtt.username": c.Username, "mqtt.password": c.Password} {
		if len(value) > maxStringBytes {
			fault("%s: %d bytes; at most %d", key, len(value), maxStringBytes)
		}
	}
	if !validString(c.Username) {
		fault("mqtt.username %q: must be UTF-8 without NUL", c.Username)
	}
	if c.Password != "" && c.Username == "" {
		fault("mqtt.password: given without mqtt.username")
	}
	if c.CertFile != "" && c.KeyFile == "" {
		fault("mqtt.key_file: empty, with mqtt.cert_file %q", c.CertFile)
	}
	if c.KeyFile != "" && c.CertFile == "" {
		fault("mqtt.cert_file: empty, with mqtt.key_file %q", c.KeyFile)
	}
}

func (c Config) validateFilters(fault func(string, ...any)) {
	if len(c.Filters) == 0 {
		fault("mqtt.topics: none given")
	}
	seen := make(map[string]bool)
	for _, filter := range c.Filters {
		switch err := checkFilter(c.subscription(filter)); {
		case err != nil:
			fault("mqtt.topics %q: %w", filter, err)
		case strings.HasPrefix(filter, "$share/"):
			fault("mqtt.topics %q: give the group as mqtt.share_group", filter)
		case seen[filter]:
			fault("mqtt.topics %q: given twice", filter)
		}
		seen[filter] = true
	}
	if strings.ContainsAny(c.ShareGroup, "/+#") || !validString(c.ShareGroup) {
		fault("mqtt.share_group %q: must be UTF-8 without NUL, /, + and #", c.ShareGroup)
	}
	switch {
	case c.Connections < 1 || c.Connections > maxConnections:
		fault("mqtt.connections %d: must be 1 to %d", c.Connections, maxConnections)
	case c.ShareGroup == "" && len(c.Filters) > 0 && c.Connections > len(c.Filters):
		fault("mqtt.connections %d: more than the %d topic filters that can be divided among them; set mqtt.share_group, or give more mqtt.topics",
			c.Connections, len(c.Filters))
	}
}

func (c Config) validateLimits(fault func(string, ...any)) {
	if c.KeepAlive < time.Second || c.KeepAlive > maxStringBytes*time.Second || c.KeepAlive%time.Second != 0 {
		fault("mqtt.keepalive: %s: must be whole seconds, 1s to %ds", c.KeepAlive, maxStringBytes)
	}
	if c.DialTimeout < 0 {
		fault("mqtt dial timeout %s: must be positive", c.DialTimeout)
	}
	if c.MaxBackoff < 0 {
		fault("mqtt back-off %s: must be positive", c.MaxBackoff)
	}
	if c.WindowMessages < 1 {
		fault("mqtt.window_messages: %d: must be at least 1", c.WindowMessages)
	}
	if c.WindowBytes < 1 {
		fault("mqtt.window_bytes: %d: must be at least 1", c.WindowBytes)
	}
	if c.MaxPacketBytes < minMaxPacket || c.MaxPacketBytes > maxPacket {
		fault("mqtt packet limit of %d bytes: must be %d to %d", c.MaxPacketBytes, minMaxPacket, maxPacket)
	}
	if c.StallAfter < 0 {
		fault("mqtt.stall_after: %s: must be positive", c.StallAfter)
	}
}

// subscription is a filter as SUBSCRIBE names it.
func (c Config) subscription(filter string) string {
	if c.ShareGroup == "" {
		return filter
	}
	return "$share/" + c.ShareGroup + "/" + filter
}

// filtersOf returns the subscriptions of connection n: all of them in a share group, else every Connections-th.
func (c Config) filtersOf(n int) []string {
	var filters []string
	for i, filter := range c.Filters {
		if c.ShareGroup != "" || i%c.Connections == n {
			filters = append(filters, c.subscription(filter))
		}
	}
	return filters
}

func (c Config) qos() byte {
	if c.AtMostOnce {
		return 0
	}
	return 1
}

func clientID(base string, n int) string { return fmt.Sprintf("%s-%d", base, n) }

// checkClientID applies MQTT 3.1.3.1, and wants one that is not the broker's choice.
func checkClientID(id string) error {
	switch {
	case id == "":
		return errors.New("empty; a persistent session needs a stable one")
	case len(id) > maxStringBytes:
		return fmt.Errorf("%d bytes; at most %d", len(id), maxStringBytes)
	case !validString(id):
		return fmt.Errorf("%q: must be UTF-8 without NUL", id)
	}
	return nil
}

func validString(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// checkFilter applies MQTT 4.7.1 and 4.7.3.
func checkFilter(filter string) error {
	if filter == "" {
		return errors.New("empty")
	}
	if len(filter) > maxStringBytes {
		return fmt.Errorf("%d bytes as subscribed; at most %d", len(filter), maxStringBytes)
	}
	if !validString(filter) {
		return errors.New("must be UTF-8 without NUL")
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		if strings.ContainsAny(level, "+#") && len(level) > 1 {
			return fmt.Errorf("a wildcard must be a whole level, not %q", level)
		}
		if level == "#" && i != len(levels)-1 {
			return errors.New("# must be the last level")
		}
	}
	return nil
}
