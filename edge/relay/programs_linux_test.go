package relay

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// program finds a program that some tests need.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing", name)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

// A child is a program with its streams.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.Reader
	err bytes.Buffer // complete when it has ended
}

func startChild(t *testing.T, path string, args ...string) *child {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	cmd := exec.CommandContext(ctx, path, args...)
	c := &child{cmd: cmd}
	cmd.Stderr = &c.err
	var err1, err2 error
	c.in, err1 = cmd.StdinPipe()
	c.out, err2 = cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", path, c.err.String())
		}
	})
	return c
}

// keyFiles writes the certificate of the tests and its key for programs.
func keyFiles(t *testing.T) (cert, key string) {
	t.Helper()
	c := testTLS().Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	err = errors.Join(
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// opensslServer is a broker in OpenSSL's hands.
func opensslServer(t *testing.T, openssl string) (*child, netip.AddrPort) {
	t.Helper()
	cert, key := keyFiles(t)
	ln := mustListen(t)
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	ln.Close()
	c := startChild(t, openssl, "s_server", "-accept", at.String(), "-cert", cert, "-key", key, "-quiet")
	for end := time.Now().Add(patience); ; <-time.After(5 * time.Millisecond) { // until it listens
		conn, err := net.Dial("tcp", at.String())
		if err == nil {
			conn.Close()
			return c, at
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// through sends data both ways at once through a session between two ends, and compares.
func through(t *testing.T, client, broker io.ReadWriter) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(6, 6))
	up := append(append([]byte{}, connect311...), payload(rnd, sized(1_000_003, 64_000_003))...)
	down := append(append([]byte{}, connack311...), payload(rnd, sized(700_001, 64_000_001))...)
	errs := make(chan error, 4)
	send := func(to io.Writer, p []byte) { // in pieces of many sizes
		for i := 1; len(p) > 0; i++ {
			n := min(1+i*i%40_000, len(p))
			if _, err := to.Write(p[:n]); err != nil {
				errs <- err
				return
			}
			p = p[n:]
		}
		errs <- nil
	}
	get := func(from io.Reader, want []byte) {
		got := make([]byte, len(want))
		n, err := io.ReadFull(from, got)
		if err == nil && !bytes.Equal(got, want) {
			err = errors.New("something else came than was sent")
		} else if err != nil {
			t.Logf("%d of %d bytes", n, len(want))
		}
		errs <- err
	}
	go send(client, up)
	go func() {
		first := make([]byte, len(connect311))
		if _, err := io.ReadFull(broker, first); err != nil || !bytes.Equal(first, connect311) {
			t.Errorf("the broker got %x, %v", first, err)
		}
		go send(broker, down)
		get(broker, up[len(connect311):])
	}()
	go get(client, down)
	for range cap(errs) {
		select {
		case err := <-errs:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(sized(patience, 12*patience)): // the programs take turns with what they read and write
			t.Fatal("a stream takes too long")
		}
	}
}

// child as an io.ReadWriter.
func (c *child) Read(p []byte) (int, error)  { return c.out.Read(p) }
func (c *child) Write(p []byte) (int, error) { return c.in.Write(p) }

// OpenSSL on both sides of a session, GnuTLS on the client's.
func TestForeignTLS(t *testing.T) {
	t.Parallel()
	clients := map[string]func(t *testing.T, at netip.AddrPort) *child{
		"OpenSSL": func(t *testing.T, at netip.AddrPort) *child {
			return startChild(t, program(t, "openssl"), "s_client", "-connect", at.String(), "-quiet")
		},
		"OpenSSL, TLS 1.2": func(t *testing.T, at netip.AddrPort) *child {
			return startChild(t, program(t, "openssl"), "s_client", "-connect", at.String(), "-quiet", "-tls1_2")
		},
		"GnuTLS": func(t *testing.T, at netip.AddrPort) *child {
			return startChild(t, program(t, "gnutls-cli"), "--insecure", "--logfile", os.DevNull, "--port", netPort(at), "127.0.0.1")
		},
	}
	for name, client := range clients {
		for _, w := range wrappings[:2] {
			t.Run(name+", "+w.String(), func(t *testing.T) {
				broker, at := opensslServer(t, program(t, "openssl"))
				ended := make(chan Summary, 1)
				m := loopMode("", w, w)
				addr, _ := m.relay(t, relayed{limits: &Limits{}, owner: func() Owner {
					return &echoOwner{m.target(at, nil), func(s Summary) { ended <- s }}
				}})
				c := client(t, addr)
				through(t, c, broker)
				c.cmd.Process.Kill()
				if s := receive(t, "the session's end", ended); s.Reason != ReasonClientClosed {
					t.Errorf("closed: %v %s", s.Reason, s.Detail)
				}
			})
		}
	}
}

func netPort(at netip.AddrPort) string {
	_, port, _ := net.SplitHostPort(at.String())
	return port
}
