package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long these tests wait for what should take milliseconds.
const patience = 60 * time.Second

// A server is a running verb that clients depend on.
type server struct {
	*exec.Cmd
	t     *testing.T
	log   *os.File // what the verb writes its log to ends here
	lines *bufio.Reader
	ended chan error
}

// serve starts the binary.
func serve(t *testing.T, args ...string) *server {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Cmd: exec.Command(bin, args...), t: t, log: r, lines: bufio.NewReader(r), ended: make(chan error, 1)}
	s.Stderr = w // itself, with no goroutine of ours between: its reader is this test
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	go func() { s.ended <- s.Wait() }()
	t.Cleanup(func() {
		s.Process.Kill()
		r.Close()
	})
	r.SetReadDeadline(time.Now().Add(patience))
	return s
}

// line reads the log up to the line whose message has some text.
func (s *server) line(message string) (line struct {
	Level, Message, URL, Admin string
	Listeners                  map[string]string
},
) {
	s.t.Helper()
	var seen strings.Builder
	for {
		text, err := s.lines.ReadString('\n')
		seen.WriteString(text)
		if err != nil {
			s.t.Fatalf("no %q in the log: %v\n%s", message, err, &seen)
		}
		if json.Unmarshal([]byte(text), &line) == nil && strings.Contains(line.Message, message) {
			return line
		}
	}
}

// stop sends SIGTERM and expects an end in order.
func (s *server) stop() {
	s.t.Helper()
	if err := s.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("after SIGTERM: %v", err)
		}
	case <-time.After(patience):
		s.t.Fatal("does not end after SIGTERM")
	}
}

// startEdge starts an edge that has no broker, and returns how to see that it serves: each call leaves a line in its log.
func startEdge(t *testing.T) (s *server, serves func()) {
	s, at := startEdgeIn(t, t.TempDir(), "")
	return s, func() {
		t.Helper()
		c, err := net.Dial("tcp", at["tcp"])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		fmt.Fprint(c, "\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x")
		if ack, err := io.ReadAll(c); string(ack) != "\x20\x02\x00\x03" || err != nil { // [MQTT-3.2.2-4], server unavailable
			t.Fatalf("CONNACK %x, %v", ack, err)
		}
	}
}

// startEdgeIn starts an edge with its files in dir and a listener tcp, and others; at is where they are.
func startEdgeIn(t *testing.T, dir, others string) (s *server, at map[string]string) {
	t.Helper()
	for name, text := range map[string]string{
		"mesh.yaml": "mesh: m\npools: [{name: default, probe: {type: none}, brokers: [{id: b, address: '127.0.0.1:1'}]}]\n",
		"edge.yaml": "mesh: m\nid: e\nstore: none\nmesh_file: mesh.yaml\nadmin: {address: '127.0.0.1:0'}\nlisteners: [{type: tcp, address: '127.0.0.1:0'}" + others + "]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = serve(t, "edge", "-c", filepath.Join(dir, "edge.yaml"))
	return s, s.line("accepting clients").Listeners
}

// startStore starts a store, and returns how to see that it serves.
func startStore(t *testing.T) (s *server, serves func()) {
	s = serve(t, "store", "--data", t.TempDir(), "--etcd-port", "0", "--peer-port", "0", "--nats-port", "0", "--log-level", "debug")
	url := s.line("etcd serves").URL
	s.line("NATS serves")
	return s, func() {
		t.Helper()
		r, err := (&http.Client{Timeout: patience}).Get(url + "/health")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			t.Fatalf("etcd: %s", r.Status)
		}
	}
}

var servers = map[string]func(*testing.T) (*server, func()){"edge": startEdge, "store": startStore}

// SIGHUP asks for a reload. Where there is none, or nothing to reload, that is said, and no reason to die.
func TestHangup(t *testing.T) {
	answers := map[string]struct{ level, message string }{"edge": {"info", "no listener has certificates"}, "store": {"warn", "there is no reload yet"}}
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			s, serves := start(t)
			for range 2 {
				if err := s.Process.Signal(syscall.SIGHUP); err != nil {
					t.Fatal(err)
				}
				if line := s.line(answers[name].message); line.Level != answers[name].level {
					t.Errorf("level %s", line.Level)
				}
			}
			serves()
			s.stop()
		})
	}
}

// SIGHUP makes an edge show the certificate that is in its file now.
func TestHangupReloads(t *testing.T) {
	dir := t.TempDir()
	renew := func() (cert []byte) {
		t.Helper()
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
		cert, err = x509.CreateCertificate(nil, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for name, block := range map[string]*pem.Block{"a.pem": {Type: "CERTIFICATE", Bytes: cert}, "a.key": {Type: "PRIVATE KEY", Bytes: pkcs8}} {
			if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return cert
	}
	want := renew()
	s, at := startEdgeIn(t, dir, ", {type: tls, address: '127.0.0.1:0', tls: {certificates: [{cert: a.pem, key: a.key}]}}")
	for range 3 {
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", at["tls"], &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(c.ConnectionState().PeerCertificates[0].Raw, want) {
			t.Fatal("another certificate than that in the file")
		}
		c.Close()
		want = renew()
		if err := s.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if line := s.line("SIGHUP: certificates"); line.Level != "info" {
			t.Errorf("level %s: %s", line.Level, line.Message)
		}
	}
	s.stop()
}

// The reader of the log has died. What is written to it is lost, and nothing else.
func TestTheLogsReaderDies(t *testing.T) {
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			s, serves := start(t)
			s.log.Close()
			for range 20 {
				serves()
			}
			s.stop() // which is logged, too
		})
	}
}
