package telemetry

import (
	"fmt"
	"strconv"
	"unicode/utf8"
)

// Decoder turns messages into readings and rejects. It is immutable.
type Decoder struct {
	templates []template
	paths     *paths
	names     [fieldCount]string // the fields' pointers
	unit      unit
	max       int
}

// NewDecoder returns a decoder, or what Config.Validate says.
func NewDecoder(c Config) (*Decoder, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	templates, err := parseTemplates(c.Topics)
	if err != nil {
		return nil, err
	}
	p, err := newPaths(c)
	if err != nil {
		return nil, err
	}
	u, _ := parseUnit(c.TimeUnit)
	return &Decoder{templates: templates, paths: p, names: c.pointers(), unit: u, max: c.MaxPayloadBytes}, nil
}

// Filters returns the MQTT subscription filters of the templates, in their order, each once.
func (d *Decoder) Filters() []string {
	filters := make([]string, len(d.templates))
	for i := range d.templates {
		filters[i] = d.templates[i].filter
	}
	return filters
}

// Decode appends what m becomes to into: at least one reading or reject, each with the code and in the order that the
// package comment gives. Several goroutines may call it at once, with a batch each.
func (d *Decoder) Decode(m Message, into *Batch) {
	r := run{
		d: d, m: m, into: into, readings: len(into.Readings), rejects: len(into.Rejects),
		s: scanner{b: m.Payload, paths: d.paths},
	}
	if length := max(len(m.Payload), m.Length); length > d.max {
		r.whole(TooLarge, fmt.Sprintf("payload: %d bytes is more than %d", length, d.max))
		return
	}
	if !utf8.Valid(m.Payload) {
		r.whole(NotUTF8, notUTF8Detail(m.Payload))
		return
	}
	r.named, r.topicFault = d.name(m.Topic)
	r.s.quiet = r.topicFault != ""
	switch {
	case !r.message():
		r.whole(NotJSON, notJSONDetail(m.Payload, r.s.syntaxAt))
	case r.topicFault != "":
		r.whole(TopicMismatch, r.topicFault)
	case r.elements == 0:
		r.whole(MissingField, "payload: an array without elements")
	case r.rejected > MaxSingleRejects:
		first := into.Rejects[r.rejects]
		into.Rejects = into.Rejects[:r.rejects]
		r.reject(first.Code, fmt.Sprintf("%d of %d elements rejected, first: %s", r.rejected, r.elements, first.Detail), m.Payload)
	}
}

// run is the decoding of one message.
type run struct {
	d    *Decoder
	m    Message
	into *Batch
	s    scanner

	readings, rejects int // how long into was before

	named      named
	topicFault string // why the topic names nothing

	array    bool // the payload is an array
	elements int  // scanned so far
	rejected int  // of them

	topicText            string // Reject.Topic, once needed
	lastDevice, lastKind string // of the element before, to share its strings
}

// message scans the whole payload and judges each of its elements. It is false if the syntax is wrong.
func (r *run) message() bool {
	s := &r.s
	i := s.space(0)
	if r.array = i < len(s.b) && s.b[i] == '['; r.array {
		i = r.items(i)
	} else {
		i = r.element(i)
	}
	if i == bad {
		return false
	}
	if i = s.space(i); i != len(s.b) {
		s.stop(i)
		return false
	}
	return true
}

// items scans the array that begins at i and returns the offset behind it or bad.
func (r *run) items(i int) int {
	s := &r.s
	i = s.space(i + 1)
	if i < len(s.b) && s.b[i] == ']' {
		return i + 1
	}
	for {
		if i = r.element(i); i == bad {
			return bad
		}
		i = s.space(i)
		switch {
		case i < len(s.b) && s.b[i] == ',':
			i = s.space(i + 1)
		case i < len(s.b) && s.b[i] == ']':
			return i + 1
		default:
			return s.stop(i)
		}
	}
}

// element scans the element that begins at i, appends what it becomes, and returns the offset behind it or bad.
func (r *run) element(i int) int {
	end := r.s.value(i)
	if end == bad || r.topicFault != "" {
		return end
	}
	r.elements++
	reading, p := r.judge(r.m.Payload[i:end])
	if p.code == "" {
		reading.topic, reading.raw = r.m.Topic, r.m.Payload[i:end]
		reading.Retained, reading.Redelivered = r.m.Retained, r.m.Redelivered
		r.into.Readings = append(r.into.Readings, reading)
		return end
	}
	r.rejected++
	if r.rejected > MaxSingleRejects {
		return end // they will all be one reject
	}
	r.reject(p.code, r.detail(p), r.m.Payload[i:end])
	r.s.quiet = r.rejected == MaxSingleRejects
	return end
}

// whole makes the message one reject, in place of anything appended so far.
func (r *run) whole(code Code, detail string) {
	r.into.Readings = r.into.Readings[:r.readings]
	r.into.Rejects = r.into.Rejects[:r.rejects]
	r.reject(code, detail, r.m.Payload)
}

func (r *run) reject(code Code, detail string, raw []byte) {
	if r.topicText == "" {
		r.topicText = storable(r.m.Topic, MaxRejectTopicBytes)
	}
	r.into.Rejects = append(r.into.Rejects, Reject{
		Code: code, Detail: detail, Topic: r.topicText, Raw: raw,
	})
}

// name returns what the first matching template names of topic, or why nothing.
func (d *Decoder) name(topic string) (n named, wrong string) {
	for i := range d.templates {
		n, ok := d.templates[i].match(topic)
		switch {
		case !ok:
		case n.hasDevice && n.device == "":
			return n, fmt.Sprintf("topic: the level %s of %s is empty", placeholderDevice, quote(topic))
		case n.hasKind && n.kind == "":
			return n, fmt.Sprintf("topic: the level %s of %s is empty", placeholderKind, quote(topic))
		default:
			return n, ""
		}
	}
	return n, fmt.Sprintf("topic: %s matches none of mqtt.topics", quote(topic))
}

func notUTF8Detail(payload []byte) string {
	i := 0
	for {
		r, size := utf8.DecodeRune(payload[i:])
		if r == utf8.RuneError && size == 1 {
			return fmt.Sprintf("payload: byte 0x%02x at offset %d is not UTF-8", payload[i], i)
		}
		i += size
	}
}

func notJSONDetail(payload []byte, at int) string {
	switch {
	case len(payload) == 0:
		return "payload: empty"
	case at >= len(payload):
		return fmt.Sprintf("payload: ends at offset %d, where more must follow", len(payload))
	}
	r, _ := utf8.DecodeRune(payload[at:])
	return fmt.Sprintf("payload: %s at offset %d is not JSON", strconv.QuoteRune(r), at)
}
