package telemetry

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	placeholderDevice = "{device_id}"
	placeholderKind   = "{kind}"
	maxTopicBytes     = 65535 // MQTT 3.1.1, section 1.5.3
)

type levelKind uint8

const (
	levelLiteral levelKind = iota
	levelAny               // +
	levelDevice
	levelKindName
)

type level struct {
	kind levelKind
	text string // of a literal
}

// template is a parsed topic template.
type template struct {
	levels []level
	rest   bool // ends in #
	filter string
}

// named is what a topic says of the readings below it.
type named struct {
	device, kind       string
	hasDevice, hasKind bool
}

// parseTemplates parses all templates, or returns all their faults joined.
func parseTemplates(texts []string) ([]template, error) {
	if len(texts) == 0 {
		return nil, errors.New("mqtt.topics: is empty")
	}
	var faults []error
	templates := make([]template, 0, len(texts))
	byFilter := make(map[string]string, len(texts))
	for _, text := range texts {
		t, err := parseTemplate(text)
		if first, taken := byFilter[t.filter]; err == nil && taken {
			err = fmt.Errorf("never matches, as %q before it subscribes to the same %q", cut(first), cut(t.filter))
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("mqtt.topics %q: %w", cut(text), err))
			continue
		}
		byFilter[t.filter] = text
		templates = append(templates, t)
	}
	return templates, errors.Join(faults...)
}

func parseTemplate(text string) (template, error) {
	switch {
	case text == "":
		return template{}, errors.New("is empty")
	case !utf8.ValidString(text) || strings.ContainsRune(text, 0):
		return template{}, errors.New("is not UTF-8 without NUL")
	case strings.HasPrefix(text, "$share/"):
		return template{}, errors.New("a share group is set by mqtt.share_group")
	}
	var t template
	parts := strings.Split(text, "/")
	filter := make([]string, len(parts))
	for i, part := range parts {
		if part == "#" && i == len(parts)-1 {
			t.rest = true
			filter[i] = part
			break
		}
		l, err := parseLevel(part)
		if err != nil {
			return template{}, err
		}
		t.levels = append(t.levels, l)
		filter[i] = "+"
		if l.kind == levelLiteral {
			filter[i] = part
		}
	}
	t.filter = strings.Join(filter, "/")
	for _, p := range []string{placeholderDevice, placeholderKind} {
		if strings.Count(text, p) > 1 {
			return template{}, fmt.Errorf("has %s more than once", p)
		}
	}
	if len(t.filter) > maxTopicBytes {
		return template{}, fmt.Errorf("is a filter of %d bytes, more than %d", len(t.filter), maxTopicBytes)
	}
	return t, nil
}

func parseLevel(part string) (level, error) {
	switch part {
	case "+":
		return level{kind: levelAny}, nil
	case placeholderDevice:
		return level{kind: levelDevice}, nil
	case placeholderKind:
		return level{kind: levelKindName}, nil
	}
	if strings.ContainsAny(part, "{}") {
		return level{}, fmt.Errorf("level %q: only %s and %s, each a whole level, may have braces",
			cut(part), placeholderDevice, placeholderKind)
	}
	if strings.ContainsAny(part, "+#") {
		return level{}, fmt.Errorf("level %q: + must be a whole level, # the last one", cut(part))
	}
	return level{kind: levelLiteral, text: part}, nil
}

// match says whether topic matches t's filter by MQTT's rules, and what it names. A named level may be empty.
func (t *template) match(topic string) (named, bool) {
	// MQTT 3.1.1, section 4.7.2: a filter that begins with a wildcard matches no topic that begins with $.
	if strings.HasPrefix(topic, "$") && (len(t.levels) == 0 || t.levels[0].kind != levelLiteral) {
		return named{}, false
	}
	var n named
	rest, more := topic, true
	for i := range t.levels {
		if !more {
			return named{}, false
		}
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		switch l := &t.levels[i]; l.kind {
		case levelLiteral:
			if segment != l.text {
				return named{}, false
			}
		case levelDevice:
			n.device, n.hasDevice = segment, true
		case levelKindName:
			n.kind, n.hasKind = segment, true
		}
	}
	return n, !more || t.rest
}
