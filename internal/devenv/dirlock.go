package devenv

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// InUseError says that a directory belongs to a server that was started on it
// and not stopped since, by this program or another one.
type InUseError struct {
	Dir    string // absolute
	Holder string // process id of the program that started it; "" when it took the directory this very moment
}

func (e *InUseError) Error() string {
	if e.Holder == "" {
		return fmt.Sprintf("directory %q is in use by another program", e.Dir)
	}
	return fmt.Sprintf("directory %q is in use by process %s", e.Dir, e.Holder)
}

// maxHolder bounds what is read of a lock file, in bytes.
const maxHolder = 32

// lockDir takes a server's directory for this program, or fails at once with
// an *InUseError. The lock is on a file beside the directory, which may not
// exist yet and is replaced as a whole. That file stays for ever: to remove it
// would let two programs lock two files of one name. The kernel unlocks it
// when the program ends; what it runs does not inherit it.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("make the parent of directory %q: %w", dir, err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock directory %q: %w", dir, err)
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		err = sign(lock)
	}
	if err == nil {
		return lock, nil
	}
	defer lock.Close() // the error is the one that counts
	if errors.Is(err, syscall.EWOULDBLOCK) {
		var holder []byte
		if holder, err = io.ReadAll(io.LimitReader(lock, maxHolder)); err == nil {
			return nil, &InUseError{Dir: dir, Holder: string(bytes.TrimSpace(holder))}
		}
	}
	return nil, fmt.Errorf("lock directory %q: %w", dir, err)
}

// sign writes this program's process id, in place of that of one that was killed.
func sign(lock *os.File) error {
	if err := lock.Truncate(0); err != nil {
		return err
	}
	_, err := lock.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	return err
}

// unlockDir gives the directory back; nil is one that was never locked.
func unlockDir(lock *os.File) error {
	if lock == nil {
		return nil
	}
	// Emptied, it names nobody to a program that looks before the next holder
	// has written. Closing alone does not unlock it while a child that is being
	// started, between fork and exec, still has a copy of the descriptor.
	err := errors.Join(lock.Truncate(0), syscall.Flock(int(lock.Fd()), syscall.LOCK_UN), lock.Close())
	if err != nil {
		return fmt.Errorf("unlock %q: %w", lock.Name(), err)
	}
	return nil
}
