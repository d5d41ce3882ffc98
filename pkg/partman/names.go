package partman

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// maxName is the length in bytes past which PostgreSQL truncates an identifier.
const maxName = 63

// names hands out names that nothing in the schema has.
type names map[string]bool

func newNames(taken []string) names {
	n := make(names, len(taken))
	for _, t := range taken {
		n[t] = true
	}
	return n
}

// free returns want, shortened to fit, or the first of want_2, want_3, … that is not taken, and takes it.
func (n names) free(want string) string {
	name := clip(want, maxName)
	for i := 2; n[name]; i++ {
		tail := fmt.Sprintf("_%d", i)
		name = clip(want, maxName-len(tail)) + tail
	}
	n[name] = true
	return name
}

// clip shortens a name to at most n bytes without cutting a character.
func clip(name string, n int) string {
	if len(name) <= n {
		return name
	}
	for n > 0 && !utf8.RuneStart(name[n]) {
		n--
	}
	return name[:n]
}

// stem is what the names of a table's partitions begin with. It leaves room for the step's start and a number behind it.
func (p Policy) stem() string {
	return clip(p.Table, maxName-len("_p_99")-len(p.Step.suffix(time.Time{}))) + "_p"
}

func (p Policy) leafName(from time.Time) string { return p.stem() + p.Step.suffix(from) }

func ident(parts ...string) string { return pgx.Identifier(parts).Sanitize() }

// quote makes a literal. Only text of this package and validated text gets here; standard_conforming_strings is set.
func quote(s string) string {
	b := make([]byte, 0, len(s)+2)
	b = append(b, '\'')
	for i := range len(s) {
		if s[i] == '\'' {
			b = append(b, '\'')
		}
		b = append(b, s[i])
	}
	return string(append(b, '\''))
}

// literal writes an instant as a bound: with an explicit offset, so that no session's time zone has a say.
func (k KeyType) literal(t time.Time) string {
	if k == Date {
		return t.UTC().Format("'2006-01-02'")
	}
	return t.UTC().Format("'2006-01-02 15:04:05.999999+00'")
}

// bounds is the FOR VALUES clause.
func (k KeyType) bounds(from, to time.Time) string {
	return fmt.Sprintf("for values from (%s) to (%s)", k.literal(from), k.literal(to))
}

// ParseName reads the name of a table as a person gives it: table, or schema.table. A part is taken as it stands, upper
// case and blanks included; one with a dot or a double quote in it stands in double quotes, those in it doubled, as in SQL.
// schema is that of a name without one.
func ParseName(text, schema string) (inSchema, table string, err error) {
	var parts []string
	for rest := text; ; {
		part, left, err := cutName(rest)
		if err != nil || part == "" {
			return "", "", fmt.Errorf("table name %q: table, or schema.table is needed, a part with a dot in it in double quotes", text)
		}
		parts = append(parts, part)
		if left == "" {
			break
		}
		rest = left[1:]
	}
	switch len(parts) {
	case 1:
		return schema, parts[0], nil
	case 2:
		return parts[0], parts[1], nil
	}
	return "", "", fmt.Errorf("table name %q has %d parts: schema.table has two; a part with a dot in it stands in double quotes", text, len(parts))
}

// cutName returns the first part of a name, and what follows it: nothing, or a dot and more.
func cutName(text string) (part, rest string, err error) {
	if !strings.HasPrefix(text, `"`) {
		end := strings.IndexByte(text, '.')
		if end < 0 {
			end = len(text)
		}
		if strings.Contains(text[:end], `"`) {
			return "", "", errors.New("a quote in the middle")
		}
		return text[:end], text[end:], nil
	}
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] != '"':
			part += text[i : i+1]
		case strings.HasPrefix(text[i+1:], `"`):
			part += `"`
			i++
		case i+1 == len(text) || text[i+1] == '.':
			return part, text[i+1:], nil
		default:
			return "", "", errors.New("text behind a quote")
		}
	}
	return "", "", errors.New("no quote at the end")
}

// FormatName writes schema.table so that ParseName reads it, with quotes only where they are needed.
func FormatName(schema, table string) string { return formatPart(schema) + "." + formatPart(table) }

// ShellName is FormatName for a command that a person pastes.
func ShellName(schema, table string) string { return shellQuote(FormatName(schema, table)) }

var shellWord = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

func shellQuote(word string) string {
	if shellWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

func formatPart(name string) string {
	if strings.ContainsAny(name, `."`) {
		return ident(name)
	}
	return name
}
