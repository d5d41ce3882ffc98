package main

import (
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// plain makes text safe for a terminal and a table: topics and values are what devices send. What cannot be printed is
// escaped.
func plain(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		return text
	}
	quoted := strconv.Quote(text)
	return quoted[1 : len(quoted)-1]
}

// brief is plain, cut to n runes.
func brief(text string, n int) string {
	text = plain(text)
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:n-1]) + "…"
}

// instant is a time to the second, as --since and --before take it.
func instant(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// isText says whether a payload can be shown as it is: UTF-8 without control characters but white space.
func isText(payload []byte) bool {
	if !utf8.Valid(payload) {
		return false
	}
	for _, r := range string(payload) {
		if unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t' {
			return false
		}
	}
	return true
}
