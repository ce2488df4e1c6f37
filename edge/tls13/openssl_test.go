package tls13

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// program finds a program that some tests need.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing: make deps", name)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

// files writes certificates and keys for programs.
func files(t *testing.T) (authority, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c := localhost()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return write("ca.pem", "CERTIFICATE", ca().cert.Raw), write("cert.pem", "CERTIFICATE", c.Certificate[0]), write("key.pem", "PRIVATE KEY", der)
}

// A child is a program with its three streams.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.Reader
	err lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(t *testing.T, path string, args ...string) *child {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c := &child{cmd: exec.CommandContext(ctx, path, args...)}
	c.cmd.Stderr = &c.err
	var err1, err2 error
	c.in, err1 = c.cmd.StdinPipe()
	c.out, err2 = c.cmd.StdoutPipe()
	if err := errors.Join(err1, err2, c.cmd.Start()); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = c.cmd.Wait()
	})
	return c
}

var opensslNames = map[uint16]string{
	tls.TLS_AES_128_GCM_SHA256: "TLS_AES_128_GCM_SHA256", tls.TLS_AES_256_GCM_SHA384: "TLS_AES_256_GCM_SHA384",
	tls.TLS_CHACHA20_POLY1305_SHA256: "TLS_CHACHA20_POLY1305_SHA256",
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

func accept(t *testing.T, ln net.Listener, config *tls.Config) *driver {
	t.Helper()
	_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	h, err := NewServer(config, Own).Handshake(context.Background(), conn)
	if err != nil || h.Records == nil {
		t.Fatalf("handshake: %v, %v", err, h)
	}
	return newDriver(h, conn)
}

// bothWays sends data to a program and from it at the same time, and compares.
func bothWays(t *testing.T, d *driver, c *child) {
	t.Helper()
	there, back := random(1_000_003, 8), random(700_001, 9)
	errs := make(chan error, 2)
	go func() {
		_, err := c.in.Write(there)
		errs <- err
	}()
	got := make([]byte, len(back))
	go func() {
		_, err := io.ReadFull(c.out, got)
		if err == nil && !bytes.Equal(got, back) {
			err = errors.New("the program got something else")
		}
		errs <- err
	}()
	left := back
	for i := 0; len(left) > 0; i++ { // records of many sizes, with KeyUpdates in between
		n := min(1+i*i*7, len(left), 40_000)
		if i%10 == 5 {
			_, _ = d.conn.Write(d.Records.appendUpdate(nil, i%20 == 5))
		}
		if _, err := d.Write(left[:n]); err != nil {
			t.Fatal(err)
		}
		left = left[n:]
	}
	arrived := make([]byte, len(there))
	if n, err := io.ReadFull(d, arrived); err != nil || !bytes.Equal(arrived, there) {
		t.Fatalf("%d of %d bytes: %v; %s", n, len(there), err, c.err.String())
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Fatalf("%v; %s", err, c.err.String())
		}
	}
}

func TestOpenSSLClient(t *testing.T) {
	openssl := program(t, "openssl")
	authority, _, _ := files(t)
	forSuites(t, func(t *testing.T, id uint16) {
		ln := listen(t)
		c := start(t, openssl, "s_client", "-connect", ln.Addr().String(), "-servername", "localhost", "-CAfile", authority,
			"-verify_return_error", "-tls1_3", "-ciphersuites", opensslNames[id], "-quiet")
		d := accept(t, ln, serverConfig())
		if d.State.CipherSuite != id {
			t.Fatalf("suite %x", d.State.CipherSuite)
		}
		bothWays(t, d, c)
		// Its end is a close_notify; ours ends it.
		_, _ = d.conn.Write(d.layer.End(nil))
		if _, err := d.Read(make([]byte, 10)); err != io.EOF {
			t.Fatalf("the end: %v", err)
		}
	})
}

// TestOpenSSLUpdatesKeys: the client's command K asks for a KeyUpdate, k does not.
func TestOpenSSLUpdatesKeys(t *testing.T) {
	openssl := program(t, "openssl")
	authority, _, _ := files(t)
	forSuites(t, func(t *testing.T, id uint16) {
		ln := listen(t)
		c := start(t, openssl, "s_client", "-connect", ln.Addr().String(), "-servername", "localhost", "-CAfile", authority,
			"-tls1_3", "-ciphersuites", opensslNames[id])
		d := accept(t, ln, serverConfig())
		shown := make(chan []byte, 1)
		go func() {
			b, _ := io.ReadAll(c.out)
			shown <- b
		}()
		first := d.Records.in.secret
		for i, command := range []string{"K\n", "k\n", "K\n"} {
			before := [2][maxSecret]byte{d.Records.in.secret, d.Records.out.secret}
			// A command is one only at the start of what the program reads: it must have read what was before.
			if _, err := io.WriteString(c.in, command); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			for d.Records.in.secret == before[0] {
				n, err := d.conn.Read(buf)
				if err != nil {
					t.Fatalf("%v; %s", err, c.err.String())
				}
				d.have = append(d.have, d.open(buf[:n])...)
				if d.err != nil {
					t.Fatal(d.err)
				}
			}
			if asked := command[0] == 'K'; (d.Records.out.secret != before[1]) != asked {
				t.Fatalf("command %q: our key has changed: %t", command, !asked)
			}
			line := fmt.Sprintln("line", i)
			if _, err := io.WriteString(c.in, line); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(line))
			if _, err := io.ReadFull(d, got); err != nil || string(got) != line {
				t.Fatalf("%q, %v", got, err)
			}
			_, _ = d.Write([]byte("answer " + line))
		}
		if d.Records.in.secret == first {
			t.Fatal("no key was changed")
		}
		_, _ = d.conn.Write(d.layer.End(nil))
		_ = d.conn.(*net.TCPConn).CloseWrite()
		select {
		case b := <-shown:
			for i := range 3 {
				if want := fmt.Sprintln("answer line", i); !bytes.Contains(b, []byte(want)) {
					t.Fatalf("%q is missing: %s; %s", want, b, c.err.String())
				}
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("the program does not end: %s", c.err.String())
		}
	})
}

func TestOpenSSLServer(t *testing.T) {
	openssl := program(t, "openssl")
	_, cert, key := files(t)
	forSuites(t, func(t *testing.T, id uint16) {
		ln := listen(t)
		addr := ln.Addr().String()
		_ = ln.Close()
		c := start(t, openssl, "s_server", "-accept", addr, "-cert", cert, "-key", key, "-tls1_3", "-ciphersuites", opensslNames[id],
			"-quiet", "-naccept", "1")
		var conn net.Conn
		var err error
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) { // until it listens
			if conn, err = net.Dial("tcp", addr); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%v; %s", err, c.err.String())
			}
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		h, err := Client(context.Background(), conn, clientConfig(), Own)
		if err != nil || h.Records == nil || h.State.CipherSuite != id {
			t.Fatal(h, err)
		}
		d := newDriver(h, conn)
		bothWays(t, d, c) // two tickets come first
	})
}

// TestGnuTLSClient: gnutls-cli sends what it reads, and prints what comes.
func TestGnuTLSClient(t *testing.T) {
	gnutls := program(t, "gnutls-cli")
	authority, _, _ := files(t)
	for id, name := range map[uint16]string{
		tls.TLS_AES_128_GCM_SHA256: "AES-128-GCM", tls.TLS_AES_256_GCM_SHA384: "AES-256-GCM", tls.TLS_CHACHA20_POLY1305_SHA256: "CHACHA20-POLY1305",
	} {
		t.Run(name, func(t *testing.T) {
			ln := listen(t)
			_, port, _ := net.SplitHostPort(ln.Addr().String())
			c := start(t, gnutls, "--x509cafile", authority, "--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+"+name,
				"--sni-hostname", "localhost", "--verify-hostname", "localhost", "--logfile", os.DevNull, "--port", port, "127.0.0.1")
			d := accept(t, ln, serverConfig())
			if d.State.CipherSuite != id {
				t.Fatalf("suite %x", d.State.CipherSuite)
			}
			want := strings.Repeat("a line of text that is sent and comes back\n", 20_000)
			go func() { _, _ = io.WriteString(c.in, want) }()
			got := make([]byte, len(want))
			if n, err := io.ReadFull(d, got); err != nil || string(got) != want {
				t.Fatalf("%d of %d bytes: %v", n, len(want), err)
			}
			go func() {
				for piece := []byte(want); len(piece) > 0; piece = piece[min(len(piece), 30_000):] {
					_, _ = d.Write(piece[:min(len(piece), 30_000)])
				}
			}()
			if n, err := io.ReadFull(c.out, got); err != nil || string(got) != want {
				t.Fatalf("back: %d of %d bytes: %v; %s", n, len(want), err, c.err.String())
			}
		})
	}
}
