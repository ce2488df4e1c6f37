package listen

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/limpet-mesh/limpet/edge/tls13"
)

// TLSConfig is what TLS, WSS and QUIC listeners show and ask for.
type TLSConfig struct {
	// Certificates are chosen by the name that the client asks for (SNI): one with that very name if there is one, else one with
	// a wildcard for it, else the first of all. Among several for a name (RSA and ECDSA, say) the first that the client can
	// verify is used.
	Certificates []KeyPair
	// MinVersion is a constant of crypto/tls; 0 = TLS 1.2, and nothing below it is taken. QUIC always uses TLS 1.3.
	MinVersion uint16
	// ClientCAs is a PEM file with the authorities of client certificates; required by, and only for, ClientAuth.
	ClientCAs string
	// ClientAuth says whether clients show a certificate.
	ClientAuth ClientAuth
}

// KeyPair names two PEM files. Cert may hold the chain behind the certificate.
type KeyPair struct{ Cert, Key string }

// ClientAuth says whether clients show a certificate. One that is shown is always verified.
type ClientAuth uint8

// The choices.
const (
	ClientAuthNone    ClientAuth = iota // it is not asked for
	ClientAuthRequest                   // it is asked for: a client without one passes, one with a bad one does not
	ClientAuthRequire                   // no client without
)

// maxPEM bounds a certificate, key or CA file: the whole of Mozilla's store is 250 KiB.
const maxPEM = 8 << 20

// certificates is the TLS side of a listener. Its outer configuration lives as long as the listener, because it holds the keys of
// the session tickets; what a Reload replaces hangs below it.
type certificates struct {
	alpn    []string // what the listener speaks; the first that the client offers is chosen
	strict  bool     // no common name is a failure (QUIC: RFC 9001 §8.1)
	outer   *tls.Config
	server  *tls13.Server // for loops: likewise
	current atomic.Pointer[policy]
}

// policy is one TLSConfig, loaded. Immutable.
type policy struct {
	configs map[string]*tls.Config // by the ALPN name that was agreed on, "" = none
	all     []*tls.Certificate
	names   map[string][]*tls.Certificate // by host name
	wild    map[string][]*tls.Certificate // by what follows a wildcard
}

func newCertificates(c TLSConfig, alpn []string, strict bool) (*certificates, error) {
	certs := &certificates{alpn: alpn, strict: strict}
	if err := certs.load(c); err != nil {
		return nil, err
	}
	certs.outer = &tls.Config{
		// crypto/tls refuses a client whose names are all foreign as soon as the server has any (RFC 7301 §3.2). Brokers do
		// not, and devices offer what their makers liked. So the server's side of the list follows the client's.
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			return certs.current.Load().configs[certs.agree(hello.SupportedProtos)], nil
		},
		MinVersion: tls.VersionTLS12,
	}
	if strict {
		certs.outer.NextProtos = alpn
	}
	return certs, nil
}

// agree chooses among the names that a client offers, in its order.
func (c *certificates) agree(offers []string) string {
	if c.strict {
		return c.alpn[0]
	}
	for _, offer := range offers {
		if slices.Contains(c.alpn, offer) {
			return offer
		}
	}
	return ""
}

// load replaces the policy, or fails and changes nothing.
func (c *certificates) load(tc TLSConfig) error {
	base := &tls.Config{MinVersion: tc.MinVersion}
	switch {
	case base.MinVersion == 0:
		base.MinVersion = tls.VersionTLS12
	case base.MinVersion != tls.VersionTLS12 && base.MinVersion != tls.VersionTLS13:
		return fmt.Errorf("%w: minimal TLS version %s: choose 1.2 or 1.3", ErrConfig, tls.VersionName(tc.MinVersion))
	}
	if err := loadClientAuth(base, tc); err != nil {
		return err
	}
	p, err := loadKeyPairs(tc.Certificates)
	if err != nil {
		return err
	}
	base.GetCertificate = p.choose
	p.configs = map[string]*tls.Config{"": base}
	for _, name := range c.alpn {
		p.configs[name] = base.Clone()
		p.configs[name].NextProtos = []string{name}
	}
	c.current.Store(p)
	return nil
}

func loadClientAuth(base *tls.Config, tc TLSConfig) error {
	switch tc.ClientAuth {
	case ClientAuthNone:
		if tc.ClientCAs != "" {
			return fmt.Errorf("%w: client authorities are given, but client certificates are not asked for: request or require them", ErrConfig)
		}
		return nil
	case ClientAuthRequest:
		base.ClientAuth = tls.VerifyClientCertIfGiven
	case ClientAuthRequire:
		base.ClientAuth = tls.RequireAndVerifyClientCert
	default:
		return fmt.Errorf("%w: unknown client authentication %d", ErrConfig, tc.ClientAuth)
	}
	if tc.ClientCAs == "" {
		return fmt.Errorf("%w: client certificates need a file with their authorities", ErrConfig)
	}
	pem, err := readPEM(tc.ClientCAs)
	if err != nil {
		return err
	}
	base.ClientCAs = x509.NewCertPool()
	if !base.ClientCAs.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%w: %s holds no certificate in PEM", ErrCertificate, tc.ClientCAs)
	}
	return nil
}

func loadKeyPairs(pairs []KeyPair) (*policy, error) {
	if len(pairs) == 0 {
		return nil, fmt.Errorf("%w: no certificate is given", ErrConfig)
	}
	p := &policy{names: make(map[string][]*tls.Certificate), wild: make(map[string][]*tls.Certificate)}
	for _, kp := range pairs {
		cert, err := loadKeyPair(kp)
		if err != nil {
			return nil, err
		}
		p.all = append(p.all, cert)
		for _, name := range cert.Leaf.DNSNames {
			name = strings.ToLower(strings.TrimSuffix(name, "."))
			if parent, ok := strings.CutPrefix(name, "*."); ok {
				p.wild[parent] = append(p.wild[parent], cert)
			} else {
				p.names[name] = append(p.names[name], cert)
			}
		}
	}
	return p, nil
}

func loadKeyPair(kp KeyPair) (*tls.Certificate, error) {
	certPEM, err := readPEM(kp.Cert)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readPEM(kp.Key)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err == nil {
		return &cert, nil
	}
	// crypto/tls has no typed errors here. With the files swapped both are readable, which is the mistake to name.
	if _, swapped := tls.X509KeyPair(keyPEM, certPEM); swapped == nil {
		return nil, fmt.Errorf("%w: %s is the key and %s the certificate: swap them", ErrCertificate, kp.Cert, kp.Key)
	}
	if strings.Contains(err.Error(), "does not match") {
		return nil, fmt.Errorf("%w: the key in %s does not belong to the certificate in %s", ErrCertificate, kp.Key, kp.Cert)
	}
	return nil, fmt.Errorf("%w: %s with key %s: %s", ErrCertificate, kp.Cert, kp.Key, strings.TrimPrefix(err.Error(), "tls: "))
}

func readPEM(name string) ([]byte, error) {
	if name == "" {
		return nil, fmt.Errorf("%w: a certificate needs both a certificate file and a key file", ErrConfig)
	}
	f, err := os.Open(name)
	if err == nil {
		defer func() { _ = f.Close() }()
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(f, maxPEM+1)); err == nil && len(b) <= maxPEM {
			return b, nil
		}
	}
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		err = pe.Err // it would repeat the name
	} else if err == nil {
		err = fmt.Errorf("larger than %d bytes", maxPEM)
	}
	return nil, fmt.Errorf("%w: cannot read %s: %w", ErrCertificate, name, err)
}

// choose is tls.Config.GetCertificate.
func (p *policy) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	candidates := p.names[name]
	if len(candidates) == 0 {
		// RFC 6125 §6.4.3: a wildcard stands for the whole left-most label and no more.
		if _, parent, ok := strings.Cut(name, "."); ok {
			candidates = p.wild[parent]
		}
	}
	if len(candidates) == 0 {
		candidates = p.all // a foreign name is supported by none of them: the first
	}
	if len(candidates) == 1 { // the client may like it or leave
		return candidates[0], nil
	}
	for _, c := range candidates {
		if supports(hello, c) {
			return c, nil
		}
	}
	return candidates[0], nil
}

// supports is hello.SupportsCertificate == nil. Of a client with TLS 1.3, which is what we speak with it then, only its signature schemes count
// (RFC 8446 §4.4.2.2), and looking them up allocates nothing.
func supports(hello *tls.ClientHelloInfo, c *tls.Certificate) bool {
	if !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
		return hello.SupportsCertificate(c) == nil
	}
	for _, scheme := range schemes(c.Leaf.PublicKey) {
		if slices.Contains(hello.SignatureSchemes, scheme) {
			return true
		}
	}
	return false
}

// The schemes of TLS 1.3 that a key can sign with (RFC 8446 §4.2.3).
var (
	schemesRSA     = []tls.SignatureScheme{tls.PSSWithSHA256, tls.PSSWithSHA384, tls.PSSWithSHA512}
	schemesEd25519 = []tls.SignatureScheme{tls.Ed25519}
	schemesECDSA   = map[elliptic.Curve][]tls.SignatureScheme{
		elliptic.P256(): {tls.ECDSAWithP256AndSHA256}, elliptic.P384(): {tls.ECDSAWithP384AndSHA384}, elliptic.P521(): {tls.ECDSAWithP521AndSHA512},
	}
)

func schemes(key any) []tls.SignatureScheme {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return schemesRSA
	case ed25519.PublicKey:
		return schemesEd25519
	case *ecdsa.PublicKey:
		return schemesECDSA[k.Curve]
	}
	return nil
}
