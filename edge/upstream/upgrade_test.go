package upstream

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
)

func TestUpgradeURL(t *testing.T) {
	for _, c := range []struct {
		host       string
		port       uint16
		secure     bool
		path, want string
	}{
		{"mq.example", 80, false, "/mqtt", "ws://mq.example/mqtt"},
		{"mq.example", 443, true, "/mqtt", "wss://mq.example/mqtt"},
		{"mq.example", 80, true, "/mqtt", "wss://mq.example:80/mqtt"},
		{"::1", 8083, false, "/a?b=c", "ws://[::1]:8083/a?b=c"},
		{"fe80::1%eth0", 80, false, "/", "ws://[fe80::1]/"},
	} {
		u, err := upgradeURL(c.host, c.port, c.secure, c.path)
		if err != nil || u.String() != c.want {
			t.Errorf("%s: %v, %v", c.want, u, err)
		}
	}
}

// acceptKey is Sec-WebSocket-Accept for a request. RFC 6455 §4.2.2
func acceptKey(request string) string {
	_, key, _ := strings.Cut(request, "Sec-WebSocket-Key: ")
	key, _, _ = strings.Cut(key, "\r\n")
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// readRequest reads up to the empty line.
func readRequest(r *bufio.Reader) string {
	var request strings.Builder
	for {
		line, err := r.ReadString('\n')
		request.WriteString(line)
		if err != nil || line == "\r\n" {
			return request.String()
		}
	}
}

// goodUpgrade is a right answer; scripts change it. {accept} is filled in.
const goodUpgrade = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"

// serveScript answers an upgrade with the script's text and goes on with handle, which may be nil.
func serveScript(t testing.TB, answer string, handle func(net.Conn, *bufio.Reader)) string {
	return serve(t, "127.0.0.1:0", func(c net.Conn) {
		r := bufio.NewReader(c)
		request := readRequest(r)
		io.WriteString(c, strings.ReplaceAll(answer, "{accept}", acceptKey(request)))
		if handle != nil {
			handle(c, r)
		}
	})
}

func TestUpgradeIsStrict(t *testing.T) {
	replace := func(old, with string) string {
		if !strings.Contains(goodUpgrade, old) {
			t.Fatalf("%q is not in the answer", old)
		}
		return strings.Replace(goodUpgrade, old, with, 1)
	}
	for _, c := range []struct{ name, answer, want string }{
		{"status 200", replace("101 Switching Protocols", "200 OK"), "status 200"},
		{"status 404", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"},
		{"redirect", "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", "status 302"},
		{"HTTP/1.0", replace("HTTP/1.1", "HTTP/1.0"), ""},
		{"wrong accept key", replace("{accept}", "dGhlIHNhbXBsZSBub25jZQAAAAA="), ""},
		{"no accept key", replace("Sec-WebSocket-Accept: {accept}\r\n", ""), ""},
		{"no upgrade", replace("Upgrade: websocket\r\n", ""), ""},
		{"other upgrade", replace("Upgrade: websocket", "Upgrade: h2c"), ""},
		{"no connection", replace("Connection: Upgrade\r\n", ""), ""},
		{"no subprotocol", replace("Sec-WebSocket-Protocol: mqtt\r\n", ""), "subprotocol"},
		{"other subprotocol", replace("Protocol: mqtt", "Protocol: mqttv3.1"), ""},
		{"compression", replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"), ""},
		{"endless header", strings.TrimSuffix(goodUpgrade, "\r\n") + strings.Repeat("X-A: b\r\n", maxUpgrade), "16 KiB"},
		{"endless line", "HTTP/1.1 101 " + strings.Repeat("x", 2*maxUpgrade), "16 KiB"},
		{"cut short", "HTTP/1.1 101 Switch", ""},
		{"nothing", "", ""},
		{"an MQTT broker", "\x20\x02\x00\x01", ""},
	} {
		s, err := newDialer(t, nil).Dial(within(t, patience), wsBroker(serveScript(t, c.answer, nil)), nil)
		if err == nil {
			t.Errorf("%s: accepted", c.name)
			s.Close()
		} else if !errors.Is(err, ErrWebSocket) || Reason(err) != ReasonWebSocket || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v (reason %s), want it to say %q", c.name, err, Reason(err), c.want)
		}
	}
	for _, c := range []struct{ name, answer string }{
		{"as it should be", goodUpgrade},
		{"other case", "HTTP/1.1 101 x\r\nupgrade: WebSocket\r\nconnection: upgrade\r\nsec-websocket-accept: {accept}\r\nsec-websocket-protocol: mqtt\r\n\r\n"},
	} {
		s, err := newDialer(t, nil).Dial(within(t, patience), wsBroker(serveScript(t, c.answer, nil)), nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		s.Close()
	}
}

func TestUpgradeMeetsTheDeadline(t *testing.T) {
	for name, handle := range map[string]func(net.Conn){
		"silent": func(c net.Conn) { io.Copy(io.Discard, c) },
		"drips": func(c net.Conn) {
			for _, b := range []byte("HTTP/1.1 101 " + strings.Repeat("x", 1000)) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				c.SetReadDeadline(time.Now().Add(5 * time.Millisecond)) // the pause
				io.Copy(io.Discard, c)
			}
		},
	} {
		_, err := newDialer(t, nil).Dial(within(t, 100*time.Millisecond), wsBroker(serve(t, "127.0.0.1:0", handle)), nil)
		if Reason(err) != ReasonTimeout {
			t.Errorf("%s: %v (reason %s)", name, err, Reason(err))
		}
	}
}

// Whatever a server answers, the upgrade ends, reads no more than its bound, and succeeds only with what RFC 6455 §4.1 asks for,
// as the standard library's parser sees it.
func FuzzUpgradeResponse(f *testing.F) {
	f.Add(goodUpgrade)
	f.Add(goodUpgrade + frame(finBinary, "early"))
	f.Add(strings.Replace(goodUpgrade, "101", "200", 1))
	f.Add(strings.Replace(goodUpgrade, "Upgrade: websocket", "Upgrade: websocket, h2c", 1))
	f.Add(strings.Replace(goodUpgrade, "\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n", 1))
	f.Add("HTTP/1.1 101 x\nUpgrade:websocket\nConnection:upgrade\nSec-WebSocket-Accept:{accept}\nSec-WebSocket-Protocol:mqtt\n\n")
	f.Add("HTTP/1.1 101 x\r\n: y\r\n\r\n")
	u, err := upgradeURL("mq.example", 80, false, "/mqtt")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, answer string) {
		server := &scriptedServer{answer: answer}
		early, err := upgrade(server, u)
		if server.gave > maxUpgrade {
			t.Fatalf("%d bytes were read", server.gave)
		}
		if err != nil {
			if !errors.Is(err, ErrWebSocket) {
				t.Fatalf("%v does not wrap ErrWebSocket", err)
			}
			return
		}
		var w relay.Wrapped
		if err := join(&w, io.Discard, bytes.Clone(early)); err == nil != (len(w.Layers) == 1) || err != nil && !errors.Is(err, ErrWebSocket) {
			t.Fatalf("behind the answer: %v, with %d layers", err, len(w.Layers))
		}
		text := strings.ReplaceAll(answer, "{accept}", acceptKey(server.request.String()))
		if !strings.HasPrefix(text, "HTTP/1.") || !strings.Contains(text, acceptKey(server.request.String())) {
			t.Fatalf("accepted: %q", text)
		}
		if !strings.HasSuffix(text[:server.gave], string(early)) {
			t.Fatalf("early bytes %q of %q", early, text)
		}
		r, err := http.ReadResponse(bufio.NewReader(strings.NewReader(text)), nil)
		if err != nil {
			return // the standard library is stricter about what is of no interest here
		}
		r.Body.Close()
		if r.StatusCode != 101 || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") ||
			r.Header.Get("Sec-WebSocket-Protocol") != "mqtt" || r.Header.Get("Sec-WebSocket-Extensions") != "" {
			t.Fatalf("accepted: %+v", r)
		}
	})
}

// scriptedServer is a connection to a server that gives one answer.
type scriptedServer struct {
	answer  string
	request strings.Builder
	gave    int
}

func (s *scriptedServer) Write(p []byte) (int, error) { return s.request.Write(p) }

func (s *scriptedServer) Read(p []byte) (int, error) {
	text := strings.ReplaceAll(s.answer, "{accept}", acceptKey(s.request.String()))
	if s.gave >= len(text) {
		return 0, io.EOF
	}
	n := copy(p, text[s.gave:])
	s.gave += n
	return n, nil
}
