package relay

import (
	"context"
	"io"
	"net"
	"time"
)

// A Layer wraps a byte stream on its way over a socket: TLS records, WebSocket frames. Like a Session it is a state machine without I/O,
// clock, lock or goroutine, and its state is a value. It is not safe for concurrent use.
type Layer interface {
	// Open takes apart raw: what the socket brought, behind the rest that the last Open left. It returns the payload, moved together in raw's own
	// memory, and the rest: a piece that is not whole, also in raw. An error ends the reading side for good: io.EOF where the peer ended in
	// order (close_notify, a close frame); payload before it is valid.
	Open(raw []byte) (payload, rest []byte, err error)
	// Seal appends p in wire form to dst. p is neither kept nor changed, and does not overlap dst.
	Seal(dst, p []byte) []byte
	// Reply appends what the layer itself has to say since the last call: an alert, a pong. Most of the time that is nothing.
	Reply(dst []byte) []byte
	// End appends the last word of our writing direction, once. Nothing is sealed after it.
	End(dst []byte) []byte
}

// A Shared is what the layers of one loop have in common, such as a cache of ciphers. Only its loop calls it.
type Shared interface {
	// Adopt is called with each layer of a session when the loop takes it.
	Adopt(Layer)
	// Part is called with each layer of a session that goes on in another loop, before that one adopts it.
	Part(Layer)
	// Tick is called once a second while anything happens, and afterwards until it returns 0.
	Tick() (held int)
}

// LoopConfig is what a loop may need. The zero value is a loop for plain sessions.
type LoopConfig struct {
	Shared Shared // for its layers; nil: none
}

// Wrapped is a connection after its handshakes, for a loop to take.
type Wrapped struct {
	Conn   *net.TCPConn // closed by whom it is given to, who goes on with its socket
	Layers []Layer      // next to the socket first; one or two
	Rest   []byte       // was read behind the handshakes: the first that the layers are to open
}

// A Newcomer is a connection before MQTT, as its Door sees it.
type Newcomer interface {
	net.Conn
	// MakeRoom is called before the owner is asked for: in an edge that is full (Limits.Full), a silent session may go.
	MakeRoom()
}

// A Door is a listener of a loop whose connections have something to do before MQTT: shake hands, or upgrade.
type Door interface {
	// Room reports whether another connection may come in, else how long to wait before asking again.
	Room() (wait time.Duration, ok bool)
	// Come is told of one that has been accepted. welcome is called later, once Enough says so, or when the client or the time that it has is at its
	// end, and returns its owner, nil to close the connection and wipe the layers, with the layers to wrap it in and what was read behind the
	// handshakes. It is a coroutine of the loop's: it may wait for conn, by its own deadlines, and for nothing else. The connection's socket
	// stays the loop's; Close, from any goroutine, makes its methods fail.
	Come(conn Newcomer, accepted time.Time) (welcome func(context.Context) (Owner, []Layer, []byte))
	// Enough reports whether the first bytes of a connection are worth to begin with.
	Enough(head []byte) bool
}

// wrap is the layers between a side's socket and its session.
type wrap struct {
	outer, inner Layer // next to the socket, and next to the session: nil if there is one only
	rest         []byte
	owed         int  // bytes of replies among what waits to be written
	ended        bool // reading is at its end: what still comes is not looked at
}

func newWrap(layers []Layer, shared Shared) *wrap {
	if shared != nil {
		for _, l := range layers {
			shared.Adopt(l)
		}
	}
	w := &wrap{outer: layers[0]}
	if len(layers) > 1 {
		w.inner = layers[1]
	}
	return w
}

// open takes apart what the socket brought, behind rest.
func (w *wrap) open(raw []byte) (payload, rest []byte, err error) {
	payload, rest, err = w.outer.Open(raw)
	if w.inner != nil && len(payload) > 0 {
		var ended error
		if payload, _, ended = w.inner.Open(payload); ended != nil { // frames keep their rest themselves
			err = ended
		}
	}
	if err == io.EOF && w.inner != nil {
		err = w.eof() // a close_notify may be in the middle of a frame
	}
	return payload, rest, err
}

// last is the layer next to the session.
func (w *wrap) last() Layer {
	if w.inner != nil {
		return w.inner
	}
	return w.outer
}

// mute reports whether nothing can be said any more: a WebSocket's close frame ends both directions (RFC 6455 §5.5.1).
func (w *wrap) mute() bool {
	l, ok := w.last().(interface{ Closing() bool })
	return ok && l.Closing()
}

// eof is what it means that the socket has come to its end between two calls of open.
func (w *wrap) eof() error {
	if e, ok := w.last().(interface{ EOF() error }); ok {
		return e.EOF()
	}
	return io.EOF
}

// wipe overwrites the secrets that layers hold.
func wipe(layers ...Layer) {
	for _, l := range layers {
		if secret, ok := l.(interface{ Wipe() }); ok {
			secret.Wipe()
		}
	}
}

// scratch is memory of a loop's, for what is on its way out.
type scratch struct{ wire, inner []byte }

// seal returns p in wire form, valid until the scratch is used again.
func (w *wrap) seal(s *scratch, p []byte) []byte {
	if w.inner != nil {
		s.inner = w.inner.Seal(s.inner[:0], p)
		p = s.inner
	}
	s.wire = w.outer.Seal(s.wire[:0], p)
	return s.wire
}

// reply returns what the layers have to say.
func (w *wrap) reply(s *scratch) []byte {
	if w.inner != nil {
		if s.inner = w.inner.Reply(s.inner[:0]); len(s.inner) > 0 {
			s.wire = w.outer.Seal(s.wire[:0], s.inner)
			return s.wire
		}
	}
	s.wire = w.outer.Reply(s.wire[:0])
	return s.wire
}

// end returns the last word of the layer next to the session, which the peer answers in its own time; with all, of both.
func (w *wrap) end(s *scratch, all bool) []byte {
	if w.inner == nil {
		s.wire = w.outer.End(s.wire[:0])
		return s.wire
	}
	s.wire = s.wire[:0]
	if s.inner = w.inner.End(s.inner[:0]); len(s.inner) > 0 {
		s.wire = w.outer.Seal(s.wire, s.inner)
	}
	if all {
		s.wire = w.outer.End(s.wire)
	}
	return s.wire
}
