package broker

import "time"

// The numbers of a broker, together.
const (
	// maxPacket bounds one MQTT packet from a client; CONNACK announces it [MQTT-3.2.2-15].
	maxPacket = 32 << 20
	// maxFrame bounds one frame on a link: the largest message and what the link adds to it.
	maxFrame = maxPacket + 4096
	// maxGreeting bounds a frame before its sender has said who it is.
	maxGreeting = 512

	// A session keeps at most this much for its client; what does not fit is dropped, counted and logged.
	sessionMessages = 100_000
	sessionBytes    = 64 << 20
	// A link keeps at most this much for a peer that is away; the oldest goes first, counted and logged.
	backlogBytes = 64 << 20
	// connectsKept bounds the number of client IDs whose connects are counted.
	connectsKept = 1 << 20
	// tombstonesKept and tombstoneLife bound the memory of cleared retained messages. A peer that was cut off
	// for longer than that, and kept its memory, can bring a cleared message back.
	tombstonesKept = 1 << 16
	tombstoneLife  = 24 * time.Hour

	connectTimeout  = 10 * time.Second       // accept to CONNECT
	proxyTimeout    = 5 * time.Second        // accept to PROXY header; less than connectTimeout
	takeoverTimeout = 10 * time.Second       // a new CONNECT waits that long for the old connection's end; more than ackWait + kickGrace
	kickGrace       = 250 * time.Millisecond // for the last packet to a client that we close

	ackWait          = time.Second     // a PUBACK or PUBREC waits that long for the peers
	joinTimeout      = 2 * time.Second // a starting broker waits that long for the peers' retained messages
	dialTimeout      = time.Second
	handshakeTimeout = 2 * time.Second
	pingEvery        = time.Second
	linkSilence      = 3 * time.Second // a link that is silent for that long is dead; more than 2 × pingEvery
	linkWrite        = 5 * time.Second // per flush
	backoffMin       = 50 * time.Millisecond
	backoffMax       = time.Second
	ackEvery         = 64 // messages received per acknowledgement at most

	upkeepEvery = 250 * time.Millisecond // delayed wills
	sysEvery    = 10 * time.Second       // figures under $SYS, pruning
)
