// Package relay carries MQTT connections between clients and brokers.
//
// A [Session] is one connection's life as a state machine without I/O: bytes and events go in, [Action] values come out.
//
//	await preamble -> await CONNECT -> routing -> dialing -> await CONNACK -> relaying -> closing -> closed
//	                                      ^          |              |
//	                                      +----------+--------------+   the broker could not be had: where else?
//
// It knows where packets begin and end in both directions at all times, so that it can act between two of them; while it relays
// it reads fixed headers only. All of a session is a value ([State]) that can be written out and read back in the middle of
// anything, so that a session can move from one process to another.
//
// Two drivers run sessions. [Loop] (Linux) is an epoll loop over raw descriptors: a session lives in it from accept to close and costs
// no goroutine and, while idle, no buffer; TLS and WebSocket are a [Layer] each around its bytes. A session that relays can move to another loop
// ([Loop.Give]), so that there can be as many loops as the load wants. [Serve] runs one session over any
// [Stream] with two goroutines: QUIC, and other systems. The same table of scripted sessions is run through the bare machine and both drivers.
//
// What the package refuses to do: it never looks into a PUBLISH, never invents or reorders an application message, and knows
// nothing of pools, keys and health. Whoever owns the session ([Owner]) says where it goes.
package relay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// Side is one of the two ends of a session.
type Side uint8

const (
	Client Side = 0
	Broker Side = 1
)

// Other is the opposite side.
func (s Side) Other() Side { return 1 - s }

func (s Side) String() string {
	if s == Client {
		return "client"
	}
	return "broker"
}

// An Owner decides what becomes of one session and is told what happened to it. Its methods are called one at a time, by the driver,
// and must not block: on the epoll driver thousands of sessions wait for them. Slices and pointers that they are given are valid during the call only.
type Owner interface {
	// Preamble reads what precedes MQTT (a PROXY header) at the start of b, if the session was started with one.
	// It returns its length, or 0 while more bytes are needed.
	Preamble(b []byte) (n int, err error)
	// Route says where the session goes. ok false: not known yet, c.Answer will be called with the same question's answer.
	Route(c Conn, q Query) (a Answer, ok bool)
	// Accepted tells that the broker's CONNACK with success is on its way to the client, so long after the accept.
	Accepted(c Conn, k mqtt.Connack, after time.Duration)
	// Goodbye tells of the client's DISCONNECT, which has been forwarded.
	Goodbye(c Conn, d mqtt.Disconnect)
	// BrokerEnded tells that the broker has ended a session that it had accepted. What it said last is still on its way to the client.
	BrokerEnded(c Conn)
	// Closed is the last call: every descriptor of the session is closed.
	Closed(s Summary)
}

// A Conn is the driver's handle on a live session. Its methods may be called from any goroutine, also after the session has ended.
type Conn interface {
	// Answer answers the Route call that returned ok false.
	Answer(a Answer)
	// Stop ends the session as Session.Stop does.
	Stop(r Reason)
}

// Accept is called by a loop for each connection. It returns the session's owner, nil to close the connection at once, and whether
// something precedes MQTT on it.
type Accept func(peer, local netip.AddrPort) (o Owner, preamble bool)

// Query is the question that Owner.Route answers.
type Query struct {
	Connect *mqtt.Connect // slices alias the session's memory
	Attempt int           // 0 for the first time
	Cause   Cause         // why it is asked again
	Err     error         // the dial's failure; nil for other causes
}

// Cause is why a session needs (another) broker.
type Cause uint8

const (
	CauseNew    Cause = iota // the CONNECT has just come
	CauseDial                // the dial failed or took too long
	CauseClosed              // the broker closed without a word after it got the CONNECT, and nothing else had been sent
)

// Answer is where a session goes: to a target, or away.
type Answer struct {
	Target *Target // nil: refuse
	// Code is the MQTT 5 reason code of the refusal (MQTT 3 clients get its nearest return code). 0 = mqtt.ServerUnavailable.
	Code byte
	// Reason is the refusal's. ReasonNone = ReasonNoBroker.
	Reason Reason
}

// Target is a broker to connect to.
type Target struct {
	// Addrs are the broker's addresses for plain TCP, tried in order. Empty: Dial or Join is used.
	Addrs []netip.AddrPort
	// Dial connects to a broker by other means, for sessions that goroutines run. It must heed ctx. It writes the PROXY header itself.
	Dial func(ctx context.Context) (Stream, error)
	// Join is Dial for sessions in a loop, which go on with the connection in the layers that it names.
	Join func(ctx context.Context) (Wrapped, error)
	// Prelude goes out before the client's first byte, in the same segment; plain TCP only.
	Prelude []byte
	// DialTimeout bounds the whole dial, over all addresses. 0 = 3 s.
	DialTimeout time.Duration
	// Timeout bounds the time from now to the CONNACK. 0 = 10 s.
	Timeout time.Duration
}

// Limits bound sessions; shared by all sessions of a listener. Zero fields mean the defaults beside them.
type Limits struct {
	ConnectSize    int           // largest CONNECT, in bytes; 0 = DefaultConnectSize
	ConnectTimeout time.Duration // accept to whole CONNECT, TLS and upgrade included; 0 = DefaultConnectTimeout
	Counters       *Counters     // counts what passes; nil = nobody wants to know
	Held           *Budget       // bounds what sessions without a CONNACK hold together; nil = nothing does
	// AcceptFailed is told when a loop can accept nobody for a moment, out of descriptors for instance. nil = nobody is.
	AcceptFailed func(error)
	// Full reports that there is no room for a newcomer: a loop then ends a session that could have spoken for a tenth of ConnectTimeout
	// and has no whole CONNECT, if it finds one, so that a crowd of silent ones shuts nobody out. nil = there always is.
	Full func() bool
	// Linger is how long a client may take to close after our last words, or after the broker's. 0 = DefaultLinger.
	Linger time.Duration
	// KeepAlive is how many times its Keep Alive a client may be silent. 0 = DefaultKeepAlive; below 0, nobody watches.
	KeepAlive float64
}

// The numbers of a session, together.
const (
	// DefaultConnectSize lets the longest legal client ID (65,535 bytes) pass with a user name and a will beside it.
	DefaultConnectSize    = 128 << 10
	DefaultConnectTimeout = 10 * time.Second
	DefaultLinger         = 2 * time.Second

	defaultDialTimeout    = 3 * time.Second
	defaultConnackTimeout = 10 * time.Second
	// routeTimeout bounds how long an Owner may think.
	routeTimeout = 10 * time.Second
	// halfCloseTimeout is how long a broker may go on sending after its client has said that it will not, and a client may go on reading, for as
	// long as bytes flow, what its broker said before it ended.
	halfCloseTimeout = 30 * time.Second
	// maxPipelined bounds what a client may send behind its CONNECT before the broker is reached: more stays in its socket.
	maxPipelined = 64 << 10
	// maxPreamble bounds a PROXY header: v2 claims at most 64 KiB, but nobody needs more than this.
	maxPreamble = 4 << 10
	// maxConnack bounds what we collect until the broker's CONNACK is whole.
	maxConnack = 128 << 10
	// freeHeld is what a session may hold before its CONNACK at nobody's expense: more than CONNECTs take in practice.
	freeHeld = 2 << 10
	// makeRoomAfter: who could have spoken for ConnectTimeout divided by this, and has not said a whole CONNECT, may have to make room. An
	// honest client's is under way when it is accepted, or has shaken hands.
	makeRoomAfter = 10
	// makeRoomLooks bounds how many sessions a loop looks at for one that is to make room: where silent ones are what fills an edge, it finds
	// one, and where clients do, it costs little.
	makeRoomLooks = 64
	// maxAttempts bounds how often a session asks where to go: an owner that names the dead for ever must not keep a loop busy.
	maxAttempts = 100
	// maxGoodbye bounds a client's DISCONNECT that we look into; a longer one passes unread.
	maxGoodbye = 4 << 10
)

// Dead peers of a broker's socket: a silent one is asked after keepIdle, and every keepInterval then; one that acknowledges nothing is given up
// after userTimeout, or, where there is none, after keepCount questions. Clients' sockets have what their listener gives them.
const (
	keepIdle     = 15 * time.Second
	keepInterval = 15 * time.Second
	keepCount    = 3
	userTimeout  = 60 * time.Second
)

// errLoopClosed is returned by Loop.Listen once Run has ended.
var errLoopClosed = errors.New("relay: loop has ended")

// errDialTimeout is the failure of a dial that was given up.
var errDialTimeout = fmt.Errorf("relay: dial: %w", os.ErrDeadlineExceeded)

// Budget bounds the memory that all sessions together hold before they have their CONNACK: CONNECTs that come in pieces, and what is
// pipelined behind them. The first freeHeld bytes of a session are free, so that a flood of large CONNECTs shuts nobody out but its kind.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// DefaultBudget is some 500 CONNECTs of the largest size at the same time.
const DefaultBudget = 64 << 20

// NewBudget returns a budget of so many bytes; 0 = DefaultBudget.
func NewBudget(bytes int64) *Budget {
	if bytes <= 0 {
		bytes = DefaultBudget
	}
	return &Budget{limit: bytes}
}

const noRoom = "no room for what clients without a CONNACK have sent"

// Used is how much of it is taken, in bytes.
func (b *Budget) Used() int64 { return b.used.Load() }

// take takes n bytes, or gives them back if n is negative; false if they are not there.
func (b *Budget) take(n int) bool {
	if b.used.Add(int64(n)) > b.limit && n > 0 {
		b.used.Add(-int64(n))
		return false
	}
	return true
}

func (l *Limits) connectSize() int {
	if l.ConnectSize > 0 {
		return l.ConnectSize
	}
	return DefaultConnectSize
}

func (l *Limits) connectTimeout() time.Duration {
	return orDuration(l.ConnectTimeout, DefaultConnectTimeout)
}

func (l *Limits) linger() time.Duration { return orDuration(l.Linger, DefaultLinger) }

// Summary is what is known of a session at its end.
type Summary struct {
	Reason Reason
	// Detail says more for people: an error's text. It may contain what a stranger sent: escape it.
	Detail  string
	Bytes   [2]uint64 // received from each side, preamble and CONNECT included
	Packets [2]uint64 // whole packets received from each side
	// Times from accept to the whole CONNECT, to the broker's connection, to its CONNACK, and to the end. 0 = never got there.
	Connect, Dialed, Connack, Total time.Duration
	// Refused is the code of the broker's CONNACK if that was no success.
	Refused byte
	// Dial is the error of the last dial where Reason is ReasonDialFailed and the owner was not asked again: nobody has told it yet.
	Dial error
}
