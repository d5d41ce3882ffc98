package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writePart replaces the part of a Markdown file that has text's heading, or comes after the parts that are there. A part is what a
// line that begins with "# " heads, so that each benchmark writes its own and can be run alone.
func writePart(file, text string) error {
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	heading, _, _ := strings.Cut(text, "\n")
	var parts []string
	for line := range strings.Lines(string(old)) {
		if strings.HasPrefix(line, "# ") || len(parts) == 0 {
			parts = append(parts, "")
		}
		parts[len(parts)-1] += line
	}
	found := false
	for n := range parts {
		if first, _, _ := strings.Cut(parts[n], "\n"); first == heading {
			parts[n], found = text, true
		}
	}
	if !found {
		parts = append(parts, text)
	}
	for n := range parts {
		parts[n] = strings.TrimRight(parts[n], "\n")
	}
	return os.WriteFile(file, []byte(strings.Join(parts, "\n\n")+"\n"), 0o644)
}

// deliver prints a benchmark's report, and makes it a part of -out.
func deliver(b *testing.B, text string) {
	b.Helper()
	fmt.Print("\n", text, "\n")
	if *out == "" {
		return
	}
	if err := writePart(*out, text); err != nil {
		b.Fatal(err)
	}
}

func TestWritePart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.md")
	for _, text := range []string{"# One\n\nold\n", "# Two\n\nsecond\n## Two's\n", "# One\n\nnew\n", "# Two\n\nsecond\n## Two's\n"} {
		if err := writePart(file, text); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := "# One\n\nnew\n\n# Two\n\nsecond\n## Two's\n"; string(got) != want {
		t.Errorf("the report is %q, want %q", got, want)
	}
}
