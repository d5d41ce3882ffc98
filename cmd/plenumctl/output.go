package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"text/tabwriter"

	"plenum/internal/program"
)

// output is the --output flag.
type output struct{ format string }

func (o *output) add(fs *flag.FlagSet) { fs.StringVar(&o.format, "output", "text", "text or json") }

func (o *output) check() error {
	if o.format != "text" && o.format != "json" {
		return program.Usagef("--output: %q is neither text nor json", o.format)
	}
	return nil
}

// checkRaw is check for a command that can also write the bytes alone.
func (o *output) checkRaw(raw bool) error {
	if raw && o.format == "json" {
		return program.Usagef("--raw and --output json exclude each other")
	}
	return o.check()
}

// print writes v as JSON, or has text write it as aligned columns.
func (o *output) print(w io.Writer, v any, text func(io.Writer)) error {
	if o.format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	text(t)
	return t.Flush()
}

// bytes is a size for people.
func bytes(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
