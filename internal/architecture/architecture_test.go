package architecture

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// allowed is the import rule: what a package may import of the project. A package that is not here may not exist.
var allowed = map[string][]string{
	"plenum/pkg/telemetry":    {}, // the format: any program may decode it
	"plenum/pkg/partman":      {}, // a library on its own
	"plenum/pkg/mqtt":         {"plenum/pkg/telemetry"},
	"plenum/pkg/ingest":       {"plenum/pkg/telemetry"}, // the broker and the database reach it as functions
	"plenum/pkg/store":        {"plenum/pkg/telemetry"},
	"plenum/pkg/syncjob":      {"plenum/pkg/store"},
	"plenum/pkg/feed":         {"plenum/pkg/telemetry", "plenum/pkg/store"},
	"plenum/pkg/feed/kafka":   {"plenum/pkg/store", "plenum/pkg/feed"}, // a target each: a reader of the feed does not bring their clients
	"plenum/pkg/feed/webhook": {"plenum/pkg/store", "plenum/pkg/feed"},
	"plenum/pkg/queryplan":    {}, // plans of any table
	"plenum/pkg/bluegreen":    {"plenum/pkg/partman", "plenum/pkg/queryplan"},
	"plenum/pkg/httpapi":      {"plenum/pkg/store", "plenum/pkg/feed", "plenum/pkg/partman"},

	"plenum/internal/program": { // the wiring
		"plenum/pkg/telemetry", "plenum/pkg/mqtt", "plenum/pkg/ingest", "plenum/pkg/store", "plenum/pkg/partman",
		"plenum/pkg/syncjob", "plenum/pkg/feed", "plenum/pkg/feed/kafka", "plenum/pkg/feed/webhook", "plenum/pkg/queryplan", "plenum/pkg/bluegreen", "plenum/pkg/httpapi",
	},
	"plenum/internal/devenv":         {"plenum/pkg/telemetry"},
	"plenum/internal/devenv/devtest": {"plenum/internal/devenv"},
	"plenum/internal/architecture":   {},
	"plenum/internal/endtoend":       {},

	"plenum/cmd/ingest":           {"plenum/internal/program"},
	"plenum/cmd/syncjob":          {"plenum/internal/program"},
	"plenum/cmd/plenumctl":        {"plenum/internal/program", "plenum/internal/devenv", "plenum/pkg/bluegreen", "plenum/pkg/feed", "plenum/pkg/partman", "plenum/pkg/store", "plenum/pkg/telemetry"},
	"plenum/deploy":               {},
	"plenum/deploy/docker/readyz": {},
	"plenum/bench":                {"plenum/internal/devenv"},
}

// onlyIn keeps a dependency where it belongs, so that it can be replaced there.
var onlyIn = map[string][]string{
	"github.com/eclipse/paho.mqtt.golang": {"plenum/pkg/mqtt", "plenum/internal/devenv"},
	"github.com/go-chi/chi":               {"plenum/pkg/httpapi"},
	"github.com/twmb/franz-go":            {"plenum/pkg/feed/kafka"},
	"github.com/pressly/goose":            {"plenum/pkg/store"},
	"go.yaml.in/yaml":                     {"plenum/internal/program", "plenum/deploy"},
	"testing":                             {"plenum/internal/devenv/devtest"},
}

type pkg struct {
	ImportPath, Dir, Doc string
	Imports, GoFiles     []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json", "plenum/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) > 0 {
			all = append(all, p)
		}
	}
}

func TestImports(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		may, known := allowed[p.ImportPath]
		if !known {
			t.Errorf("%s: a new package needs a line here and a sentence in ARCHITECTURE.md that says why it is one", p.ImportPath)
		}
		for _, i := range p.Imports {
			if strings.HasPrefix(i, "plenum/") && !slices.Contains(may, i) {
				t.Errorf("%s imports %s, which ARCHITECTURE.md does not allow", p.ImportPath, i)
			}
			for dependency, where := range onlyIn {
				if (i == dependency || strings.HasPrefix(i, dependency+"/")) && !slices.Contains(where, p.ImportPath) {
					t.Errorf("%s imports %s, which belongs to %s", p.ImportPath, i, strings.Join(where, ", "))
				}
			}
		}
		if strings.HasPrefix(p.ImportPath, "plenum/pkg/telemetry") {
			for _, i := range p.Imports {
				if strings.Contains(i, ".") {
					t.Errorf("%s imports %s: it uses the standard library only", p.ImportPath, i)
				}
			}
		}
	}
}

func TestPackageDocs(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if len(strings.Fields(p.Doc)) < 6 {
			t.Errorf("%s: its package doc says nothing: %q", p.ImportPath, p.Doc)
		}
	}
}

// TestEnvironment keeps reading the environment and exiting to the mains.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, name := range p.GoFiles {
			file := filepath.Join(p.Dir, name)
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, call := range selectors(f) {
				if slices.Contains(forbidden, call) && !mayCall[p.ImportPath] {
					t.Errorf("%s calls %s: only a main does", file, call)
				}
			}
		}
	}
}
