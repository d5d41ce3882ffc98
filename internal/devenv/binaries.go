package devenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
)

const oldestPostgres = 15 // nulls not distinct, strategy file_copy

// PostgresBinDir is the directory of PostgreSQL's programs that the
// environment asks for (PLENUM_PG_BIN), for PostgresConfig.BinDir; "" when it
// asks for none.
func PostgresBinDir(getenv func(string) string) string { return getenv("PLENUM_PG_BIN") }

// findPostgres returns the directory that holds initdb and postgres, and
// their major version.
func findPostgres(ctx context.Context, binDir string) (string, int, error) {
	if binDir == "" {
		var err error
		if binDir, err = searchPostgres(); err != nil {
			return "", 0, err
		}
	}
	for _, program := range []string{"initdb", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(binDir, program)); err != nil {
			return "", 0, fmt.Errorf("PostgreSQL's programs in %q: %w", binDir, err)
		}
	}
	major, err := postgresMajor(ctx, binDir)
	if err != nil {
		return "", 0, err
	}
	if major < oldestPostgres {
		return "", 0, fmt.Errorf("PostgreSQL in %q is version %d, need %d or newer", binDir, major, oldestPostgres)
	}
	return binDir, major, nil
}

// searchPostgres looks where Debian installs, newest version first, then in PATH.
func searchPostgres() (string, error) {
	const debian = "/usr/lib/postgresql"
	versions, err := os.ReadDir(debian)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("look for PostgreSQL: %w", err)
	}
	newest, found := 0, ""
	for _, entry := range versions {
		dir := filepath.Join(debian, entry.Name(), "bin")
		_, initErr := exec.LookPath(filepath.Join(dir, "initdb"))
		if v, err := strconv.Atoi(entry.Name()); err == nil && v > newest && initErr == nil {
			newest, found = v, dir
		}
	}
	if found != "" {
		return found, nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", errors.New("PostgreSQL is not installed (no initdb in /usr/lib/postgresql/*/bin nor in PATH); " +
		"install it with: apt-get install postgresql, or set PLENUM_PG_BIN")
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

func postgresMajor(ctx context.Context, binDir string) (int, error) {
	path := filepath.Join(binDir, "postgres")
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("%s --version: %w", path, err)
	}
	match := versionPattern.FindSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("%s --version answers %q, which names no version", path, bytes.TrimSpace(out))
	}
	return strconv.Atoi(string(match[1]))
}

func findMosquitto() (string, error) {
	for _, path := range []string{"mosquitto", "/usr/sbin/mosquitto"} {
		if found, err := exec.LookPath(path); err == nil {
			return found, nil
		}
	}
	return "", errors.New("Mosquitto is not installed (neither in PATH nor as /usr/sbin/mosquitto); " +
		"install it with: apt-get install mosquitto")
}

// unprivileged is who runs PostgreSQL: nil for this program's own user; as
// root, which initdb and postgres refuse, the owner of an existing data
// directory, else postgres, else nobody.
func unprivileged(dir string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	if info, err := os.Stat(filepath.Join(dir, "PG_VERSION")); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 {
			return &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}, nil
		}
	}
	for _, name := range []string{"postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(account.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(account.Gid, 10, 32)
		if err := errors.Join(uidErr, gidErr); err != nil {
			return nil, fmt.Errorf("user %q: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")
}
