// Package clienttls makes a client's TLS configuration from PEM files.
//
//	cfg, err := clienttls.Files{CA: "ca.pem", Cert: "edge.pem", Key: "edge.key"}.Config()
//
// The files are read once to see that they are good. The client's certificate
// is then read anew for every handshake, so that a renewed one needs no
// restart; authorities do. It refuses a certificate without its key.
package clienttls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// Files names the PEM files of a client. The zero value means no TLS of its own.
type Files struct {
	CA         string // authorities that vouch for the server; "" = the system's
	Cert, Key  string // the client's certificate; "" = none
	ServerName string // the name verified; "" = the host that is dialed
}

// Config returns the configuration, or nil for the zero Files.
func (f Files) Config() (*tls.Config, error) {
	if f == (Files{}) {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.ServerName}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("TLS authorities: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("TLS authorities: %s holds no PEM certificate", f.CA)
		}
	}
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("TLS client certificate: give both the certificate's file and the key's, or neither")
	}
	if f.Cert == "" {
		return cfg, nil
	}
	load := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("TLS client certificate: %w", err)
		}
		return &cert, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return cfg, nil
}
