package program

import (
	"bytes"
	"context"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"plenum/internal/devenv/devtest"
)

func TestMain(m *testing.M) { devtest.Main(m) }

// source is where a test's settings come from.
type source struct {
	args []string
	env  map[string]string
	yaml string // of the file, unless empty
}

// load loads the settings of the ingest daemon.
func (s source) load(t *testing.T) (Settings, error) {
	t.Helper()
	l := NewLoader("127.0.0.1:8080")
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	l.AddFlags(fs)
	args := s.args
	if s.yaml != "" {
		args = append([]string{"--config", file(t, s.yaml)}, args...)
	}
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return l.Load(s.getenv)
}

func (s source) getenv(name string) string { return s.env[name] }

// file writes a file and returns its path.
func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// daemon runs a daemon that only takes its settings, and returns them and what it printed.
func daemon(t *testing.T, env map[string]string, args ...string) (s Settings, stdout string, err error) {
	t.Helper()
	d := Daemon{
		Name: "ingest", About: "does nothing", Listen: "127.0.0.1:0", Validate: Settings.ValidateIngest,
		Work: func(_ context.Context, a *App) error {
			s = a.Settings
			return nil
		},
	}
	var out bytes.Buffer
	err = d.Run(t.Context(), args, source{env: env}.getenv, &out, io.Discard)
	return s, out.String(), err
}
