package bench

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// consumer reads the feed over HTTP, as a program of someone else's would.
type consumer struct {
	url, name string
	limit     int // 0: the feed's own
	wait      time.Duration
	gzip      bool // asked for
	client    *http.Client

	wire, text int64  // bytes of bodies, as they came and without compression
	encoding   string // the latest answer's
}

func newConsumer(url, name string) *consumer {
	// It decompresses itself, so that what came over the wire is counted.
	return &consumer{url: url, name: name, client: &http.Client{Transport: &http.Transport{DisableCompression: true}}}
}

// page reads one page, calls each for every row, and commits the position once all were dealt with. It returns how many rows came.
func (c *consumer) page(ctx context.Context, each func(line []byte) error) (rows int, err error) {
	resp, err := c.send(ctx, http.MethodGet, c.query(), "")
	if err != nil {
		return 0, err
	}
	rows, err = c.body(resp, each)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return rows, fmt.Errorf("consumer %s: %w", c.name, err)
	}
	position := resp.Header.Get("Plenum-Position")
	if rows == 0 {
		return 0, nil
	}
	resp, err = c.send(ctx, http.MethodPost, "/commit", `{"position": `+position+`}`)
	if err != nil {
		return rows, err
	}
	return rows, resp.Body.Close()
}

func (c *consumer) query() string {
	q := "?from=earliest&wait=" + c.wait.String()
	if c.limit > 0 {
		q += fmt.Sprint("&limit=", c.limit)
	}
	return q
}

// send makes a request below the consumer's path. Any answer but 200 is an error, with its text.
func (c *consumer) send(ctx context.Context, method, path, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+"/api/v1/feed/"+c.name+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if c.gzip {
		req.Header.Set("Accept-Encoding", "gzip")
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(resp.Body)
		return nil, errors.Join(fmt.Errorf("consumer %s: %s %s: %s: %s", c.name, method, path, resp.Status, text), err, resp.Body.Close())
	}
	return resp, nil
}

// counted counts what is read through it.
type counted struct {
	io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

const consumerBuffer = 256 << 10 // more than any line here

func (c *consumer) body(resp *http.Response, each func(line []byte) error) (rows int, err error) {
	wire := &counted{Reader: resp.Body}
	defer func() { c.wire += wire.n }()
	var text io.Reader = wire
	encoding := resp.Header.Get("Content-Encoding")
	if encoding != "" { // an answer without rows has none
		c.encoding = encoding
	}
	if encoding == "gzip" {
		if text, err = gzip.NewReader(wire); err != nil {
			return 0, err
		}
	}
	for lines := bufio.NewReaderSize(text, consumerBuffer); ; rows++ {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return rows, nil
		case err != nil:
			return rows, fmt.Errorf("after %d rows: %w", rows, err)
		}
		c.text += int64(len(line))
		if err := each(line); err != nil {
			return rows, err
		}
	}
}

// rowID is the id that a row begins with, without the cost of decoding it all.
func rowID(line []byte) (id int64, err error) {
	digits, found := bytes.CutPrefix(line, []byte(`{"id":`))
	n := 0
	for ; n < len(digits) && digits[n] >= '0' && digits[n] <= '9'; n++ {
		id = id*10 + int64(digits[n]-'0')
	}
	if !found || n == 0 || n > 18 {
		return 0, fmt.Errorf("a row without an id: %.100s", line)
	}
	return id, nil
}
