package bench

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// coldRestart empties the server's own cache by a restart, and the kernel's of each file under the data directory's base. Sessions are
// ended. Readers of /proc/PID/io can tell that it worked: see readFromDisk.
func (h *house) coldRestart() {
	h.tb.Helper()
	dir, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(h.postmaster), "cwd"))
	h.check(err)
	h.check(h.admin.Close(h.ctx))
	h.check(h.postgres.Restart(h.ctx)) // its checkpoint leaves no page dirty; a dirty one would stay
	h.check(evict(filepath.Join(dir, "base")))
	h.connectAdmin()
}

// evict drops what the kernel caches of the files in a directory.
func evict(dir string) error {
	const dontNeed = 4 // POSIX_FADV_DONTNEED
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close() // read-only
		if _, _, errno := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0); errno != 0 {
			return fmt.Errorf("posix_fadvise %s: %w", name, errno)
		}
		return nil
	})
}

// readFromDisk is how many bytes a process has fetched from its disks, beyond the kernel's cache.
func readFromDisk(pid uint32) (int64, error) {
	name := fmt.Sprintf("/proc/%d/io", pid)
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "read_bytes: "); ok {
			return strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no read_bytes", name)
}
