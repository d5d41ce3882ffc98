package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The reference is the package comment written a second time, slowly, on encoding/json, and without details. It
// shares nothing with the decoder but the types.

type referenceResult struct {
	readings []Reading
	codes    []Code
	raws     []string
}

func reference(c Config, m Message) referenceResult {
	whole := func(code Code) referenceResult {
		return referenceResult{codes: []Code{code}, raws: []string{string(m.Payload)}}
	}
	switch {
	case len(m.Payload) > c.MaxPayloadBytes:
		return whole(TooLarge)
	case !utf8.Valid(m.Payload):
		return whole(NotUTF8)
	case !json.Valid(m.Payload):
		return whole(NotJSON)
	}
	device, kind, ok := referenceTopic(c.Topics, m.Topic)
	if !ok {
		return whole(TopicMismatch)
	}
	elements := []json.RawMessage{bytes.Trim(m.Payload, " \t\r\n")}
	if elements[0][0] == '[' {
		elements = nil // Unmarshal would write into the payload, which the first element aliases
		if err := json.Unmarshal(m.Payload, &elements); err != nil {
			panic(err)
		}
	}
	if len(elements) == 0 {
		return whole(MissingField)
	}
	var result referenceResult
	for _, element := range elements {
		reading, code := referenceElement(c, element, device, kind, m.ReceivedAt)
		if code == "" {
			result.readings = append(result.readings, reading)
			continue
		}
		result.codes = append(result.codes, code)
		result.raws = append(result.raws, string(element))
	}
	if len(result.codes) > 100 {
		result.codes, result.raws = result.codes[:1], []string{string(m.Payload)}
	}
	return result
}

// referenceTopic matches by regular expressions. nil means that the topic does not name it.
func referenceTopic(templates []string, topic string) (device, kind *string, ok bool) {
	for _, template := range templates {
		pattern := regexp.QuoteMeta(template)
		pattern = strings.Replace(pattern, `\{device_id\}`, `(?P<device>[^/]*)`, 1)
		pattern = strings.Replace(pattern, `\{kind\}`, `(?P<kind>[^/]*)`, 1)
		pattern = strings.ReplaceAll(pattern, `\+`, `[^/]*`)
		if pattern == "#" {
			pattern = ".*"
		}
		if cut, found := strings.CutSuffix(pattern, "/#"); found {
			pattern = cut + "(/.*)?"
		}
		if strings.HasPrefix(topic, "$") && strings.ContainsRune("+#{", rune(template[0])) {
			continue
		}
		re := regexp.MustCompile(`(?s)\A` + pattern + `\z`)
		match := re.FindStringSubmatch(topic)
		if match == nil {
			continue
		}
		if i := re.SubexpIndex("device"); i >= 0 {
			device = &match[i]
		}
		if i := re.SubexpIndex("kind"); i >= 0 {
			kind = &match[i]
		}
		return device, kind, (device == nil || *device != "") && (kind == nil || *kind != "")
	}
	return nil, nil, false
}

func referenceElement(c Config, element []byte, device, kind *string, received time.Time) (Reading, Code) {
	if referenceFault(element) {
		return Reading{}, BadValue
	}
	if element[0] != '{' {
		return Reading{}, BadType
	}
	r := Reading{Seq: -1, Kind: "parameters", RecordedAt: received.Truncate(time.Microsecond)}
	var code Code
	if c.TimeUnit != "arrival" {
		if r.RecordedAt, code = referenceTime(c.TimeUnit, referenceFind(element, c.Time), received); code != "" {
			return r, code
		}
	}
	r.Metrics = referenceFind(element, c.Metrics)
	if r.Metrics == nil {
		return r, MissingField
	}
	if r.Metrics[0] != '{' {
		return r, BadType
	}
	if source := referenceFind(element, c.Seq); c.Seq != "" && source != nil {
		var n json.Number
		if !strings.Contains("-0123456789", string(source[0])) || json.Unmarshal(source, &n) != nil {
			return r, BadType
		}
		seq, err := strconv.ParseInt(n.String(), 10, 64)
		if r.Seq = seq; err != nil || seq < 0 || seq >= 1<<53 {
			return r, BadValue
		}
	}
	r.DeviceID, code = referenceName(element, c.DeviceID, device, 256, "", DeviceMismatch)
	if code != "" {
		return r, code
	}
	if r.DeviceID == "" {
		return r, MissingField
	}
	r.Kind, code = referenceName(element, c.Kind, kind, 64, "parameters", TopicMismatch)
	return r, code
}

func referenceName(element []byte, pointer string, topic *string, limit int, otherwise string, mismatch Code) (string, Code) {
	var payload *string
	if source := referenceFind(element, pointer); pointer != "" && source != nil {
		if json.Unmarshal(source, &payload) != nil {
			return "", BadType
		}
	}
	result := otherwise
	for _, name := range []*string{payload, topic} {
		if name != nil {
			if result = *name; len(result) < 1 || len(result) > limit || strings.ToValidUTF8(result, "\x00") != result || strings.Contains(result, "\x00") {
				return "", BadValue
			}
		}
	}
	if payload != nil && topic != nil && *payload != *topic {
		return "", mismatch
	}
	return result, ""
}

// strict is what UnmarshalText lets pass against RFC 3339 (go.dev/issue/54580): an hour of one digit, a comma, and offsets
// that are none.
var strict = regexp.MustCompile(`^.{11}\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

func referenceTime(unit string, source []byte, received time.Time) (time.Time, Code) {
	if source == nil {
		return time.Time{}, MissingField
	}
	var value any
	d := json.NewDecoder(bytes.NewReader(source))
	d.UseNumber()
	if err := d.Decode(&value); err != nil {
		panic(err)
	}
	at := new(big.Int) // nanoseconds
	switch value := value.(type) {
	case string:
		var t time.Time
		if err := t.UnmarshalText(bytes.ToUpper([]byte(value))); err != nil || !strict.MatchString(value) {
			return t, BadTime
		}
		at.Mul(big.NewInt(t.Unix()), big.NewInt(1e9)).Add(at, big.NewInt(int64(t.Nanosecond())))
	case json.Number:
		if unit == "rfc3339" {
			return time.Time{}, BadType
		}
		if _, ok := at.SetString(value.String(), 10); !ok {
			return time.Time{}, BadTime
		}
		at.Mul(at, big.NewInt(map[string]int64{"s": 1e9, "ms": 1e6, "us": 1e3, "ns": 1}[unit]))
	default:
		return time.Time{}, BadType
	}
	least := big.NewInt(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	most := big.NewInt(received.Add(24 * time.Hour).UnixNano())
	if at.Cmp(least) < 0 || at.Cmp(most) > 0 {
		return time.Time{}, BadTime
	}
	return time.Unix(0, at.Int64()/1000*1000).UTC(), ""
}

// referenceFind follows a pointer; nil is absent or null.
func referenceFind(element []byte, pointer string) []byte {
	current := json.RawMessage(element)
	if pointer != "" {
		for _, part := range strings.Split(pointer[1:], "/") {
			key := strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
			var object map[string]json.RawMessage
			var array []json.RawMessage
			switch current[0] {
			case '{':
				if err := json.Unmarshal(current, &object); err != nil {
					panic(err)
				}
				current = object[key]
			case '[':
				if err := json.Unmarshal(current, &array); err != nil {
					panic(err)
				}
				i, err := strconv.Atoi(key)
				if err != nil || i < 0 || i >= len(array) || fmt.Sprint(i) != key {
					return nil
				}
				current = array[i]
			default:
				return nil
			}
			if current == nil {
				return nil
			}
		}
	}
	if string(current) == "null" {
		return nil
	}
	return current
}

var referenceEscape = regexp.MustCompile(`\\(u[0-9a-fA-F]{4}|.)`)

// referenceFault says whether an element has any value that is a bad_value wherever it stands.
func referenceFault(element []byte) bool {
	var high bool
	behind := -1
	for _, at := range referenceEscape.FindAllIndex(element, -1) {
		escape := strings.ToLower(string(element[at[0]:at[1]]))
		low := strings.HasPrefix(escape, `\ud`) && escape[3] >= 'c'
		if low != (high && at[0] == behind) || high && !low || escape == `\u0000` {
			return true
		}
		high = strings.HasPrefix(escape, `\ud`) && escape[3] >= '8' && !low
		behind = at[1]
	}
	if high {
		return true
	}
	d := json.NewDecoder(bytes.NewReader(element))
	d.UseNumber()
	for depth := 0; ; {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return false
		}
		if err != nil {
			panic(err)
		}
		switch t := t.(type) {
		case json.Delim:
			if strings.Contains("{[", t.String()) {
				depth++
			} else {
				depth--
			}
			if depth > 64 {
				return true
			}
		case json.Number:
			if referenceNumberFault(t.String()) {
				return true
			}
		}
	}
}

func referenceNumberFault(literal string) bool {
	mantissa, exponent, written := strings.Cut(strings.ToLower(literal), "e")
	if len(literal) > 2048 {
		return true
	}
	if written {
		e, ok := new(big.Int).SetString(exponent, 10)
		if !ok || e.CmpAbs(big.NewInt(400)) > 0 {
			return true
		}
	}
	value, err := strconv.ParseFloat(literal, 64)
	return err != nil || math.IsInf(value, 0) || value == 0 && strings.ContainsAny(mantissa, "123456789")
}
