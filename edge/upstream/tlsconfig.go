package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/registry"
)

const (
	// tlsRecheck is how old a look at the certificate files may be; a dial beyond it looks again.
	tlsRecheck = 2 * time.Second
	// maxTLSConfigs bounds the cache. Beyond it the cache starts anew: a mesh has a handful.
	maxTLSConfigs = 1024
	// maxPEM bounds a certificate file, in bytes.
	maxPEM = 4 << 20
	// sessionsKept is how many session tickets are kept for each name.
	sessionsKept = 64
)

// tlsConfigs caches a tls.Config, with its session tickets, for each broker address and its TLS settings, and builds it anew
// when its files change on disk. Files that cannot be used any more leave the old configuration standing.
// The zero value is ready.
type tlsConfigs struct {
	log zerolog.Logger

	mu      sync.Mutex // held over file reads too: they are local, small and rare
	entries map[tlsKey]*tlsEntry
}

// tlsKey has the address so that brokers under one name do not replace each other's tickets.
type tlsKey struct {
	address  string
	settings registry.BrokerTLS
}

type tlsEntry struct {
	config  *tls.Config
	stamps  [3]stamp
	checked time.Time
}

// stamp tells one state of a file from another.
type stamp struct {
	modified time.Time
	size     int64
}

// get returns the configuration for b, which verifies name. Errors wrap ErrConfig.
func (c *tlsConfigs) get(b *registry.Broker, name string) (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	settings := b.TLS
	key := tlsKey{b.Address, settings}
	e := c.entries[key]
	if e != nil && time.Since(e.checked) < tlsRecheck {
		return e.config, nil
	}
	now := stampsOf(settings) // before the files are read: a later change makes another stamp
	if e != nil && e.stamps == now {
		e.checked = time.Now()
		return e.config, nil
	}
	config, err := buildTLS(settings, name)
	switch {
	case err == nil:
		if e == nil && len(c.entries) >= maxTLSConfigs {
			c.entries = nil
		}
		if c.entries == nil {
			c.entries = make(map[tlsKey]*tlsEntry)
		}
		c.entries[key] = &tlsEntry{config: config, stamps: now, checked: time.Now()}
		return config, nil
	case e != nil: // half of a rotation, perhaps: the next change of the files mends it
		c.log.Warn().Str("broker", b.ID).Err(err).Msg("changed TLS files not usable, the old ones stay in force")
		e.stamps, e.checked = now, time.Now()
		return e.config, nil
	}
	return nil, err
}

func stampsOf(s registry.BrokerTLS) (stamps [3]stamp) {
	for i, file := range []string{s.CA, s.Cert, s.Key} {
		if file == "" {
			continue
		}
		if info, err := os.Stat(file); err == nil {
			stamps[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return stamps
}

func buildTLS(s registry.BrokerTLS, name string) (*tls.Config, error) {
	config := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         verifiedName(name),
		ClientSessionCache: tls.NewLRUClientSessionCache(sessionsKept),
	}
	if s.CA != "" {
		pem, err := readPEM("tls.ca", s.CA)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%w: tls.ca file %s holds no certificate: want the PEM of the authority that signed the broker's certificate", ErrConfig, s.CA)
		}
	}
	switch {
	case s.Cert == "" && s.Key == "":
		return config, nil
	case s.Key == "":
		return nil, fmt.Errorf("%w: tls.cert %s has no tls.key beside it: name the file of its private key", ErrConfig, s.Cert)
	case s.Cert == "":
		return nil, fmt.Errorf("%w: tls.key %s has no tls.cert beside it: name the file of its certificate", ErrConfig, s.Key)
	}
	cert, err := readPEM("tls.cert", s.Cert)
	if err != nil {
		return nil, err
	}
	key, err := readPEM("tls.key", s.Key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%w: tls.cert %s and tls.key %s: %w: want a PEM certificate chain and the private key of its first certificate", ErrConfig, s.Cert, s.Key, err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// verifiedName is a host as a certificate has it: without the root's dot, without a zone.
func verifiedName(host string) string {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.WithZone("").String()
	}
	return strings.TrimSuffix(host, ".")
}

// readPEM reads a file that a field names, and says what to do if it cannot.
func readPEM(field, file string) ([]byte, error) {
	hint := "check the path; it is one on the edge's machine"
	f, err := os.Open(file)
	if err == nil {
		defer f.Close()
		var pem []byte
		if pem, err = io.ReadAll(io.LimitReader(f, maxPEM+1)); err == nil && len(pem) <= maxPEM {
			return pem, nil
		}
		if err == nil {
			err, hint = fmt.Errorf("larger than %d bytes", maxPEM), "want a PEM file"
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		hint = "let the user that runs the edge read it"
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err // the name is said already
	}
	return nil, fmt.Errorf("%w: %s file %s: %w: %s", ErrConfig, field, file, err, hint)
}
