package etcdstore

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// A store that cannot be reached says where it should be, what became of the attempt to connect, and what to do.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	serve := func(greeting string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, greeting)
				c.Close()
			}
		}()
		t.Cleanup(func() { l.Close(); <-done })
		return l.Addr().String()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refuses := l.Addr().String()
	l.Close()
	for name, c := range map[string]struct{ url, why string }{
		"refused":        {"http://" + refuses, "connect: connection refused"},
		"another server": {"http://" + serve("INFO {\"server_id\":\"N\"}\r\n"), "error reading server preface"},
		"no TLS there":   {"https://" + serve("INFO {\"server_id\":\"N\"}\r\n"), "first record does not look like a TLS handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, shared, "m", func(cfg *Config) { cfg.Endpoints = []string{c.url} })
			for _, call := range []func() error{
				func() error { _, err := s.Get(withinBrief(t), "p", "k"); return err },
				func() error { return s.Watch(within(t), 0, func(registry.Batch) error { return nil }) },
			} {
				err := call()
				for end := time.Now().Add(patience); !strings.Contains(err.Error(), "cannot connect") && time.Now().Before(end); {
					err = call() // the first attempt to connect was not over
				}
				if !errors.Is(err, registry.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v, want ErrUnavailable by a deadline", err)
				}
				for _, part := range []string{"etcd at " + c.url + ": ", ": cannot connect: ", c.why, "start etcd there or correct the address"} {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%v: lacks %q", err, part)
					}
				}
			}
		})
	}
}

// Once etcd has answered, what was wrong before is no explanation any more.
func TestTroubleIsForgotten(t *testing.T) {
	t.Parallel()
	g := newGate(t, strings.TrimPrefix(shared.url(), "http://"))
	s := open(t, shared, newMesh(), func(c *Config) { c.Endpoints = []string{"http://" + g.l.Addr().String()} })
	wrong := "wrong"
	s.reach.trouble.Store(&wrong)
	if _, err := s.Get(within(t), "p", "k"); err != nil {
		t.Fatal(err)
	}
	g.set(false)
	if _, err := s.Get(withinBrief(t), "p", "k"); err == nil || strings.Contains(err.Error(), wrong) || !strings.Contains(err.Error(), g.l.Addr().String()) {
		t.Errorf("%v", err)
	}
}

func TestTransportError(t *testing.T) {
	for in, want := range map[string]string{
		`latest balancer error: connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`: "dial tcp 127.0.0.1:1: connect: connection refused",
		`connection error: desc = "error reading server preface: \"x\""`:                                                                      `error reading server preface: "x"`,
		`connection error: desc = no quotes`: "no quotes",
		`context deadline exceeded`:          "",
	} {
		if got, ok := transportError(in); got != want || ok != (want != "") {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}
