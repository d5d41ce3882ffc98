package devenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	startLimit   = 2 * time.Minute       // for a server to accept connections, crash recovery included
	pollInterval = 20 * time.Millisecond // between two looks at a server that starts
	pipeLimit    = 10 * time.Second      // for descendants to close the log after the server itself ended
	portAttempts = 5                     // with another port, when the chosen one was taken meanwhile
)

// command is a program to run as a child.
type command struct {
	name        string // for messages
	path        string
	args        []string
	env         []string            // beyond this program's
	credential  *syscall.Credential // nil: this program's user
	files       []*os.File          // inherited, from descriptor 3 on
	deathSignal syscall.Signal      // sent to the child when this program dies
	log         io.Writer           // gets stdout and stderr; may be nil
}

// process is a running child.
type process struct {
	name   string
	handle *os.Process
	log    *tail
	done   chan struct{} // closed once the child and everything holding its log ended
	err    error         // how it ended; read after done
}

// start runs the command in its own process group.
func (c command) start() (*process, error) {
	p := &process{name: c.name, log: &tail{next: c.log}, done: make(chan struct{})}
	cmd := exec.Command(c.path, c.args...)
	cmd.Env = append(append(cmd.Environ(), "LC_ALL=C"), c.env...) // messages are shown and searched in English
	cmd.Dir = "/"                                                 // the current one may be closed to the other user
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.ExtraFiles = c.files
	cmd.WaitDelay = pipeLimit
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true,
		Pdeathsig:  c.deathSignal,
		Credential: c.credential,
	}
	started := make(chan error)
	go func() {
		// The death signal is sent when the thread that forked ends
		// (prctl(2), PR_SET_PDEATHSIG), so the thread waits for the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	p.handle = cmd.Process
	return p, nil
}

// run runs the command to its end; when ctx ends first, it kills the group.
func (c command) run(ctx context.Context) error {
	p, err := c.start()
	if err != nil {
		return err
	}
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s: %w\n%s", c.name, p.err, p.log)
		}
		return nil
	case <-ctx.Done():
		killErr := syscall.Kill(-p.handle.Pid, syscall.SIGKILL)
		<-p.done
		return errors.Join(fmt.Errorf("%s: %w", c.name, context.Cause(ctx)), killErr)
	}
}

// ready polls try until it succeeds. It gives up when the child ends, when ctx
// ends, or after startLimit; the caller then stops the child.
func (p *process) ready(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit,
		fmt.Errorf("not ready within %v", startLimit))
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.ended()
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; last attempt: %w\n%s",
				p.name, context.Cause(ctx), err, p.log)
		case <-tick.C:
		}
	}
}

// ended describes a child that ended by itself. It is EADDRINUSE to errors.Is
// when the log says that the port was taken.
func (p *process) ended() error {
	reason := p.err
	if bytes.Contains(p.log.bytes(), []byte("Address already in use")) {
		reason = errors.Join(p.err, syscall.EADDRINUSE)
	}
	if reason == nil {
		return fmt.Errorf("%s ended by itself\n%s", p.name, p.log)
	}
	return fmt.Errorf("%s ended by itself: %w\n%s", p.name, reason, p.log)
}

// stopStep is a signal and how long it may take.
type stopStep struct {
	signal syscall.Signal
	limit  time.Duration
}

// stop sends the signals in turn until the child has ended. Needing more than
// the first is an error, and so is a child that had ended before.
func (p *process) stop(steps ...stopStep) error {
	select {
	case <-p.done:
		return p.ended()
	default:
	}
	var late error
	for _, step := range steps {
		if err := p.handle.Signal(step.signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("send %v to %s: %w", step.signal, p.name, err)
		}
		timer := time.NewTimer(step.limit)
		select {
		case <-p.done:
			timer.Stop()
			return late
		case <-timer.C:
			late = errors.Join(late, fmt.Errorf("%s did not end within %v of %v\n%s",
				p.name, step.limit, step.signal, p.log))
		}
	}
	return late
}

// tail keeps the last bytes of a log and passes everything on.
type tail struct {
	mu   sync.Mutex
	last []byte
	next io.Writer
}

const tailBytes = 4096

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, b...)
	if over := len(t.last) - tailBytes; over > 0 {
		t.last = append(t.last[:0], t.last[over:]...)
	}
	if t.next == nil {
		return len(b), nil
	}
	return t.next.Write(b)
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.last)
}

func (t *tail) String() string { return string(bytes.TrimSpace(t.bytes())) }

// onPort calls launch with the wanted port, or, when that is 0, with free ones
// until one was not taken meanwhile, and returns the port used.
func onPort(wanted int, launch func(port int) error) (int, error) {
	if wanted != 0 {
		return wanted, launch(wanted)
	}
	var err error
	for range portAttempts {
		var port int
		if port, err = freePort(); err != nil {
			return 0, err
		}
		if err = launch(port); !errors.Is(err, syscall.EADDRINUSE) {
			return port, err
		}
	}
	return 0, err
}

// freePort finds a free port on 127.0.0.1 below 32768, where the kernel begins
// to hand out ports by itself: one of those could be taken by any outgoing
// connection while a crashed server waits for its restart.
func freePort() (int, error) {
	const lowest, highest, attempts = 15000, 32000, 100
	var err error
	for range attempts {
		port := lowest + rand.IntN(highest-lowest)
		if err = checkPort(port); err == nil {
			return port, nil
		}
	}
	return 0, fmt.Errorf("find a free port on 127.0.0.1 between %d and %d: %w", lowest, highest, err)
}

// checkPort reports whether the port can be bound. Without it a foreign server
// on that port would pass for ours until ours has found out and ended.
func checkPort(port int) error {
	listener, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return err
	}
	return listener.Close()
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
