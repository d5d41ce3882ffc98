package telemetry

import (
	"errors"
	"fmt"
	"strings"
)

// The values of Config.TimeUnit.
const (
	UnitSeconds      = "s"
	UnitMilliseconds = "ms"
	UnitMicroseconds = "us"
	UnitNanoseconds  = "ns"
	UnitRFC3339      = "rfc3339" // strings only
	UnitArrival      = "arrival" // the time of receipt; the payload's time is not read
)

// maxMaxPayloadBytes keeps every accepted payload within what one jsonb value can hold (256 MiB):
// its worst case is an array of one-digit numbers, 12 bytes for each 2 of text.
const maxMaxPayloadBytes = 32 << 20

// Config says where a reading's fields are. Pointers are JSON pointers (RFC 6901) into an element, at most
// MaxDepth tokens long; an array's index is a token too.
type Config struct {
	Topics          []string // templates, see the package comment; at least one; the first that matches wins
	Time            string   // of the device's time; may be empty only with UnitArrival
	Metrics         string   // of the object to store; "" is the whole element
	DeviceID        string   // "": only the topic names the device
	Kind            string   // "": only the topic names the kind
	Seq             string   // "": readings have no sequence number
	TimeUnit        string   // of an integer time: one of the Unit constants
	MaxPayloadBytes int      // of a message, 1 to 32 MiB
}

// DefaultConfig returns the documented defaults.
func DefaultConfig() Config {
	return Config{
		Topics:          []string{"telemetry/{device_id}", "telemetry/{device_id}/{kind}"},
		Time:            "/ts",
		Metrics:         "/metrics",
		DeviceID:        "/device_id",
		Kind:            "/kind",
		Seq:             "/seq",
		TimeUnit:        UnitMilliseconds,
		MaxPayloadBytes: 256 << 10,
	}
}

// Validate returns all faults of c joined, each naming the key and its value, or nil.
func (c Config) Validate() error {
	_, topicErr := parseTemplates(c.Topics)
	faults := []error{topicErr}
	for f, text := range c.pointers() {
		if _, err := parsePointer(text); err != nil {
			faults = append(faults, fmt.Errorf("payload.%s %q: %w", field(f), text, err))
		}
	}
	if _, ok := parseUnit(c.TimeUnit); !ok {
		faults = append(faults, fmt.Errorf("payload.time_unit %q: is none of ms, s, us, ns, rfc3339, arrival", c.TimeUnit))
	} else if c.Time == "" && c.TimeUnit != UnitArrival {
		faults = append(faults, fmt.Errorf("payload.time %q: may be empty only with payload.time_unit arrival", c.Time))
	}
	if c.DeviceID == "" {
		for _, t := range c.Topics {
			if !strings.Contains(t, placeholderDevice) {
				faults = append(faults, fmt.Errorf("payload.device_id %q: may be empty only if each topic has %s, and %q has not",
					c.DeviceID, placeholderDevice, t))
			}
		}
	}
	if c.MaxPayloadBytes < 1 || c.MaxPayloadBytes > maxMaxPayloadBytes {
		faults = append(faults, fmt.Errorf("ingest.max_payload_bytes %d: is not from 1 to %d", c.MaxPayloadBytes, maxMaxPayloadBytes))
	}
	return errors.Join(faults...)
}

func (c Config) pointers() [fieldCount]string {
	return [fieldCount]string{
		fieldTime: c.Time, fieldMetrics: c.Metrics, fieldDevice: c.DeviceID, fieldKind: c.Kind, fieldSeq: c.Seq,
	}
}
