package endtoend

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
)

// flow is what happens to the bytes of one direction.
type flow struct {
	hole  bool          // nothing passes; what was read is kept for when the hole closes
	delay time.Duration // of each chunk
}

// proxy stands between a program and a server, on loopback. What it does to the connections can be changed at any time.
type proxy struct {
	listener net.Listener
	target   string
	framers  func() (toServer, toClient framer)
	links    sync.WaitGroup

	mu                 sync.Mutex
	open               map[*link]bool
	toServer, toClient flow
	changed            chan struct{} // closed at each change of the flows
	trap               *trap         // nil: none is set

	accepted, publishes, again, messages, commits atomic.Int64
}

// trap is a fault at a point of the conversation.
type trap struct {
	since  event // that has to pass first; 0: none
	at     event
	after  int           // events that pass before
	then   func()        // what happens at the event, before anything else is forwarded
	sprung chan struct{} // closed when it has happened
}

// postgresProxy and mqttProxy stand before the server with that URL.
func postgresProxy(t *testing.T, target string) *proxy {
	return newProxy(t, target, func() (framer, framer) { return newPostgresFramer(true), newPostgresFramer(false) })
}

func mqttProxy(t *testing.T, target string) *proxy {
	return newProxy(t, target, func() (framer, framer) { return nil, new(mqttFramer) })
}

func newProxy(t *testing.T, target string, framers func() (framer, framer)) *proxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, target: u.Host, framers: framers, open: map[*link]bool{}, changed: make(chan struct{})}
	p.links.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.cut()
		p.links.Wait()
	})
	return p
}

// url is the server's URL by way of the proxy.
func (p *proxy) url(t *testing.T, target string) string {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = p.listener.Addr().String()
	return u.String()
}

// set changes what happens to the bytes of each direction.
func (p *proxy) set(toServer, toClient flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.toServer, p.toClient = toServer, toClient
	close(p.changed)
	p.changed = make(chan struct{})
}

// cut resets every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.open {
		l.end()
	}
}

// arm sets a trap in place of the one that is set.
func (p *proxy) arm(at event, after int, then func()) *trap {
	return p.lay(&trap{at: at, after: after, then: then})
}

// lay sets a trap in place of the one that is set; nil takes that away.
func (p *proxy) lay(next *trap) *trap {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trap = next; next != nil {
		next.sprung = make(chan struct{})
	}
	return next
}

// step returns the trap that the event springs, or nil.
func (p *proxy) step(e event) *trap {
	switch e {
	case publishSent:
		p.publishes.Add(1)
	case publishedAgain:
		p.again.Add(1)
	case messageSent, alterAsked, commitAsked:
		p.messages.Add(1)
	case commitDone:
		p.commits.Add(1)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	trap := p.trap
	if trap != nil && trap.since == e {
		trap.since = 0
	}
	if trap == nil || trap.since != 0 || trap.at != e {
		return nil
	}
	if trap.after > 0 {
		trap.after--
		return nil
	}
	p.trap = nil
	return trap
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed at the end of the test
		}
		p.accepted.Add(1)
		l := &link{proxy: p, client: client.(*net.TCPConn), ended: make(chan struct{})}
		p.mu.Lock()
		p.open[l] = true
		p.mu.Unlock()
		p.links.Go(l.serve)
	}
}

// link is one connection through the proxy.
type link struct {
	proxy          *proxy
	client, server *net.TCPConn
	muted          atomic.Bool // nothing passes to the client any more
	once           sync.Once
	ended          chan struct{}
}

// end resets both sides.
func (l *link) end() {
	l.once.Do(func() { close(l.ended) })
	for _, c := range []*net.TCPConn{l.client, l.server} {
		if c != nil {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
}

func (l *link) serve() {
	defer func() {
		l.proxy.mu.Lock()
		defer l.proxy.mu.Unlock()
		delete(l.proxy.open, l)
		l.end()
	}()
	if !l.gate(true) {
		return
	}
	server, err := net.Dial("tcp", l.proxy.target)
	if err != nil {
		return
	}
	l.proxy.mu.Lock()
	l.server = server.(*net.TCPConn)
	l.proxy.mu.Unlock()
	toServer, toClient := l.proxy.framers()
	var pumps sync.WaitGroup
	pumps.Go(func() { l.pump(l.client, l.server, true, toServer) })
	pumps.Go(func() { l.pump(l.server, l.client, false, toClient) })
	pumps.Wait()
}

// gate waits as the direction's flow says. It returns false if the link ended meanwhile.
func (l *link) gate(toServer bool) bool {
	for {
		l.proxy.mu.Lock()
		f, changed := l.proxy.toClient, l.proxy.changed
		if toServer {
			f = l.proxy.toServer
		}
		l.proxy.mu.Unlock()
		var late <-chan time.Time
		if !f.hole {
			late = time.After(f.delay)
			changed = nil
		}
		select {
		case <-l.ended:
			return false
		case <-late:
			return true
		case <-changed:
		}
	}
}

// pump forwards one direction until it ends, and passes the end on.
func (l *link) pump(from, to *net.TCPConn, toServer bool, f framer) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !l.forward(to, buf[:n], toServer, f) {
			return
		}
		// A server that was asked to commit and sees a reset might not read what it was asked.
		orderly := errors.Is(err, io.EOF) || err != nil && toServer && l.muted.Load()
		if orderly && l.gate(toServer) {
			_ = to.CloseWrite()
			return
		}
		if err != nil {
			l.end()
			return
		}
	}
}

// forward passes a chunk on, or what comes before a trap that it springs. A trap of the client's side lets the message itself
// pass and no answer; one of the server's side lets it not pass. It returns false when nothing is to be read any more.
func (l *link) forward(to *net.TCPConn, chunk []byte, toServer bool, f framer) bool {
	if !l.gate(toServer) {
		return false
	}
	var sprung *trap
	pass := len(chunk)
	if f != nil {
		f.feed(chunk, func(e event, begin, end int) bool {
			if sprung = l.proxy.step(e); sprung != nil && toServer {
				pass = end
				l.muted.Store(true)
			} else if sprung != nil {
				pass = begin
				l.muted.Store(true)
			}
			return sprung == nil
		})
	}
	if toServer || !l.muted.Load() || sprung != nil {
		if _, err := to.Write(chunk[:pass]); err != nil {
			l.end()
			return false
		}
	}
	if sprung != nil {
		sprung.then()
		close(sprung.sprung)
	}
	return true
}

// TestProxy tries what a proxy does to an echo.
func TestProxy(t *testing.T) {
	t.Parallel()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	p := newProxy(t, "tcp://"+server.Addr().String(), func() (framer, framer) { return nil, nil })
	dial := func() net.Conn {
		c, err := net.Dial("tcp", p.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	say := func(c net.Conn, text string) {
		t.Helper()
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(c net.Conn, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("heard %q, %v, want %q", got, err, want)
		}
	}
	silent := func(c net.Conn) {
		t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("heard %d bytes through a hole, %v", n, err)
		}
		_ = c.SetReadDeadline(time.Time{})
	}
	first := dial()
	say(first, "a")
	hear(first, "a")
	for _, hole := range [][2]flow{{{hole: true}, {}}, {{}, {hole: true}}, {{hole: true}, {hole: true}}} {
		p.set(hole[0], hole[1])
		second := dial()
		say(first, "b")
		say(second, "c")
		silent(first)
		silent(second)
		p.set(flow{delay: time.Millisecond}, flow{})
		hear(first, "b")
		hear(second, "c")
	}
	p.cut()
	if _, err := first.Read(make([]byte, 1)); err == nil {
		t.Error("a connection that was cut goes on")
	}
	third := dial()
	say(third, "d")
	hear(third, "d")
	_ = third.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(third); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
}

// awaitMore waits until a counter has passed what it was.
func awaitMore(t *testing.T, what string, counter *atomic.Int64, was int64) {
	t.Helper()
	devtest.Eventually(t, func() error {
		if now := counter.Load(); now <= was {
			return fmt.Errorf("no more %s than %d", what, now)
		}
		return nil
	})
}
