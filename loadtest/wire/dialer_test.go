package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
	"github.com/quic-go/quic-go"
)

// failure dials, and wants one clear line with the right word and stage.
func failure(t *testing.T, d *Dialer, ep *Endpoint, stage Stage, sentinel error) string {
	t.Helper()
	c, err := d.Dial(t.Context(), ep)
	if err == nil {
		_ = c.Abort()
		t.Errorf("%v: no error, want %v", ep, sentinel)
		return ""
	}
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Stage != stage || e.Endpoint != ep || !errors.Is(err, sentinel) || Reason(err) != Reason(sentinel) {
		t.Errorf("%v (%s, %+v), want %v at stage %s", err, Reason(err), e, sentinel, stage)
	}
	if strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), ep.String()+": ") {
		t.Errorf("not a clear line: %q", err)
	}
	return err.Error()
}

func TestRefused(t *testing.T) {
	l := listen(t)
	address := l.Addr().(*net.TCPAddr).AddrPort()
	_ = l.Close()
	for _, kind := range []Transport{TCP, TLS, WS, WSS} {
		ep := endpoint(t, kind, address)
		if got, want := failure(t, newDialer(t, Config{}), ep, StageDial, ErrRefused), ep.String()+": connect: connection refused"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestSilence: an endpoint that accepts and says nothing costs Timeout in each stage, or the caller's context.
func TestSilence(t *testing.T) {
	l := listen(t)
	defer l.Close() // nobody accepts: the kernel does
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, kind := range []Transport{TLS, WS, WSS, QUIC} {
		ep := endpoint(t, kind, l.Addr().(*net.TCPAddr).AddrPort())
		if kind == QUIC {
			ep = endpoint(t, kind, udp.LocalAddr().(*net.UDPAddr).AddrPort())
		}
		failure(t, newDialer(t, Config{Timeout: 20 * time.Millisecond}), ep, StageHandshake, ErrTimeout)

		ctx, cancel := context.WithCancel(t.Context())
		stop := time.AfterFunc(20*time.Millisecond, cancel)
		_, err := newDialer(t, Config{}).Dial(ctx, ep)
		if stop.Stop(); Reason(err) != "cancelled" {
			t.Errorf("%v: cancelled: %v (%s)", ep, err, Reason(err))
		}
		ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err = newDialer(t, Config{}).Dial(ctx, ep)
		if cancel(); Reason(err) != "timeout" {
			t.Errorf("%v: past the context's deadline: %v (%s)", ep, err, Reason(err))
		}
	}
}

// TestNotWhatItSeems: endpoints that speak something else, or nothing.
func TestNotWhatItSeems(t *testing.T) {
	d := newDialer(t, Config{Timeout: patience})
	says := func(s string) *Endpoint {
		return serve(t, TCP, func(c served) {
			_, _ = c.Read(make([]byte, 64<<10)) // all of it: a close with bytes unread is a reset
			_, _ = io.WriteString(c, s)
		})
	}
	as := func(kind Transport, ep *Endpoint) *Endpoint { return endpoint(t, kind, ep.Addr) }
	failure(t, d, as(TLS, says("HTTP/1.1 400 Bad Request\r\n\r\n")), StageHandshake, ErrTLS)
	failure(t, d, as(WS, says("\x20\x02\x00\x05 and no line\r\n\r\n")), StageHandshake, ErrUpgrade)
	failure(t, d, as(WS, says("")), StageHandshake, ErrClosed)
	failure(t, d, as(TLS, says("")), StageHandshake, ErrClosed)
	if got := failure(t, d, as(WS, says("HTTP/1.1 404 Not Found\r\n\r\n")), StageHandshake, ErrUpgrade); !strings.Contains(got, "404 Not Found") {
		t.Error(got)
	}
}

func TestCertificates(t *testing.T) {
	forAll(t, func(t *testing.T, kind Transport) {
		if !kind.Encrypted() {
			return
		}
		ep := serve(t, kind, echo)
		stranger := newDialer(t, Config{TLS: &tls.Config{RootCAs: x509.NewCertPool()}})
		if got := failure(t, stranger, ep, StageHandshake, ErrTLS); !strings.Contains(got, "unknown authority") {
			t.Error(got)
		}
		renamed := newDialer(t, Config{TLS: func() *tls.Config { c := clientTLS(); c.ServerName = "other.test"; return c }()})
		if got := failure(t, renamed, ep, StageHandshake, ErrTLS); !strings.Contains(got, "other.test") {
			t.Error(got)
		}
		named := *ep
		named.Host = "edge.test" // of the certificate: the endpoint's host is the server's name
		_ = dial(t, newDialer(t, Config{}), &named).Close()
		_ = dial(t, newDialer(t, Config{TLS: &tls.Config{InsecureSkipVerify: true}}), ep).Close()
	})
}

// TestProxyHeader: the header that go-proxyproto reads names the client, or the address asked for.
func TestProxyHeader(t *testing.T) {
	from := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8")}
	for _, kind := range []Transport{TCP, TLS, WS, WSS} {
		for _, d := range []*Dialer{newDialer(t, Config{Proxy: true}), newDialer(t, Config{Proxy: true, ProxyFrom: from})} {
			seen := make(chan string, 2)
			l := listen(t)
			recorder := &recordingListener{Listener: &proxyproto.Listener{Listener: l, ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return proxyproto.REQUIRE, nil }}, seen: seen}
			ep := serveOn(t, kind, recorder, echo)
			for i := range 2 {
				c := dial(t, d, ep)
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				want := localOf(c).String()
				if d.cfg.ProxyFrom != nil {
					want = netip.AddrPortFrom(from[i], localOf(c).Port()).String()
				}
				if got := <-seen; got != want+" to "+ep.Addr.String() {
					t.Errorf("%v: the header says %s, want %s", ep, got, want)
				}
				_ = c.Close()
			}
		}
	}
}

func localOf(c Conn) netip.AddrPort {
	switch c := c.(type) {
	case *tcpConn:
		return addrPort(c.LocalAddr())
	case *tlsConn:
		return addrPort(c.tcp.LocalAddr())
	case *wsConn:
		return addrPort(c.tcp.LocalAddr())
	}
	panic(fmt.Sprintf("%T", c))
}

// recordingListener tells what the PROXY header of each client says.
type recordingListener struct {
	net.Listener
	seen chan<- string
}

func (l *recordingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.seen <- c.RemoteAddr().String() + " to " + c.LocalAddr().String()
	}
	return c, err
}

// FuzzProxyV2: for all pairs of addresses, go-proxyproto reads what was meant, and leaves what follows.
func FuzzProxyV2(f *testing.F) {
	v4, v6 := netip.MustParseAddr("192.0.2.1").AsSlice(), netip.MustParseAddr("2001:db8::1").AsSlice()
	f.Add(v4, uint16(1), v4, uint16(65535))
	f.Add(v6, uint16(40000), v6, uint16(1883))
	f.Add(v4, uint16(40000), v6, uint16(1883))
	f.Add(v6, uint16(40000), v4, uint16(1883))
	f.Fuzz(func(t *testing.T, from []byte, fromPort uint16, to []byte, toPort uint16) {
		src, ok1 := netip.AddrFromSlice(from)
		dst, ok2 := netip.AddrFromSlice(to)
		if !ok1 || !ok2 {
			return
		}
		b := append(appendProxyV2([]byte(nil), netip.AddrPortFrom(src, fromPort), netip.AddrPortFrom(dst, toPort)), "rest"...)
		r := bufio.NewReader(strings.NewReader(string(b)))
		h, err := proxyproto.Read(r)
		if err != nil {
			t.Fatal(err)
		}
		gotSrc, gotDst := h.SourceAddr.(*net.TCPAddr).AddrPort(), h.DestinationAddr.(*net.TCPAddr).AddrPort()
		if h.Version != 2 || h.Command != proxyproto.PROXY || gotSrc.Addr().Unmap() != src.Unmap() || gotDst.Addr().Unmap() != dst.Unmap() ||
			gotSrc.Port() != fromPort || gotDst.Port() != toPort {
			t.Errorf("%v:%d to %v:%d is read as %+v", src, fromPort, dst, toPort, h)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "rest" {
			t.Errorf("%q remains", rest)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for _, cfg := range []Config{
		{Sources: []netip.Addr{{}}},
		{Sources: []netip.Addr{netip.IPv4Unspecified()}},
		{Proxy: true, ProxyFrom: []netip.Addr{netip.MustParseAddr("224.0.0.1")}},
		{ProxyFrom: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("New(%+v): no error", cfg)
		}
	}
}

// TestReasons: every kind of error has its word, and the line says what to do where something can be done.
func TestReasons(t *testing.T) {
	words := Reasons()
	slices.Sort(words)
	if len(slices.Compact(slices.Clone(words))) != len(words) {
		t.Errorf("a word twice: %v", words)
	}
	for want, all := range map[string][]error{
		"":            {nil},
		"refused":     {syscall.ECONNREFUSED, &net.OpError{Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, &quic.TransportError{ErrorCode: quic.ConnectionRefused}},
		"reset":       {syscall.ECONNRESET, syscall.EPIPE, &quic.StatelessResetError{}, &quic.StreamError{Remote: true}},
		"timeout":     {syscall.ETIMEDOUT, os.ErrDeadlineExceeded, context.DeadlineExceeded, &quic.IdleTimeoutError{}, &quic.HandshakeTimeoutError{}},
		"unreachable": {syscall.EHOSTUNREACH, syscall.ENETUNREACH},
		"descriptors": {syscall.EMFILE, syscall.ENFILE},
		"ports":       {syscall.EADDRNOTAVAIL},
		"memory":      {syscall.ENOBUFS},
		"resolve":     {&net.DNSError{IsTimeout: true}},
		"tls":         {tls.AlertError(40), &quic.TransportError{ErrorCode: 0x100 + 40}, &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}},
		"quic":        {&quic.TransportError{ErrorCode: quic.ProtocolViolation}, &quic.VersionNegotiationError{}},
		"closed":      {io.EOF, io.ErrUnexpectedEOF, &quic.ApplicationError{Remote: true}, &CloseError{Code: 1000}},
		"websocket":   {&CloseError{Code: 1008}},
		"cancelled":   {context.Canceled, net.ErrClosed, &quic.ApplicationError{}, quic.ErrTransportClosed},
		"other":       {errors.New("?"), syscall.EPERM},
	} {
		for _, err := range all {
			if got := Reason(err); got != want {
				t.Errorf("Reason(%v) = %q, want %q", err, got, want)
			}
			if want != "" && !slices.Contains(words, Reason(fmt.Errorf("wrapped: %w", err))) {
				t.Errorf("%v is counted by no word of %v", err, words)
			}
		}
	}
	e := &Error{Stage: StageDial, Endpoint: &Endpoint{}, Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)}}
	if !errors.Is(e, ErrDescriptors) || !strings.Contains(e.Error(), "socket: too many open files (out of file descriptors: raise the limit") {
		t.Error(e)
	}
}

// TestDialerClose ends QUIC connections, and dials no more of them.
func TestDialerClose(t *testing.T) {
	ep := serve(t, QUIC, echo)
	d := newDialer(t, Config{})
	c := dial(t, d, ep)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Wait(); err == nil {
			t.Error("Wait outlives the dialer")
		}
	})
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	failure(t, d, ep, StageHandshake, ErrCancelled)
}
