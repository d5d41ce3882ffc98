package devenv

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// inheritedDir is how a child names the directory that it inherits as
	// descriptor 3. Its user need not be able to pass the directories above,
	// which root's home and root's temporary directories do not allow.
	inheritedDir = "/proc/self/fd/3"

	passwordFile = "plenum.password" // in the data directory: marks it as made here

	// takeoverLimit is how long a server whose parent was killed may take to
	// leave the directory.
	takeoverLimit = 15 * time.Second
)

// prepare makes the data directory, or checks the one that is there, and
// reads its password.
func (p *Postgres) prepare(ctx context.Context, binDir string, major int) error {
	entries, err := os.ReadDir(p.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read PostgreSQL's directory: %w", err)
	}
	if len(entries) == 0 {
		if err := p.initialise(ctx, binDir); err != nil {
			return fmt.Errorf("initialise PostgreSQL in %q: %w", p.dir, err)
		}
	}
	version, err := os.ReadFile(filepath.Join(p.dir, "PG_VERSION"))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%q is neither empty nor a PostgreSQL data directory", p.dir)
	}
	if err != nil {
		return fmt.Errorf("read PostgreSQL's version: %w", err)
	}
	if found := strings.TrimSpace(string(version)); found != strconv.Itoa(major) {
		return fmt.Errorf("data directory %q is of PostgreSQL %s, the programs in %q are of %d: "+
			"use programs of version %s, or another directory", p.dir, found, binDir, major, found)
	}
	password, err := os.ReadFile(filepath.Join(p.dir, passwordFile))
	if err != nil {
		return fmt.Errorf("data directory %q was not made by this program: %w", p.dir, err)
	}
	p.password = strings.TrimSpace(string(password))
	return p.awaitVacancy(ctx)
}

// initialise makes the data directory beside its place and moves it there as a
// whole, so that an interrupted initdb leaves nothing that looks complete.
func (p *Postgres) initialise(ctx context.Context, binDir string) error {
	work := p.dir + ".new"
	if err := errors.Join(os.RemoveAll(work), os.MkdirAll(work, 0o700)); err != nil {
		return err
	}
	defer os.RemoveAll(work) // what remains of it is of no use; the next start removes it too
	password := filepath.Join(work, passwordFile)
	if err := os.WriteFile(password, []byte(rand.Text()+"\n"), 0o600); err != nil {
		return err
	}
	for _, path := range []string{work, password} {
		if err := p.hand(path); err != nil {
			return err
		}
	}
	if err := p.initdb(ctx, binDir, work); err != nil {
		return err
	}
	data := filepath.Join(work, "data")
	if err := os.Rename(password, filepath.Join(data, passwordFile)); err != nil {
		return err
	}
	if err := os.Remove(p.dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // an empty directory: os.Rename replaces none
		return err
	}
	return os.Rename(data, p.dir)
}

// hand gives a file to the server's user.
func (p *Postgres) hand(path string) error {
	if p.credential == nil {
		return nil
	}
	return os.Chown(path, int(p.credential.Uid), int(p.credential.Gid))
}

func (p *Postgres) initdb(ctx context.Context, binDir, work string) error {
	dir, err := os.Open(work)
	if err != nil {
		return err
	}
	defer dir.Close() // read-only
	args := []string{
		"--pgdata=" + inheritedDir + "/data",
		"--pwfile=" + inheritedDir + "/" + passwordFile,
		"--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions",
	}
	if !p.config.Fsync {
		args = append(args, "--no-sync")
	}
	return command{
		name:        "initdb",
		path:        filepath.Join(binDir, "initdb"),
		args:        args,
		credential:  p.credential,
		files:       []*os.File{dir},
		deathSignal: syscall.SIGKILL,
	}.run(ctx)
}

// awaitVacancy waits until no other server is at work in the directory: the
// one of a killed program needs a moment to go.
func (p *Postgres) awaitVacancy(ctx context.Context) error {
	limit := time.NewTimer(takeoverLimit)
	defer limit.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		pid, err := p.occupant()
		if err != nil || pid == 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return fmt.Errorf("data directory %q is in use by another PostgreSQL server, process %d", p.dir, pid)
		case <-ctx.Done():
			return fmt.Errorf("wait for process %d to leave %q: %w", pid, p.dir, context.Cause(ctx))
		}
	}
}

// occupant is the process of a server that runs in the directory, 0 when there
// is none. A stale postmaster.pid is left to the server, which knows how to
// judge it.
func (p *Postgres) occupant() (int, error) {
	lock, err := os.ReadFile(filepath.Join(p.dir, "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read PostgreSQL's lock file: %w", err)
	}
	first, _, _ := bytes.Cut(lock, []byte("\n"))
	pid, err := strconv.Atoi(strings.TrimSpace(string(first)))
	if err != nil {
		return 0, nil // half written: the server decides
	}
	// A server's working directory is its data directory.
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return 0, nil
	}
	ours, err := os.Stat(p.dir)
	if err != nil {
		return 0, fmt.Errorf("look at PostgreSQL's directory: %w", err)
	}
	if !os.SameFile(theirs, ours) {
		return 0, nil
	}
	return pid, nil
}
