package devenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// PostgresConfig says how to run a private PostgreSQL. The zero value is a
// temporary server on a free port.
type PostgresConfig struct {
	BinDir   string            // holds initdb and postgres; "": newest of /usr/lib/postgresql, then PATH
	Dir      string            // data directory, made when missing and kept; "": temporary, removed by Stop
	Fsync    bool              // false: a crash of the machine may lose the data; one of the server does not
	Port     int               // on 127.0.0.1; 0: a free one
	Settings map[string]string // further server settings, as in postgresql.conf
	Env      []string          // further environment of the server, KEY=value
	Log      io.Writer         // gets the server's log; nil: only its tail is kept, for errors
}

// Postgres is a private PostgreSQL server. Its superuser is postgres, with a
// generated password that is kept in the data directory; roles authenticate
// with SCRAM. Its methods may be called concurrently.
type Postgres struct {
	config     PostgresConfig
	program    string
	dir        string
	temporary  string // parent of dir, removed by Stop; "" when dir is kept
	password   string
	port       int
	credential *syscall.Credential

	mu      sync.Mutex
	lock    *os.File // of a kept directory; nil after Stop
	process *process // nil while stopped
	gone    bool     // the temporary directory has been removed
}

// StartPostgres starts a server and returns when it accepts connections. A
// directory that is not a data directory made here or is of another major
// version is an error; one whose server was not stopped is an *InUseError, at
// once. The server of a program that was killed has 15 s to leave. ctx bounds
// the start only.
func StartPostgres(ctx context.Context, config PostgresConfig) (*Postgres, error) {
	binDir, major, err := findPostgres(ctx, config.BinDir)
	if err != nil {
		return nil, err
	}
	p := &Postgres{config: config, program: filepath.Join(binDir, "postgres")}
	err = p.place()
	if err == nil {
		err = p.prepare(ctx, binDir, major)
	}
	return p.start(ctx, err)
}

// start launches a server whose directory is made, or discards what there is of one that could not be.
func (p *Postgres) start(ctx context.Context, err error) (*Postgres, error) {
	if err == nil {
		p.port, err = onPort(p.config.Port, func(port int) error { return p.launch(ctx, port) })
	}
	if err != nil {
		return nil, errors.Join(err, p.discard())
	}
	return p, nil
}

// place decides on the directory and on the user that owns it.
func (p *Postgres) place() error {
	var err error
	if p.config.Dir == "" {
		if p.temporary, err = os.MkdirTemp("", "plenum-postgres-"); err != nil {
			return fmt.Errorf("make PostgreSQL's temporary directory: %w", err)
		}
		p.dir = filepath.Join(p.temporary, "data")
	} else {
		if p.dir, err = filepath.Abs(p.config.Dir); err != nil {
			return fmt.Errorf("PostgreSQL's directory %q: %w", p.config.Dir, err)
		}
		if p.lock, err = lockDir(p.dir); err != nil {
			return fmt.Errorf("start PostgreSQL: %w", err)
		}
	}
	p.credential, err = unprivileged(p.dir)
	return err
}

// discard removes a temporary directory, and unlocks a kept one.
func (p *Postgres) discard() error {
	if p.temporary == "" {
		lock := p.lock
		p.lock = nil
		return unlockDir(lock)
	}
	p.gone = true
	if err := os.RemoveAll(p.temporary); err != nil {
		return fmt.Errorf("remove PostgreSQL's temporary directory: %w", err)
	}
	return nil
}

// launch starts the server on the data directory and waits until it answers.
func (p *Postgres) launch(ctx context.Context, port int) error {
	if err := checkPort(port); err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	dir, err := os.Open(p.dir)
	if err != nil {
		return fmt.Errorf("open PostgreSQL's directory: %w", err)
	}
	defer dir.Close() // read-only; the server has its own copy of the descriptor
	server, err := command{
		name:        "PostgreSQL",
		path:        p.program,
		args:        p.arguments(port),
		env:         p.config.Env,
		credential:  p.credential,
		files:       []*os.File{dir},
		deathSignal: syscall.SIGQUIT, // immediate: backends go too, and nothing can hold it up
		log:         p.config.Log,
	}.start()
	if err != nil {
		return err
	}
	target := p.url(port, "postgres", p.password, "postgres")
	if err := server.ready(ctx, func(ctx context.Context) error { return ping(ctx, target) }); err != nil {
		select {
		case <-server.done:
			return fmt.Errorf("directory %q, port %d: %w", p.dir, port, err)
		default:
			return errors.Join(err, server.stop(immediateStop...))
		}
	}
	p.process = server
	return nil
}

var (
	fastStop = []stopStep{
		{syscall.SIGINT, time.Minute}, {syscall.SIGQUIT, 10 * time.Second}, {syscall.SIGKILL, 10 * time.Second},
	}
	immediateStop = []stopStep{{syscall.SIGQUIT, 30 * time.Second}, {syscall.SIGKILL, 10 * time.Second}}
)

// arguments are the server's. They outrank postgresql.conf, so a kept
// directory can be started on another port.
func (p *Postgres) arguments(port int) []string {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": "", // their paths are limited to 107 bytes
		"port":                    strconv.Itoa(port),
	}
	if !p.config.Fsync {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
	}
	maps.Copy(settings, p.config.Settings)
	args := []string{"-D", inheritedDir}
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", key+"="+settings[key])
	}
	return args
}

func ping(ctx context.Context, target string) error {
	conn, err := pgx.Connect(ctx, target)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// URL is the superuser's connection string for a database, on 127.0.0.1. It
// stays the same over restarts and holds the password.
func (p *Postgres) URL(database string) string {
	return p.url(p.port, "postgres", p.password, database)
}

// URLFor is a role's connection string for a database. The role needs a
// password: there is no other way in.
func (p *Postgres) URLFor(user, password, database string) string {
	return p.url(p.port, user, password, database)
}

func (p *Postgres) url(port int, user, password, database string) string {
	target := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(user, password),
		Host:     loopback(port),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return target.String()
}

// Stop shuts the server down fast: sessions are ended, data is flushed. A
// temporary directory is removed, a kept one free for another start. It does
// nothing on a stopped server.
func (p *Postgres) Stop() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.halt(fastStop...)
	return errors.Join(err, p.discard())
}

// Crash ends the server at once, as a crash would, and keeps the directory:
// the next Restart recovers from the log. It does nothing on a stopped server.
func (p *Postgres) Crash() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.halt(immediateStop...)
}

// Restart starts the server again, on the same port and data, and returns when
// it accepts connections; one that runs is shut down fast before. After Stop
// that needs a kept directory, which is an *InUseError when another start has
// taken it.
func (p *Postgres) Restart(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return errors.New("restart PostgreSQL: its temporary directory was removed by Stop")
	}
	if p.temporary == "" && p.lock == nil {
		lock, err := lockDir(p.dir)
		if err != nil {
			return fmt.Errorf("restart PostgreSQL: %w", err)
		}
		p.lock = lock
	}
	if err := p.halt(fastStop...); err != nil {
		return err
	}
	return p.launch(ctx, p.port)
}

// Running says whether the server was started and has not ended, by Stop, by
// Crash, or by itself.
func (p *Postgres) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process == nil {
		return false
	}
	select {
	case <-p.process.done:
		return false
	default:
		return true
	}
}

func (p *Postgres) halt(steps ...stopStep) error {
	if p.process == nil {
		return nil
	}
	err := p.process.stop(steps...)
	p.process = nil
	return err
}

// CreateDatabase creates a database as a file copy of the template, to which
// nobody may be connected; "" means template1.
func (p *Postgres) CreateDatabase(ctx context.Context, name, template string) error {
	if template == "" {
		template = "template1"
	}
	// Takes no lock on any table. The template is locked against connections
	// while its files are copied, some 30 ms for an empty one.
	return p.execute(ctx, "create database "+pgx.Identifier{name}.Sanitize()+
		" template "+pgx.Identifier{template}.Sanitize()+" strategy file_copy")
}

// DropDatabase drops a database, ending the sessions in it. One that does not
// exist is no error.
func (p *Postgres) DropDatabase(ctx context.Context, name string) error {
	// Takes no lock on any table; nobody can connect to the database meanwhile.
	return p.execute(ctx, "drop database if exists "+pgx.Identifier{name}.Sanitize()+" with (force)")
}

func (p *Postgres) execute(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	_, err = conn.Exec(ctx, statement)
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}
