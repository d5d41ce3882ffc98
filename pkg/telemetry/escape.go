package telemetry

import (
	"unicode/utf16"
	"unicode/utf8"
)

// unescapeNext decodes the character at the start of source, which is the inside of a valid JSON string and not
// empty. It returns the character's UTF-8 in buf and how many bytes of source it took. A lone surrogate becomes
// U+FFFD; the scanner has found a fault in its element already.
func unescapeNext(source []byte, buf *[utf8.UTFMax]byte) (char []byte, width int) {
	if source[0] != '\\' {
		buf[0] = source[0] // a byte of a longer character stands for itself
		return buf[:1], 1
	}
	switch c := source[1]; c {
	case 'u':
		r, width := rune(hex4(source[2:])), 6
		if utf16.IsSurrogate(r) {
			low := rune(0)
			if len(source) >= 12 && source[6] == '\\' && source[7] == 'u' {
				low = rune(hex4(source[8:]))
			}
			if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
				width = 12
			}
		}
		return utf8.AppendRune(buf[:0], r), width
	case 'b':
		buf[0] = '\b'
	case 'f':
		buf[0] = '\f'
	case 'n':
		buf[0] = '\n'
	case 'r':
		buf[0] = '\r'
	case 't':
		buf[0] = '\t'
	default: // " \ /
		buf[0] = c
	}
	return buf[:1], 2
}

// equalUnescaped says whether source, the inside of a valid JSON string, means text.
func equalUnescaped(source []byte, text string) bool {
	var buf [utf8.UTFMax]byte
	for len(source) > 0 {
		char, width := unescapeNext(source, &buf)
		if len(text) < len(char) || text[:len(char)] != string(char) {
			return false
		}
		source, text = source[width:], text[len(char):]
	}
	return text == ""
}

// unescape returns what source, the inside of a valid JSON string, means.
func unescape(source []byte) []byte {
	var buf [utf8.UTFMax]byte
	text := make([]byte, 0, len(source))
	for len(source) > 0 {
		char, width := unescapeNext(source, &buf)
		text, source = append(text, char...), source[width:]
	}
	return text
}

// hex4 returns the value of four hexadecimal digits, or -1 if source does not begin with four.
func hex4(source []byte) int {
	if len(source) < 4 {
		return -1
	}
	value := 0
	for _, c := range source[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		value = value<<4 | int(c)
	}
	return value
}
