package upstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
)

const (
	// subprotocol is what a client asks for and a broker must select. [MQTT-6.0.0-3], [MQTT-6.0.0-4]
	subprotocol = "mqtt"
	// maxUpgrade bounds the broker's answer to the upgrade, in bytes.
	maxUpgrade = 16 << 10
	// writeChunk bounds a frame that we send, its header included: one TLS record.
	writeChunk = 16 << 10
	// controlTimeout bounds the sending of a pong or close frame. A broker that leaves no room for it that long reads nothing.
	controlTimeout = 10 * time.Second
)

// upgrade makes a WebSocket of conn: RFC 6455 §4.1, the client's side, strictly. It returns what the broker sent behind its
// answer. Deadlines are the caller's.
func upgrade(conn io.ReadWriter, u *url.URL) (early []byte, err error) {
	bounded := &boundedReader{ReadWriter: conn, left: maxUpgrade}
	br, hs, err := ws.Dialer{Protocols: []string{subprotocol}}.Upgrade(bounded, u)
	if br != nil {
		defer ws.PutReader(br)
	}
	if err != nil {
		if status, ok := errors.AsType[ws.StatusError](err); ok {
			return nil, fmt.Errorf("%w: GET %s was answered with status %d instead of 101: check the broker's path", ErrWebSocket, u.RequestURI(), int(status))
		}
		return nil, fmt.Errorf("%w: upgrade: %w", ErrWebSocket, err)
	}
	if hs.Protocol != subprotocol {
		return nil, fmt.Errorf("%w: the server did not select the subprotocol %q", ErrWebSocket, subprotocol)
	}
	if br != nil {
		early = make([]byte, br.Buffered())
		if _, err := io.ReadFull(br, early); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrWebSocket, err)
		}
	}
	return early, nil
}

var errUpgradeTooLong = errors.New("answer longer than 16 KiB")

// boundedReader fails once more than left bytes were asked of it.
type boundedReader struct {
	io.ReadWriter
	left int
}

func (r *boundedReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, errUpgradeTooLong
	}
	n, err := r.ReadWriter.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, err
}

// wsStream is the payload of a WebSocket's binary frames as a byte stream, on the client's side. Frames pass through while
// they arrive: no message is ever gathered. Pings are answered, by the reader or, while that would have to wait for a Write, by the writer.
//
// Close cuts the connection. CloseWrite sends a close frame; the broker's bytes still arrive, up to its own close frame.
type wsStream struct {
	conn net.Conn

	// Read's alone.
	early   []byte // came with the upgrade
	decoder frameDecoder
	rerr    error // what ended reading

	wmu  sync.Mutex // one frame at a time
	werr error      // what ended writing, under wmu: a frame cut short cannot be mended

	dmu      sync.Mutex
	deadline time.Time // of the caller's writes

	// owed is the control frame that Read wants sent. A newer pong replaces an older one (RFC 6455 §5.5.3), a close any.
	omu    sync.Mutex
	owed   atomic.Bool
	owedOp ws.OpCode
	owedP  [maxControl]byte
	owedN  int
}

var errWriteClosed = fmt.Errorf("%w: write after a close frame: %w", ErrWebSocket, net.ErrClosed)

// Read reads payload. A close frame of the broker reads as io.EOF if it says that all is well, else as an error with its code.
func (s *wsStream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for s.rerr == nil {
		n, err := s.receive(p)
		n, derr := s.decoder.decode(p[:n], s.control)
		switch {
		case derr != nil:
			s.end(derr)
		case errors.Is(err, io.EOF):
			s.rerr = io.EOF
			if s.decoder.torn() {
				s.rerr = io.ErrUnexpectedEOF
			}
		case err != nil && n == 0:
			return 0, err // a deadline can be moved
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, s.rerr
}

func (s *wsStream) receive(p []byte) (int, error) {
	if len(s.early) == 0 {
		s.early = nil
		return s.conn.Read(p)
	}
	n := copy(p, s.early)
	s.early = s.early[n:]
	return n, nil
}

// end notes what ended the stream, and tells the broker where it broke a rule. RFC 6455 §7.1.7
func (s *wsStream) end(err error) {
	s.rerr = err
	if err != io.EOF && !errors.As(err, new(closeError)) {
		s.owe(ws.OpClose, binary.BigEndian.AppendUint16(nil, uint16(closeCode(err))))
	}
}

// control handles a control frame of the broker.
func (s *wsStream) control(op ws.OpCode, payload []byte) error {
	switch op {
	case ws.OpPing:
		s.owe(ws.OpPong, payload)
	case ws.OpClose:
		return s.closed(payload)
	}
	return nil // a pong that nobody asked for
}

// closeError is a close frame that tells of a failure.
type closeError ws.StatusCode

func (e closeError) Error() string {
	return fmt.Sprintf("%v: closed by the broker with code %d", ErrWebSocket, uint16(e))
}

func (e closeError) Unwrap() error { return ErrWebSocket }

// closed answers a close frame with its own code (RFC 6455 §5.5.1) and makes of it what Read returns.
func (s *wsStream) closed(payload []byte) error {
	if len(payload) == 0 { // §7.1.5: no status
		s.owe(ws.OpClose, nil)
		return io.EOF
	}
	if len(payload) == 1 {
		return fmt.Errorf("%w: a close frame with half a code", ErrWebSocket)
	}
	code := ws.StatusCode(binary.BigEndian.Uint16(payload))
	if code.IsNotUsed() || code.IsProtocolReserved() { // §7.4
		return fmt.Errorf("%w: a close frame with code %d", ErrWebSocket, uint16(code))
	}
	s.owe(ws.OpClose, payload[:2])
	switch code {
	case ws.StatusNormalClosure, ws.StatusGoingAway:
		return io.EOF
	default:
		return closeError(code)
	}
}

// owe leaves a control frame to be sent: at once, or by the Write that is under way.
func (s *wsStream) owe(op ws.OpCode, payload []byte) {
	s.omu.Lock()
	if !s.owed.Load() || s.owedOp != ws.OpClose {
		s.owedOp, s.owedN = op, copy(s.owedP[:], payload)
		s.owed.Store(true)
	}
	s.omu.Unlock()
	s.pay()
}

// pay sends the frame that is owed, if nobody is writing. Who is, pays after unlocking.
func (s *wsStream) pay() {
	for s.owed.Load() && s.wmu.TryLock() {
		s.omu.Lock()
		op, frame := s.owedOp, s.owedP
		n := s.owedN
		s.owed.Store(false)
		s.omu.Unlock()
		s.sendControl(op, frame[:n])
		s.wmu.Unlock()
	}
}

// sendControl sends a control frame, within controlTimeout whatever the caller's deadline is. Callers hold wmu.
func (s *wsStream) sendControl(op ws.OpCode, payload []byte) {
	if s.werr != nil {
		return
	}
	frame := appendFrame(make([]byte, 0, maxFrameHead+maxControl), op, payload)
	s.dmu.Lock()
	s.werr = s.conn.SetWriteDeadline(time.Now().Add(controlTimeout))
	s.dmu.Unlock()
	if s.werr == nil {
		_, s.werr = s.conn.Write(frame)
	}
	s.dmu.Lock()
	defer s.dmu.Unlock()
	if err := s.conn.SetWriteDeadline(s.deadline); s.werr == nil {
		s.werr = err
	}
	if s.werr == nil && op == ws.OpClose {
		s.werr = errWriteClosed
	}
}

// chunks are where Write builds its frames.
var chunks = sync.Pool{New: func() any { return new([writeChunk]byte) }}

// Write sends p as binary frames of at most writeChunk bytes, each a message of its own: an MQTT packet may span several
// [MQTT-6.0.0-2]. As with tls.Conn, a Write that failed, at a deadline too, is the last.
func (s *wsStream) Write(p []byte) (n int, err error) {
	s.wmu.Lock()
	chunk := chunks.Get().(*[writeChunk]byte)
	for n < len(p) && s.werr == nil {
		k := min(len(p)-n, writeChunk-maxFrameHead)
		_, s.werr = s.conn.Write(appendFrame(chunk[:0], ws.OpBinary, p[n:n+k]))
		if s.werr == nil {
			n += k
		}
	}
	chunks.Put(chunk)
	err = s.werr
	s.wmu.Unlock()
	s.pay()
	return n, err
}

// CloseWrite sends a close frame, once.
func (s *wsStream) CloseWrite() error {
	s.wmu.Lock()
	s.sendControl(ws.OpClose, binary.BigEndian.AppendUint16(nil, uint16(ws.StatusNormalClosure)))
	err := s.werr
	s.wmu.Unlock()
	s.pay()
	if errors.Is(err, errWriteClosed) {
		return nil
	}
	return err
}

// Close cuts the connection, without a close frame: that is CloseWrite's.
func (s *wsStream) Close() error { return s.conn.Close() }

// SetReadDeadline bounds Read. It may be moved after it has passed.
func (s *wsStream) SetReadDeadline(t time.Time) error { return s.conn.SetReadDeadline(t) }

// SetWriteDeadline bounds Write.
func (s *wsStream) SetWriteDeadline(t time.Time) error {
	s.dmu.Lock()
	defer s.dmu.Unlock()
	s.deadline = t
	return s.conn.SetWriteDeadline(t)
}
