package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"plenum/pkg/feed"
)

// DefaultTimeout is that of one delivery.
const DefaultTimeout = 30 * time.Second

const longestTimeout = 10 * time.Minute

// Config is an endpoint.
type Config struct {
	URL     string            // http or https; may hold a user and password
	Secrets []string          // each signs: whsec_ and base64, or any text; the new one beside the old while it is changed
	Headers map[string]string // beside Plenum's own, such as Authorization

	CAFile            string // PEM certificates that the endpoint's must come from; empty: the system's
	CertFile, KeyFile string // PEM client certificate and key; both or neither

	Timeout time.Duration // of one delivery, answer included
}

var errURL = errors.New("url: is no http or https URL with a host")

// Validate joins every fault, each beginning with the field's key; none shows a secret. It reads the files.
func (c Config) Validate() error {
	var errs []error
	u, err := url.Parse(c.URL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.Hostname() == "" {
		errs = append(errs, errURL)
	}
	for _, s := range c.Secrets {
		if _, err := parseSecret(s); err != nil {
			errs = append(errs, err)
		}
	}
	for name, value := range c.Headers {
		errs = append(errs, validHeader(name, value))
	}
	if c.Timeout <= 0 || c.Timeout > longestTimeout {
		errs = append(errs, fmt.Errorf("timeout: %s is not above 0s and up to %s", c.Timeout, longestTimeout))
	}
	_, err = feed.TLSConfig(c.CAFile, c.CertFile, c.KeyFile)
	return errors.Join(append(errs, err)...)
}

// own are headers that the configuration may not set; so are those that begin with plenum- and webhook-.
var own = []string{
	"Connection", "Content-Encoding", "Content-Length", "Content-Type", "Host", "Idempotency-Key", "Trailer", "Transfer-Encoding", "Upgrade", "User-Agent",
}

func validHeader(name, value string) error {
	const token = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	canonical := http.CanonicalHeaderKey(name)
	switch {
	case name == "" || strings.Trim(name, token) != "":
		return fmt.Errorf("headers: %q is no name of a header", name)
	case slices.Contains(own, canonical), strings.HasPrefix(canonical, "Plenum-"), strings.HasPrefix(canonical, "Webhook-"):
		return fmt.Errorf("headers.%s: is set by Plenum", name)
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		return fmt.Errorf("headers.%s: holds a control character, such as a line feed", name)
	}
	return nil
}

// parseSecret returns the key that a secret is.
func parseSecret(secret string) ([]byte, error) {
	encoded, standard := strings.CutPrefix(secret, "whsec_")
	if !standard {
		if len(secret) < 16 {
			return nil, errors.New("secret: is shorter than 16 characters")
		}
		return []byte(secret), nil
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(key) < 16 {
		return nil, errors.New("secret: what follows whsec_ is no base64 of at least 16 bytes")
	}
	return key, nil
}

// sign returns the signatures by each key, joined as the specification wants them; nothing without keys.
func sign(keys [][]byte, id, stamp string, body []byte) string {
	signatures := make([]string, 0, len(keys))
	for _, key := range keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + stamp + "."))
		mac.Write(body)
		signatures = append(signatures, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return strings.Join(signatures, " ")
}
