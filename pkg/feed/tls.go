package feed

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// TLSConfig is what a target's keys ca_file, cert_file and key_file say, of PEM files; without ca_file the system's authorities are
// trusted. It joins every fault, each beginning with the key.
func TLSConfig(caFile, certFile, keyFile string) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	var errs []error
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		t.RootCAs = x509.NewCertPool()
		if err == nil && !t.RootCAs.AppendCertsFromPEM(pem) {
			err = fmt.Errorf("%s holds no PEM certificate", caFile)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("ca_file: %w", err))
		}
	}
	if (certFile == "") != (keyFile == "") {
		errs = append(errs, errors.New("cert_file, key_file: only one of them is set"))
	} else if certFile != "" {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("cert_file, key_file: %w", err))
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, errors.Join(errs...)
}
