package telemetry

import (
	"strconv"
	"strings"
)

// span is where a value stands in the payload.
type span struct{ begin, end int }

// container is an object or array that the scanner is in.
type container struct {
	begin  int
	index  int    // of the current item
	key    span   // of the current member, the quotes not included
	open   fields // whose pointers lead further into it
	here   fields // whose pointers end at it
	object bool
}

// scanner reads JSON values, each once and without recursion. In one pass it judges the syntax (RFC 8259), finds the
// fields, and notes the value's first fault. It follows the MaxDepth outermost containers of a value; each deeper one,
// which is a fault already, is a bit in deep, so that an unclosed bracket in each byte
// of the payload costs at most a quarter of its size (the slice grows by doubling).
type scanner struct {
	b     []byte
	paths *paths
	quiet bool // faults need no place

	syntaxAt int // where the syntax is wrong, once a method has returned bad

	seen  fields // which spans are set
	spans [fieldCount]span

	fault   fault  // the first of the value
	faultAt int    // where the string, number or container begins that has it
	place   string // its JSON pointer, cut; of a key's fault, the object's
	inKey   bool   // the scanner is in a key
	keyBad  bool   // the fault is a key's

	depth    int
	inObject bool
	path     [MaxDepth + 1]container // path[n] is the container at depth n; path[0] is unused
	deep     []uint64                // a bit for each container past MaxDepth, 1 for an object
}

// bad is what the scanner's methods return in place of an offset when the syntax is wrong.
const bad = -1

func (s *scanner) stop(i int) int {
	s.syntaxAt = i
	return bad
}

// note remembers the first fault.
func (s *scanner) note(f fault, at int) {
	if s.fault != faultNone || f == faultNone {
		return
	}
	s.fault, s.faultAt, s.keyBad = f, at, s.inKey
	if !s.quiet {
		s.place = s.pointer()
	}
}

// pointer returns the JSON pointer of the current value, with keys as their source has them (a raw NUL cannot occur in
// that), cut after maxValueBytes.
func (s *scanner) pointer() string {
	last := min(s.depth, MaxDepth)
	if s.inKey {
		last--
	}
	var text []byte
	for n := 1; n <= last && len(text) <= maxValueBytes; n++ {
		text = append(text, '/')
		if c := &s.path[n]; c.object {
			text = append(text, strings.NewReplacer("~", "~0", "/", "~1").Replace(cut(s.b[c.key.begin:c.key.end]))...)
		} else {
			text = strconv.AppendInt(text, int64(c.index), 10)
		}
	}
	return cut(text)
}

// space returns the offset of the first byte from i on that is no white space.
func (s *scanner) space(i int) int {
	for i < len(s.b) && s.b[i] <= ' ' && (s.b[i] == ' ' || s.b[i] == '\n' || s.b[i] == '\r' || s.b[i] == '\t') {
		i++
	}
	return i
}

// value scans the value that begins at i, which is no white space, and returns the offset behind it or bad.
// It sets seen, spans and fault anew.
func (s *scanner) value(i int) int {
	s.seen, s.fault, s.depth = 0, faultNone, 0
	want := s.paths.all // the fields whose pointers match the path so far
	for {
		if i == len(s.b) {
			return s.stop(i)
		}
		begin, c := i, s.b[i]
		switch {
		case c == '{' || c == '[':
			s.enter(i, c == '{', want)
			i = s.space(i + 1)
			if i == len(s.b) {
				return s.stop(i)
			}
			if s.b[i] != c+2 { // '{'+2 is '}', '['+2 is ']'
				if i, want = s.child(i); i == bad {
					return bad
				}
				continue
			}
		case c == '"':
			i, _ = s.text(i)
		case c == 't':
			i = s.literal(i, "true")
		case c == 'f':
			i = s.literal(i, "false")
		case c == 'n':
			i = s.literal(i, "null")
		default:
			i = s.number(i)
		}
		if i == bad {
			return bad
		}
		if c != '{' && c != '[' && want != 0 && s.depth <= MaxDepth {
			s.found(want&s.paths.terminal[s.depth], begin, i)
		}
		var more bool
		if i, want, more = s.after(i); !more {
			return i
		}
	}
}

// after scans from behind a value, or from the bracket that closes an empty container, to the next value of the
// outermost one. Without more, i is the end of that, or bad.
func (s *scanner) after(i int) (next int, want fields, more bool) {
	for s.depth > 0 {
		i = s.space(i)
		if i == len(s.b) {
			return s.stop(i), 0, false
		}
		switch c := s.b[i]; {
		case c == ',':
			if s.depth <= MaxDepth {
				s.path[s.depth].index++
			}
			next, want = s.child(s.space(i + 1))
			return next, want, next != bad
		case c == '}' && s.inObject || c == ']' && !s.inObject:
			i++
			s.leave(i)
		default:
			return s.stop(i), 0, false
		}
	}
	return i, 0, false
}

// child scans up to the value of the current container's next child, which begins at i: an object's key, nothing of
// an array. It returns where the value begins and which pointers lead to it.
func (s *scanner) child(i int) (int, fields) {
	var open fields
	if s.depth <= MaxDepth {
		open = s.path[s.depth].open
	}
	if !s.inObject {
		if open != 0 {
			open = s.paths.item(open, s.depth-1, s.path[s.depth].index)
		}
		return i, open
	}
	if i == len(s.b) || s.b[i] != '"' {
		return s.stop(i), 0
	}
	s.inKey = true
	end, escaped := s.text(i)
	s.inKey = false
	if end == bad {
		return bad, 0
	}
	if s.depth <= MaxDepth {
		s.path[s.depth].key = span{i + 1, end - 1}
	}
	if open != 0 {
		open = s.paths.member(open, s.depth-1, s.b[i+1:end-1], escaped)
		s.seen &^= open // a repeated key replaces what its earlier value held
	}
	i = s.space(end)
	if i == len(s.b) || s.b[i] != ':' {
		return s.stop(i), 0
	}
	return s.space(i + 1), open
}

// enter opens the container at i.
func (s *scanner) enter(i int, object bool, want fields) {
	s.depth++
	s.inObject = object
	if s.depth <= MaxDepth {
		here := want & s.paths.terminal[s.depth-1]
		s.path[s.depth] = container{begin: i, open: want &^ here, here: here, object: object}
		return
	}
	if s.depth == MaxDepth+1 {
		s.note(faultDepth, i)
	}
	word, bit := deepBit(s.depth)
	if word == len(s.deep) {
		s.deep = append(s.deep, 0)
	}
	s.deep[word] &^= bit
	if object {
		s.deep[word] |= bit
	}
}

// leave closes the current container, whose last byte is before end.
func (s *scanner) leave(end int) {
	if s.depth <= MaxDepth {
		c := &s.path[s.depth]
		s.found(c.here, c.begin, end)
	}
	s.depth--
	if s.depth <= MaxDepth {
		s.inObject = s.path[s.depth].object
		return
	}
	word, bit := deepBit(s.depth)
	s.inObject = s.deep[word]&bit != 0
}

// deepBit returns where in scanner.deep the container at a depth past MaxDepth has its bit.
func deepBit(depth int) (word int, bit uint64) {
	n := depth - MaxDepth - 1
	return n / 64, 1 << (n % 64)
}

func (s *scanner) found(here fields, begin, end int) {
	if here == 0 {
		return
	}
	s.seen |= here
	for f := range s.spans {
		if here&(1<<f) != 0 {
			s.spans[f] = span{begin, end}
		}
	}
}

// literal scans true, false or null.
func (s *scanner) literal(i int, word string) int {
	for j := range len(word) {
		if i+j == len(s.b) || s.b[i+j] != word[j] {
			return s.stop(i + j)
		}
	}
	return i + len(word)
}
