package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv"
)

// house is the servers and programs of one measurement.
type house struct {
	tb         testing.TB
	ctx        context.Context
	bin        string
	postgres   *devenv.Postgres
	broker     *devenv.Mosquitto
	postmaster int
	admin      *pgx.Conn // of the database postgres, for what is the server's
}

func newHouse(ctx context.Context, tb testing.TB, more ...setting) *house {
	tb.Helper()
	h := newServer(ctx, tb, more...)
	var err error
	h.bin, err = programs()
	h.check(err)
	// Its saves would stop the broker now and then, for longer than a batch takes.
	h.broker, err = devenv.StartMosquitto(ctx, devenv.MosquittoConfig{Lines: []string{"persistence false", "log_type error"}})
	h.check(err)
	tb.Cleanup(func() { report(tb, h.broker.Stop()) })
	return h
}

// programs builds the programs, once for all measurements of this process, and returns their directory, which TestMain removes.
var programs = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "plenum-bench-"); err != nil {
		return "", err
	}
	programsDir = dir
	args := append(append([]string{"build"}, buildFlags...), "-o", dir, "plenum/cmd/ingest", "plenum/cmd/syncjob")
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return dir, nil
})

var programsDir string // "" while there is none

func removePrograms() error {
	if programsDir == "" {
		return nil
	}
	return os.RemoveAll(programsDir)
}

// setting is one of PostgreSQL's, instead of that of deploy/.
type setting struct{ name, value string }

// newServer is a house with PostgreSQL alone.
func newServer(ctx context.Context, tb testing.TB, more ...setting) *house {
	tb.Helper()
	h := &house{tb: tb, ctx: ctx}
	settings, err := deployed("../deploy/postgresql/plenum.conf")
	h.check(err)
	settings["autovacuum"] = "off" // it would fall into one measurement and not into another
	for _, s := range more {
		settings[s.name] = s.value
	}
	h.postgres, err = devenv.StartPostgres(ctx, devenv.PostgresConfig{BinDir: devenv.PostgresBinDir(os.Getenv), Fsync: true, Settings: settings})
	h.check(err)
	tb.Cleanup(func() { report(tb, h.postgres.Stop()) })
	h.connectAdmin()
	tb.Cleanup(func() { report(tb, h.admin.Close(context.Background())) })
	return h
}

// connectAdmin connects to the server that runs now, and finds its first process.
func (h *house) connectAdmin() {
	h.tb.Helper()
	var err error
	h.admin, err = pgx.Connect(h.ctx, h.postgres.URL("postgres"))
	h.check(err)
	var backend string
	h.check(h.admin.QueryRow(h.ctx, "select pg_backend_pid()::text").Scan(&backend))
	times, err := readTimes(backend)
	h.check(err)
	h.postmaster = times.parent
}

func report(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Error(err)
	}
}

func (h *house) check(err error) {
	h.tb.Helper()
	if err != nil {
		h.tb.Fatal(err)
	}
}

// deployed reads the settings of a postgresql.conf without quotes in its values.
func deployed(file string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	settings := map[string]string{}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		if name, value, ok := strings.Cut(line, "="); ok {
			settings[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return settings, nil
}

// process is a running program under measurement.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    *os.File
	url    string        // of its HTTP
	exited chan struct{} // closed once it has ended
	err    error         // how; read after exited
}

// start starts a program of Plenum and returns once it is ready.
func (h *house) start(name string, env ...string) *process {
	h.tb.Helper()
	p := h.launch(name, filepath.Join(h.bin, name), append(env, "PLENUM_HTTP_LISTEN=127.0.0.1:0")...)
	h.await(20*time.Millisecond, func() error {
		select {
		case <-p.exited:
			h.fail(p)
		default:
		}
		if p.url == "" {
			p.url = p.findURL()
		}
		if p.url == "" {
			return errors.New(name + " does not serve HTTP")
		}
		return p.ready()
	})
	return p
}

// launch starts a program, which ends with this one at the latest.
func (h *house) launch(name, path string, env ...string) *process {
	h.tb.Helper()
	log, err := os.CreateTemp(h.tb.TempDir(), name)
	h.check(err)
	p := &process{name: name, cmd: exec.Command(path), log: log, exited: make(chan struct{})}
	p.cmd.Env = append(env, "PATH="+os.Getenv("PATH"))
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The death signal is sent when the thread that forked ends (prctl(2)), so the thread waits for the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.exited)
		}
	}()
	h.check(<-started)
	h.tb.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it has ended, unless the measurement failed
		<-p.exited
		_ = log.Close() // only read from now on
	})
	return p
}

// fail ends the measurement because of how p ended.
func (h *house) fail(p *process) {
	h.tb.Helper()
	text, _ := os.ReadFile(p.log.Name()) // it adds to an error
	h.tb.Fatalf("%s has ended: %v\n%s", p.name, p.err, text)
}

// findURL takes the HTTP address from the log; "" while it is not there.
func (p *process) findURL() string {
	log, err := os.Open(p.log.Name())
	if err != nil {
		return ""
	}
	defer log.Close() // read-only
	for lines := bufio.NewScanner(log); lines.Scan(); {
		var entry struct{ Message, Address string }
		if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Message == "serving HTTP" {
			return "http://" + entry.Address
		}
	}
	return ""
}

// ready asks the program. Of ingest it also wants the session, whose messages are to wait at the broker from then on.
func (p *process) ready() error {
	if _, err := p.get("/readyz"); err != nil {
		return err
	}
	metrics, err := p.get("/metrics")
	if err == nil && p.name == "ingest" && !strings.Contains(metrics, "\nplenum_mqtt_connected 1\n") {
		err = errors.New("ingest is not connected to the broker")
	}
	return err
}

func (p *process) get(path string) (string, error) {
	resp, err := http.Get(p.url + path)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", path, body)
	}
	return string(body), nil
}

// stop ends the program, which must exit 0, and returns the CPU time of its whole life.
func (h *house) stop(p *process) spent {
	h.tb.Helper()
	h.check(p.cmd.Process.Signal(syscall.SIGTERM))
	return h.wait(p)
}

func (h *house) wait(p *process) spent {
	h.tb.Helper()
	limit := time.NewTimer(waitLimit)
	defer limit.Stop()
	select {
	case <-p.exited:
	case <-limit.C:
		h.tb.Fatalf("%s does not end within %s", p.name, waitLimit)
	}
	if p.err != nil {
		h.fail(p)
	}
	return spent{p.cmd.ProcessState.UserTime(), p.cmd.ProcessState.SystemTime()}
}

// await calls check at the interval until it returns nil, for waitLimit at most.
func (h *house) await(interval time.Duration, check func() error) {
	h.tb.Helper()
	h.awaitFor(waitLimit, interval, check)
}

func (h *house) awaitFor(long, interval time.Duration, check func() error) {
	h.tb.Helper()
	limit := time.NewTimer(long)
	defer limit.Stop()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-limit.C:
			h.tb.Fatalf("still after %s: %v", long, err)
		}
	}
}
