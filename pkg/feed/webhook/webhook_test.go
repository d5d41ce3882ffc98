package webhook_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plenum/pkg/feed"
	"plenum/pkg/feed/webhook"
	"plenum/pkg/store"
)

// delivery is a page of n rows with payloads of size bytes.
func delivery(n, size int) feed.Delivery {
	d := feed.Delivery{Consumer: "a.b", Key: "a~b:0-7", Position: 7}
	for i := range n {
		d.Rows = append(d.Rows, store.FeedRow{ID: int64(i + 1), DeviceID: "d", Kind: "k", Payload: fmt.Appendf(nil, `{"x":"%s"}`, strings.Repeat("x", size))})
	}
	return d
}

func target(t *testing.T, url string, change func(*webhook.Config)) *webhook.Target {
	t.Helper()
	c := webhook.Config{URL: url, Timeout: webhook.DefaultTimeout}
	if change != nil {
		change(&c)
	}
	target, err := webhook.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := target.Close(); err != nil {
			t.Error(err)
		}
	})
	return target
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

// weather fails unless err is one that is waited for and says all of want.
func weather(t *testing.T, err error, want ...string) {
	t.Helper()
	if refused := (*feed.RefusedError)(nil); err == nil || errors.As(err, &refused) {
		t.Errorf("%v: want an error that is waited for", err)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a secret is shown: %v", err)
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	const old, standard = "an old secret of some length", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	standardKey, err := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		user, password, _ := r.BasicAuth()
		for name, want := range map[string]string{
			"Content-Type": "application/x-ndjson", "User-Agent": "plenum", "Idempotency-Key": "a~b:0-7", "Webhook-Id": "a~b:0-7",
			"Plenum-Consumer": "a.b", "Plenum-Position": "7", "X-Extra": "yes",
		} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		stamp := r.Header.Get("Webhook-Timestamp")
		want := "v1," + mac(standardKey, "a~b:0-7."+stamp+"."+string(body)) + " v1," + mac([]byte(old), "a~b:0-7."+stamp+"."+string(body))
		if got := r.Header.Get("Webhook-Signature"); got != want {
			t.Errorf("signature %q, want %q", got, want)
		}
		if r.Method != http.MethodPost || user != "u" || password != "hunter2" || strings.Count(string(body), "\n") != 3 {
			t.Errorf("%s by %s of %s", r.Method, user, body)
		}
		var at int64
		if _, err := fmt.Sscan(stamp, &at); err != nil || time.Since(time.Unix(at, 0)).Abs() > time.Hour {
			t.Errorf("timestamp %q", stamp)
		}
	})
	target := target(t, strings.Replace(url, "://", "://u:hunter2@", 1)+"/path?x=y", func(c *webhook.Config) {
		c.Secrets, c.Headers = []string{standard, old}, map[string]string{"x-extra": "yes"}
	})
	if err := target.Deliver(t.Context(), delivery(3, 1)); err != nil {
		t.Error(err)
	}
}

func mac(key []byte, text string) string {
	h := hmac.New(sha256.New, key)
	_, _ = io.WriteString(h, text) // a hash never fails
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// Every status is delivered, refused or waited for, as the table of docs/operations.md has it.
func TestStatuses(t *testing.T) {
	t.Parallel()
	refused := map[int]bool{400: true, 412: true, 413: true, 414: true, 416: true, 418: true, 422: true, 424: true, 451: true, 499: true, 500: true, 501: true}
	waited := []int{
		301, 302, 303, 304, 307, 308, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 415, 417, 421, 423, 425, 426, 428, 429, 431, 502, 503, 504, 505, 507, 508, 511, 599,
	}
	var status int
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		if status != 204 && status != 304 {
			_, _ = io.WriteString(w, "for\x00 a \x1b[31mreason")
		}
	})
	target := target(t, url, nil)
	for _, status = range []int{200, 201, 202, 204, 299} {
		if err := target.Deliver(t.Context(), delivery(1, 1)); err != nil {
			t.Errorf("%d: %v", status, err)
		}
	}
	for status = range refused {
		err := target.Deliver(t.Context(), delivery(1, 1))
		if refusal := (*feed.RefusedError)(nil); !errors.As(err, &refusal) || !strings.Contains(err.Error(), fmt.Sprint(status)) || strings.ContainsAny(err.Error(), "\x00\x1b") {
			t.Errorf("%d: %v, want a refusal", status, err)
		}
	}
	for _, status = range waited {
		weather(t, target.Deliver(t.Context(), delivery(1, 1)), fmt.Sprint(status))
	}
}

func TestARedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	other := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") })
	for _, status := range []int{301, 302, 303, 307, 308} {
		url := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other+"/token/hunter2?token=hunter2", status)
		})
		weather(t, target(t, url, nil).Deliver(t.Context(), delivery(1, 1)), fmt.Sprint(status), other, "not followed", "set url")
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	var value string
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", value)
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	target := target(t, url, nil)
	for text, want := range map[string][2]time.Duration{
		"7": {7 * time.Second, 7 * time.Second}, "99999999999": {}, "-1": {}, "soon": {}, "": {},
		time.Now().Add(time.Hour).UTC().Format(http.TimeFormat):  {50 * time.Minute, time.Hour},
		time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat): {},
	} {
		value = text
		err := target.Deliver(t.Context(), delivery(1, 1))
		weather(t, err, "503")
		var later *feed.LaterError
		switch asked := errors.As(err, &later); {
		case asked != (want[1] > 0):
			t.Errorf("Retry-After %q: %v", text, err)
		case asked && (later.After < want[0] || later.After > want[1]):
			t.Errorf("Retry-After %q: %s, want %s to %s", text, later.After, want[0], want[1])
		}
	}
}

// raw serves each connection by hand.
func raw(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			handle(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return "http://" + l.Addr().String()
}

func readRequest(t *testing.T, conn net.Conn) {
	buf := make([]byte, 1<<16)
	if _, err := conn.Read(buf); err != nil {
		t.Error(err)
	}
}

func TestEndpointsThatBreakOff(t *testing.T) {
	t.Parallel()
	answer := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			readRequest(t, c)
			_, _ = io.WriteString(c, text)
		}
	}
	for name, handle := range map[string]func(net.Conn){
		"at once":              func(net.Conn) {},
		"after the request":    answer(""),
		"in the status":        answer("HTTP/1.1 20"),
		"in the headers":       answer("HTTP/1.1 200 OK\r\nContent-Le"),
		"in the answer":        answer("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
		"in a chunk":           answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf"),
		"no HTTP":              answer("SSH-2.0-OpenSSH_9.2\r\n"),
		"headers without end":  answer("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20)),
		"a status of nonsense": answer("HTTP/1.1 abc OK\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := raw(t, handle)
			weather(t, target(t, strings.Replace(url, "://", "://hunter2:hunter2@", 1)+"/hunter2", nil).Deliver(t.Context(), delivery(1, 1)), "POST to http://127.0.0.1:")
		})
	}
}

// An endpoint that says 200 without having read the page has not taken it.
func TestSuccessBeforeTheWholeBody(t *testing.T) {
	t.Parallel()
	judged := make(chan struct{})
	url := raw(t, func(c net.Conn) {
		readRequest(t, c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		<-judged
	})
	err := target(t, url, nil).Deliver(t.Context(), delivery(1000, 100_000))
	close(judged)
	weather(t, err, "it answered 200 OK before it had the whole body")
}

func TestEndpointsThatAreSlow(t *testing.T) {
	t.Parallel()
	end := make(chan struct{})
	hang := serve(t, func(http.ResponseWriter, *http.Request) { <-end })
	drip := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for {
			select {
			case <-end:
				return
			case <-r.Context().Done():
				return
			case <-time.After(10 * time.Millisecond):
				_, _ = io.WriteString(w, "x")
				_ = http.NewResponseController(w).Flush() // the client may be gone
			}
		}
	})
	huge := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() { close(end) })
	short := func(c *webhook.Config) { c.Timeout = 100 * time.Millisecond }
	weather(t, target(t, hang, short).Deliver(t.Context(), delivery(1, 1)), "no answer within 100ms")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := target(t, hang, nil).Deliver(ctx, delivery(1, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("a delivery that was broken off: %v", err)
	}
	for name, url := range map[string]string{"drip": drip, "huge": huge} { // they said 200, and the answer is nobody's business
		if err := target(t, url, nil).Deliver(t.Context(), delivery(1, 1)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshake that is to fail
	server.StartTLS()
	t.Cleanup(server.Close)
	weather(t, target(t, server.URL, nil).Deliver(t.Context(), delivery(1, 1)), "certificate")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := target(t, server.URL, func(c *webhook.Config) { c.CAFile = ca }).Deliver(t.Context(), delivery(1, 1)); err != nil {
		t.Error(err)
	}
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	weather(t, target(t, "http://u:hunter2@"+address+"/hunter2", nil).Deliver(t.Context(), delivery(1, 1)), "POST to http://"+address+": ", "refused")
}

func TestFaultsOfTheConfiguration(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "none.pem")
	_, err := webhook.New(webhook.Config{
		URL: "ftp://hunter2@h", Secrets: []string{"hunter2", "whsec_hunter2!"}, Timeout: -time.Second, CAFile: missing, CertFile: missing,
		Headers: map[string]string{"Authorization": "hunter2\n", "Webhook-Id": "hunter2", "a b": "hunter2", "plenum-x": "hunter2"},
	})
	weather(t, err, "url: ", "secret: is shorter", "secret: what follows whsec_", "timeout: -1s", "ca_file: ", missing, "cert_file, key_file: only one",
		"headers.Authorization: holds a control character", "headers.Webhook-Id: is set by Plenum", `headers: "a b"`, "headers.plenum-x")
	for _, url := range []string{"", "http://", "http://:80", "h", "://h", "http://h:port"} {
		if _, err := webhook.New(webhook.Config{URL: url, Timeout: time.Second}); err == nil {
			t.Errorf("url %q is no fault", url)
		}
	}
}
