package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// broker is one parsed broker URL.
type broker struct {
	transport          transport
	address            string // host:port
	url                string // for the dialler of websockets, without user name and password
	name               string // for people: scheme, host and path, never a password
	username, password string
}

type transport int

const (
	plain transport = iota
	secure
	websocket
	secureWebsocket
)

var schemes = map[string]struct {
	transport transport
	port      string
}{
	"tcp": {plain, "1883"}, "mqtt": {plain, "1883"},
	"ssl": {secure, "8883"}, "tls": {secure, "8883"}, "mqtts": {secure, "8883"},
	"ws": {websocket, "80"}, "wss": {secureWebsocket, "443"},
}

// parseBroker reads a broker URL. Its errors never show what stands before an @, which may be a password.
func parseBroker(raw string) (broker, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return broker{}, fmt.Errorf("%q is not a URL", redact(raw))
	}
	scheme, ok := schemes[strings.ToLower(u.Scheme)]
	if !ok {
		return broker{}, fmt.Errorf("%q: the scheme must be tcp, mqtt, ssl, tls, mqtts, ws or wss", redact(raw))
	}
	if u.Hostname() == "" {
		return broker{}, fmt.Errorf("%q names no host", redact(raw))
	}
	port := u.Port()
	if port == "" {
		port = scheme.port
	}
	b := broker{transport: scheme.transport, address: net.JoinHostPort(u.Hostname(), port)}
	if u.User != nil {
		b.username = u.User.Username()
		b.password, _ = u.User.Password()
		u.User = nil
	}
	if b.password != "" && b.username == "" {
		return broker{}, fmt.Errorf("%q has a password without a user name", redact(raw))
	}
	isWebsocket := b.transport == websocket || b.transport == secureWebsocket
	if !isWebsocket && strings.Trim(u.Path, "/") != "" {
		return broker{}, fmt.Errorf("%q: only ws and wss URLs have a path", redact(raw))
	}
	u.Scheme = strings.ToLower(u.Scheme)
	b.url, b.name = u.String(), u.String()
	return b, nil
}

// redact keeps a URL's scheme and what follows the last @.
func redact(raw string) string {
	at := strings.LastIndexByte(raw, '@')
	if at < 0 {
		return raw
	}
	scheme, _, found := strings.Cut(raw[:at], "://")
	if !found {
		return "xxxxx" + raw[at:]
	}
	return scheme + "://xxxxx" + raw[at:]
}

// loadTLS reads the TLS files once, so that a fault in them is known at start.
func loadTLS(c Config) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("mqtt.ca_file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("mqtt.ca_file %q: holds no PEM certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("mqtt.cert_file %q, mqtt.key_file %q: %w", c.CertFile, c.KeyFile, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// dialer opens network connections. TCP_NODELAY is Go's default.
type dialer struct {
	tls     *tls.Config
	caFile  string
	timeout time.Duration
}

// dial opens a connection, in timeout at most. A websocket's dial is not cut short by ctx: it ends at the timeout.
func (d dialer) dial(ctx context.Context, b broker) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	var conn net.Conn
	var err error
	tcp := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 4}}
	switch b.transport {
	case plain:
		conn, err = tcp.DialContext(ctx, "tcp", b.address)
	case secure:
		conn, err = (&tls.Dialer{NetDialer: tcp, Config: d.tls}).DialContext(ctx, "tcp", b.address)
	case websocket, secureWebsocket:
		// A proxy from the environment would apply to ws and not to tcp: neither has one.
		direct := &paho.WebsocketOptions{Proxy: func(*http.Request) (*url.URL, error) { return nil, nil }}
		conn, err = paho.NewWebsocket(b.url, d.tls.Clone(), d.timeout, nil, direct)
	}
	if err != nil {
		return nil, d.explain(err)
	}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// explain names the configured file where a certificate was not accepted.
func (d dialer) explain(err error) error {
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		return err
	}
	if d.caFile == "" {
		return fmt.Errorf("%w (checked against the system's authorities; mqtt.ca_file is empty)", err)
	}
	return fmt.Errorf("%w (checked against mqtt.ca_file %q)", err, d.caFile)
}
