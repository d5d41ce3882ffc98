package devenv_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

// childEnv makes TestParent the parent that gets killed.
const childEnv = "PLENUM_DEVENV_TEST_PARENT"

// TestParent is the program that TestServersDieWithTheirParent kills: it
// starts both servers, says where they are, and waits.
func TestParent(t *testing.T) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		return // an ordinary run has nothing to do here
	}
	config := devtest.Config()
	config.Dir = filepath.Join(dir, "postgres")
	postgres, err := devenv.StartPostgres(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	mosquitto, err := devenv.StartMosquitto(t.Context(), devenv.MosquittoConfig{Dir: filepath.Join(dir, "mosquitto")})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("SERVERS", postgres.URL("postgres"), mosquitto.URL())
	<-t.Context().Done()
}

func TestServersDieWithTheirParent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	parent := exec.Command(os.Args[0], "-test.run=^TestParent$")
	parent.Env = append(os.Environ(), childEnv+"="+dir)
	var complaints bytes.Buffer
	parent.Stderr = &complaints
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	addresses := announced(bufio.NewScanner(out))
	data := filepath.Join(dir, "postgres")
	running := workingIn(t, data)
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var killed *exec.ExitError
	if err := parent.Wait(); !errors.As(err, &killed) {
		t.Fatalf("the parent ended with %v, want killed", err)
	}
	if len(addresses) != 2 {
		t.Fatalf("the parent announced %v\n%s", addresses, &complaints)
	}
	if len(running) < 2 {
		t.Errorf("processes %v worked in the data directory, want the server and its children", running)
	}
	leaders := 0
	for _, process := range running {
		if process.group == process.pid {
			leaders++
		}
		if process.group == syscall.Getpgrp() {
			t.Errorf("process %d is in the test's own group", process.pid)
		}
	}
	if leaders == 0 {
		t.Errorf("none of %v leads its process group", running)
	}
	for _, address := range addresses {
		devtest.Eventually(t, func() error { return refused(address) })
	}
	devtest.Eventually(t, func() error {
		if left := workingIn(t, data); len(left) != 0 {
			return fmt.Errorf("processes %v still work in %q", left, data)
		}
		return nil
	})
	// The next program takes the directory over.
	config := devtest.Config()
	config.Dir = data
	postgres(t, config)
}

// announced is what the parent says on its SERVERS line.
func announced(lines *bufio.Scanner) []string {
	for lines.Scan() {
		if rest, found := strings.CutPrefix(lines.Text(), "SERVERS "); found {
			return strings.Fields(rest)
		}
	}
	return nil
}

func refused(address string) error {
	parsed, err := url.Parse(address)
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp", parsed.Host)
	if err == nil {
		return errors.Join(fmt.Errorf("%s still listens", parsed.Host), conn.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return nil
}

type running struct{ pid, group int }

// workingIn lists the processes whose working directory this is.
func workingIn(t *testing.T, dir string) []running {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var found []running
	for _, process := range processes {
		// Unreadable and ended ones do not count.
		if cwd, err := os.Readlink(process + "/cwd"); err != nil || cwd != dir {
			continue
		}
		var p running
		if _, err := fmt.Sscanf(process, "/proc/%d", &p.pid); err != nil {
			t.Fatal(err)
		}
		if p.group, err = syscall.Getpgid(p.pid); err == nil {
			found = append(found, p)
		}
	}
	return found
}
