//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net"
	"testing"
	"time"
)

// connect311 is a CONNECT of MQTT 3.1.1 with a clean session and an empty client ID, which the broker accepts.
var connect311 = []byte{0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 0}

// A voice is how a connection says MQTT: on the socket itself, in TLS, in WebSocket frames, or in frames in TLS.
type voice func(mqtt []byte) []byte

// voices shake hands by listener.
func voices(t *testing.T) map[string]func(c net.Conn) (voice, error) {
	t.Helper()
	stranger, err := newNewcomer()
	if err != nil {
		t.Fatal(err)
	}
	bare := func(b []byte) []byte { return b }
	frame := func(b []byte) []byte { // of less than 126 bytes, masked with zeros (RFC 6455 §5.2)
		return append([]byte{0x82, 0x80 | byte(len(b)), 0, 0, 0, 0}, b...)
	}
	secure := func(c net.Conn) (voice, error) {
		out, err := stranger.shakeHands(c)
		return func(b []byte) []byte { return out.seal(recordApplication, b) }, err
	}
	upgrade := func(c net.Conn, v voice) (voice, error) {
		_, err := heard(c, v([]byte("GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n")))
		return func(b []byte) []byte { return v(frame(b)) }, err
	}
	return map[string]func(net.Conn) (voice, error){
		"tcp": func(net.Conn) (voice, error) { return bare, nil },
		"tls": secure,
		"ws":  func(c net.Conn) (voice, error) { return upgrade(c, bare) },
		"wss": func(c net.Conn) (voice, error) {
			v, err := secure(c)
			if err != nil {
				return nil, err
			}
			return upgrade(c, v)
		},
	}
}

// heard writes b and returns the beginning of what is said to it.
func heard(c net.Conn, b []byte) ([]byte, error) {
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	answer := make([]byte, 1<<10)
	n, err := c.Read(answer)
	return answer[:n], err
}

// TestDrillClaims: crowds that claim more than they send, 268,435,455 bytes of a packet, 2^62 of a frame, 16 KiB of a record, take no memory for
// what has not come. Goal: at most 16 KiB each.
func TestDrillClaims(t *testing.T) {
	beside(t)
	const most = 16 << 10
	n := sized(1000, 9000)
	longest := []byte{0xff, 0xff, 0xff, 0x7f}
	publish := append(append([]byte{0x30}, longest...), 0, 1, 't')
	connect := append(append([]byte{0x10}, longest...), connect311[2:]...)
	for _, claim := range []struct {
		name, listener string
		connects       bool                 // before it claims
		says           func(v voice) []byte // what claims
		refused        bool                 // at once
	}{
		{"a CONNECT", "tcp", false, func(v voice) []byte { return v(connect) }, true},
		{"a CONNECT", "tls", false, func(v voice) []byte { return v(connect) }, true},
		{"a CONNECT", "wss", false, func(v voice) []byte { return v(connect) }, true},
		{"a PUBLISH", "tcp", true, func(v voice) []byte { return v(publish) }, false},
		{"a PUBLISH", "tls", true, func(v voice) []byte { return v(publish) }, false},
		{"a PUBLISH", "ws", true, func(v voice) []byte { return v(publish) }, false},
		{"a PUBLISH", "wss", true, func(v voice) []byte { return v(publish) }, false},
		{"a record", "tls", true, func(voice) []byte { return append([]byte{recordApplication, 3, 3, 0x40, 0}, make([]byte, 100)...) }, false},
		{"a frame", "ws", true, func(voice) []byte { return []byte{0x82, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0x30 ^ 1} }, false},
	} {
		t.Run(claim.name+" on "+claim.listener, func(t *testing.T) {
			beside(t)
			s := newSite(t, nil, []listener{{claim.listener, claim.listener, ""}}, "tls_records: limpet")
			shake := voices(t)[claim.listener]
			prepare := func(c net.Conn) (func(int) []byte, error) {
				_ = c.SetDeadline(time.Now().Add(patience))
				v, err := shake(c)
				if err != nil {
					return nil, err
				}
				if claim.connects {
					if ack, err := heard(c, v(connect311)); err != nil || claim.listener == "tcp" && !bytes.HasPrefix(ack, []byte{0x20, 2}) {
						return nil, fmt.Errorf("answered with %x, %v", ack, err)
					}
				}
				return func(int) []byte { return claim.says(v) }, nil
			}
			warm := s.crowd(claim.listener, 50, nil, prepare) // what there is once for all
			warm.close()
			until(t, patience, "the first are gone", func() (bool, any) { h := s.holds(); return h.sessions == 0, h })
			before := s.holds()
			c := s.crowd(claim.listener, n, nil, prepare)
			if claim.refused {
				until(t, patience, "all are cut", func() (bool, any) { c.look(); return c.gone == n, c.gone })
			}
			var per int64
			until(t, patience, "memory", func() (bool, any) { // what the handshakes leave is collected when the edge has time
				h := s.holds()
				per = (h.rss - before.rss) / int64(n)
				return per <= most && (claim.refused || h.sessions >= n), fmt.Sprintf("%d bytes for each of %d; %v; before: %v; ended: %v", per, n, h, before, s.ends())
			})
			if c.look(); !claim.refused && c.gone > 0 {
				t.Errorf("%d of %d have been cut", c.gone, n)
			}
			figure(t, "claims, %s on %s: %d bytes for each of %d (goal 16,384); refused: %v", claim.name, claim.listener, per, n, claim.refused)
			c.close()
			s.calm(before)
		})
	}
}
