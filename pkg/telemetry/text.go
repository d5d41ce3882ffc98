package telemetry

import (
	"strings"
	"unicode/utf8"
)

// maxValueBytes is how much of a value, and of a path, a detail shows.
const maxValueBytes = 64

// mark stands at the end of what was cut.
const mark = "…"

// cut returns text cut to maxValueBytes, at a rune's boundary, with a mark if it was longer.
func cut[T string | []byte](text T) string {
	if len(text) <= maxValueBytes {
		return string(text)
	}
	n := maxValueBytes
	for n > maxValueBytes-utf8.UTFMax && !utf8.RuneStart(text[n]) {
		n--
	}
	return string(text[:n]) + mark
}

// storable returns text as PostgreSQL can keep it: valid UTF-8 without NUL, at most limit bytes, a cut marked.
func storable(text string, limit int) string {
	long := len(text) > limit
	if long {
		n := limit - len(mark)
		for n > 0 && n > limit-len(mark)-utf8.UTFMax && !utf8.RuneStart(text[n]) {
			n--
		}
		text = text[:n]
	}
	const replacement = "?"
	text = strings.ReplaceAll(strings.ToValidUTF8(text, replacement), "\x00", replacement)
	if long {
		text += mark
	}
	return text
}
