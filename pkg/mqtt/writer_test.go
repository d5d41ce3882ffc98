package mqtt

import (
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
