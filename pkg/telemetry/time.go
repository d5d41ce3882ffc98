package telemetry

import "time"

// unit is a parsed Config.TimeUnit.
type unit uint8

const (
	unitArrival unit = iota
	unitRFC3339
	unitSeconds
	unitMilliseconds
	unitMicroseconds
	unitNanoseconds
)

func parseUnit(text string) (unit, bool) {
	switch text {
	case UnitArrival:
		return unitArrival, true
	case UnitRFC3339:
		return unitRFC3339, true
	case UnitSeconds:
		return unitSeconds, true
	case UnitMilliseconds:
		return unitMilliseconds, true
	case UnitMicroseconds:
		return unitMicroseconds, true
	case UnitNanoseconds:
		return unitNanoseconds, true
	}
	return 0, false
}

// perSecond returns how many of a unit of whole numbers are in a second.
func (u unit) perSecond() int64 {
	switch u {
	case unitSeconds:
		return 1
	case unitMilliseconds:
		return 1e3
	case unitMicroseconds:
		return 1e6
	}
	return 1e9
}

// wanted says what a value must be in this unit.
func (u unit) wanted() string {
	if u == unitRFC3339 {
		return "an RFC 3339 string"
	}
	return "an integer or an RFC 3339 string"
}

const maxAhead = 24 * time.Hour

const earliestSecond = 946684800 // 2000-01-01T00:00:00Z

// What is wrong with a time; "" is nothing.
const (
	timeBefore   = "is before 2000-01-01"
	timeAhead    = "is more than 24 h after its receipt"
	timeFraction = "is not an integer"
	timeSyntax   = "is not an RFC 3339 time"
)

// timeOfNumber reads a JSON number as an integer time.
func (u unit) timeOfNumber(literal []byte, received time.Time) (t time.Time, wrong string) {
	negative := literal[0] == '-'
	if negative {
		literal = literal[1:]
	}
	if digits(literal, 0) != len(literal) {
		return time.Time{}, timeFraction
	}
	if negative {
		return time.Time{}, timeBefore
	}
	n, ok := parseInteger(literal)
	if !ok {
		return time.Time{}, timeAhead
	}
	per := u.perSecond()
	return plausible(n/per, n%per*(1e9/per), received)
}

// parseInteger returns the value of at most 19 decimal digits. Not ok means that it exceeds an int64.
func parseInteger(literal []byte) (n int64, ok bool) {
	if len(literal) > 19 {
		return 0, false
	}
	var u uint64
	for _, c := range literal {
		u = u*10 + uint64(c-'0')
	}
	return int64(u), u < 1<<63
}

// plausible returns the instant in whole microseconds, if it is one that a device may name.
func plausible(seconds, nanoseconds int64, received time.Time) (t time.Time, wrong string) {
	if seconds < earliestSecond {
		return time.Time{}, timeBefore
	}
	// Compared in seconds first: time.Unix wraps around for the largest ones.
	latest := received.Add(maxAhead)
	if ahead := seconds - latest.Unix(); ahead > 0 || ahead == 0 && nanoseconds > int64(latest.Nanosecond()) {
		return time.Time{}, timeAhead
	}
	return time.Unix(seconds, nanoseconds-nanoseconds%1e3).UTC(), ""
}

// timeOfText reads an RFC 3339 string. Digits behind the ninth of a fraction are dropped. T and Z may be in lower case
// (section 5.6); a leap second (:60) is refused, as time.Time cannot hold it.
func timeOfText(b []byte, received time.Time) (t time.Time, wrong string) {
	if len(b) < len("2006-01-02T15:04:05Z") || b[4] != '-' || b[7] != '-' || b[10]|0x20 != 't' || b[13] != ':' || b[16] != ':' {
		return time.Time{}, timeSyntax
	}
	valid := true
	number := func(from, to, least, most int) int {
		n := 0
		for _, c := range b[from:to] {
			valid = valid && c-'0' <= 9
			n = n*10 + int(c-'0')
		}
		valid = valid && n >= least && n <= most
		return n
	}
	year, month := number(0, 4, 0, 9999), number(5, 7, 1, 12)
	day := number(8, 10, 1, 31)
	hour, minute, second := number(11, 13, 0, 23), number(14, 16, 0, 59), number(17, 19, 0, 59)
	nanoseconds, end := fraction(b, 19)
	offset := 0 // minutes
	switch {
	case len(b) == end+1 && b[end]|0x20 == 'z':
	case len(b) == end+6 && (b[end] == '+' || b[end] == '-') && b[end+3] == ':':
		offset = number(end+1, end+3, 0, 23)*60 + number(end+4, end+6, 0, 59)
		if b[end] == '-' {
			offset = -offset
		}
	default:
		valid = false
	}
	if !valid {
		return time.Time{}, timeSyntax
	}
	t = time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	if t.Day() != day {
		return time.Time{}, timeSyntax // 30 February
	}
	return plausible(t.Unix()-int64(offset)*60, nanoseconds, received)
}

// fraction reads a fraction of a second at i, if there is one, and returns the offset behind it.
func fraction(b []byte, i int) (nanoseconds int64, end int) {
	if b[i] != '.' {
		return 0, i
	}
	end = digits(b, i+1)
	if end == i+1 {
		return 0, i // a point without digits: the caller finds no zone there
	}
	for j := range 9 {
		nanoseconds *= 10
		if i+1+j < end {
			nanoseconds += int64(b[i+1+j] - '0')
		}
	}
	return nanoseconds, end
}

// parseSeq returns a sequence number's literal as its value.
func parseSeq(literal []byte) (int64, bool) {
	if string(literal) == "-0" {
		return 0, true
	}
	if digits(literal, 0) != len(literal) {
		return 0, false
	}
	n, ok := parseInteger(literal)
	return n, ok && n <= MaxSeq
}
