package telemetry

import "time"

// The usual kinds of reading. KindParameters is what a reading is when neither
// its topic nor its payload says otherwise.
const (
	KindParameters  = "parameters"
	KindPerformance = "performance"
	KindFault       = "fault"
)

// NoSeq is the Seq of a reading that carries none.
const NoSeq int64 = -1

// Limits of a reading's fields. They are part of the format: a device may rely on them.
const (
	MaxDeviceIDBytes          = 256       // of the unescaped device id
	MaxKindBytes              = 64        // of the unescaped kind
	MaxSeq              int64 = 1<<53 - 1 // up to it, each integer has a float64 of its own
	MaxDepth                  = 64        // nested objects and arrays, the element itself being 1
	MaxNumberBytes            = 2048      // of a number's literal
	MaxExponent               = 400       // of a number's written exponent, either sign
	MaxSingleRejects          = 100       // rejected elements of one message that are kept singly
	MaxRejectTopicBytes       = 1024      // of Reject.Topic, the mark of a cut included

	maxDetailBytes = 1000 // of a detail that is made elsewhere
)

// Reading is one measurement of one device. Its identity is
// (DeviceID, Kind, RecordedAt, Seq), a missing Seq being a value like any other.
type Reading struct {
	DeviceID   string    // 1 to MaxDeviceIDBytes bytes of UTF-8 without NUL
	Kind       string    // 1 to MaxKindBytes bytes of UTF-8 without NUL
	RecordedAt time.Time // the device's own clock: UTC, whole microseconds
	Seq        int64     // 0 to MaxSeq, or NoSeq
	Metrics    []byte    // a JSON object that jsonb accepts; aliases the payload
	Retained   bool      // the broker kept it for new subscribers: it may have been stored any number of days ago

	Redelivered bool // the broker may have sent it before

	topic string // where it came from, as Reject wants it; see Reading.Reject
	raw   []byte // the element
}

// Reject is the reject that the reading becomes where only the database can find what is wrong with it.
func (r *Reading) Reject(code Code, detail string) Reject {
	return Reject{Code: code, Detail: storable(detail, maxDetailBytes), Topic: storable(r.topic, MaxRejectTopicBytes), Raw: r.raw}
}

// Code says why something was quarantined.
type Code string

// The codes. Decoder gives all but the last two, which only the database can find.
const (
	TooLarge           Code = "too_large"
	NotUTF8            Code = "not_utf8"
	NotJSON            Code = "not_json"
	MissingField       Code = "missing_field"
	BadType            Code = "bad_type"
	BadValue           Code = "bad_value"
	BadTime            Code = "bad_time"
	DeviceMismatch     Code = "device_mismatch"
	TopicMismatch      Code = "topic_mismatch"
	Conflict           Code = "conflict"
	RejectedByDatabase Code = "rejected_by_database"
)

// Reject is what could not become a reading, and why.
type Reject struct {
	Code   Code
	Detail string // the field and its value, for a person; valid UTF-8 without NUL, under 1 KiB
	Topic  string // valid UTF-8 without NUL, cut to MaxRejectTopicBytes
	Raw    []byte // the element or the whole message; aliases the payload; of TooLarge, a store may keep only the beginning
}

// Batch is what one transaction stores.
type Batch struct {
	Readings []Reading
	Rejects  []Reject
}

// Outcome counts what storing a batch did, in rows.
type Outcome struct {
	Stored      int // new readings
	Duplicate   int // readings that were stored before, equal
	Quarantined int // rejects, and readings that became one on the way:

	Conflicts          int // of Quarantined: readings that became a Conflict
	RejectedByDatabase int // of Quarantined: readings that became RejectedByDatabase
}

// Add adds the counts of p to o.
func (o *Outcome) Add(p Outcome) {
	o.Stored += p.Stored
	o.Duplicate += p.Duplicate
	o.Quarantined += p.Quarantined
	o.Conflicts += p.Conflicts
	o.RejectedByDatabase += p.RejectedByDatabase
}

// Message is a message as the broker delivered it.
type Message struct {
	Topic      string
	Payload    []byte // must not change while a Batch made of it is in use
	Length     int    // bytes of the payload as published, where Payload is only its beginning; 0: Payload is whole
	QoS        byte
	Retained   bool
	ReceivedAt time.Time

	Redelivered bool // the broker says that it may have sent it before (MQTT's DUP)
}
