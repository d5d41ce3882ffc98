package endtoend

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

// bin holds the programs under test, built once.
var bin string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "plenum-bin")
	if err == nil {
		bin, err = dir, build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	devtest.Main(m, func() error { return os.RemoveAll(dir) })
}

// plain is the folder, in bin, of ingest as it is shipped: the race detector keeps a shadow of the memory in use.
const plain = "plain"

func build(dir string) error {
	for _, args := range [][]string{
		append(slices.Clone(buildFlags), "-o", dir, "plenum/cmd/ingest", "plenum/cmd/syncjob", "plenum/cmd/plenumctl"),
		{"-o", filepath.Join(dir, plain) + "/", "plenum/cmd/ingest"},
	} {
		if out, err := exec.Command("go", append([]string{"build"}, args...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("build the programs: %w\n%s", err, out)
		}
	}
	return nil
}

// system is a database with the roles of deploy/ and a broker.
type system struct {
	t        *testing.T
	postgres *devenv.Postgres
	database string
	broker   *devenv.Mosquitto
	password string
	plain    bool // ingest is run as it is shipped, for what it takes in memory
}

func newSystem(t *testing.T) *system {
	t.Helper()
	return newSystemOn(t, devtest.Postgres(t), devtest.Database(t))
}

func newSystemOn(t *testing.T, postgres *devenv.Postgres, databaseURL string) *system {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	s := &system{t: t, postgres: postgres, database: strings.TrimPrefix(u.Path, "/"), password: "secret"}
	s.broker = devtest.Mosquitto(t)
	s.roles(databaseURL)
	t.Cleanup(s.sessions)
	return s
}

func (s *system) roles(databaseURL string) {
	s.t.Helper()
	cmd := exec.Command("psql", "-X", "-q", "-d", databaseURL, "-f", "../../deploy/postgresql/roles.sql")
	cmd.Env = append(os.Environ(), "PLENUM_OWNER_PASSWORD="+s.password, "PLENUM_INGEST_PASSWORD="+s.password, "PLENUM_SYNC_PASSWORD="+s.password)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("roles.sql: %v\n%s", err, out)
	}
}

// sessions logs, when the test has failed, what the database's sessions do, and for whom they wait.
func (s *system) sessions() {
	if !s.t.Failed() {
		return
	}
	const q = `select coalesce(string_agg(format('%s %s (%s) for %s, %s %s, blocked by %s: %s', pid, usename, state, now() - state_change,
			wait_event_type, wait_event, pg_blocking_pids(pid), left(query, 200)), E'\n' order by state_change), 'none')
		from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`
	var all string
	if err := s.query(q, nil, &all); err != nil {
		all = err.Error()
	}
	s.t.Logf("sessions of the database:\n%s", all)
}

// role is the connection URL of one of the three roles.
func (s *system) role(name string) string {
	return s.postgres.URLFor("plenum_"+name, s.password, s.database)
}

// query scans the one row of a query made as the superuser.
func (s *system) query(sql string, args []any, into ...any) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.postgres.URL(s.database))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return conn.QueryRow(ctx, sql, args...).Scan(into...)
}

func (s *system) exec(sql string, args ...any) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.postgres.URL(s.database))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(s.t.Context(), sql, args...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

// count is select count(*) from what.
func (s *system) count(what string) int {
	s.t.Helper()
	var n int
	if err := s.query("select count(*) from "+what, nil, &n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// process is a running program.
type process struct {
	t       *testing.T
	name    string
	cmd     *exec.Cmd
	mu      sync.Mutex
	log     bytes.Buffer
	address string
	exited  chan struct{}
	err     error
}

func (s *system) ingest(env ...string) *process {
	return s.start("ingest", append([]string{
		"PLENUM_DATABASE_URL=" + s.role("ingest"), "PLENUM_DATABASE_OWNER_URL=" + s.role("owner"), "PLENUM_MQTT_BROKERS=" + s.broker.URL(),
	}, env...)...)
}

func (s *system) syncjob(env ...string) *process {
	return s.start("syncjob", append([]string{"PLENUM_DATABASE_URL=" + s.role("sync")}, env...)...)
}

// start runs a program, which is killed at the end of the test if it still runs.
func (s *system) start(name string, env ...string) *process {
	s.t.Helper()
	program := filepath.Join(bin, name)
	if s.plain && name == "ingest" {
		program = filepath.Join(bin, plain, name)
	}
	return s.startCommand(exec.Command(program), env...)
}

func (s *system) startCommand(cmd *exec.Cmd, env ...string) *process {
	s.t.Helper()
	name := strings.Join(append([]string{filepath.Base(cmd.Path)}, cmd.Args[1:]...), " ")
	p := &process{t: s.t, name: name, cmd: cmd, exited: make(chan struct{})}
	p.cmd.Env = append(env, "PLENUM_HTTP_LISTEN=127.0.0.1:0", "PATH="+os.Getenv("PATH"))
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go p.follow(stderr)
	s.t.Cleanup(func() {
		if s.t.Failed() {
			_ = p.cmd.Process.Signal(syscall.SIGQUIT)
			select {
			case <-p.exited:
			case <-time.After(5 * time.Second):
			}
		}
		_ = p.cmd.Process.Kill()
		<-p.exited
		if s.t.Failed() {
			s.t.Logf("log of %s:\n%s", name, p.text())
		}
	})
	return p
}

// follow keeps the log, and takes the HTTP address from it.
func (p *process) follow(stderr io.Reader) {
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var entry struct{ Message, Address string }
		_ = json.Unmarshal(lines.Bytes(), &entry) // the last line of a failure is no JSON
		p.mu.Lock()
		p.log.Write(append(lines.Bytes(), '\n'))
		if entry.Message == "serving HTTP" {
			p.address = entry.Address
		}
		p.mu.Unlock()
	}
	p.err = p.cmd.Wait()
	close(p.exited)
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func (p *process) url(path string) string {
	p.t.Helper()
	var address string
	devtest.Eventually(p.t, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if address = p.address; address == "" {
			return fmt.Errorf("%s does not serve HTTP yet; its log:\n%s", p.name, p.log.String())
		}
		return nil
	})
	return "http://" + address + path
}

func (p *process) get(path string) (int, string, http.Header) {
	p.t.Helper()
	code, body, header, err := get(p.url(path))
	if err != nil {
		p.t.Fatal(err)
	}
	return code, body, header
}

func get(url string) (int, string, http.Header, error) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, "", nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), resp.Header, err
}

func (p *process) awaitReady() *process {
	p.t.Helper()
	url := p.url("/readyz")
	devtest.Eventually(p.t, func() error {
		select {
		case <-p.exited:
			return fmt.Errorf("%s has exited: %v", p.name, p.err)
		default:
		}
		code, body, _, err := get(url)
		if err == nil && code != http.StatusOK {
			err = errors.New(body)
		}
		return err
	})
	return p
}

// terminate sends SIGTERM and returns the exit code.
func (p *process) terminate() int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	return p.exitCode()
}

// kill sends SIGKILL and waits for the end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // an error says that it has ended
	<-p.exited
}

func (p *process) exitCode() int {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(5 * time.Minute):
		p.t.Fatalf("%s does not exit; its log:\n%s", p.name, p.text())
	}
	return p.cmd.ProcessState.ExitCode()
}

// publish has mosquitto_pub send each line as a message with QoS 1.
func (s *system) publish(topic string, lines []string) {
	s.t.Helper()
	u, err := url.Parse(s.broker.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command("mosquitto_pub", "-h", u.Hostname(), "-p", u.Port(), "-q", "1", "-t", topic, "-l")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("mosquitto_pub: %v\n%s", err, out)
	}
}
