package partman

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// boundForm is what pg_get_expr prints for a range partition of one column.
var boundForm = regexp.MustCompile(`^FOR VALUES FROM \((.+)\) TO \((.+)\)$`)

// parseBound fills the bounds from the catalog's text, printed with time zone UTC and ISO dates. A text it cannot read
// is an error and never a guess.
func (p *Partition) parseBound(text string) error {
	parts := boundForm.FindStringSubmatch(text)
	if parts == nil {
		return fmt.Errorf("partition %q: bounds %q are not understood", p.Name, text)
	}
	var err error
	if p.From, p.OpenFrom, err = parseEnd(parts[1]); err != nil {
		return fmt.Errorf("partition %q: bounds %q: %w", p.Name, text, err)
	}
	if p.To, p.OpenTo, err = parseEnd(parts[2]); err != nil {
		return fmt.Errorf("partition %q: bounds %q: %w", p.Name, text, err)
	}
	return nil
}

// parseEnd reads one bound. Instants outside of years 1 to 9999 are as good as none: open.
func parseEnd(text string) (t time.Time, open bool, err error) {
	switch text {
	case "MINVALUE", "MAXVALUE", "'infinity'", "'-infinity'":
		return time.Time{}, true, nil
	}
	value := strings.Trim(text, "'")
	if strings.HasSuffix(value, " BC") || len(value) > 4 && value[4] != '-' {
		return time.Time{}, true, nil
	}
	layout := "2006-01-02 15:04:05.999999-07"
	if !strings.Contains(value, " ") {
		layout = "2006-01-02"
	}
	t, err = time.Parse(layout, value)
	return t.UTC(), false, err
}
