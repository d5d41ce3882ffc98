package devenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// MosquittoConfig says how to run a private Mosquitto. The zero value is a
// temporary broker on a free port that lets anyone in.
type MosquittoConfig struct {
	Dir  string // configuration and persistence, made when missing and kept; "": temporary, removed by Stop
	Port int    // on 127.0.0.1; 0: a free one
	// Lines are further lines of mosquitto.conf. One of the same name replaces
	// a default; options of a listener before any listener line are those of
	// the broker's own.
	Lines []string
	Log   io.Writer // gets the broker's log; nil: only its tail is kept, for errors
}

// Mosquitto is a private MQTT broker. Its methods may be called concurrently.
type Mosquitto struct {
	config    MosquittoConfig
	program   string
	dir       string
	temporary bool
	port      int

	mu      sync.Mutex
	lock    *os.File // of a kept directory; nil after Stop
	process *process // nil while stopped
	gone    bool     // the temporary directory has been removed
}

// mosquittoDefaults suit consumers that acknowledge after a commit: the
// broker's own defaults hand out 20 messages at a time and drop what exceeds
// 1,000 waiting ones. An in-flight maximum of 0 can run out of packet ids.
var mosquittoDefaults = []string{
	"allow_anonymous true",
	"persistence true",
	"autosave_interval 10",
	"max_inflight_messages 20000",
	"max_queued_messages 0",
	"max_queued_bytes 0",
	"set_tcp_nodelay true",
	"log_dest stderr",
	"log_type error",
	"log_type warning",
	"log_type notice",
	"log_type information",
}

// StartMosquitto starts a broker and returns when it accepts connections. A
// directory whose broker was not stopped is an *InUseError. ctx bounds the
// start only.
func StartMosquitto(ctx context.Context, config MosquittoConfig) (*Mosquitto, error) {
	program, err := findMosquitto()
	if err != nil {
		return nil, err
	}
	m := &Mosquitto{config: config, program: program}
	if err := m.place(); err != nil {
		return nil, errors.Join(err, m.discard())
	}
	m.port, err = onPort(config.Port, func(port int) error { return m.launch(ctx, port) })
	if err != nil {
		return nil, errors.Join(err, m.discard())
	}
	return m, nil
}

func (m *Mosquitto) place() error {
	var err error
	if m.config.Dir == "" {
		m.temporary = true
		if m.dir, err = os.MkdirTemp("", "plenum-mosquitto-"); err != nil {
			return fmt.Errorf("make Mosquitto's temporary directory: %w", err)
		}
		return nil
	}
	if m.dir, err = filepath.Abs(m.config.Dir); err != nil {
		return fmt.Errorf("directory of Mosquitto %q: %w", m.config.Dir, err)
	}
	if m.lock, err = lockDir(m.dir); err != nil {
		return fmt.Errorf("start Mosquitto: %w", err)
	}
	if err = os.MkdirAll(m.dir, 0o700); err != nil {
		return fmt.Errorf("make Mosquitto's directory %q: %w", m.config.Dir, err)
	}
	return nil
}

// discard removes a temporary directory, and unlocks a kept one.
func (m *Mosquitto) discard() error {
	if !m.temporary {
		lock := m.lock
		m.lock = nil
		return unlockDir(lock)
	}
	m.gone = true
	if err := os.RemoveAll(m.dir); err != nil {
		return fmt.Errorf("remove Mosquitto's temporary directory: %w", err)
	}
	return nil
}

func (m *Mosquitto) launch(ctx context.Context, port int) error {
	if err := checkPort(port); err != nil {
		return fmt.Errorf("start Mosquitto: %w", err)
	}
	file := filepath.Join(m.dir, "mosquitto.conf")
	if err := os.WriteFile(file, []byte(m.configuration(port)), 0o600); err != nil {
		return fmt.Errorf("write Mosquitto's configuration: %w", err)
	}
	broker, err := command{
		name:        "Mosquitto",
		path:        m.program,
		args:        []string{"-c", file},
		deathSignal: syscall.SIGTERM, // it saves its sessions
		log:         m.config.Log,
	}.start()
	if err != nil {
		return err
	}
	if err := broker.ready(ctx, func(ctx context.Context) error { return dial(ctx, port) }); err != nil {
		select {
		case <-broker.done:
			return fmt.Errorf("directory %q, port %d: %w", m.dir, port, err)
		default:
			return errors.Join(err, broker.stop(killStop...))
		}
	}
	m.process = broker
	return nil
}

var (
	cleanStop = []stopStep{{syscall.SIGTERM, 30 * time.Second}, {syscall.SIGKILL, 10 * time.Second}}
	killStop  = []stopStep{{syscall.SIGKILL, 10 * time.Second}}
)

// configuration is the text of mosquitto.conf.
func (m *Mosquitto) configuration(port int) string {
	given := make(map[string]bool, len(m.config.Lines))
	for _, line := range m.config.Lines {
		given[option(line)] = true
	}
	defaults := append([]string{"persistence_location " + m.dir + "/"}, mosquittoDefaults...)
	if os.Geteuid() == 0 {
		// It would change to the user mosquitto, who can read neither this
		// directory nor the certificates of a test.
		defaults = append(defaults, "user root")
	}
	lines := make([]string, 0, len(defaults)+len(m.config.Lines)+1)
	for _, line := range defaults {
		if !given[option(line)] {
			lines = append(lines, line)
		}
	}
	lines = append(lines, fmt.Sprintf("listener %d 127.0.0.1", port))
	lines = append(lines, m.config.Lines...)
	return strings.Join(lines, "\n") + "\n"
}

// option is the name that a line of mosquitto.conf begins with.
func option(line string) string {
	name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
	return name
}

func dial(ctx context.Context, port int) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", loopback(port))
	if err != nil {
		return err
	}
	return conn.Close()
}

// URL is the broker's address, tcp://127.0.0.1:port, the same over restarts.
func (m *Mosquitto) URL() string { return "tcp://" + loopback(m.port) }

// Stop ends the broker cleanly: sessions and queued messages are saved. A
// temporary directory is removed, a kept one free for another start. It does
// nothing on a stopped broker.
func (m *Mosquitto) Stop() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.halt(cleanStop...)
	return errors.Join(err, m.discard())
}

// Crash kills the broker (SIGKILL), which loses what came since its last
// autosave, 10 s at most. It does nothing on a stopped broker.
func (m *Mosquitto) Crash() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.halt(killStop...)
}

// Restart starts the broker again, on the same port and persistence, and
// returns when it accepts connections; one that runs is ended cleanly before.
// After Stop that needs a kept directory, which is an *InUseError when another
// start has taken it.
func (m *Mosquitto) Restart(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return errors.New("restart Mosquitto: its temporary directory was removed by Stop")
	}
	if !m.temporary && m.lock == nil {
		lock, err := lockDir(m.dir)
		if err != nil {
			return fmt.Errorf("restart Mosquitto: %w", err)
		}
		m.lock = lock
	}
	if err := m.halt(cleanStop...); err != nil {
		return err
	}
	return m.launch(ctx, m.port)
}

func (m *Mosquitto) halt(steps ...stopStep) error {
	if m.process == nil {
		return nil
	}
	err := m.process.stop(steps...)
	m.process = nil
	return err
}
