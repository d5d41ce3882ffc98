package devenv

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func shell(t *testing.T, script string) command {
	t.Helper()
	path, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	return command{name: "the script", path: path, args: []string{"-c", script}, deathSignal: syscall.SIGKILL}
}

// awaitLog waits until the child has logged the text.
func awaitLog(t *testing.T, p *process, text string) {
	t.Helper()
	err := p.ready(t.Context(), func(context.Context) error {
		if !strings.Contains(p.log.String(), text) {
			return errors.New("not logged yet")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestStopEscalates(t *testing.T) {
	t.Parallel()
	p, err := shell(t, `trap "" TERM; echo deaf; while :; do sleep 0.1; done`).start()
	if err != nil {
		t.Fatal(err)
	}
	awaitLog(t, p, "deaf")
	err = p.stop(stopStep{syscall.SIGTERM, 50 * time.Millisecond}, stopStep{syscall.SIGKILL, time.Minute})
	if err == nil || !strings.Contains(err.Error(), "did not end within 50ms of terminated") {
		t.Errorf("stop of a child that ignores SIGTERM: %v", err)
	}
	select {
	case <-p.done:
	default:
		t.Error("the child is still there")
	}
}

func TestStopReportsAChildThatEndedBefore(t *testing.T) {
	t.Parallel()
	p, err := shell(t, "echo last words; exit 7").start()
	if err != nil {
		t.Fatal(err)
	}
	<-p.done
	err = p.stop(stopStep{syscall.SIGTERM, time.Minute})
	if err == nil || !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(err.Error(), "last words") {
		t.Errorf("got %v, want the exit status and the log", err)
	}
}

func TestRunKillsTheWholeGroupWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	c := shell(t, "sleep 1000 & echo started >&3; wait")
	c.files = []*os.File{writer}
	ended := make(chan error, 1)
	go func() { ended <- c.run(ctx) }()
	if _, err := reader.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	// The background sleep holds the pipe: its end is the end of the group.
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := reader.Read(make([]byte, 16)); n != 0 || err == nil {
		t.Errorf("read %d bytes, %v; want the end of the file", n, err)
	}
}

func TestRunReportsFailureWithLog(t *testing.T) {
	t.Parallel()
	err := shell(t, "echo because; exit 3").run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "because") {
		t.Errorf("got %v, want the exit status and the log", err)
	}
}

func TestOnPortTriesAnotherWhenTaken(t *testing.T) {
	t.Parallel()
	calls := 0
	port, err := onPort(0, func(int) error {
		if calls++; calls < portAttempts {
			return syscall.EADDRINUSE
		}
		return nil
	})
	if err != nil || port == 0 || calls != portAttempts {
		t.Errorf("port %d, %v after %d calls; want a port after %d", port, err, calls, portAttempts)
	}
	if _, err := onPort(0, func(int) error { return syscall.EADDRINUSE }); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("all ports taken: %v, want EADDRINUSE", err)
	}
	calls = 0
	if _, err := onPort(1234, func(int) error { calls++; return syscall.EADDRINUSE }); err == nil || calls != 1 {
		t.Errorf("a given port: %v after %d calls, want an error after 1", err, calls)
	}
}

func TestCheckPort(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := checkPort(listener.Addr().(*net.TCPAddr).Port); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v, want EADDRINUSE", err)
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	log := &tail{next: &all}
	for range 2 * tailBytes {
		if _, err := log.Write([]byte("ab\n")); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(log.bytes()); n != tailBytes {
		t.Errorf("kept %d bytes, want %d", n, tailBytes)
	}
	if !strings.HasSuffix(log.String(), "ab") || all.Len() != 6*tailBytes {
		t.Errorf("kept %q…, passed on %d bytes, want %d", log.String()[:8], all.Len(), 6*tailBytes)
	}
}
