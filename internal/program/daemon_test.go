package program

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"

	"plenum/pkg/partman"
	"plenum/pkg/store"
)

func TestExitCodes(t *testing.T) {
	t.Parallel()
	usage, setup, held := Usagef("x"), &store.SetupError{Reason: "x"}, &store.HeldError{Name: "n", Holder: "h"}
	for _, c := range []struct {
		err  error
		code int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{context.Canceled, 1},
		{usage, 2},
		{fmt.Errorf("a: %w", usage), 2},
		{errors.Join(errors.New("x"), usage), 2},
		{setup, 2},
		{fmt.Errorf("a: %w", setup), 2},
		{ErrFinding, 3},
		{fmt.Errorf("a: %w", ErrFinding), 3},
		{fmt.Errorf("a: %w", partman.ErrPooler), 2},
		{held, 4},
		{errors.Join(usage, held), 4},
	} {
		if got := ExitCode(c.err); got != c.code {
			t.Errorf("exit code %d of %v, want %d", got, c.err, c.code)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	broken := map[string]string{"PLENUM_MQTT_QOS": "x", "PLENUM_CONFIG": "/nowhere"} // neither asks the configuration
	for _, arg := range []string{"--help", "-h"} {
		_, out, err := daemon(t, broken, arg)
		if err != nil {
			t.Errorf("%s: %v", arg, err)
		}
		for _, k := range NewLoader("").keys {
			if !strings.Contains(out, "\n  "+k.name+"\n        "+k.env()) {
				t.Errorf("%s does not list %s", arg, k.name)
			}
		}
		for _, want := range []string{"ingest does nothing.", "--config FILE", "--version", "(default 127.0.0.1:0)"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s does not say %q", arg, want)
			}
		}
	}
	_, out, err := daemon(t, broken, "--version")
	if err != nil || out != "ingest "+Version()+"\n" || Version() == "" {
		t.Errorf("--version: %v, %q", err, out)
	}
}

func TestWrongCommandLines(t *testing.T) {
	t.Parallel()
	_, _, err := daemon(t, nil, "start")
	fails(t, err, `unexpected argument "start"`, "ingest --help")
	_, _, err = daemon(t, nil, "--mqtt.broker", "x")
	fails(t, err, "mqtt.broker", "ingest --help")
	_, _, err = daemon(t, nil, "--mqtt.qos")
	fails(t, err, "mqtt.qos", "ingest --help")
}

func TestADaemonRuns(t *testing.T) {
	t.Parallel()
	s, _, err := daemon(t, map[string]string{"PLENUM_DATABASE_URL": "postgres://127.0.0.1:1/none"}, "--mqtt.brokers", "tcp://127.0.0.1:1")
	if err != nil || s.MQTT.Brokers[0] != "tcp://127.0.0.1:1" {
		t.Errorf("%v, %+v", err, s)
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	var s Settings
	for _, c := range []struct {
		level, format string
		terminal      bool
		want          string // of the first line
	}{
		{"info", "", false, `{"level":"info"`},
		{"info", "", true, "\tinfo\t"},
		{"info", "console", false, "\tinfo\t"},
		{"info", "json", true, `{"level":"info"`},
		{"warn", "json", false, `{"level":"warn"`},
		{"error", "json", false, ""},
	} {
		s.Log.Level, s.Log.Format = c.level, c.format
		var out zaptest.Buffer
		log, err := NewLogger(s, zapcore.Lock(&out), c.terminal)
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("never")
		log.Info("told")
		log.Warn("warned")
		first, _, _ := strings.Cut(out.String(), "\n")
		if !strings.Contains(first, c.want) || c.want == "" && first != "" || strings.Contains(out.String(), "never") {
			t.Errorf("%+v: %s", c, out.String())
		}
	}
	for _, c := range [][2]string{{"loud", "json"}, {"info", "xml"}} {
		s.Log.Level, s.Log.Format = c[0], c[1]
		_, err := NewLogger(s, zapcore.Lock(new(zaptest.Buffer)), false)
		fails(t, err, "log.")
	}
}
