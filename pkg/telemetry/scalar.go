package telemetry

import (
	"bytes"
	"math"
	"strconv"
)

// fault is what is wrong with a value whose syntax is right.
type fault uint8

const (
	faultNone fault = iota
	faultNUL
	faultSurrogate
	faultOverflow
	faultUnderflow
	faultLiteral
	faultExponent
	faultDepth
)

// String completes a sentence that begins with the value.
func (f fault) String() string {
	return [...]string{
		faultNone:      "is right",
		faultNUL:       `has \u0000, which PostgreSQL cannot keep`,
		faultSurrogate: "has half a surrogate pair",
		faultOverflow:  "is beyond what a float64 can hold",
		faultUnderflow: "is nearer to zero than a float64 can be",
		faultLiteral:   "is a number of more than " + strconv.Itoa(MaxNumberBytes) + " bytes",
		faultExponent:  "has an exponent beyond " + strconv.Itoa(MaxExponent),
		faultDepth:     "is nested deeper than " + strconv.Itoa(MaxDepth),
	}[f]
}

// special marks the bytes at which the inside of a string needs a look.
var special = func() (t [256]bool) {
	for c := range 0x20 {
		t[c] = true
	}
	t['"'], t['\\'] = true, true
	return t
}()

// text scans the string that begins with the quote at i.
func (s *scanner) text(i int) (end int, escaped bool) {
	b, begin := s.b, i
	i++
	for {
		for i < len(b) && !special[b[i]] {
			i++
		}
		if i == len(b) {
			return s.stop(i), escaped
		}
		switch b[i] {
		case '"':
			return i + 1, escaped
		case '\\':
			escaped = true
			if i = s.escape(i, begin); i == bad {
				return bad, true
			}
		default:
			return s.stop(i), escaped
		}
	}
}

// escape scans the escape at i of the string that begins at begin; a surrogate pair is one.
func (s *scanner) escape(i, begin int) int {
	b := s.b
	if i+1 == len(b) {
		return s.stop(i + 1)
	}
	switch b[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
	default:
		return s.stop(i + 1)
	}
	unit := hex4(b[i+2:])
	switch {
	case unit < 0:
		return s.stop(i + 2)
	case unit == 0:
		s.note(faultNUL, begin)
	case unit >= 0xdc00 && unit <= 0xdfff:
		s.note(faultSurrogate, begin)
	case unit >= 0xd800 && unit <= 0xdbff:
		if bytes.HasPrefix(b[i+6:], []byte(`\u`)) {
			if low := hex4(b[i+8:]); low >= 0xdc00 && low <= 0xdfff {
				return i + 12
			}
		}
		s.note(faultSurrogate, begin)
	}
	return i + 6
}

// safeNumberBytes: a number without an exponent and of no more bytes is within float64.
const safeNumberBytes = 300

// number scans the number at i.
func (s *scanner) number(i int) int {
	b, begin := s.b, i
	if b[i] == '-' {
		i++
	}
	end := digits(b, i)
	if end == i {
		return s.stop(i)
	}
	if b[i] == '0' {
		end = i + 1 // no digit may follow: the caller finds no comma or bracket then
	}
	i = end
	if i < len(b) && b[i] == '.' {
		i++
		if end = digits(b, i); end == i {
			return s.stop(i)
		}
		i = end
	}
	if i == len(b) || b[i]|0x20 != 'e' {
		if i-begin > safeNumberBytes {
			s.note(numberFault(b[begin:i], nil), begin)
		}
		return i
	}
	i++
	if i < len(b) && (b[i] == '+' || b[i] == '-') {
		i++
	}
	if end = digits(b, i); end == i {
		return s.stop(i)
	}
	s.note(numberFault(b[begin:end], b[i:end]), begin)
	return end
}

func digits(b []byte, i int) int {
	for i < len(b) && b[i]-'0' <= 9 {
		i++
	}
	return i
}

// numberFault judges a number's literal, given with its exponent's digits. PostgreSQL's numeric has bounds of its own:
// 16,383 digits behind the point, of a zero too (0e-16384 is refused). MaxNumberBytes and MaxExponent keep within them.
func numberFault(literal, exponent []byte) fault {
	if len(literal) > MaxNumberBytes {
		return faultLiteral
	}
	if e := bytes.TrimLeft(exponent, "0"); len(e) > 3 || len(e) == 3 && string(e) > strconv.Itoa(MaxExponent) {
		return faultExponent
	}
	value, err := strconv.ParseFloat(string(literal), 64)
	switch {
	case err != nil || math.IsInf(value, 0):
		return faultOverflow
	case value == 0 && !zero(literal):
		return faultUnderflow
	}
	return faultNone
}

// zero says whether a number's literal has no digit but 0 before its exponent.
func zero(literal []byte) bool {
	for _, c := range literal {
		if c|0x20 == 'e' {
			break
		}
		if c >= '1' && c <= '9' {
			return false
		}
	}
	return true
}
