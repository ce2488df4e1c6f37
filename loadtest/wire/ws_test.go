package wire

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
)

// serveScript upgrades each client by hand, runs script on the bare connection, and reads what comes until the end.
func serveScript(t testing.TB, kind Transport, l net.Listener, script func(net.Conn)) *Endpoint {
	t.Helper()
	address := l.Addr().(*net.TCPAddr).AddrPort()
	if kind.Encrypted() {
		l = tls.NewListener(l, serverTLS())
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				if kind == WS || kind == WSS {
					u := ws.Upgrader{Protocol: func(p []byte) bool { return string(p) == "mqtt" }}
					if _, err := u.Upgrade(c); err != nil {
						t.Errorf("upgrade: %v", err)
						return
					}
				}
				script(c)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return endpoint(t, kind, address)
}

// serveRaw echoes messages of 200 bytes without allocating.
func serveRaw(t testing.TB, kind Transport, l net.Listener) *Endpoint {
	return serveScript(t, kind, l, func(c net.Conn) {
		const message, header, mask = 200, 4, 4
		b := make([]byte, header+mask+message)
		for {
			if kind == TCP || kind == TLS {
				if _, err := io.ReadFull(c, b[:message]); err != nil {
					return
				}
				if _, err := c.Write(b[:message]); err != nil {
					return
				}
				continue
			}
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			reply := b[mask:]
			copy(reply, []byte{frameFin | opBinary, length16, 0, message})
			if _, err := c.Write(reply); err != nil {
				return
			}
		}
	})
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func frame(fin bool, op ws.OpCode, payload string) []byte {
	return ws.MustCompileFrame(ws.NewFrame(op, fin, []byte(payload)))
}

// TestWebSocketControl: fragments with a ping between them are one stream; the ping is answered at once, masked; the close with its code.
func TestWebSocketControl(t *testing.T) {
	seen := make(chan string, 10)
	ep := serveScript(t, WS, listen(t), func(c net.Conn) {
		all := bytes.Join([][]byte{
			frame(false, ws.OpBinary, "he"), frame(true, ws.OpPing, "are you there"), frame(false, ws.OpContinuation, ""),
			frame(true, ws.OpContinuation, "llo"), frame(true, ws.OpPong, "unasked"), frame(true, ws.OpPing, ""),
		}, nil)
		for _, b := range all { // one byte at a time
			if _, err := c.Write([]byte{b}); err != nil {
				t.Error(err)
			}
		}
		for range 2 {
			seen <- readFrame(t, c)
		}
		_, _ = c.Write(frame(true, ws.OpClose, "\x03\xe9bye"))
		seen <- readFrame(t, c)
		_, err := c.Read(make([]byte, 1))
		seen <- Reason(err)
	})
	c := dial(t, newDialer(t, Config{}), ep)
	got, err := readAll(c, 3)
	closed, ok := errors.AsType[*CloseError](err)
	if string(got) != "hello" || !ok || closed.Code != statusGoingAway || closed.Text != "bye" || Reason(err) != "closed" || !errors.Is(err, io.EOF) {
		t.Errorf("%q, then %v (%s)", got, err, Reason(err))
	}
	if _, err := c.Write([]byte("late")); !errors.Is(err, ErrClosed) {
		t.Errorf("Write after the close frame: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	for _, want := range []string{"pong masked are you there", "pong masked ", "close masked \x03\xe9", "closed"} {
		if s := <-seen; s != want {
			t.Errorf("the server saw %q, want %q", s, want)
		}
	}
}

func readFrame(t *testing.T, c net.Conn) string {
	h, err := ws.ReadHeader(c)
	if err != nil {
		t.Error(err)
		return err.Error()
	}
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(c, payload); err != nil {
		t.Error(err)
	}
	s := map[ws.OpCode]string{ws.OpPong: "pong", ws.OpClose: "close", ws.OpBinary: "binary"}[h.OpCode]
	if h.Masked {
		s += " masked"
		ws.Cipher(payload, h.Mask, 0)
	}
	return s + " " + string(payload)
}

// TestWebSocketRefuses: a server that breaks the protocol is told so with 1002, and counted as "websocket".
func TestWebSocketRefuses(t *testing.T) {
	for name, bytes := range map[string]string{
		"text":                  "\x81\x01a",
		"opcode 3":              "\x83\x00",
		"reserved bit":          "\xc2\x01a",
		"masked":                "\x82\x81\x00\x00\x00\x00a",
		"continuation":          "\x80\x01a",
		"message in a message":  "\x02\x01a\x82\x01b",
		"fragmented ping":       "\x09\x01a",
		"long ping":             "\x89\x7e\x00\x7e",
		"long length 16":        "\x82\x7e\x00\x7d",
		"long length 64":        "\x82\x7f\x00\x00\x00\x00\x00\x00\xff\xff",
		"length beyond 2^63":    "\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00",
		"close code of a byte":  "\x88\x01\x03",
		"close with error code": "\x88\x02\x03\xf3", // 1011, answered in kind
	} {
		t.Run(name, func(t *testing.T) {
			seen := make(chan string, 1)
			ep := serveScript(t, WS, listen(t), func(c net.Conn) {
				_, _ = c.Write([]byte("\x82\x02ok" + bytes))
				seen <- readFrame(t, c)
			})
			c := dial(t, newDialer(t, Config{}), ep)
			got, err := readAll(c, 100)
			if wanted := strings.HasPrefix(string(got), "ok"); !wanted || !errors.Is(err, ErrWebSocket) || Reason(err) != "websocket" {
				t.Errorf("%q, then %v (%s)", got, err, Reason(err))
			}
			if _, again := c.Read(make([]byte, 1)); again != err {
				t.Errorf("then %v", again)
			}
			want := "close masked \x03\xea"
			if name == "close with error code" {
				want = "close masked \x03\xf3"
			}
			if s := <-seen; s != want {
				t.Errorf("the server saw %q", s)
			}
		})
	}
}

// TestUpgradeRefuses: each wrong answer has its line.
func TestUpgradeRefuses(t *testing.T) {
	const good = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Protocol: mqtt\r\n"
	accept := "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
	const nonce = "dGhlIHNhbXBsZSBub25jZQ==" // RFC 6455 §1.3
	if rest, err := readAnswer(strings.NewReader(good+accept+"\r\n\x82\x01x"), nonce); err != nil || string(rest) != "\x82\x01x" {
		t.Errorf("the example of RFC 6455: %q, %v", rest, err)
	}
	for want, answer := range map[string]string{
		`the server says "404 Not Found"`:                    "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
		`the server says "200 OK"`:                           strings.Replace(good, "101 Switching Protocols", "200 OK", 1) + accept + "\r\n",
		"does not upgrade":                                   strings.Replace(good, "websocket", "h2c", 1) + accept + "\r\n",
		"wrong Sec-WebSocket-Accept":                         good + "\r\n",
		"an extension":                                       good + accept + "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
		`the server's subprotocol is "mqttv3.1", not "mqtt"`: strings.Replace(good, "mqtt", "mqttv3.1", 1) + accept + "\r\n",
		`the server's subprotocol is "", not "mqtt"`:         strings.Replace(good, "Sec-WebSocket-Protocol: mqtt\r\n", "", 1) + accept + "\r\n",
		"not HTTP":                "\x20\x02\x00\x00 is a CONNACK\r\n\r\n",
		"longer than 16384 bytes": good + "X: " + strings.Repeat("x", 20_000) + "\r\n\r\n",
	} {
		if _, err := readAnswer(strings.NewReader(answer), nonce); !errors.Is(err, ErrUpgrade) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := readAnswer(strings.NewReader(good), nonce); Reason(err) != "closed" {
		t.Errorf("an answer that breaks off: %v (%s)", err, Reason(err))
	}
}

func TestUpgradeRequest(t *testing.T) {
	for target, want := range map[string]string{
		"ws://edge.test":             "GET /mqtt HTTP/1.1\r\nHost: edge.test\r\n",
		"ws://edge.test:8083/a/b?c":  "GET /a/b?c HTTP/1.1\r\nHost: edge.test:8083\r\n",
		"ws://[::1]":                 "GET /mqtt HTTP/1.1\r\nHost: [::1]\r\n",
		"wss://[::1]:8084":           "GET /mqtt HTTP/1.1\r\nHost: [::1]:8084\r\n",
		"wss://edge.test:443/?x=%20": "GET /?x=%20 HTTP/1.1\r\nHost: edge.test\r\n",
	} {
		tg, err := Parse(target, TCP)
		if err != nil {
			t.Fatal(err)
		}
		got := string(appendUpgrade(nil, &Endpoint{Transport: tg.Transport, Host: tg.Host, Port: tg.Port, Path: tg.Path}, "n"))
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q", target, got)
		}
	}
}

// FuzzUnframer: however the stream is cut, it unframes alike; and what gobwas/ws reads from a good stream is what we read.
func FuzzUnframer(f *testing.F) {
	f.Add(bytes.Join([][]byte{
		frame(false, ws.OpBinary, "ab"), frame(true, ws.OpPing, "p"), frame(true, ws.OpContinuation, strings.Repeat("c", 300)),
		frame(true, ws.OpBinary, ""), frame(true, ws.OpBinary, "end"), frame(true, ws.OpClose, "\x03\xe8"),
	}, nil), byte(1))
	f.Add([]byte("\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xffabc"), byte(3))
	f.Add([]byte("\x89\x00\x82\x01a\x81\x01b"), byte(2))
	f.Fuzz(func(t *testing.T, stream []byte, cut byte) {
		whole, wholeControls, wholeErr := unframe(stream, len(stream))
		parts, partControls, partErr := unframe(stream, int(cut%16)+1)
		if !bytes.Equal(whole, parts) || wholeControls != partControls || (wholeErr == nil) != (partErr == nil) {
			t.Fatalf("cut in %d: %q %q %v, whole: %q %q %v", int(cut%16)+1, parts, partControls, partErr, whole, wholeControls, wholeErr)
		}
		if wholeErr != nil {
			return
		}
		var theirs []byte
		for r := bytes.NewReader(stream); ; {
			h, err := ws.ReadHeader(r)
			if err != nil {
				break
			}
			payload, err := io.ReadAll(io.LimitReader(r, h.Length))
			if !h.OpCode.IsControl() {
				theirs = append(theirs, payload...)
			}
			if err != nil || int64(len(payload)) < h.Length {
				break
			}
		}
		if !bytes.Equal(theirs, whole) {
			t.Fatalf("%q, but gobwas/ws reads %q", whole, theirs)
		}
	})
}

func unframe(stream []byte, cut int) (payload []byte, controls string, err error) {
	var u unframer
	for len(stream) > 0 {
		p := bytes.Clone(stream[:min(cut, len(stream))])
		stream = stream[len(p):]
		n, err := u.take(p, func(op byte, b []byte) error {
			if len(b) > maxControl {
				panic("a long control frame")
			}
			controls += string(op) + string(b) + "|"
			return nil
		})
		payload = append(payload, p[:n]...)
		if err != nil {
			return payload, controls, err
		}
	}
	return payload, controls, nil
}

// FuzzFrame: what we write, gobwas/ws reads.
func FuzzFrame(f *testing.F) {
	for _, n := range []int{0, 1, 3, 8, 125, 126, 200} {
		f.Add(bytes.Repeat([]byte("m"), n), uint32(0x04030201), n/2)
	}
	f.Add(make([]byte, 65535), uint32(0xdeadbeef), 11)
	f.Add(make([]byte, 65536), uint32(0xdeadbeef), 16371)
	f.Fuzz(func(t *testing.T, payload []byte, mask uint32, cut int) {
		b := appendHeader(nil, opBinary, len(payload), mask)
		if len(b) > maxSentHeader {
			t.Fatalf("a header of %d bytes", len(b))
		}
		at := len(b)
		b = append(b, make([]byte, len(payload))...)
		if cut < 0 || cut > len(payload) {
			cut = 0
		}
		next := maskInto(b[at:at+cut], payload[:cut], mask)
		maskInto(b[at+cut:], payload[cut:], next)
		got, op, err := wsutil.ReadData(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(b), io.Discard}, ws.StateServerSide)
		if err != nil || op != ws.OpBinary || !bytes.Equal(got, payload) {
			t.Fatalf("%v %v: %q, want %q", err, op, got, payload)
		}
	})
}

// FuzzAnswer: no answer panics, and only a right one is accepted.
func FuzzAnswer(f *testing.F) {
	f.Add("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x82\x01x")
	f.Add("HTTP/1.1 200 OK\r\n\r\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, answer string) {
		rest, err := readAnswer(strings.NewReader(answer), "dGhlIHNhbXBsZSBub25jZQ==")
		if err == nil && (!strings.Contains(answer, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") || !strings.HasPrefix(answer, "HTTP/") || !strings.Contains(answer, string(rest))) {
			t.Errorf("accepted %q", answer)
		}
	})
}
