package liar

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
)

// ErrMQTT is what a connection ends with that is not MQTT, or too large.
var ErrMQTT = errors.New("liar: not MQTT")

// maxPacket bounds a packet; step is how far its buffer grows ahead of the bytes that came.
const (
	maxPacket = 1 << 20
	step      = 16 << 10
)

// A packet is the bytes of one, with its fixed header.
type packet []byte

func (p packet) kind() mqtt.Kind { return mqtt.Kind(p[0] >> 4) }

// readPacket reads a packet into buf, which it may outgrow.
func readPacket(r *bufio.Reader, buf []byte) (packet, error) {
	first, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	buf = append(buf[:0], first)
	length := 0
	for shift := 0; ; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return nil, err
		}
		buf = append(buf, b)
		length |= int(b&0x7f) << shift
		if b < 0x80 {
			break
		}
		if shift == 21 {
			return nil, fmt.Errorf("%w: Remaining Length of more than four bytes", ErrMQTT) // §1.5.5
		}
	}
	if length > maxPacket {
		return nil, fmt.Errorf("%w: a packet of %d bytes", ErrMQTT, length)
	}
	for length > 0 {
		n := min(length, step)
		at := len(buf)
		buf = append(buf, make([]byte, n)...)
		if _, err := io.ReadFull(r, buf[at:]); err != nil {
			return nil, err
		}
		length -= n
	}
	return buf, nil
}

// body is a packet without its fixed header.
func (p packet) body() []byte {
	i := 1
	for p[i] >= 0x80 {
		i++
	}
	return p[i+1:]
}

// id is the packet ID of an acknowledgement, 0 if it has none.
func (p packet) id() uint16 {
	if b := p.body(); len(b) >= 2 {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// A publication is what the liar looks at in a PUBLISH.
type publication struct {
	packet
	qos         byte
	dup, retain bool
	topic       []byte
	idAt        int // where in packet its ID is; with QoS above 0
}

func (p packet) publication() (publication, error) {
	x := publication{packet: p, qos: p[0] >> 1 & 3, dup: p[0]&8 != 0, retain: p[0]&1 != 0}
	body := p.body()
	topic, rest, ok := field(body)
	if !ok || x.qos > 0 && len(rest) < 2 {
		return x, fmt.Errorf("%w: a PUBLISH that is cut", ErrMQTT)
	}
	x.topic = topic
	x.idAt = len(p) - len(rest)
	return x, nil
}

func (x *publication) id() uint16 { return binary.BigEndian.Uint16(x.packet[x.idAt:]) }

func (x *publication) setID(id uint16) { binary.BigEndian.PutUint16(x.packet[x.idAt:], id) }

// clone is a publication with bytes of its own.
func (x *publication) clone() publication {
	c := *x
	c.packet = append(packet(nil), x.packet...)
	c.topic = append([]byte(nil), x.topic...)
	return c
}

// connect reads the version and the client ID of a CONNECT (§3.1; §3.1.2.2 level, §3.1.3.1 client ID).
func (p packet) connect() (v mqtt.Version, id string, err error) {
	bad := fmt.Errorf("%w: a CONNECT that is cut", ErrMQTT)
	if p.kind() != mqtt.CONNECT {
		return 0, "", fmt.Errorf("%w: a first packet that is no CONNECT", ErrMQTT) // [MQTT-3.1.0-1]
	}
	name, rest, ok := field(p.body())
	if !ok || len(rest) < 4 || len(name) == 0 {
		return 0, "", bad
	}
	v = mqtt.Version(rest[0] & 0x7f) // the high bit is a bridge's
	rest = rest[4:]                  // level, flags, keep-alive
	if v == mqtt.V5 {
		n, size := binary.Uvarint(rest) // a Variable Byte Integer is one
		if size <= 0 || n > uint64(len(rest)-size) {
			return 0, "", bad
		}
		rest = rest[size+int(n):]
	}
	client, _, ok := field(rest)
	if !ok {
		return 0, "", bad
	}
	return v, string(client), nil
}

// field takes what is preceded by two bytes of length.
func field(b []byte) (value, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; n > len(b) {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}
