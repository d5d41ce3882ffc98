// Package webhook delivers pages of the feed to an HTTP endpoint, one POST of NDJSON each.
//
// What must hold:
//
//   - A page is delivered when the endpoint has answered 2xx after it was sent the whole body. Anything else is not.
//   - What the endpoint says decides by its status alone whether the rows are refused or the time is wrong; see status.go.
//   - A request carries the signature and headers of the Standard Webhooks specification, version 1.
//   - No error holds a secret, nor more of the URL than scheme and host.
package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"plenum/pkg/feed"
)

const (
	drainBytes = 64 << 10        // of an answer that are read, so that its connection can be used again
	drainTime  = 2 * time.Second // and no longer
	quoteBytes = 200             // of an answer that an error quotes
)

// Target is one endpoint.
type Target struct {
	cfg     Config
	url     *url.URL
	keys    [][]byte
	client  *http.Client
	timeout time.Duration
	now     func() time.Time
}

// New returns the Target of c, without connecting. What is wrong with c comes joined.
func New(c Config) (*Target, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, errURL
	}
	tlsConfig, err := feed.TLSConfig(c.CAFile, c.CertFile, c.KeyFile)
	if err != nil {
		return nil, err
	}
	t := &Target{cfg: c, url: u, timeout: c.Timeout, now: time.Now}
	for _, s := range c.Secrets {
		key, err := parseSecret(s)
		if err != nil {
			return nil, err
		}
		t.keys = append(t.keys, key)
	}
	t.client = &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true,
			MaxIdleConns: 2, MaxConnsPerHost: 2, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second,
			MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // a POST that is followed may become a GET
	}
	return t, nil
}

// Close closes the connections that are kept.
func (t *Target) Close() error {
	t.client.CloseIdleConnections()
	return nil
}

// Deliver posts the page.
func (t *Target) Deliver(ctx context.Context, d feed.Delivery) error {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	var body []byte
	for i := range d.Rows {
		body = feed.AppendRow(body, &d.Rows[i])
	}
	sent := &sending{Reader: bytes.NewReader(body)}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url.String(), sent)
	if err != nil {
		return t.errorf("%w", errURL)
	}
	request.ContentLength = int64(len(body))
	t.setHeaders(request.Header, d, body)
	response, err := t.client.Do(request)
	if err != nil {
		return t.unreached(ctx, err)
	}
	defer response.Body.Close() // what matters of it has been read
	answer, drainErr := drain(ctx, response.Body)
	switch err := t.judge(response, answer); {
	case err != nil:
		return err
	case sent.done.Load() < int64(len(body)):
		return t.errorf("it answered %s before it had the whole body, %d bytes", response.Status, len(body))
	case drainErr != nil:
		return t.errorf("it answered %s and broke off its answer: %w", response.Status, drainErr)
	}
	return nil
}

func (t *Target) setHeaders(h http.Header, d feed.Delivery, body []byte) {
	for name, value := range t.cfg.Headers {
		h.Set(name, value)
	}
	stamp := strconv.FormatInt(t.now().Unix(), 10)
	h.Set("Content-Type", "application/x-ndjson")
	h.Set("User-Agent", "plenum")
	h.Set("Idempotency-Key", d.Key)
	h.Set("Plenum-Consumer", d.Consumer)
	h.Set("Plenum-Position", strconv.FormatInt(d.Position, 10))
	h.Set("Webhook-Id", d.Key)
	h.Set("Webhook-Timestamp", stamp)
	if signature := sign(t.keys, d.Key, stamp, body); signature != "" {
		h.Set("Webhook-Signature", signature)
	}
}

// unreached makes an error of a request that got no answer. The client's own error holds the URL.
func (t *Target) unreached(ctx context.Context, err error) error {
	if of := (*url.Error)(nil); errors.As(err, &of) {
		err = of.Err
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return t.errorf("no answer within %s", t.timeout)
	}
	return t.errorf("%w", err)
}

// errorf begins an error with where the request went: nothing else of a URL is fit to be shown.
func (t *Target) errorf(format string, args ...any) error {
	return fmt.Errorf("POST to %s://%s: %w", t.url.Scheme, t.url.Host, fmt.Errorf(format, args...))
}

// sending counts what of a body has been taken to be sent.
type sending struct {
	*bytes.Reader
	done atomic.Int64
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	s.done.Add(int64(n))
	return n, err
}

// WriteTo hides the reader's own, which would go uncounted.
func (s *sending) WriteTo(w io.Writer) (int64, error) {
	n, err := s.Reader.WriteTo(w)
	s.done.Add(n)
	return n, err
}

// drain reads an answer, bounded in bytes and time, and returns its beginning. An answer that is larger or slower is
// left; one that breaks off is an error.
func drain(ctx context.Context, body io.ReadCloser) (beginning string, err error) {
	slow := time.AfterFunc(drainTime, func() { _ = body.Close() })
	var b bytes.Buffer
	_, err = io.Copy(&b, io.LimitReader(body, drainBytes))
	if !slow.Stop() || ctx.Err() != nil {
		err = nil
	}
	beginning = strings.ToValidUTF8(string(b.Next(quoteBytes)), "")
	return beginning, err
}
