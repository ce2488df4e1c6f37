package broker

import (
	"encoding/binary"
	"errors"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// message is one application message. It is not changed once it has been published: sessions, the retained
// store and the links share it.
type message struct {
	topic   string
	payload []byte
	qos     byte
	retain  bool

	hasFormat     bool // Payload Format Indicator present
	format        byte
	contentType   string
	responseTopic string
	correlation   []byte
	user          []packets.UserProperty
	expires       int64 // Unix milliseconds; 0: never

	// Of retained messages: when (Unix nanoseconds, strictly increasing at each broker) and where it was published.
	// The greater pair wins wherever two meet.
	stamp int64
	from  string

	publisher string // client ID, for No Local; known only where it was published
}

// messageOf takes an application message out of a PUBLISH.
func messageOf(pk *packets.Packet) *message {
	m := &message{
		topic:     pk.TopicName,
		payload:   pk.Payload,
		qos:       pk.FixedHeader.Qos,
		retain:    pk.FixedHeader.Retain,
		publisher: pk.Origin,
	}
	m.setProperties(&pk.Properties)
	m.expireAfter(pk.Properties.MessageExpiryInterval)
	return m
}

func (m *message) setProperties(p *packets.Properties) {
	m.hasFormat, m.format = p.PayloadFormatFlag, p.PayloadFormat
	m.contentType, m.responseTopic = p.ContentType, p.ResponseTopic
	m.correlation, m.user = p.CorrelationData, p.User
}

// properties are m's in a PUBLISH sent at now: unaltered ([MQTT-3.3.2-4], -15, -16, -17, -20), but for the
// expiry interval, less the time that the message has waited [MQTT-3.3.2-6].
func (m *message) properties(now time.Time) packets.Properties {
	p := packets.Properties{
		PayloadFormatFlag: m.hasFormat,
		PayloadFormat:     m.format,
		ContentType:       m.contentType,
		ResponseTopic:     m.responseTopic,
		CorrelationData:   m.correlation,
		User:              m.user,
	}
	if m.expires != 0 {
		p.MessageExpiryInterval = uint32(max((m.expires-now.UnixMilli()+999)/1000, 1))
	}
	return p
}

func (m *message) expireAfter(seconds uint32) {
	if seconds > 0 {
		m.expires = time.Now().UnixMilli() + int64(seconds)*1000
	}
}

func (m *message) expired(now time.Time) bool { return m.expires != 0 && now.UnixMilli() >= m.expires }

// size is about what m costs to keep.
func (m *message) size() int { return 128 + len(m.topic) + len(m.payload) + len(m.correlation) }

// newer reports whether m replaces o on their topic.
func (m *message) newer(o *message) bool {
	return m.stamp > o.stamp || m.stamp == o.stamp && m.from > o.from
}

// errMessage: a peer sent what is not a message.
var errMessage = errors.New("broker: malformed message on a link")

const (
	flagRetain    = 1 << 2 // bits 0 and 1: QoS
	flagHasFormat = 1 << 3
	flagFormat    = 1 << 4
)

// encode appends m in the links' form:
//
//	flags 1 | stamp 8 | expires 8 | from | topic | content type | response topic | correlation |
//	user properties: count 4, then name and value of each | payload: the rest
//
// Strings and the correlation data have two bytes of length, as in MQTT. Numbers are big-endian.
func (m *message) encode(b []byte) []byte {
	flags := m.qos
	if m.retain {
		flags |= flagRetain
	}
	if m.hasFormat {
		flags |= flagHasFormat
	}
	if m.format != 0 {
		flags |= flagFormat
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(m.stamp))
	b = binary.BigEndian.AppendUint64(b, uint64(m.expires))
	for _, s := range []string{m.from, m.topic, m.contentType, m.responseTopic, string(m.correlation)} {
		b = appendString(b, s)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.user)))
	for _, u := range m.user {
		b = appendString(appendString(b, u.Key), u.Val)
	}
	return append(b, m.payload...)
}

// decodeMessage is encode's inverse. The message's payload is a part of b.
func decodeMessage(b []byte) (*message, error) {
	r := reader{b: b}
	flags := r.byte()
	m := &message{
		qos:       flags & 3,
		retain:    flags&flagRetain != 0,
		hasFormat: flags&flagHasFormat != 0,
		stamp:     int64(r.uint64()),
		expires:   int64(r.uint64()),
	}
	if flags&flagFormat != 0 {
		m.format = 1
	}
	m.from, m.topic, m.contentType, m.responseTopic = r.string(), r.string(), r.string(), r.string()
	if c := r.string(); c != "" {
		m.correlation = []byte(c)
	}
	for n := r.uint32(); n > 0 && !r.short; n-- { // each takes bytes: the count allocates nothing
		m.user = append(m.user, packets.UserProperty{Key: r.string(), Val: r.string()})
	}
	m.payload = r.b
	if r.short || m.qos > 2 || !publishable(m.topic) {
		return nil, errMessage
	}
	return m, nil
}

// publishable reports whether clients and peers may publish to a topic: a name without wildcards
// [MQTT-3.3.2-2], and not under $SYS, which is each broker's own.
func publishable(topic string) bool { return topic != "" && mqtt.IsValidFilter(topic, true) }

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// reader takes fields off the front of b. Once b was too short for one, all further ones are zero.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.b, r.short = nil, true
		return make([]byte, min(n, 8)) // enough for the numbers; strings ask for nothing else
	}
	f := r.b[:n]
	r.b = r.b[n:]
	return f
}

func (r *reader) byte() byte     { return r.take(1)[0] }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) uint64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

func (r *reader) string() string {
	n := int(binary.BigEndian.Uint16(r.take(2)))
	if s := r.take(n); !r.short {
		return string(s)
	}
	return ""
}

// clock gives stamps that grow strictly, and past every stamp it was shown: what a client publishes after it
// saw a retained message replaces that message, wherever the two were published.
type clock struct {
	mu   sync.Mutex
	last int64
}

func (c *clock) next() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(time.Now().UnixNano(), c.last+1)
	return c.last
}

func (c *clock) saw(stamp int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(c.last, stamp)
}
