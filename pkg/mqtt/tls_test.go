package mqtt_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/mqtt"
)

// authority signs certificates for one test, into files.
type authority struct {
	dir, file string
	cert      *x509.Certificate
	key       *ecdsa.PrivateKey
}

func newAuthority(tb testing.TB, name string) *authority {
	tb.Helper()
	a := &authority{dir: tb.TempDir(), cert: template(name)}
	a.cert.IsCA, a.cert.BasicConstraintsValid, a.cert.KeyUsage = true, true, x509.KeyUsageCertSign
	a.file, _, a.key = a.sign(tb, a.cert, nil)
	return a
}

// issue makes a certificate for 127.0.0.1, of use to servers and clients.
func (a *authority) issue(tb testing.TB, name string) (certFile, keyFile string) {
	tb.Helper()
	cert := template(name)
	cert.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	certFile, keyFile, _ = a.sign(tb, cert, a.key)
	return certFile, keyFile
}

func template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
}

// sign writes a certificate and its key; without a signing key it signs itself.
func (a *authority) sign(tb testing.TB, cert *x509.Certificate, signer *ecdsa.PrivateKey) (certFile, keyFile string, key *ecdsa.PrivateKey) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, signer)
	if err != nil {
		tb.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	base := filepath.Join(a.dir, cert.Subject.CommonName)
	writePEM(tb, base+".crt", "CERTIFICATE", der)
	writePEM(tb, base+".key", "EC PRIVATE KEY", keyDER)
	return base + ".crt", base + ".key", key
}

func writePEM(tb testing.TB, file, kind string, der []byte) {
	tb.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// secureBroker has a TLS listener beside the plain one, with further lines for it.
func secureBroker(tb testing.TB, ca *authority, lines ...string) (plain, address string) {
	tb.Helper()
	cert, key := ca.issue(tb, "broker")
	port := freePort(tb)
	broker := devtest.Mosquitto(tb, append([]string{
		"listener " + port + " 127.0.0.1", "cafile " + ca.file, "certfile " + cert, "keyfile " + key,
	}, lines...)...)
	return broker.URL(), "127.0.0.1:" + port
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "authority")
	plain, address := secureBroker(t, ca)
	for _, scheme := range []string{"ssl", "tls", "mqtts"} {
		c := config(t, scheme+"://"+address)
		c.ClientID += scheme
		c.CAFile = ca.file
		var in inbox
		r := start(t, c, in.handle)
		publish(t, plain, "telemetry/a", 1, numbered(100)...)
		for _, d := range in.await(t, 100) {
			d.Receipt.Done()
		}
		r.stop(t)
	}
}

func TestTLSWithAnotherAuthority(t *testing.T) {
	t.Parallel()
	_, address := secureBroker(t, newAuthority(t, "authority"))
	c := config(t, "ssl://"+address)
	c.CAFile = newAuthority(t, "stranger").file
	r := launch(t, c, func(mqtt.Delivery) {})
	r.awaitError(t, "ssl://"+address, "certificate signed by unknown authority", `mqtt.ca_file "`+c.CAFile+`"`)
}

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "authority")
	plain, address := secureBroker(t, ca, "require_certificate true")
	c := config(t, "ssl://"+address)
	c.CAFile = ca.file
	without := launch(t, c, func(mqtt.Delivery) {})
	without.awaitError(t, "ssl://"+address, "no CONNACK")
	without.stop(t)

	c.CertFile, c.KeyFile = ca.issue(t, "ingest")
	var in inbox
	start(t, c, in.handle)
	publish(t, plain, "telemetry/a", 1, "one")
	in.await(t, 1)
}

func TestWebsockets(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "authority")
	cert, key := ca.issue(t, "broker")
	ws, wss := freePort(t), freePort(t)
	broker := devtest.Mosquitto(t,
		"listener "+ws+" 127.0.0.1", "protocol websockets",
		"listener "+wss+" 127.0.0.1", "protocol websockets", "cafile "+ca.file, "certfile "+cert, "keyfile "+key)
	for _, url := range []string{"ws://127.0.0.1:" + ws, "wss://127.0.0.1:" + wss} {
		c := config(t, url)
		c.ClientID += url[:3]
		c.CAFile = ca.file
		var in, after inbox
		r := start(t, c, in.handle)
		publish(t, broker.URL(), "telemetry/a", 1, numbered(500)...)
		for _, d := range in.await(t, 500)[:400] {
			d.Receipt.Done()
		}
		r.stop(t)
		start(t, c, after.handle)
		if got := len(after.await(t, 100)); got != 100 {
			t.Errorf("%s: %d messages redelivered, want 100", url, got)
		}
	}
}
