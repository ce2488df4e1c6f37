//go:build linux

package sink

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"net/http"
)

// take does what is whole in b, and returns the rest.
func (s *Sink) take(c *conn, b []byte) []byte {
	if c.stage == proxyHeader {
		n, ok := proxyLength(b)
		if !ok {
			return b
		}
		c.proxied = n > 0
		b = b[n:]
		c.stage = packets
		if s.protocol == WebSocket {
			c.stage = upgrade
		}
	}
	if c.stage == upgrade {
		end := bytes.Index(b, []byte("\r\n\r\n"))
		if end < 0 {
			return b
		}
		if !s.upgraded(c, b[:end+4]) {
			s.fault(c)
			return nil
		}
		b = b[end+4:]
		c.stage = packets
	}
	if s.protocol == WebSocket {
		return s.frames(c, b)
	}
	return s.packets(c, b)
}

const signature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyLength is the length of the PROXY header that b begins with, 0 without one; false if b does not tell yet.
func proxyLength(b []byte) (n int, ok bool) {
	switch {
	case len(b) == 0:
		return 0, false
	case b[0] == signature[0]: // v2, proxy-protocol.txt §2.2
		if len(b) < 16 {
			return 0, false
		}
		n = 16 + int(binary.BigEndian.Uint16(b[14:]))
		return n, len(b) >= n
	case b[0] == 'P' && len(b) < 6:
		return 0, false
	case bytes.HasPrefix(b, []byte("PROXY ")): // v1, §2.1
		n = bytes.Index(b, []byte("\r\n")) + 2
		return n, n >= 2
	}
	return 0, true
}

// packets does the MQTT packets that are whole in b, and returns the rest. Runs of PUBLISH go back in one write.
func (s *Sink) packets(c *conn, b []byte) []byte {
	run := 0 // b[:run] is PUBLISH packets
	for !c.closed {
		n, ok := packetLength(b[run:])
		if n < 0 {
			s.fault(c)
			return nil
		}
		p := b[run:]
		if ok && p[0] == 0x30 {
			s.counts.publishes.Add(1)
			run += n
			continue
		}
		if run > 0 {
			s.send(c, b[:run])
			b, run = b[run:], 0
		}
		if !ok {
			return b
		}
		s.packet(c, p[:n])
		b = p[n:]
	}
	return nil
}

// packetLength is the length of the packet that b begins with, -1 if that is nonsense; false if it is not whole.
func packetLength(b []byte) (n int, ok bool) {
	for i := 1; i < len(b); i++ {
		if i > 4 {
			return -1, false
		}
		n |= int(b[i]&0x7f) << (7 * (i - 1))
		if b[i] < 0x80 {
			n += i + 1
			return n, len(b) >= n
		}
	}
	return 0, false
}

func (s *Sink) packet(c *conn, p []byte) {
	switch p[0] >> 4 {
	case 1:
		id, ok := clientID(p)
		if !ok {
			s.fault(c)
			return
		}
		s.connected(c, id)
	case 8:
		body := p[len(p)-remaining(p):]
		if len(body) < 2 {
			s.fault(c)
			return
		}
		s.send(c, []byte{0x90, 3, body[0], body[1], 0}) // one filter, granted at QoS 0
	case 12:
		s.send(c, []byte{0xd0, 0})
	case 14:
		s.close(c)
	default:
		s.fault(c)
	}
}

// remaining is the Remaining Length of p, which is whole.
func remaining(p []byte) int {
	i := 1
	for p[i] >= 0x80 {
		i++
	}
	return len(p) - i - 1
}

// clientID is that of a CONNECT of MQTT 3.1.1 (§3.1).
func clientID(p []byte) (id []byte, ok bool) {
	b := p[len(p)-remaining(p):]
	if len(b) < 12 || string(b[2:6]) != "MQTT" || b[6] != 4 {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(b[10:]))
	if len(b) < 12+n {
		return nil, false
	}
	return b[12 : 12+n], true
}

func (s *Sink) connected(c *conn, id []byte) {
	s.counts.connects.Add(1)
	if c.proxied {
		s.counts.proxied.Add(1)
	}
	present := byte(0)
	switch home, known := s.homes[string(id)]; {
	case !known:
		s.homes[string(id)] = c.broker
	case home == c.broker:
		s.counts.home.Add(1)
		present = 1
	default:
		s.counts.strayed.Add(1)
	}
	s.send(c, []byte{0x20, 2, present, 0})
}

// send sends MQTT packets.
func (s *Sink) send(c *conn, b []byte) {
	if s.protocol == MQTT {
		s.write(c, b)
		return
	}
	var header [4]byte // FIN and binary; no mask (RFC 6455 §5.1)
	header[0] = 0x82
	h := header[:2]
	switch {
	case len(b) < 126:
		h[1] = byte(len(b))
	case len(b) <= 0xffff:
		h = header[:4]
		h[1] = 126
		binary.BigEndian.PutUint16(h[2:], uint16(len(b)))
	default:
		s.send(c, b[:0xffff])
		s.send(c, b[0xffff:])
		return
	}
	s.frame = append(append(s.frame[:0], h...), b...)
	s.write(c, s.frame)
}

// frames does the frames of a client that are whole in b, and returns the rest.
func (s *Sink) frames(c *conn, b []byte) []byte {
	for !c.closed {
		header, length, ok := frameLength(b)
		if header < 0 {
			s.fault(c)
			return nil
		}
		if !ok {
			return b
		}
		key, payload := b[header-4:header], b[header:header+length]
		unmask(payload, [4]byte(key))
		switch b[0] & 0x0f {
		case 0, 2: // continuation, binary
			whole := payload
			if len(c.mqtt) > 0 {
				c.mqtt = append(c.mqtt, payload...)
				whole = c.mqtt
			}
			c.mqtt = append(c.mqtt[:0], s.packets(c, whole)...)
			if len(c.mqtt) == 0 {
				c.mqtt = nil
			}
		case 8:
			s.write(c, []byte{0x88, 0})
			s.close(c)
		case 9:
			s.write(c, append([]byte{0x8a, byte(length)}, payload...))
		}
		b = b[header+length:]
	}
	return nil
}

// frameLength is the length of header and payload of the frame that b begins with; header -1 if a client may not send it; false if it is not whole.
func frameLength(b []byte) (header, length int, ok bool) {
	if len(b) < 2 {
		return 0, 0, false
	}
	if b[1]&0x80 == 0 {
		return -1, 0, false // RFC 6455 §5.1
	}
	header, length = 6, int(b[1]&0x7f)
	switch length {
	case 126:
		if header = 8; len(b) < header {
			return 0, 0, false
		}
		length = int(binary.BigEndian.Uint16(b[2:]))
	case 127:
		if header = 14; len(b) < header {
			return 0, 0, false
		}
		if length = int(binary.BigEndian.Uint64(b[2:])); length < 0 || length > maxPending {
			return -1, 0, false
		}
	}
	return header, length, len(b) >= header+length
}

func unmask(b []byte, key [4]byte) {
	word := uint64(binary.LittleEndian.Uint32(key[:]))
	word |= word << 32
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^word)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= key[i&3]
	}
}

// upgraded answers the request of a WebSocket client (RFC 6455 §4.2).
func (s *Sink) upgraded(c *conn, text []byte) bool {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(text)))
	if err != nil || r.Header.Get("Sec-WebSocket-Key") == "" {
		return false
	}
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	s.write(c, []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+
		base64.StdEncoding.EncodeToString(sum[:])+"\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"))
	return true
}
