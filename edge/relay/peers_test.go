package relay

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/edge/tls13"
	"github.com/limpet-mesh/limpet/edge/ws"
	wsstream "github.com/limpet-mesh/limpet/edge/ws/stream"
)

// wrapping is the layers on one side of a session in a loop.
type wrapping struct {
	tls    bool
	policy tls13.Policy
	old    bool // TLS 1.2, at the other end's wish
	ws     bool
}

func (w wrapping) String() string {
	var parts []string
	switch {
	case w.old:
		parts = append(parts, "TLS 1.2")
	case w.tls:
		parts = append(parts, map[tls13.Policy]string{tls13.Own: "own records", tls13.Crypto: "tls.Conn"}[w.policy])
	}
	if w.ws {
		parts = append(parts, "ws")
	}
	if len(parts) == 0 {
		return "plain"
	}
	return strings.Join(parts, " and ")
}

// version is the newest one that the other end of a connection has.
func (w wrapping) version() uint16 {
	if w.old {
		return tls.VersionTLS12
	}
	return tls.VersionTLS13
}

// peer is one end of a connection through a relay.
type peer interface {
	net.Conn
	CloseWrite() error
}

// far is the other end of such a connection.
func (w wrapping) far(conn net.Conn, client bool) (net.Conn, error) {
	if w.tls {
		var tc *tls.Conn
		if client {
			tc = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MaxVersion: w.version()})
		} else {
			config := testTLS().Clone()
			config.MaxVersion = w.version()
			tc = tls.Server(conn, config)
		}
		if err := tc.Handshake(); err != nil {
			return nil, err
		}
		conn = tc
	}
	if w.ws {
		role := ws.Server
		if client {
			role = ws.Client
		}
		conn = framed{conn, wsstream.New(conn, role, nil)}
	}
	return conn, nil
}

// framed is a WebSocket as a net.Conn.
type framed struct {
	net.Conn
	s *wsstream.Stream
}

func (f framed) Read(p []byte) (int, error)        { return f.s.Read(p) }
func (f framed) Write(p []byte) (int, error)       { return f.s.Write(p) }
func (f framed) CloseWrite() error                 { return f.s.CloseWrite() }
func (f framed) NetConn() net.Conn                 { return f.Conn }
func (f framed) SetReadDeadline(t time.Time) error { return f.Conn.SetReadDeadline(t) }

// An odd peer sends what it is given in the least usual way that is legal: segments, records and frames of any size, torn and together,
// with pings and KeyUpdates in between. One goroutine writes, one reads.
type odd struct {
	net.Conn                                        // the socket
	rnd      *rand.Rand                             // under mu
	frame    *rand.Rand                             // the writer's
	in       interface{ Read([]byte) (int, error) } // payload; of a WebSocket, what it lies in
	frames   *wsstream.Stream                       // reads; nil: no WebSocket
	client   bool

	mu      sync.Mutex // one frame, and one record, at a time
	tls     *tls.Conn
	records *records // writes instead of tls; nil: it does
	asked   int      // for KeyUpdates
	corked  []byte   // Finished and what is to follow it, for one segment
	cork    bool
}

// newOdd shakes hands on conn. Until it has said something itself what it writes is kept together.
func newOdd(conn net.Conn, w wrapping, client bool, rnd *rand.Rand) (*odd, error) {
	o := &odd{Conn: conn, rnd: rnd, frame: rand.New(rand.NewPCG(rnd.Uint64(), 9)), in: conn, client: client}
	if w.tls {
		config := &tls.Config{InsecureSkipVerify: true}
		if !client {
			config = testTLS().Clone()
			config.SessionTicketsDisabled = true // no record under the key that goes on
		}
		config.DynamicRecordSizingDisabled = true
		config.MaxVersion = w.version()
		var log keyLog
		config.KeyLogWriter = &log
		o.cork = client
		under := socketSide{conn, o}
		if o.tls = tls.Server(under, config); client {
			o.tls = tls.Client(under, config)
		}
		if err := o.tls.Handshake(); err != nil {
			return nil, err
		}
		if o.tls.ConnectionState().CipherSuite == tls.TLS_AES_128_GCM_SHA256 && rnd.IntN(3) > 0 {
			o.records = newRecords(log.secret(client))
		}
		o.in = o.tls
	}
	if w.ws {
		role := ws.Server
		if client {
			role = ws.Client
		}
		o.frames = wsstream.New(frameSide{o}, role, nil)
	}
	return o, nil
}

// socketSide is what the tls.Conn of an odd peer writes to and reads from.
type socketSide struct {
	net.Conn
	o *odd
}

func (s socketSide) Read(p []byte) (int, error) {
	if s.o.cork && len(s.o.corked) > 0 && s.o.in == s.o.Conn { // only while it shakes hands
		if err := s.o.uncork(); err != nil {
			return 0, err
		}
		s.o.cork = true
	}
	return s.Conn.Read(p)
}

func (s socketSide) Write(p []byte) (int, error) { return len(p), s.o.segment(p) }

// frameSide is what the WebSocket of an odd peer reads from, and answers close frames on.
type frameSide struct{ o *odd }

func (f frameSide) Read(p []byte) (int, error)        { return f.o.in.Read(p) }
func (f frameSide) Write(p []byte) (int, error)       { return len(p), f.o.sealed(p) }
func (f frameSide) Close() error                      { return f.o.Conn.Close() }
func (f frameSide) LocalAddr() net.Addr               { return f.o.Conn.LocalAddr() }
func (f frameSide) RemoteAddr() net.Addr              { return f.o.Conn.RemoteAddr() }
func (f frameSide) SetDeadline(t time.Time) error     { return f.o.Conn.SetDeadline(t) }
func (f frameSide) SetReadDeadline(t time.Time) error { return f.o.Conn.SetReadDeadline(t) }
func (f frameSide) SetWriteDeadline(time.Time) error  { return nil } // the test's stays

func (o *odd) uncork() error {
	p := o.corked
	o.cork, o.corked = false, nil
	_, err := o.Conn.Write(p)
	return err
}

// segment writes to the socket, torn. Callers hold mu, or nobody else writes yet.
func (o *odd) segment(p []byte) error {
	if o.cork {
		o.corked = append(o.corked, p...)
		return nil
	}
	for pieces := 0; len(p) > 0; pieces++ {
		n := len(p)
		switch tear := o.rnd.IntN(40); {
		case pieces > 30:
		case tear == 0:
			n = 1
		case tear < 4:
			n = min(n, anySize(o.rnd, 1<<14))
		}
		if _, err := o.Conn.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// sealed writes p in records, if there are any.
func (o *odd) sealed(p []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.tls == nil {
		return o.segment(p)
	}
	var wire []byte
	size := 1 << 14
	for len(p) > 0 {
		if o.rnd.IntN(4) == 0 {
			size = anySize(o.rnd, 1<<14)
		}
		n := min(len(p), max(size, len(p)/100)&(1<<14-1)+1)
		if o.records == nil {
			if _, err := o.tls.Write(p[:n]); err != nil {
				return err
			}
		} else {
			if o.rnd.IntN(20) == 0 {
				ask := o.asked < 12 && o.rnd.IntN(2) == 0 // crypto/tls takes 16 answers with nothing between them
				if ask {
					o.asked++
				}
				wire = o.records.update(wire, ask)
			}
			wire = o.records.seal(wire, applicationData, p[:n], o.rnd.IntN(3)*o.rnd.IntN(20)*min(1, (1<<14-n)/64))
			if len(wire) > 1<<16 || o.rnd.IntN(3) == 0 {
				if err := o.segment(wire); err != nil {
					return err
				}
				wire = wire[:0]
			}
		}
		p = p[n:]
	}
	if len(wire) == 0 {
		return nil
	}
	return o.segment(wire)
}

// Write sends p, in fragments if there is a WebSocket, with pings among them.
func (o *odd) Write(p []byte) (int, error) {
	total := len(p)
	if o.frames == nil {
		return total, o.sealed(p)
	}
	const (
		opContinuation, opBinary, opPing, opPong = 0, 2, 9, 10
	)
	op, fragments := byte(opBinary), 0
	for last := false; !last; fragments++ {
		n := len(p)
		if fragments < 40 && o.frame.IntN(3) == 0 {
			n = min(n, anySize(o.frame, 1<<16)-1)
		}
		last = n == len(p)
		wire := appendFrame(nil, op, last, o.client, p[:n], o.frame)
		p, op = p[n:], opContinuation
		if o.frame.IntN(6) == 0 {
			control := byte(opPing + o.frame.IntN(2)) // a pong that nobody asked for is legal, too
			wire = appendFrame(wire, control, true, o.client, make([]byte, o.frame.IntN(126)), o.frame)
		}
		if err := o.sealed(wire); err != nil {
			return 0, err
		}
	}
	return total, nil
}

// say is Write for the first time: with what was kept since the handshake.
func (o *odd) say(p []byte) error {
	if _, err := o.Write(p); err != nil || !o.cork {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.uncork()
}

func (o *odd) Read(p []byte) (int, error) {
	if o.frames != nil {
		return o.frames.Read(p)
	}
	return o.in.Read(p)
}

// CloseWrite ends our direction, in one of the ways that there are.
func (o *odd) CloseWrite() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	socket := o.Conn.(*net.TCPConn)
	switch {
	case o.frames != nil:
		o.mu.Unlock()
		err := o.frames.CloseWrite()
		o.mu.Lock()
		return err
	case o.tls == nil:
		return socket.CloseWrite()
	}
	how := o.rnd.IntN(3)
	if how > 0 {
		var err error
		if o.records != nil {
			err = o.segment(o.records.seal(nil, alert, []byte{1, 0}, 0))
		} else {
			err = o.tls.CloseWrite()
		}
		if err != nil || how == 1 {
			return err
		}
	}
	return socket.CloseWrite()
}

// reset destroys the connection.
func (o *odd) reset() {
	o.Conn.(*net.TCPConn).SetLinger(0)
	o.Conn.Close()
}

// appendFrame appends a WebSocket's frame (RFC 6455 §5.2).
func appendFrame(b []byte, op byte, last, masked bool, p []byte, rnd *rand.Rand) []byte {
	var mask byte
	if last {
		op |= 0x80
	}
	if masked {
		mask = 0x80
	}
	switch n := len(p); {
	case n < 126:
		b = append(b, op, mask|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, op, mask|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, op, mask|127), uint64(n))
	}
	if !masked {
		return append(b, p...)
	}
	var key [4]byte
	binary.LittleEndian.PutUint32(key[:], rnd.Uint32())
	b = append(b, key[:]...)
	for i, c := range p {
		b = append(b, c^key[i&3])
	}
	return b
}

// anySize is from 1 to limit, small ones as often as large ones.
func anySize(rnd *rand.Rand, limit int) int {
	n := 1 + rnd.IntN(2<<rnd.IntN(21))
	return (n-1)%limit + 1
}

// keyLog keeps the secrets of one connection.
type keyLog struct{ text strings.Builder }

func (k *keyLog) Write(p []byte) (int, error) { return k.text.Write(p) }

// secret is the first one that application data is sent under (RFC 8446 §7.1).
func (k *keyLog) secret(client bool) []byte {
	label := "SERVER_TRAFFIC_SECRET_0 "
	if client {
		label = "CLIENT_TRAFFIC_SECRET_0 "
	}
	for line := range strings.Lines(k.text.String()) {
		if strings.HasPrefix(line, label) {
			fields := strings.Fields(line)
			if b, err := hex.DecodeString(fields[len(fields)-1]); err == nil {
				return b
			}
		}
	}
	panic(errors.New("no secret in the key log"))
}

// Content types.
const (
	alert           = 21
	handshake       = 22
	applicationData = 23
)

// records is the writing half of TLS 1.3 with AES-128-GCM, from RFC 8446 §5.2, §5.3 and §7: it does what crypto/tls never would.
type records struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func newRecords(secret []byte) *records {
	r := &records{secret: secret}
	block, err := aes.NewCipher(r.expand("key", 16))
	if err != nil {
		panic(err)
	}
	if r.aead, err = cipher.NewGCM(block); err != nil {
		panic(err)
	}
	r.iv = r.expand("iv", 12)
	return r
}

func (r *records) expand(label string, n int) []byte {
	label = "tls13 " + label
	info := append([]byte{0, byte(n), byte(len(label))}, label...)
	b, err := hkdf.Expand(sha256.New, r.secret, string(append(info, 0)), n)
	if err != nil {
		panic(err)
	}
	return b
}

// seal appends a record with so much padding.
func (r *records) seal(b []byte, kind byte, p []byte, padding int) []byte {
	at, n := len(b), len(p)+1+padding
	b = append(b, applicationData, 3, 3, byte((n+16)>>8), byte(n+16))
	b = append(append(b, p...), kind)
	b = append(b, make([]byte, padding)...)
	nonce := append([]byte{}, r.iv...)
	for i := range 8 {
		nonce[4+i] ^= byte(r.seq >> (56 - 8*i))
	}
	r.seq++
	return append(b[:at+5], r.aead.Seal(nil, nonce, b[at+5:], b[at:at+5])...)
}

// update appends a KeyUpdate, which asks for the other one or does not (§4.6.3).
func (r *records) update(b []byte, ask bool) []byte {
	message := []byte{24, 0, 0, 1, 0}
	if ask {
		message[4] = 1
	}
	b = r.seal(b, handshake, message, 0)
	*r = *newRecords(r.expand("traffic upd", 32))
	return b
}

// reseed makes all that follows depend on rnd alone.
func (o *odd) reseed(rnd *rand.Rand) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rnd, o.frame = rand.New(rand.NewPCG(rnd.Uint64(), 8)), rand.New(rand.NewPCG(rnd.Uint64(), 9))
}
