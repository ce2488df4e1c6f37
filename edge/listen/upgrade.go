package listen

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gobwas/ws"
)

// ErrUpgrade is wrapped by the errors of Upgrade that are final.
var ErrUpgrade = errors.New("listen: WebSocket upgrade")

var errPipelined = fmt.Errorf("%w: bytes behind the request, before it was answered", ErrUpgrade)

// refusal is an upgrade that is answered with an HTTP status.
type refusal struct {
	status int
	reason Reason
	text   string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%v refused with %d: %s", ErrUpgrade, r.status, r.text)
}
func (r *refusal) Unwrap() error { return ErrUpgrade }

// response is what the client reads. The connection is closed after it.
func (r *refusal) response() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", r.status, http.StatusText(r.status))
	switch r.status {
	case http.StatusUpgradeRequired:
		b.WriteString("Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n") // RFC 6455 §4.4
	case http.StatusMethodNotAllowed:
		b.WriteString("Allow: GET\r\n") // RFC 9110 §15.5.6
	}
	fmt.Fprintf(&b, "Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s\n", len(r.text)+1, r.text)
	return b.Bytes()
}

func refuseUpgrade(status int, reason Reason, format string, args ...any) *refusal {
	return &refusal{status, reason, fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) *refusal {
	return refuseUpgrade(http.StatusBadRequest, ReasonWSUpgrade, format, args...)
}

// Upgrade judges what a WebSocket client has sent so far, b, and returns what to answer. ErrShort: nothing yet, come again with
// more. nil: the client has its 101 and speaks in frames from now on. Any other error wraps ErrUpgrade: close after the answer.
// w is that of Listener.Config, whose origins Open has checked.
//
// It is stricter than HTTP: the request must be all that the client has sent (a proxy that takes the request for something
// else must not be able to smuggle bytes past it), of at most 8 KiB, with no body, no folded header and no bare line feed.
// The subprotocol is mqtt or mqttv3.1, whichever the client names first [MQTT-6.0.0-3]; extensions are never agreed to.
func (w *WebSocket) Upgrade(b []byte) (answer []byte, err error) {
	answer, err = w.upgrade(b)
	if r, ok := err.(*refusal); ok {
		answer = r.response()
	}
	return answer, err
}

func (w *WebSocket) upgrade(b []byte) ([]byte, error) {
	if err := checkMethod(b); err != nil {
		return nil, err
	}
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 || end > maxUpgrade-4 {
		if len(b) < maxUpgrade && end < 0 {
			return nil, ErrShort
		}
		return nil, refuseUpgrade(http.StatusRequestHeaderFieldsTooLarge, ReasonWSTooLarge, "request header above %d bytes", maxUpgrade)
	}
	if end+4 < len(b) {
		return nil, badRequest("bytes behind the request, before it was answered")
	}
	req, err := parseRequest(b[:end])
	if err != nil {
		return nil, err
	}
	return w.answer(req)
}

// answer has gobwas/ws check the rest of RFC 6455 §4.2.1 and write the 101.
func (w *WebSocket) answer(req request) ([]byte, error) {
	subprotocol := false
	u := ws.Upgrader{
		OnRequest: func(target []byte) error {
			host, path, err := splitTarget(string(target))
			if err != nil {
				return err
			}
			if host != "" {
				req.host = host // RFC 9112 §3.2.2: the header Host must be ignored
			}
			if path != w.path() {
				return refuseUpgrade(http.StatusNotFound, ReasonWSPath, "no WebSocket here")
			}
			return nil
		},
		Protocol: func(name []byte) bool {
			subprotocol = string(name) == "mqtt" || string(name) == "mqttv3.1"
			return subprotocol
		},
		OnBeforeUpgrade: func() (ws.HandshakeHeader, error) {
			if !w.allows(req) {
				return nil, refuseUpgrade(http.StatusForbidden, ReasonWSOrigin, "this origin may not connect")
			}
			if !subprotocol {
				return nil, refuseUpgrade(http.StatusBadRequest, ReasonWSSubprotocol, "the subprotocol must be mqtt or mqttv3.1")
			}
			return nil, nil
		},
	}
	var out bytes.Buffer
	_, err := u.Upgrade(readWriter{bytes.NewReader(req.lines), &out})
	if err == nil {
		return out.Bytes(), nil
	}
	if r, ok := err.(*refusal); ok {
		return nil, r
	}
	status := http.StatusBadRequest
	if rejected, ok := errors.AsType[*ws.ConnectionRejectedError](err); ok && rejected.StatusCode() >= 400 {
		status = rejected.StatusCode()
	}
	return nil, refuseUpgrade(status, ReasonWSUpgrade, "%v", err)
}

type readWriter struct {
	io.Reader
	io.Writer
}

// splitTarget reads the target of a request: a path with or without a query, or an absolute URI (RFC 6455 §4.2.1, RFC 9112 §3.2.2),
// whose host counts then.
func splitTarget(target string) (host, path string, err error) {
	target, _, _ = strings.Cut(target, "?")
	scheme, rest, absolute := strings.Cut(target, "://")
	if strings.HasPrefix(target, "/") || !absolute || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return "", target, nil
	}
	host, path, _ = strings.Cut(rest, "/")
	if hostName(host) == "" || strings.ContainsAny(host, "@ ") { // RFC 9110 §4.2.1, §4.2.4
		return "", "", badRequest("malformed request target")
	}
	return host, "/" + path, nil
}

// checkMethod refuses, without waiting for the end of a request, what cannot be one: MQTT, TLS, noise.
func checkMethod(b []byte) error {
	for i, c := range b {
		if c == ' ' && i > 0 {
			return nil
		}
		if c < 'A' || c > 'Z' || i > 16 {
			return badRequest("not an HTTP request")
		}
	}
	return nil
}

// request is what we ask a request for beyond what gobwas/ws does.
type request struct {
	host   string
	origin string
	page   bool // an Origin is there: a browser sends the request for a page
	// lines are the request for gobwas/ws, which wants Upgrade to be "websocket" and every line of Connection to hold "Upgrade",
	// where both are lists that need contain it (RFC 6455 §4.2.1) and may stand on several lines (RFC 9110 §5.3).
	lines []byte
}

// upgradeLists are those lists, by the names of their headers in lower case.
var upgradeLists = map[string]struct{ name, token string }{
	"upgrade":    {"Upgrade", "websocket"},
	"connection": {"Connection", "Upgrade"},
}

// parseRequest reads the lines of a request header, b, and refuses what HTTP implementations are known to read differently.
func parseRequest(b []byte) (request, error) {
	var req request
	seen := make(map[string]bool)
	first, rest, _ := bytes.Cut(b, []byte("\r\n"))
	if bytes.ContainsAny(b, "\x00") || bytes.Count(b, []byte("\n")) != bytes.Count(b, []byte("\r\n")) || bytes.Count(b, []byte("\r")) != bytes.Count(b, []byte("\r\n")) {
		return req, badRequest("a line ends without CR LF")
	}
	req.lines = append(make([]byte, 0, len(b)+64), first...)
	lists := make(map[string]string)
	for len(rest) > 0 {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !isToken(name) { // also folded lines and blanks before the colon (RFC 9112 §5.1, §5.2)
			return req, badRequest("malformed header line")
		}
		if bytes.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return req, badRequest("control character in a header")
		}
		key, text := strings.ToLower(string(name)), strings.Trim(string(value), " \t")
		switch key {
		case "host", "origin", "content-length", "sec-websocket-key", "sec-websocket-version":
			if seen[key] {
				return req, badRequest("header %s twice", key)
			}
			seen[key] = true
		}
		switch key {
		case "host":
			req.host = text
		case "origin":
			req.origin, req.page = text, true
		case "transfer-encoding":
			return req, badRequest("a request with a body")
		case "content-length":
			if text != "0" {
				return req, badRequest("a request with a body")
			}
		case "sec-websocket-key": // RFC 6455 §4.2.1: 16 bytes in base64
			if raw, err := base64.StdEncoding.DecodeString(text); err != nil || len(raw) != 16 {
				return req, badRequest("malformed Sec-WebSocket-Key")
			}
		}
		if _, list := upgradeLists[key]; list {
			lists[key] += text + ","
			continue
		}
		req.lines = append(append(req.lines, "\r\n"...), line...)
	}
	for key, list := range lists {
		u := upgradeLists[key]
		if hasToken(list, u.token) {
			list = u.token
		}
		req.lines = append(req.lines, "\r\n"+u.name+": "+list...)
	}
	req.lines = append(req.lines, "\r\n\r\n"...)
	return req, nil
}

// hasToken reports whether a list (RFC 9110 §5.6.1) has a token, in whatever case.
func hasToken(list, token string) bool {
	for item := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.Trim(item, " \t"), token) {
			return true
		}
	}
	return false
}

// isToken follows RFC 9110 §5.6.2.
func isToken(b []byte) bool {
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return len(b) > 0
}

// allows judges the page that a request comes from (RFC 6455 §10.2).
func (w *WebSocket) allows(req request) bool {
	if !req.page {
		return true
	}
	scheme, host, ok := splitOrigin(req.origin)
	for _, o := range w.Origins {
		if o == "*" || o == req.origin {
			return true
		}
		if parent, wild := strings.CutPrefix(o, scheme+"://*."); ok && wild && strings.HasSuffix(host, "."+parent) {
			return true
		}
		if ok && o == scheme+"://"+host {
			return true
		}
	}
	return len(w.Origins) == 0 && ok && hostName(host) == hostName(strings.ToLower(req.host))
}

// splitOrigin reads scheme://host[:port] (RFC 6454 §6.1) and writes it in one way: lower case, without the scheme's own port.
func splitOrigin(origin string) (scheme, host string, ok bool) {
	scheme, host, ok = strings.Cut(strings.ToLower(origin), "://")
	if !ok || scheme == "" || host == "" || strings.ContainsAny(host, "/?#@ ") || hostName(host) == "" {
		return "", "", false
	}
	for s, port := range map[string]string{"http": ":80", "https": ":443"} {
		if scheme == s {
			host = strings.TrimSuffix(host, port)
		}
	}
	return scheme, host, true
}

// hostName is host:port without the port.
func hostName(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}

var upgradeBuffers = sync.Pool{New: func() any { b := make([]byte, maxUpgrade+1); return &b }}

// accept reads the upgrade request from c and answers it.
func (w *WebSocket) accept(c net.Conn, deadline time.Time) error {
	buf := upgradeBuffers.Get().(*[]byte)
	defer upgradeBuffers.Put(buf)
	b := (*buf)[:0]
	for {
		n, readErr := c.Read((*buf)[len(b):])
		b = (*buf)[:len(b)+n]
		answer, err := w.Upgrade(b)
		if err == nil {
			_, err = c.Write(answer)
			return err
		}
		if r, ok := err.(*refusal); ok {
			refuse(c, deadline, answer)
			return failed(r.reason, r)
		}
		if readErr != nil {
			return failed(ReasonWSUpgrade, fmt.Errorf("listen: reading the upgrade request: %w", readErr))
		}
	}
}
