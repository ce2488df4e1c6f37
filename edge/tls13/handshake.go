package tls13

import (
	"context"
	"crypto/fips140"
	"crypto/tls"
	"errors"
	"net"
)

// Policy says who goes on after a handshake.
type Policy uint8

// The policies.
const (
	Crypto Policy = iota // crypto/tls: always Stdlib
	Own                  // Records where that is possible
)

// A Handover is a connection after its handshake. Exactly one of Records and Stdlib is set.
type Handover struct {
	Records *Records
	Stdlib  *Stdlib
	// Why says why there are no Records, in a word or two out of a small set: "policy", "TLS 1.2", "FIPS 140", ….
	Why string
	// Rest was read from the connection behind the handshake: the first to be opened. At most 4 KB.
	Rest []byte
	// State tells name, protocol and certificates that were agreed on. It holds on to much of the handshake: keep what is needed.
	State tls.ConnectionState
}

// A Server shakes hands with clients.
type Server struct {
	config *tls.Config
	policy Policy
}

// NewServer returns a Server for a listener. What it is made from may change afterwards by GetConfigForClient only. Make one for
// the life of the listener: it holds the keys of the session tickets, unless base or what its GetConfigForClient returns has had
// SetSessionTicketKeys.
func NewServer(base *tls.Config, policy Policy) *Server {
	s := &Server{config: base, policy: policy}
	if policy != Own {
		return s
	}
	s.config = base.Clone()
	// Each connection has a configuration of its own, for the key log. It is given out from here, so that crypto/tls takes the
	// keys of the tickets, and turns them over, in the one outer configuration.
	s.config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		config := base
		if base.GetConfigForClient != nil {
			c, err := base.GetConfigForClient(hello)
			if err != nil {
				return nil, err
			}
			if c != nil {
				config = c
			}
		}
		if w, ok := hello.Conn.(*wire); ok {
			config = w.watch(config)
		}
		return config, nil
	}
	return s
}

// SetSessionTicketKeys is as that of tls.Config, at any time.
func (s *Server) SetSessionTicketKeys(keys [][32]byte) { s.config.SetSessionTicketKeys(keys) }

// Handshake shakes hands as a server. It blocks, by the deadlines of conn and until ctx ends, which closes conn. Afterwards conn
// is not touched any more; after an error it is to be closed (the alert has been written).
func (s *Server) Handshake(ctx context.Context, conn net.Conn) (*Handover, error) {
	w := &wire{conn: conn, capture: s.policy == Own}
	return w.handshake(ctx, tls.Server(w, s.config))
}

// Client shakes hands as a client; as Server.Handshake. With TLS 1.3 and Records, tickets for resumption are not kept.
func Client(ctx context.Context, conn net.Conn, config *tls.Config, policy Policy) (*Handover, error) {
	w := &wire{conn: conn, client: true, capture: policy == Own}
	if w.capture {
		config = w.watch(config)
	}
	return w.handshake(ctx, tls.Client(w, config))
}

func (w *wire) handshake(ctx context.Context, conn *tls.Conn) (*Handover, error) {
	defer w.forget()
	if err := conn.HandshakeContext(ctx); err != nil {
		w.rest() // gives the buffer back
		return nil, err
	}
	h := &Handover{State: conn.ConnectionState()}
	if w.have > 0 || w.need > 0 {
		// Not a record's end: the tls.Conn would be torn off its place in the stream. It never is.
		return nil, errors.New("tls13: the handshake ended inside of a record")
	}
	h.Rest = w.rest()
	h.Records, h.Why = w.takeOver(&h.State)
	w.conn = nil
	if h.Records != nil {
		w.mode = isCut
		return h, nil
	}
	w.mode = inMemory
	h.Stdlib = &Stdlib{conn: conn, wire: w}
	return h, nil
}

// takeOver makes Records of what the handshake has shown, or says why not.
func (w *wire) takeOver(state *tls.ConnectionState) (r *Records, why string) {
	switch {
	case !w.capture:
		return nil, "policy"
	case state.Version != tls.VersionTLS13:
		return nil, tls.VersionName(state.Version)
	case fips140.Enabled(): // it allows nonces of crypto/tls only
		return nil, "FIPS 140"
	case w.odd != "":
		return nil, w.odd
	}
	read, write := w.peers(), w.own()
	r, err := New(Secrets{Suite: state.CipherSuite, Client: w.client, Read: read.b[:read.n], Write: write.b[:write.n]})
	if err != nil {
		return nil, "cipher suite"
	}
	n, ok := w.count(r)
	if !ok {
		r.Wipe()
		return nil, "sequence"
	}
	r.out.seq = n
	return r, ""
}
