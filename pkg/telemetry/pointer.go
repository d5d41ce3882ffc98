package telemetry

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"
)

// field names one of the values that an element's pointers lead to.
type field uint8

const (
	fieldTime field = iota
	fieldMetrics
	fieldDevice
	fieldKind
	fieldSeq
	fieldCount
)

// String returns the field's name in configuration, below payload.
func (f field) String() string {
	return [fieldCount]string{"time", "metrics", "device_id", "kind", "seq"}[f]
}

// fields is a set of fields, a bit each.
type fields uint8

func (f field) bit() fields { return 1 << f }

// token is one step of a JSON pointer.
type token struct {
	key   string
	index int // as an array index, or -1 if key is none
}

// parsePointer parses an RFC 6901 pointer. "" has no tokens.
func parsePointer(text string) ([]token, error) {
	if text == "" {
		return nil, nil
	}
	if text[0] != '/' {
		return nil, errors.New("a JSON pointer begins with /")
	}
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return nil, errors.New("is not UTF-8 without NUL")
	}
	parts := strings.Split(text[1:], "/")
	if len(parts) > MaxDepth {
		return nil, fmt.Errorf("has %d tokens, more than %d", len(parts), MaxDepth)
	}
	tokens := make([]token, len(parts))
	for i, part := range parts {
		for j := 0; j < len(part); j++ {
			if part[j] == '~' && (j+1 == len(part) || part[j+1] != '0' && part[j+1] != '1') {
				return nil, errors.New("~ must be followed by 0 or 1")
			}
		}
		key := strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
		tokens[i] = token{key: key, index: arrayIndex(key)}
	}
	return tokens, nil
}

// arrayIndex returns key as an array index, which has no leading zeros (RFC 6901, section 4), or -1.
func arrayIndex(key string) int {
	n, err := strconv.ParseUint(key, 10, 31)
	if err != nil || strconv.FormatUint(n, 10) != key {
		return -1
	}
	return int(n)
}

// paths is the pointers of all fields, laid out for a scanner that tracks them together.
type paths struct {
	tokens   [fieldCount][]token
	terminal [MaxDepth + 1]fields // those whose pointer has exactly that many tokens
	all      fields               // those that have a pointer
}

func newPaths(c Config) (*paths, error) {
	p := &paths{}
	for i, text := range c.pointers() {
		f := field(i)
		if text == "" && f != fieldMetrics || f == fieldTime && c.TimeUnit == UnitArrival {
			continue
		}
		tokens, err := parsePointer(text)
		if err != nil {
			return nil, fmt.Errorf("payload.%s %q: %w", f, text, err)
		}
		p.tokens[f] = tokens
		p.terminal[len(tokens)] |= f.bit()
		p.all |= f.bit()
	}
	return p, nil
}

// member returns those of open whose token at depth is the key with this source text, the quotes not included.
func (p *paths) member(open fields, depth int, source []byte, escaped bool) fields {
	var match fields
	for m := open; m != 0; m &= m - 1 {
		f := bits.TrailingZeros8(uint8(m))
		key := p.tokens[f][depth].key
		if escaped && equalUnescaped(source, key) || !escaped && string(source) == key {
			match |= 1 << f
		}
	}
	return match
}

// item returns those of open whose token at depth is the array index.
func (p *paths) item(open fields, depth, index int) fields {
	var match fields
	for m := open; m != 0; m &= m - 1 {
		f := bits.TrailingZeros8(uint8(m))
		if p.tokens[f][depth].index == index {
			match |= 1 << f
		}
	}
	return match
}
