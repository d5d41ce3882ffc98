package devenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// PgBouncerConfig says how to run a private PgBouncer.
type PgBouncerConfig struct {
	Server *Postgres // behind it; its superuser is let in without a password
	Mode   string    // pool_mode: session, transaction or statement
	// Lines are further lines of the section [pgbouncer]. The start-up
	// parameters that it does not track are dropped by default.
	Lines []string
	Log   io.Writer // gets its log; nil: only its tail is kept, for errors
}

// PgBouncer is a private connection pooler, temporary and on a free port.
type PgBouncer struct {
	server  *Postgres
	dir     string
	port    int
	process *process
}

// StartPgBouncer starts a pooler and returns when it accepts connections. ctx
// bounds the start only.
func StartPgBouncer(ctx context.Context, config PgBouncerConfig) (*PgBouncer, error) {
	program, err := findPgBouncer()
	if err != nil {
		return nil, err
	}
	b := &PgBouncer{server: config.Server}
	if b.dir, err = os.MkdirTemp("", "plenum-pgbouncer-"); err != nil {
		return nil, fmt.Errorf("make PgBouncer's temporary directory: %w", err)
	}
	b.port, err = onPort(0, func(port int) error { return b.launch(ctx, program, port, config) })
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.dir))
	}
	return b, nil
}

func findPgBouncer() (string, error) {
	for _, path := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if found, err := exec.LookPath(path); err == nil {
			return found, nil
		}
	}
	return "", errors.New("PgBouncer is not installed (neither in PATH nor as /usr/sbin/pgbouncer); " +
		"install it with: apt-get install pgbouncer")
}

func (b *PgBouncer) launch(ctx context.Context, program string, port int, config PgBouncerConfig) error {
	credential, err := unprivileged(b.dir) // as root it refuses to run
	if err != nil {
		return err
	}
	server, err := url.Parse(config.Server.URL("postgres"))
	if err != nil {
		return fmt.Errorf("address of PostgreSQL: %w", err)
	}
	password, _ := server.User.Password()
	lines := append([]string{
		"[databases]",
		fmt.Sprintf("* = host=%s port=%s user=%s password=%s", server.Hostname(), server.Port(), server.User.Username(), password),
		"[pgbouncer]",
		"listen_addr = 127.0.0.1",
		fmt.Sprintf("listen_port = %d", port),
		"unix_socket_dir =",
		"auth_type = any",
		"pool_mode = " + config.Mode,
		"ignore_startup_parameters = search_path,plan_cache_mode,jit,idle_in_transaction_session_timeout," +
			"default_transaction_isolation,tcp_keepalives_idle,tcp_keepalives_interval,tcp_keepalives_count",
	}, config.Lines...)
	file := filepath.Join(b.dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("write PgBouncer's configuration: %w", err)
	}
	if credential != nil {
		for _, path := range []string{b.dir, file} {
			if err := os.Chown(path, int(credential.Uid), int(credential.Gid)); err != nil {
				return fmt.Errorf("give PgBouncer its configuration: %w", err)
			}
		}
	}
	pooler, err := command{
		name: "PgBouncer", path: program, args: []string{file}, credential: credential,
		deathSignal: syscall.SIGTERM, log: config.Log,
	}.start()
	if err != nil {
		return err
	}
	if err := pooler.ready(ctx, func(ctx context.Context) error { return dial(ctx, port) }); err != nil {
		return errors.Join(err, pooler.stop(killStop...))
	}
	b.process = pooler
	return nil
}

// URL is a database's address through the pooler, as the server's superuser.
func (b *PgBouncer) URL(database string) string {
	u, err := url.Parse(b.server.URL(database))
	if err != nil {
		return ""
	}
	u.Host = loopback(b.port)
	return u.String()
}

// Stop ends the pooler, with every connection through it.
func (b *PgBouncer) Stop() error {
	return errors.Join(b.process.stop(cleanStop...), os.RemoveAll(b.dir))
}
