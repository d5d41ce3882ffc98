package bluegreen

import (
	"fmt"
	"strings"
)

// kind of a token, as far as names, parameters and the ends of statements have to be told from text.
type kind int

const (
	symbol kind = iota
	identifier
	literalText // a string, or a number
	parameter
)

type token struct {
	kind     kind
	text     string // of an identifier its name: folded, or without its quotes
	quoted   bool
	from, to int // bytes of the source
}

func (t token) is(s string) bool { return t.kind == symbol && t.text == s }

// lex splits SQL by PostgreSQL's rules (manual, Lexical Structure), where strings take a backslash as it is, but those that begin
// with E. Comments are left out.
func lex(sql string) (tokens []token, err error) {
	for at := 0; at < len(sql); {
		t, end := next(sql, at)
		if end < 0 {
			return nil, fmt.Errorf("line %d: what begins here does not end: %.20q", lineAt(sql, at), sql[at:])
		}
		if t != nil {
			t.from, t.to = at, end
			tokens = append(tokens, *t)
		}
		at = end
	}
	return tokens, nil
}

// next reads what begins at a byte: a token, or nil for space and comments, and where it ends; -1 where it does not.
func next(sql string, at int) (*token, int) {
	c, rest := sql[at], sql[at:]
	switch {
	case strings.IndexByte(" \t\r\n\f\v", c) >= 0:
		return nil, at + 1
	case strings.HasPrefix(rest, "--"):
		if n := strings.IndexByte(rest, '\n'); n >= 0 {
			return nil, at + n
		}
		return nil, len(sql)
	case strings.HasPrefix(rest, "/*"):
		return nil, comment(sql, at)
	case c == '\'':
		return &token{kind: literalText}, quotedEnd(sql, at, '\'', false)
	case (c == 'e' || c == 'E') && strings.HasPrefix(rest[1:], "'"):
		return &token{kind: literalText}, quotedEnd(sql, at+1, '\'', true)
	case c == '"':
		end := quotedEnd(sql, at, '"', false)
		if end < 0 {
			return nil, -1
		}
		return &token{kind: identifier, text: strings.ReplaceAll(sql[at+1:end-1], `""`, `"`), quoted: true}, end
	case c == '$':
		return dollar(sql, at)
	case c >= '0' && c <= '9':
		end := at + span(rest, func(c byte) bool { return c == '.' || inWord(c) })
		return &token{kind: literalText}, end
	case inWord(c):
		end := at + span(rest, func(c byte) bool { return c == '$' || inWord(c) })
		return &token{kind: identifier, text: fold(sql[at:end])}, end
	case strings.HasPrefix(rest, "::"), strings.HasPrefix(rest, ":="):
		return &token{text: rest[:2]}, at + 2
	}
	return &token{text: rest[:1]}, at + 1
}

func inWord(c byte) bool {
	return c == '_' || c >= 0x80 || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// fold is how PostgreSQL folds a name without quotes in UTF-8: ASCII alone.
func fold(word string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, word)
}

// span counts the leading bytes that fit.
func span(s string, fits func(byte) bool) (n int) {
	for n < len(s) && fits(s[n]) {
		n++
	}
	return n
}

// quotedEnd is the byte after the closing quote; two are one that is meant.
func quotedEnd(sql string, at int, quote byte, escapes bool) int {
	for n := at + 1; n < len(sql); n++ {
		switch {
		case escapes && sql[n] == '\\':
			n++
		case sql[n] == quote && n+1 < len(sql) && sql[n+1] == quote:
			n++
		case sql[n] == quote:
			return n + 1
		}
	}
	return -1
}

// comment is the byte after one, which may have others inside.
func comment(sql string, at int) int {
	depth := 0
	for n := at; n+1 < len(sql); n++ {
		switch sql[n : n+2] {
		case "/*":
			depth++
			n++
		case "*/":
			depth--
			n++
			if depth == 0 {
				return n + 1
			}
		}
	}
	return -1
}

// dollar reads $1, or a string between two $tag$.
func dollar(sql string, at int) (*token, int) {
	rest := sql[at+1:]
	if n := span(rest, func(c byte) bool { return c >= '0' && c <= '9' }); n > 0 {
		return &token{kind: parameter, text: sql[at : at+1+n]}, at + 1 + n
	}
	n := span(rest, inWord)
	if n == len(rest) || rest[n] != '$' {
		return &token{text: "$"}, at + 1
	}
	tag := sql[at : at+n+2]
	end := strings.Index(sql[at+len(tag):], tag)
	if end < 0 {
		return nil, -1
	}
	return &token{kind: literalText}, at + end + 2*len(tag)
}
