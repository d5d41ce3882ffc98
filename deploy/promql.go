package deploy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// names holds for each metric the labels asked of it.
type names map[string]map[string]bool

// token is the least that tells metrics from labels in PromQL: Grafana's $variables are taken as words, and a string
// is kept only as what it is.
var token = regexp.MustCompile("#[^\n]*" + // a comment
	`|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'` + "|`[^`]*`" + // a string
	`|\[[^\]]*\]` + // a range
	`|\$?[a-zA-Z_:][a-zA-Z0-9_:]*|\$\{[^}]*\}` + // a word
	`|[0-9][0-9a-zA-Z_.]*` + // a number or a duration
	`|=~|!~|!=|==|[^\s]`)

// clauses are followed by a list of labels in parentheses. The labels of true ones are those of one aggregation, the
// others' of all that the expression names.
var clauses = map[string]bool{
	"by": true, "without": true, "on": false, "ignoring": false, "group_left": false, "group_right": false,
}

// word tells whether a token is an identifier.
var word = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)

// add collects what one expression names.
func (n names) add(expression string) error {
	tokens := token.FindAllString(expression, -1)
	tokens = slices.DeleteFunc(tokens, func(t string) bool { return t[0] == '#' || t[0] == '[' })
	pairs, err := match(tokens)
	if err != nil {
		return err
	}
	return n.collect(tokens, pairs)
}

// match returns for each bracket the position of its partner.
func match(tokens []string) (map[int]int, error) {
	pairs := map[int]int{}
	var open []int
	for i, t := range tokens {
		switch t {
		case "(", "{":
			open = append(open, i)
		case ")", "}":
			if len(open) == 0 || (tokens[open[len(open)-1]] == "(") != (t == ")") {
				return nil, fmt.Errorf("%q without its partner", t)
			}
			last := open[len(open)-1]
			open = open[:len(open)-1]
			pairs[last], pairs[i] = i, last
		}
	}
	if len(open) > 0 {
		return nil, fmt.Errorf("%q without its partner", tokens[open[len(open)-1]])
	}
	return pairs, nil
}

// scope is a list of labels and the tokens whose metrics it is asked of.
type scope struct {
	labels   []string
	from, to int
}

func (n names) collect(tokens []string, pairs map[int]int) error {
	metrics := map[int]string{}
	var scopes []scope
	for i := 0; i < len(tokens); i++ {
		t := tokens[i]
		aggregation, clause := clauses[strings.ToLower(t)]
		switch {
		case clause && i+1 < len(tokens) && tokens[i+1] == "(":
			end := pairs[i+1]
			s := scope{words(tokens[i+2 : end]), 0, len(tokens)}
			if aggregation {
				s.from, s.to = body(tokens, pairs, i, end)
			}
			scopes = append(scopes, s)
			i = end
		case t == "{":
			labels, err := matched(tokens[i+1 : pairs[i]])
			if err != nil {
				return err
			}
			scopes = append(scopes, scope{labels, i - 1, i})
			i = pairs[i]
		case strings.HasPrefix(t, "plenum_"):
			metrics[i] = t
			if n[t] == nil {
				n[t] = map[string]bool{}
			}
		}
	}
	for _, s := range scopes {
		for i, metric := range metrics {
			if i < s.from || i >= s.to {
				continue
			}
			for _, label := range s.labels {
				n[metric][label] = true
			}
		}
	}
	return nil
}

// body returns where the operand of an aggregation is whose clause stands at i and whose labels end at end: after them,
// as in sum by (a) (x), or before, as in sum(x) by (a).
func body(tokens []string, pairs map[int]int, i, end int) (from, to int) {
	if end+1 < len(tokens) && tokens[end+1] == "(" {
		return end + 1, pairs[end+1]
	}
	if i > 0 && tokens[i-1] == ")" {
		return pairs[i-1], i - 1
	}
	return 0, len(tokens)
}

// matched returns the labels of a selector's braces.
func matched(tokens []string) ([]string, error) {
	var labels []string
	for i, t := range tokens {
		if i+1 >= len(tokens) || !word.MatchString(t) {
			continue
		}
		switch tokens[i+1] {
		case "=", "!=", "=~", "!~":
			if t == "__name__" {
				return nil, errors.New("a metric is named by __name__: write its name before the braces")
			}
			labels = append(labels, t)
		}
	}
	return labels, nil
}

func words(tokens []string) []string {
	return slices.DeleteFunc(slices.Clone(tokens), func(t string) bool { return !word.MatchString(t) })
}
