package relay

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/tls13"
	"github.com/limpet-mesh/limpet/edge/ws"
)

var wrappings = []wrapping{{tls: true, policy: tls13.Own}, {tls: true, policy: tls13.Crypto}, {ws: true}, {tls: true, policy: tls13.Own, ws: true}}

func wrappedKinds() (kinds []rigKind) {
	for i, w := range wrappings {
		broker := wrappings[(i+1)%len(wrappings)]
		kinds = append(kinds, rigKind{
			name: "epoll, " + w.String() + " to " + broker.String(), wrapped: true, ws: w.ws || broker.ws,
			make: func(t *testing.T, o *scriptOwner, l *Limits, _ bool) *rig { return wrappedRig(t, o, l, w, broker) },
		})
	}
	return kinds
}

// near makes our layers on a connection; role is ours.
func (w wrapping) near(ctx context.Context, conn net.Conn, server *tls13.Server) (layers []Layer, rest []byte, err error) {
	if w.tls {
		var h *tls13.Handover
		if server != nil {
			h, err = server.Handshake(ctx, conn)
		} else {
			h, err = tls13.Client(ctx, conn, &tls.Config{InsecureSkipVerify: true}, w.policy)
		}
		if err != nil {
			return nil, nil, err
		}
		if rest = h.Rest; h.Records != nil {
			layers = append(layers, h.Records)
		} else {
			layers = append(layers, h.Stdlib)
		}
	}
	if w.ws {
		role := ws.Client
		if server != nil {
			role = ws.Server
		}
		f := ws.New(role)
		layers = append(layers, &f)
	}
	return layers, rest, nil
}

// ciphers are what the sessions of a loop share.
type ciphers struct{ tls13.Cache }

func (c *ciphers) Adopt(l Layer) {
	if r, ok := l.(*tls13.Records); ok {
		r.Bind(&c.Cache)
	}
}

func (c *ciphers) Part(l Layer) {
	if r, ok := l.(*tls13.Records); ok {
		r.Bind(nil)
	}
}

// testDoor welcomes clients with the layers of a wrapping.
type testDoor struct {
	owner  func() Owner
	w      wrapping
	server *tls13.Server
	pause  func(net.Conn) // behind the handshake; nil: none
	failed func(net.Conn) // nil: nobody wants to know
}

func (*testDoor) Room() (time.Duration, bool) { return 0, true }
func (d *testDoor) Enough(head []byte) bool   { return len(head) > 0 }
func (d *testDoor) Come(conn Newcomer, _ time.Time) func(context.Context) (Owner, []Layer, []byte) {
	return func(ctx context.Context) (Owner, []Layer, []byte) {
		layers, rest, err := d.w.near(ctx, conn, d.server)
		if err != nil {
			if d.failed != nil {
				d.failed(conn)
			}
			return nil, nil, nil
		}
		if d.pause != nil {
			d.pause(conn)
		}
		return d.owner(), layers, rest
	}
}

// target is a broker that is reached through our layers. pause, if not nil, takes its time before it dials, and the socket takes little.
func (w wrapping) target(at netip.AddrPort, prelude []byte, pause func()) *Target {
	return &Target{Join: func(ctx context.Context) (Wrapped, error) {
		if pause != nil {
			pause()
		}
		st, err := new(net.Dialer).DialContext(ctx, "tcp", at.String())
		if err != nil {
			return Wrapped{}, err
		}
		if pause != nil {
			st.(*net.TCPConn).SetWriteBuffer(narrowBuffer)
		}
		layers, rest, err := w.near(ctx, st, nil)
		if err != nil {
			st.Close()
			return Wrapped{}, err
		}
		if out := prelude; len(out) > 0 {
			for i := len(layers) - 1; i >= 0; i-- {
				out = layers[i].Seal(nil, out)
			}
			if _, err := st.Write(out); err != nil {
				st.Close()
				return Wrapped{}, err
			}
		}
		return Wrapped{Conn: st.(*net.TCPConn), Layers: layers, Rest: rest}, nil
	}}
}

// wrappedRig runs the epoll driver with layers on both sides.
func wrappedRig(t *testing.T, own *scriptOwner, l *Limits, w, broker wrapping) *rig {
	b := newTCPBroker(t, func(c net.Conn) (net.Conn, error) { return broker.far(c, false) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own.target = func() *Target { return broker.target(b.addr(), prelude, nil) }
	door := &testDoor{owner: func() Owner { return own }, w: w, server: tls13.NewServer(testTLS(), w.policy)}
	startLoop(t, new(ciphers), func(loop *Loop) (func(), error) { return loop.Open(ln.(*net.TCPListener), l, door) })
	cl, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	t.Cleanup(func() { cl.Close() })
	if cl, err = w.far(cl, true); err != nil {
		t.Fatal(err)
	}
	return &rig{own: own, client: connEnd{cl}, broker: func() end { return b.end(t) }, wait: func(time.Duration) {}, stop: own.stop, renew: b.renew}
}
