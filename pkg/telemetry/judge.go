package telemetry

import (
	"bytes"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// problem is why an element is rejected. Its text is made only if someone will read it.
type problem struct {
	code  Code
	place string // the field's JSON pointer; "" is the element itself
	value []byte // the value's source, if there is one
	wrong string // what is wrong with it
	other string // a value that wrong compares with; "" is none
	key   bool   // value is a key of the object at place
}

// judge returns the reading that an element is, or what is wrong with it. The scanner has just scanned it.
func (r *run) judge(element []byte) (Reading, problem) {
	if r.s.fault != faultNone {
		return Reading{}, r.faulty()
	}
	if element[0] != '{' {
		return Reading{}, problem{code: BadType, value: element, wrong: notA(element[0], "an object")}
	}
	reading := Reading{Seq: NoSeq}
	var p problem
	if reading.RecordedAt, p = r.time(); p.code != "" {
		return Reading{}, p
	}
	if reading.Metrics, p = r.metrics(); p.code != "" {
		return Reading{}, p
	}
	if reading.Seq, p = r.seq(); p.code != "" {
		return Reading{}, p
	}
	if reading.DeviceID, p = r.device(); p.code != "" {
		return Reading{}, p
	}
	if reading.Kind, p = r.kind(); p.code != "" {
		return Reading{}, p
	}
	return reading, problem{}
}

// faulty returns the scanner's fault as a problem.
func (r *run) faulty() problem {
	p := problem{code: BadValue, place: r.s.place, wrong: r.s.fault.String(), key: r.s.keyBad}
	if !r.s.quiet {
		again := scanner{b: r.s.b, paths: &paths{}, quiet: true}
		p.value = r.s.b[r.s.faultAt:again.value(r.s.faultAt)]
	}
	return p
}

// source returns a field's JSON, or nil if it is absent or null.
func (r *run) source(f field) []byte {
	if r.s.seen&f.bit() == 0 {
		return nil
	}
	at := r.s.spans[f]
	if source := r.s.b[at.begin:at.end]; source[0] != 'n' {
		return source
	}
	return nil
}

func (r *run) time() (time.Time, problem) {
	if r.d.unit == unitArrival {
		return r.m.ReceivedAt.UTC().Truncate(time.Microsecond), problem{}
	}
	source := r.source(fieldTime)
	if source == nil {
		return time.Time{}, r.missing(fieldTime)
	}
	var t time.Time
	var wrong string
	switch c := source[0]; {
	case c == '"':
		t, wrong = timeOfText(inside(source), r.m.ReceivedAt)
	case (c == '-' || c-'0' <= 9) && r.d.unit != unitRFC3339:
		t, wrong = r.d.unit.timeOfNumber(source, r.m.ReceivedAt)
	default:
		return t, r.wrong(BadType, fieldTime, source, notA(c, r.d.unit.wanted()))
	}
	if wrong != "" {
		return t, r.wrong(BadTime, fieldTime, source, wrong)
	}
	return t, problem{}
}

func (r *run) metrics() ([]byte, problem) {
	source := r.source(fieldMetrics)
	switch {
	case source == nil:
		return nil, r.missing(fieldMetrics)
	case source[0] != '{':
		return nil, r.wrong(BadType, fieldMetrics, source, notA(source[0], "an object"))
	}
	return source, problem{}
}

func (r *run) seq() (int64, problem) {
	source := r.source(fieldSeq)
	if source == nil {
		return NoSeq, problem{}
	}
	if c := source[0]; c != '-' && c-'0' > 9 {
		return 0, r.wrong(BadType, fieldSeq, source, notA(c, "an integer"))
	}
	n, ok := parseSeq(source)
	if !ok {
		return 0, r.wrong(BadValue, fieldSeq, source, "is not an integer from 0 to 9007199254740991")
	}
	return n, problem{}
}

func (r *run) device() (string, problem) {
	text, p := r.text(fieldDevice, MaxDeviceIDBytes, "is longer than 256 bytes")
	if p.code == "" && r.named.hasDevice {
		p = topicName(r.named.device, placeholderDevice, MaxDeviceIDBytes, "is longer than 256 bytes")
	}
	switch {
	case p.code != "":
		return "", p
	case text == nil && !r.named.hasDevice:
		p = r.missing(fieldDevice)
		if p.wrong += ", and the topic names no device"; p.place == "" {
			p.place = fieldDevice.String()
		}
		return "", p
	case text == nil || string(text) == r.named.device:
		return r.named.device, problem{}
	case r.named.hasDevice:
		p = r.wrong(DeviceMismatch, fieldDevice, r.source(fieldDevice), "differs from the topic's")
		p.other = r.named.device
		return "", p
	case string(text) != r.lastDevice:
		r.lastDevice = string(text)
	}
	return r.lastDevice, problem{}
}

func (r *run) kind() (string, problem) {
	text, p := r.text(fieldKind, MaxKindBytes, "is longer than 64 bytes")
	if p.code == "" && r.named.hasKind {
		p = topicName(r.named.kind, placeholderKind, MaxKindBytes, "is longer than 64 bytes")
	}
	switch {
	case p.code != "":
		return "", p
	case text == nil && !r.named.hasKind:
		return KindParameters, problem{}
	case text == nil || string(text) == r.named.kind:
		return r.named.kind, problem{}
	case r.named.hasKind:
		p = r.wrong(TopicMismatch, fieldKind, r.source(fieldKind), "differs from the topic's kind")
		p.other = r.named.kind
		return "", p
	}
	switch string(text) {
	case KindParameters:
		return KindParameters, problem{}
	case KindPerformance:
		return KindPerformance, problem{}
	case KindFault:
		return KindFault, problem{}
	case r.lastKind:
	default:
		r.lastKind = string(text)
	}
	return r.lastKind, problem{}
}

// text returns what a field that must be a string of 1 to limit bytes means, or nil if it is absent.
func (r *run) text(f field, limit int, tooLong string) ([]byte, problem) {
	source := r.source(f)
	if source == nil {
		return nil, problem{}
	}
	if source[0] != '"' {
		return nil, r.wrong(BadType, f, source, notA(source[0], "a string"))
	}
	text := inside(source)
	if wrong := badName(len(text), limit, tooLong); wrong != "" {
		return nil, r.wrong(BadValue, f, source, wrong)
	}
	return text, problem{}
}

// inside returns what a string's source means. It aliases source where that has no escape.
func inside(source []byte) []byte {
	source = source[1 : len(source)-1]
	if bytes.IndexByte(source, '\\') < 0 {
		return source
	}
	return unescape(source)
}

func badName(length, limit int, tooLong string) string {
	switch {
	case length == 0:
		return "is empty"
	case length > limit:
		return tooLong
	}
	return ""
}

// topicName judges a level of the topic as the name that placeholder stands for.
func topicName(text, placeholder string, limit int, tooLong string) problem {
	wrong := badName(len(text), limit, tooLong)
	switch {
	case wrong != "":
	case !utf8.ValidString(text):
		wrong = "is not UTF-8"
	case strings.IndexByte(text, 0) >= 0:
		wrong = "has NUL, which PostgreSQL cannot keep"
	default:
		return problem{}
	}
	return problem{code: BadValue, place: "topic " + placeholder, wrong: wrong, value: []byte(quote(text))}
}

func (r *run) missing(f field) problem {
	return problem{code: MissingField, place: r.d.names[f], wrong: "missing"}
}

func (r *run) wrong(code Code, f field, source []byte, wrong string) problem {
	return problem{code: code, place: r.d.names[f], value: source, wrong: wrong}
}

// detail writes p as "element 3: /ts: 13 is before 2000-01-01".
func (r *run) detail(p problem) string {
	var b strings.Builder
	if r.array {
		b.WriteString("element " + strconv.Itoa(r.elements-1) + ": ")
	}
	switch {
	case p.place != "":
		b.WriteString(cut(p.place) + ": ")
	case !r.array:
		b.WriteString("payload: ")
	}
	if p.key {
		b.WriteString("key ")
	}
	if p.value != nil {
		b.WriteString(cut(p.value) + " ")
	}
	b.WriteString(p.wrong)
	if p.other != "" {
		b.WriteString(" " + quote(p.other))
	}
	return b.String()
}

// quote returns text cut, and quoted so that it is valid UTF-8 without NUL.
func quote(text string) string { return strconv.Quote(cut(text)) }

// notA says that a value whose source begins with c is not what it should be.
func notA(c byte, wanted string) string {
	is := "a number"
	switch c {
	case '{':
		is = "an object"
	case '[':
		is = "an array"
	case '"':
		is = "a string"
	case 't', 'f':
		is = "a boolean"
	case 'n':
		is = "null"
	}
	return "is " + is + ", not " + wanted
}
