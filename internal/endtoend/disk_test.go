package endtoend

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

// TestDiskFull fills the file system under PostgreSQL while readings come, and frees it after a while. When PostgreSQL went
// down itself, because it could not write its log, it is started again, as an operator would.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	disk := mountSmall(t, "256m")
	s := newSystemApart(t, func(c *devenv.PostgresConfig) {
		c.Dir = filepath.Join(disk, "postgresql")
		c.Settings["max_wal_size"], c.Settings["min_wal_size"] = "64MB", "32MB"
	})
	ingest := s.ingest().awaitReady()
	n, full := sized(4000, 80_000), sized(5*time.Second, time.Minute)
	publishers := s.fourPublishers(n, 1000)
	awaitAll(t, publishers, n/8)
	s.awaitRows(1)

	free := fill(t, disk)
	freed := time.After(full)
	const word = "No space left on device"
	devtest.Eventually(t, func() error { return ingest.ready(503, word) })
	down := false
	for waiting := true; waiting; {
		select {
		case <-freed:
			waiting = false
		case <-time.After(100 * time.Millisecond):
			down = down || !s.postgres.Running()
		}
	}
	devtest.Eventually(t, func() error { return ingest.ready(503) })
	free()
	if !s.postgres.Running() {
		_ = s.postgres.Crash() // says that it had ended
		if err := s.postgres.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	devtest.Eventually(t, func() error { return ingest.ready(200) })
	for _, p := range publishers {
		p.wait()
	}
	s.storedOnce(publishers...)
	s.unquarantined()
	s.balanced(ingest)
	figure(t, "disk full for %s during %d readings, PostgreSQL down: %t; readiness was 503 with PostgreSQL's words; each reading is in one row, none in quarantine", full, n, down)
}

// TestTablespaceFull fills the disk of the readings alone, while the quarantine has room: none of them ends in it.
func TestTablespaceFull(t *testing.T) {
	t.Parallel()
	disk := mountSmall(t, "64m")
	var data string
	s := newSystemApart(t, func(c *devenv.PostgresConfig) { data = c.Dir })
	ingest := s.ingest().awaitReady()
	space := filepath.Join(disk, "space")
	if err := errors.Join(os.Mkdir(space, 0o700), chownAs(space, filepath.Join(data, "PG_VERSION"))); err != nil {
		t.Fatal(err)
	}
	s.exec(fmt.Sprintf("create tablespace small location '%s'", space))
	s.exec(fmt.Sprintf("alter table telemetry_p%s set tablespace small", time.Now().UTC().Format("20060102")))
	n, full := sized(2000, 40_000), sized(3*time.Second, 20*time.Second)
	publishers := s.fourPublishers(n, 1000)
	awaitAll(t, publishers, n/8)
	s.awaitRows(1)
	free := fill(t, disk)
	freed := after(full)
	devtest.Eventually(t, func() error { return ingest.ready(503, "No space left on device") })
	await(t, "end of the outage", freed)
	devtest.Eventually(t, func() error { return ingest.ready(503, "No space left on device") })
	free()
	for _, p := range publishers {
		p.wait()
	}
	s.storedOnce(publishers...)
	s.unquarantined()
	s.balanced(ingest)
	figure(t, "the readings' tablespace full for %s during %d readings, the quarantine's not: each reading is in one row, none in quarantine", full, n)
}

// chownAs gives a file to the owner of another.
func chownAs(path, other string) error {
	info, err := os.Stat(other)
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	return os.Chown(path, int(stat.Uid), int(stat.Gid))
}

// mountSmall mounts a file system of limited size until the test ends.
func mountSmall(t *testing.T, size string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "plenum-disk-") // not t.TempDir, which only its user may pass
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	run := func(name string, args ...string) error {
		if os.Geteuid() != 0 {
			name, args = "sudo", append([]string{"-n", name}, args...)
		}
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
		}
		return nil
	}
	options := fmt.Sprintf("size=%s,mode=0755,uid=%d,gid=%d", size, os.Geteuid(), os.Getegid())
	if err := run("mount", "-t", "tmpfs", "-o", options, "plenum-test", dir); err != nil {
		t.Fatalf("a tmpfs is needed, so that PostgreSQL's disk can be full: run as root, with CAP_SYS_ADMIN in a container, or let sudo -n mount: %v", err)
	}
	t.Cleanup(func() {
		if err := run("umount", dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all space of the file system, again and again until what it returns is called, which frees it.
func fill(t *testing.T, disk string) (free func()) {
	t.Helper()
	path := filepath.Join(disk, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	block, stop, stopped := make([]byte, 64<<10), make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			size := len(block)
			for err := error(nil); err == nil || size > 512; {
				if _, err = f.Write(block[:size]); err != nil && !errors.Is(err, syscall.ENOSPC) {
					stopped <- err
					return
				} else if err != nil {
					size /= 2
				}
			}
			select {
			case <-stop:
				stopped <- nil
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() {
		close(stop)
		if err := errors.Join(<-stopped, f.Close(), os.Remove(path)); err != nil {
			t.Error(err)
		}
	}
}
