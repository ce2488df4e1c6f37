package client

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
)

// Handler is told what happens to a client. Calls come one at a time per client, from a loop that many clients share: they must not block.
// They may call every method of any client and Engine.Open. Stamps are of pace.Now.
type Handler interface {
	// OnConnack tells that the broker accepted. A refusal comes as OnClosed with ReasonRefusal. a is borrowed.
	OnConnack(c *Client, at int64, a *mqtt.Connack)
	// OnPublish tells a message. p is borrowed. The engine acknowledges it after the return. A message of QoS 2 is told once in the life of its
	// packet ID, also when the broker sends it again on a later connection; one of QoS 1 as often as it comes.
	OnPublish(c *Client, at int64, p *mqtt.Publish)
	// OnAcked tells how what carried token ended: the code of the PUBACK, PUBCOMP, PUBREC (if above 0x7F), SUBACK or UNSUBACK, or CodeDropped.
	// Each token that Publish (QoS 1 and 2), Subscribe or Unsubscribe took without an error is told exactly once, if need be connections later.
	OnAcked(c *Client, at int64, token uint64, code byte)
	// OnClosed tells that the connection ended. It comes exactly once for each Open that gave no error, and is the last call for that Open.
	OnClosed(c *Client, at int64, cause Cause)
}

// CodeDropped is told for what nobody will acknowledge any more: a publish whose session the broker has forgotten, a subscribe whose
// connection ended. Whether it took effect is not known. No specification gives this code a meaning.
const CodeDropped = 0xFF

// Errors of a client's methods.
var (
	ErrOpen         = errors.New("client: already open")
	ErrNotConnected = errors.New("client: not connected")
	ErrInflight     = errors.New("client: as many messages in flight as the broker allows")
	ErrQueueFull    = errors.New("client: write queue full")
	ErrTooLarge     = errors.New("client: larger than the broker accepts")
	ErrQoS          = errors.New("client: QoS above what the broker grants")
	ErrEnded        = errors.New("client: engine has ended")
)

// Client is one MQTT client: a session that connections come and go under. Its zero value with a Handler is ready for Engine.Open; it must
// not be copied after that. An idle connected client is this struct, a link of about 100 bytes, and its socket.
//
// All methods may be called from any goroutine, and none blocks.
type Client struct {
	Handler Handler // set before the first Open
	// Resend: what was in flight when the broker forgot the session is published again as new. Without it, it is told as CodeDropped.
	Resend bool

	engine  *Engine     // guarded by mu: of the last Open
	link    link        // guarded by mu; nil: closed
	left    remnant     // guarded by mu: the connection that was abandoned, until the next Open
	leaving atomic.Bool // Disconnect, Abort or Abandon was called: nothing more is told but OnClosed
	calls   sync.Mutex  // held during OnClosed, so that the next connection's first call waits for its end

	mu         sync.Mutex
	out        *buffer // what is to be written; nil: nothing
	session    *session
	turn       bool   // the driver is at work on this client, and writes when it is done
	phase      phase  // written by the driver; Open alone begins with dialing
	why        string // if leaving
	version    mqtt.Version
	maximumQoS byte
	sent       bool // since the last sweep
	pinged     bool // a PINGREQ is not answered
	keepAlive  uint16
	window     uint16 // the broker's Receive Maximum
	packetMax  uint32 // the broker's Maximum Packet Size; 0: none
	begun      int64  // when the driver began to connect
	ready      int64  // when the transport could carry the CONNECT
	quiet      int64  // when the client sent last, as the sweep saw it
	due        int64  // when the server's patience ends: for a dial, a CONNACK, a PINGRESP
	reader     mqtt.Reader
}

// phase is where a connection is.
type phase uint8

const (
	closed   phase = iota
	dialing        // until the transport carries bytes
	greeting       // CONNECT sent
	live           // accepted
)

func (p phase) stage() Stage {
	switch p {
	case greeting:
		return StageConnack
	case live:
		return StageSession
	}
	return StageDial
}

// link is a connection as its driver sees it. Its methods are called with the client's mu held, and do not block.
type link interface {
	flush() // write the client's queue, as far as the transport takes it
	stop()  // the client is leaving: see Client.why
}

// Stamps tells when the engine began to connect, some time after Open where very many clients are opened at once, and when the transport
// with all its handshakes was ready for the CONNECT. It is for OnConnack and OnClosed; a connection that did not come so far has zero.
func (c *Client) Stamps() (begun, ready int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.begun, c.ready
}

// remnant is an abandoned connection.
type remnant interface {
	expire(grace time.Duration) // close it after grace
}
