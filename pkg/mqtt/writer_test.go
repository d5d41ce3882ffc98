package mqtt

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// A broker that takes no acknowledgements ends the connection before they take more memory than the bound.
func TestAcknowledgementsThatTheBrokerDoesNotReadAreBounded(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe() // unbuffered: a write waits for the reader, and there is none
	defer far.Close()
	c := newConn(near)
	c.keepAlive = time.Minute
	go c.flush()
	packets := make([]byte, 4<<10)
	for n := 0; ; n += len(packets) {
		c.acknowledge(packets)
		c.mu.Lock()
		pending, state := len(c.pending), c.state
		c.mu.Unlock()
		if pending > maxPending {
			t.Fatalf("%d bytes are waiting", pending)
		}
		if state != stateOpen {
			break
		}
		if n > 4*maxPending {
			t.Fatalf("still open after %d bytes", n)
		}
	}
	if err := c.cause(); reasonOf(err, reasonDial) != reasonLost || !strings.Contains(err.Error(), "the broker does not read") {
		t.Errorf("ended by %v", err)
	}
	c.end(errStopped)
	<-c.flushed
}

// What is being written is not touched by what is acknowledged meanwhile, also after a flush that found nothing to write.
func TestWhatIsBeingWrittenStays(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe() // unbuffered: the write ends when all of it is read
	defer far.Close()
	c := newConn(near)
	defer c.end(errStopped)
	write := func(during func()) string {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- c.writePending() }()
		got := make([]byte, 4)
		if _, err := io.ReadFull(far, got[:1]); err != nil {
			t.Fatal(err)
		}
		during()
		if _, err := io.ReadFull(far, got[1:]); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	c.acknowledge([]byte("aaaa"))
	first := write(func() {})
	if err := c.writePending(); err != nil {
		t.Fatal(err)
	}
	c.acknowledge([]byte("bbbb"))
	second := write(func() { c.acknowledge([]byte("cccc")) })
	third := write(func() {})
	if first != "aaaa" || second != "bbbb" || third != "cccc" {
		t.Errorf("written %q, %q, %q", first, second, third)
	}
}
