package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// clockTick is the unit of /proc/PID/stat (proc(5)): 1/100 s on every Linux platform that Go has.
const clockTick = 10 * time.Millisecond

// processTimes is what /proc/PID/stat says of one process.
type processTimes struct {
	parent        int
	own, children time.Duration // user and system time; children: those that ended and were waited for
}

func readTimes(pid string) (t processTimes, err error) {
	name := filepath.Join("/proc", pid, "stat")
	b, err := os.ReadFile(name)
	if err != nil {
		return t, err
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // from the third on: a program's name may hold anything
	const parent, userTime, systemTime, childUserTime, childSystemTime = 1, 11, 12, 13, 14
	if len(fields) <= childSystemTime {
		return t, fmt.Errorf("%s has only %d fields", name, len(fields))
	}
	number := func(n int) int64 {
		v, parseErr := strconv.ParseInt(string(fields[n]), 10, 64)
		if parseErr != nil && err == nil {
			err = fmt.Errorf("%s: %w", name, parseErr)
		}
		return v
	}
	t.parent = int(number(parent))
	t.own = time.Duration(number(userTime)+number(systemTime)) * clockTick
	t.children = time.Duration(number(childUserTime)+number(childSystemTime)) * clockTick
	return t, err
}

// serverTime is the CPU time of a PostgreSQL server with all its processes, also those that have ended. Each is a child of
// the postmaster; they are sessions of their own, so the process group would not find them.
func serverTime(postmaster int) (time.Duration, error) {
	for {
		before, err := readTimes(strconv.Itoa(postmaster))
		if err != nil {
			return 0, err
		}
		running, err := childrenTime(postmaster)
		if err != nil {
			return 0, err
		}
		after, err := readTimes(strconv.Itoa(postmaster))
		if err != nil {
			return 0, err
		}
		// Else one has ended in between, and may be in neither sum.
		if after.children == before.children {
			return after.own + after.children + running, nil
		}
	}
}

// childrenTime is the CPU time of the children that run.
func childrenTime(parent int) (total time.Duration, err error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range all {
		child, err := readTimes(filepath.Base(dir))
		if err != nil {
			continue // it has ended meanwhile
		}
		if child.parent == parent {
			total += child.own
		}
	}
	return total, nil
}
