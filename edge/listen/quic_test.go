package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/quic-go/quic-go"
)

// quicDial connects with ALPN mqtt unless conf says otherwise.
func quicDial(t testing.TB, l *served, conf *tls.Config) (*quic.Conn, error) {
	t.Helper()
	if conf.NextProtos == nil {
		conf.NextProtos = []string{"mqtt"}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := quic.DialAddr(ctx, l.Addr().String(), conf, nil)
	if err == nil {
		t.Cleanup(func() { _ = c.CloseWithError(0, "") })
	} else if conf.NextProtos[0] == "mqtt" && conf.RootCAs != nil {
		t.Fatalf("dial: %v", err)
	}
	return c, err
}

func openStream(t testing.TB, c *quic.Conn) *quic.Stream {
	t.Helper()
	s, err := c.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	_ = s.SetDeadline(time.Now().Add(patience))
	return s
}

func TestQUICInsistsOnALPN(t *testing.T) {
	ca := newAuthority(t)
	l := start(t, config(t, QUIC, ca))
	for _, offers := range [][]string{{"h3"}, {"x-amzn-mqtt-ca"}} {
		conf := ca.client()
		conf.NextProtos = offers
		_, err := quicDial(t, l, conf)
		if te, ok := errors.AsType[*quic.TransportError](err); !ok || te.ErrorCode != 0x100+120 { // RFC 9001 §8.1: no_application_protocol
			t.Errorf("%q: %v", offers, err)
		}
		l.rejected(t, ReasonQUICHandshake)
	}
	conf := ca.client()
	conf.NextProtos = []string{"h3", "mqtt"}
	c, err := quicDial(t, l, conf)
	if err != nil || c.ConnectionState().TLS.NegotiatedProtocol != "mqtt" {
		t.Errorf("%v", err)
	}
}

func TestQUICCloseDeliversWhatWasWritten(t *testing.T) {
	ca := newAuthority(t)
	said := noise(t, 200_000) // more than a packet, and than the client has asked for
	l := startWith(t, config(t, QUIC, ca), func(s relay.Stream, _ relay.Origin, _ time.Time) {
		readN(t, s, 1)
		send(t, s, said)
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if _, err := s.Write([]byte("x")); err == nil {
			t.Error("Write after Close succeeded")
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read after Close: %v", err)
		}
		if err := s.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close: %v", err)
		}
	})
	c, _ := quicDial(t, l, ca.client())
	s := openStream(t, c)
	send(t, s, []byte("x"))
	got, err := io.ReadAll(s)
	if err != nil || string(got) != string(said) {
		t.Fatalf("read %d bytes and %v", len(got), err)
	}
	// The client does not close; the connection ends all the same, in order.
	<-c.Context().Done()
	if ae, ok := errors.AsType[*quic.ApplicationError](context.Cause(c.Context())); !ok || ae.ErrorCode != 0 || !ae.Remote {
		t.Errorf("ended with %v", context.Cause(c.Context()))
	}
}

func TestQUICClientClosesTheConnection(t *testing.T) {
	ca := newAuthority(t)
	ends := make(chan error, 2)
	l := startWith(t, config(t, QUIC, ca), func(s relay.Stream, _ relay.Origin, _ time.Time) {
		_, err := io.Copy(io.Discard, struct{ io.Reader }{s})
		ends <- err
		_ = s.Close()
	})
	for code, ordered := range map[quic.ApplicationErrorCode]bool{0: true, 7: false} {
		c, _ := quicDial(t, l, ca.client())
		send(t, openStream(t, c), []byte("x"))
		l.arrival(t)
		_ = c.CloseWithError(code, "")
		if err := receive(t, ends, "end"); (err == nil) != ordered {
			t.Errorf("code %d: %v", code, err)
		}
	}
}

func TestQUICCloseCutsAWriteInProgress(t *testing.T) {
	ca := newAuthority(t)
	writing := make(chan struct{})
	failed := make(chan error, 1)
	l := startWith(t, config(t, QUIC, ca), func(s relay.Stream, _ relay.Origin, _ time.Time) {
		go func() {
			b := make([]byte, 1<<20)
			close(writing)
			var err error
			for err == nil { // until the client's window is full, and then for ever
				_, err = s.Write(b)
			}
			failed <- err
		}()
	})
	c, _ := quicDial(t, l, ca.client())
	s := openStream(t, c)
	send(t, s, []byte("x"))
	a := l.arrival(t)
	<-writing
	// The client reads nothing: once its window is full, the lock on writing stays taken.
	wait(t, "the write is stuck", func() bool { return c.ConnectionStats().BytesReceived > 400_000 })
	if err := a.stream.Close(); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, failed, "end of the write"); err == nil {
		t.Error("no error")
	}
}

func TestQUICStreamLimits(t *testing.T) {
	ca := newAuthority(t)
	l := start(t, config(t, QUIC, ca))
	c, _ := quicDial(t, l, ca.client())
	echoed(t, openStream(t, c), []byte("one"))
	if _, err := c.OpenStream(); err == nil {
		t.Error("a second stream was allowed")
	}
	if _, err := c.OpenUniStream(); err == nil {
		t.Error("a unidirectional stream was allowed")
	}
}

func TestQUICDeadlineCoversTheFirstStream(t *testing.T) {
	ca := newAuthority(t)
	cfg := config(t, QUIC, ca)
	cfg.HandshakeTimeout = 300 * time.Millisecond
	l := start(t, cfg)
	c, _ := quicDial(t, l, ca.client())
	r := l.rejected(t, ReasonTimeout)
	if r.origin.TLS == nil || r.origin.TLS.ALPN != "mqtt" || r.origin.Peer.Port() == 0 {
		t.Errorf("origin %+v", r.origin)
	}
	<-c.Context().Done()
	// A client that has gone is told apart.
	c, _ = quicDial(t, l, ca.client())
	_ = c.CloseWithError(3, "changed my mind")
	l.rejected(t, ReasonClientGone)
}

func TestQUICMutualTLSAndResumption(t *testing.T) {
	ca := newAuthority(t)
	cfg := config(t, QUIC, ca)
	cfg.TLS.ClientCAs, cfg.TLS.ClientAuth = ca.file, ClientAuthRequest
	l, other := start(t, cfg), start(t, cfg)
	for _, s := range []*served{l, other} {
		s.SetTicketKeys([][32]byte{{9}})
	}
	conf := ca.client()
	conf.Certificates = []tls.Certificate{load(t, ca.issue(t, "device-1"))}
	conf.ClientSessionCache = newTickets()
	for i, s := range []*served{l, l, other} {
		c, _ := quicDial(t, s, conf)
		echoed(t, openStream(t, c), []byte("x"))
		cs, o := c.ConnectionState().TLS, s.arrival(t).origin.TLS
		if cs.DidResume != (i > 0) || o.CommonName != "device-1" || !o.Verified || o.ALPN != "mqtt" {
			t.Errorf("%d: resumed %v, %+v", i, cs.DidResume, o)
		}
		// The ticket comes on its own time.
		wait(t, "a ticket", func() bool { return conf.ClientSessionCache.(*tickets).puts.Load() > int32(i) })
		_ = c.CloseWithError(0, "")
	}
}

func TestQUICBoundsHandshakes(t *testing.T) {
	ca := newAuthority(t)
	cfg := config(t, QUIC, ca)
	cfg.HandshakeTimeout = 3 * time.Second
	cfg.MaxHandshakes = 1 // above 1/8 of it clients prove their address first, so this is Retry at work too
	l := start(t, cfg)
	for range 3 {
		c, _ := quicDial(t, l, ca.client())
		echoed(t, openStream(t, c), []byte("x"))
	}
	// A place that is taken for good.
	first, _ := quicDial(t, l, ca.client())
	wait(t, "it waits for its stream", func() bool { return l.queue.length() == 1 })
	second, _ := quicDial(t, l, ca.client())
	_ = second
	echoed(t, openStream(t, second), []byte("the newcomer gets the place"))
	l.rejected(t, ReasonOverload)
	<-first.Context().Done()
}

func TestQUICNobodyServes(t *testing.T) {
	ca := newAuthority(t)
	cfg := config(t, QUIC, ca)
	cfg.Address = "127.0.0.1:0"
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	receive(t, l.Done(), "release of the socket")
	if err := l.Serve(t.Context(), nil); err != nil {
		t.Errorf("Serve after Close: %v", err)
	}
	pc, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = pc.Close()
}
