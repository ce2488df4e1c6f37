package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// CheckFiles verifies what this machine can tell about the files that an edge names: they can be read, a key fits
// its certificate, a certificate is valid now, authorities are there, and a mesh file has the pools of the listeners.
// Every error is an [*Error] with the position of the field, or one of the mesh file's own.
func (e *Edge) CheckFiles() []error {
	c := &fileChecker{edge: e}
	for i, l := range e.Listeners {
		if l.TLS == nil {
			continue
		}
		at := fmt.Sprintf("listeners[%d].tls.", i)
		for j, p := range l.TLS.Certificates {
			at := fmt.Sprintf("%scertificates[%d].", at, j)
			c.pair(at+"cert", p.Cert, at+"key", p.Key)
		}
		c.authorities(at+"client_ca", l.TLS.ClientCA)
	}
	if s := e.Store.Etcd; s != nil {
		c.secret("store.etcd.password_file", s.PasswordFile)
		c.clientTLS("store.etcd.tls.", s.TLS)
	}
	if s := e.Store.NATS; s != nil {
		c.secret("store.nats.password_file", s.PasswordFile)
		c.secret("store.nats.credentials", s.Credentials)
		c.clientTLS("store.nats.tls.", s.TLS)
	}
	if e.MeshFile != "" {
		c.mesh()
	}
	return c.errs
}

// ReadSecret reads a password from the first line of a file.
func ReadSecret(path string) (string, error) {
	data, err := ReadFile(path)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimSpace(line); line == "" {
		return "", fmt.Errorf("config: %s: expected a password in the first line, found nothing", path)
	}
	return line, nil
}

type fileChecker struct {
	edge *Edge
	errs []error
}

func (c *fileChecker) fail(field, format string, args ...any) {
	c.errs = append(c.errs, c.edge.Errorf(field, format, args...))
}

// read returns a file's content, or nil after an error, or if the field is not set.
func (c *fileChecker) read(field, path string) []byte {
	if path == "" {
		return nil
	}
	data, err := ReadFile(path)
	switch {
	case err != nil:
		c.unreadable(field, path, err)
		return nil
	case len(data) > MaxFile:
		c.fail(field, "cannot read %s: more than %d bytes", path, MaxFile)
		return nil
	case len(data) == 0:
		c.fail(field, "%s is empty", path)
		return nil
	}
	return data
}

// unreadable says why a file cannot be read, and what to do.
func (c *fileChecker) unreadable(field, path string, err error) {
	advice := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		advice = ": correct the path, or put the file there"
	case errors.Is(err, fs.ErrPermission):
		advice = ": let the user that limpet runs as read it"
	}
	c.fail(field, "cannot read %s: %s%s", path, reason(err), advice)
}

// reason is an error without the file name, which the message has already.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

func (c *fileChecker) secret(field, path string) {
	if data := c.read(field, path); data != nil {
		if _, err := ReadSecret(path); err != nil {
			c.fail(field, "%s: expected text in the first line", path)
		}
	}
}

func (c *fileChecker) authorities(field, path string) {
	if data := c.read(field, path); data != nil && !x509.NewCertPool().AppendCertsFromPEM(data) {
		c.fail(field, "%s: expected certificates in PEM form", path)
	}
}

func (c *fileChecker) clientTLS(at string, t *ClientTLS) {
	if t == nil {
		return
	}
	c.authorities(at+"ca", t.CA)
	if t.Cert != "" {
		c.pair(at+"cert", t.Cert, at+"key", t.Key)
	}
}

func (c *fileChecker) pair(certField, cert, keyField, key string) {
	certPEM, keyPEM := c.read(certField, cert), c.read(keyField, key)
	if certPEM == nil || keyPEM == nil {
		return
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		// crypto/tls has no typed errors here.
		_, swapped := tls.X509KeyPair(keyPEM, certPEM)
		switch {
		case swapped == nil:
			c.fail(certField, "%s is the key, and %s the certificate: swap them", cert, key)
		case !x509.NewCertPool().AppendCertsFromPEM(certPEM):
			c.fail(certField, "%s: expected a certificate in PEM form", cert)
		case strings.Contains(err.Error(), "does not match"):
			c.fail(keyField, "%s does not belong to the certificate in %s: give the key that this was made with", key, cert)
		default:
			c.fail(keyField, "%s: expected a private key in PEM form, without a password", key)
		}
		return
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		c.fail(certField, "%s: %s", cert, err)
		return
	}
	switch now := time.Now(); {
	case now.After(leaf.NotAfter):
		c.fail(certField, "%s: expired on %s", cert, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		c.fail(certField, "%s: not valid before %s", cert, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
}

func (c *fileChecker) mesh() {
	m, err := LoadMesh(c.edge.MeshFile)
	var es Errors
	switch {
	case errors.As(err, &es):
		c.errs = append(c.errs, es.Unwrap()...)
		return
	case err != nil:
		c.unreadable("mesh_file", c.edge.MeshFile, err)
		return
	}
	c.errs = append(c.errs, c.edge.CheckMesh(m)...)
}

// CheckMesh verifies that a mesh is this edge's, has the pools of its listeners, and no broker that is the edge itself.
func (e *Edge) CheckMesh(m *Mesh) []error {
	var errs []error
	if m.Name != e.Mesh {
		errs = append(errs, e.Errorf("mesh", "expected %q as in %s, found %q", m.Name, m.at.name(), e.Mesh))
	}
	names := make([]string, len(m.Pools))
	for i, p := range m.Pools {
		names[i] = p.Name
	}
	for i, l := range e.Listeners {
		if m.Pool(l.Pool) == nil {
			hint := ""
			if near := nearest(l.Pool, names); near != "" {
				hint = fmt.Sprintf(": did you mean %q?", near)
			}
			errs = append(errs, e.Errorf(fmt.Sprintf("listeners[%d].pool", i), "expected a pool of %s (%s), found %q%s",
				m.at.name(), strings.Join(names, ", "), l.Pool, hint))
		}
	}
	return append(errs, e.checkSelf(m)...)
}

// Pool returns the pool with that name, or nil.
func (m *Mesh) Pool(name string) *registry.Pool {
	for i := range m.Pools {
		if m.Pools[i].Name == name {
			return &m.Pools[i]
		}
	}
	return nil
}
