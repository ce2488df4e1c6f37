package listen

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// upgradeRequest is goodUpgrade with headers replaced ("Name: value"), removed ("Name") or added.
func upgradeRequest(changes ...string) string {
	lines := strings.Split(strings.TrimSuffix(goodUpgrade, "\r\n\r\n"), "\r\n")
	for _, change := range changes {
		name, _, has := strings.Cut(change, ":")
		found := false
		for i := 1; i < len(lines); i++ {
			if n, _, _ := strings.Cut(lines[i], ":"); !found && strings.EqualFold(n, name) {
				found = true
				if lines[i] = change; !has {
					lines = append(lines[:i], lines[i+1:]...)
				}
			}
		}
		if !found && has {
			lines = append(lines, change)
		}
	}
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

func requestLine(line string) string {
	_, rest, _ := strings.Cut(goodUpgrade, "\r\n")
	return line + "\r\n" + rest
}

func parseAnswer(t testing.TB, b []byte) *http.Response {
	t.Helper()
	req, _ := http.NewRequest(http.MethodGet, "/", nil)
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), req)
	if err != nil {
		t.Fatalf("answer %q: %v", b, err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		body, err := io.ReadAll(res.Body)
		if err != nil || len(body) == 0 || !res.Close {
			t.Errorf("answer %q: body %q, %v, close %v", b, body, err, res.Close)
		}
	}
	return res
}

func TestUpgradeAgrees(t *testing.T) {
	for name, c := range map[string]struct {
		request     string
		subprotocol string
	}{
		"plain":              {goodUpgrade, "mqtt"},
		"MQTT 3.1":           {upgradeRequest("Sec-WebSocket-Protocol: mqttv3.1"), "mqttv3.1"},
		"client's order":     {upgradeRequest("Sec-WebSocket-Protocol: wamp, mqttv3.1, mqtt"), "mqttv3.1"},
		"two lines":          {strings.Replace(goodUpgrade, "Sec-WebSocket-Protocol: mqtt", "Sec-WebSocket-Protocol: wamp\r\nSec-WebSocket-Protocol: mqtt", 1), "mqtt"},
		"query":              {requestLine("GET /mqtt?token=a/b HTTP/1.1"), "mqtt"},
		"lower case names":   {strings.NewReplacer("Sec-WebSocket-", "sec-websocket-", "Upgrade: ", "upgrade: ").Replace(goodUpgrade), "mqtt"},
		"Firefox":            {upgradeRequest("Connection: keep-alive, Upgrade", "Upgrade: WebSocket"), "mqtt"},
		"Upgrade is a list":  {upgradeRequest("Upgrade: h2c, WebSocket"), "mqtt"},
		"without blanks":     {upgradeRequest("Upgrade: h2c,websocket,x", "Connection: keep-alive,upgrade"), "mqtt"},
		"lists on two lines": {strings.NewReplacer("Upgrade: websocket", "Upgrade: h2c\r\nUpgrade: websocket", "Connection: Upgrade", "Connection: Upgrade\r\nConnection: keep-alive").Replace(goodUpgrade), "mqtt"},
		"absolute":           {requestLine("GET http://broker.example.com/mqtt HTTP/1.1"), "mqtt"},
		"absolute, TLS":      {requestLine("GET HTTPS://broker.example.com:8084/mqtt?a=b HTTP/1.1"), "mqtt"},
		"absolute, origin":   {strings.Replace(upgradeRequest("Origin: https://a.example.com"), "GET /mqtt", "GET https://a.example.com/mqtt", 1), "mqtt"},
		"extensions":         {upgradeRequest("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-webkit-deflate-frame"), "mqtt"},
		"empty body":         {upgradeRequest("Content-Length: 0"), "mqtt"},
		"no origin":          {upgradeRequest(), "mqtt"},
		"same origin":        {upgradeRequest("Origin: https://broker.example.com"), "mqtt"},
		"same host, port":    {upgradeRequest("Origin: https://Broker.example.com:8443", "Host: broker.EXAMPLE.com:8084"), "mqtt"},
		"IPv6":               {upgradeRequest("Origin: http://[::1]", "Host: [::1]:8083"), "mqtt"},
		"tabs":               {upgradeRequest("Host:\tbroker.example.com\t"), "mqtt"},
		"bytes above ASCII":  {upgradeRequest("User-Agent: \xff\xe4"), "mqtt"},
		"as long as we take": {upgradeRequest("X: " + strings.Repeat("x", maxUpgrade-len(goodUpgrade)-len("X: \r\n"))), "mqtt"},
	} {
		t.Run(name, func(t *testing.T) {
			var w WebSocket
			for i := range len(c.request) {
				if answer, err := w.Upgrade([]byte(c.request[:i])); err != ErrShort || answer != nil {
					t.Fatalf("first %d bytes: %q, %v", i, answer, err)
				}
				if i > 1500 {
					break
				}
			}
			answer, err := w.Upgrade([]byte(c.request))
			if err != nil {
				t.Fatal(err)
			}
			res := parseAnswer(t, answer)
			h := res.Header
			if res.StatusCode != 101 || h.Get("Sec-WebSocket-Protocol") != c.subprotocol || h.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || h.Get("Upgrade") != "websocket" || h.Get("Connection") != "Upgrade" {
				t.Errorf("answer %q", answer)
			}
			if _, ok := h["Sec-Websocket-Extensions"]; ok {
				t.Errorf("an extension was agreed to: %q", answer)
			}
		})
	}
}

func TestUpgradeRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		request string
		status  int
		reason  Reason
	}{
		"another path":             {requestLine("GET / HTTP/1.1"), 404, ReasonWSPath},
		"longer path":              {requestLine("GET /mqtt/ HTTP/1.1"), 404, ReasonWSPath},
		"encoded path":             {requestLine("GET /mqt%74 HTTP/1.1"), 404, ReasonWSPath},
		"absolute, another path":   {requestLine("GET http://broker.example.com/other HTTP/1.1"), 404, ReasonWSPath},
		"absolute, no path":        {requestLine("GET http://broker.example.com HTTP/1.1"), 404, ReasonWSPath},
		"absolute, other scheme":   {requestLine("GET ftp://broker.example.com/mqtt HTTP/1.1"), 404, ReasonWSPath},
		"absolute, no host":        {requestLine("GET http:///mqtt HTTP/1.1"), 400, ReasonWSUpgrade},
		"absolute, a port alone":   {requestLine("GET http://:80/mqtt HTTP/1.1"), 400, ReasonWSUpgrade},
		"absolute, a user":         {requestLine("GET http://broker.example.com@evil.example/mqtt HTTP/1.1"), 400, ReasonWSUpgrade},
		"absolute, foreign origin": {strings.Replace(upgradeRequest("Origin: https://broker.example.com"), "GET /mqtt", "GET https://a.example.com/mqtt", 1), 403, ReasonWSOrigin},
		"absolute, no Host":        {strings.Replace(upgradeRequest("Host"), "GET /mqtt", "GET http://broker.example.com/mqtt", 1), 400, ReasonWSUpgrade},
		"POST":                     {requestLine("POST /mqtt HTTP/1.1"), 405, ReasonWSUpgrade},
		"HTTP/1.0":                 {requestLine("GET /mqtt HTTP/1.0"), 505, ReasonWSUpgrade},
		"HTTP/2":                   {requestLine("GET /mqtt HTTP/2.0"), 505, ReasonWSUpgrade},
		"HTTP/2 preface":           {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ReasonWSUpgrade},
		"no version":               {requestLine("GET /mqtt"), 400, ReasonWSUpgrade},
		"MQTT":                     {"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00", 400, ReasonWSUpgrade},
		"TLS":                      {"\x16\x03\x01\x02\x00\x01", 400, ReasonWSUpgrade},
		"endless method":           {strings.Repeat("G", 18), 400, ReasonWSUpgrade},
		"blank":                    {" GET /mqtt", 400, ReasonWSUpgrade},
		"blank line":               {"\r\n" + goodUpgrade, 400, ReasonWSUpgrade},
		"no subprotocol":           {upgradeRequest("Sec-WebSocket-Protocol"), 400, ReasonWSSubprotocol},
		"foreign subprotocol":      {upgradeRequest("Sec-WebSocket-Protocol: wamp, MQTT"), 400, ReasonWSSubprotocol},
		"malformed subprotocol":    {upgradeRequest("Sec-WebSocket-Protocol: \x22mqtt"), 400, ReasonWSUpgrade},
		"foreign origin":           {upgradeRequest("Origin: https://evil.example"), 403, ReasonWSOrigin},
		"parent origin":            {upgradeRequest("Origin: https://example.com"), 403, ReasonWSOrigin},
		"origin null":              {upgradeRequest("Origin: null"), 403, ReasonWSOrigin},
		"origin empty":             {upgradeRequest("Origin:"), 403, ReasonWSOrigin},
		"origin without host":      {upgradeRequest("Origin: https://", "Host:"), 403, ReasonWSOrigin},
		"two origins":              {strings.Replace(goodUpgrade, "\r\n\r\n", "\r\nOrigin: https://broker.example.com\r\nOrigin: https://evil.example\r\n\r\n", 1), 400, ReasonWSUpgrade},
		"two hosts":                {strings.Replace(goodUpgrade, "\r\n\r\n", "\r\nHost: evil.example\r\n\r\n", 1), 400, ReasonWSUpgrade},
		"no host":                  {upgradeRequest("Host"), 400, ReasonWSUpgrade},
		"no upgrade":               {upgradeRequest("Upgrade"), 400, ReasonWSUpgrade},
		"another upgrade":          {upgradeRequest("Upgrade: h2c"), 400, ReasonWSUpgrade},
		"other upgrades":           {upgradeRequest("Upgrade: h2c, websockets, websocket/13"), 400, ReasonWSUpgrade},
		"empty upgrade":            {upgradeRequest("Upgrade:"), 400, ReasonWSUpgrade},
		"no connection":            {upgradeRequest("Connection"), 400, ReasonWSUpgrade},
		"connection":               {upgradeRequest("Connection: keep-alive"), 400, ReasonWSUpgrade},
		"no key":                   {upgradeRequest("Sec-WebSocket-Key"), 400, ReasonWSUpgrade},
		"short key":                {upgradeRequest("Sec-WebSocket-Key: dGhlIHNhbXBsZQ=="), 400, ReasonWSUpgrade},
		"key is no base64":         {upgradeRequest("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ!=="), 400, ReasonWSUpgrade},
		"two keys":                 {strings.Replace(goodUpgrade, "\r\n\r\n", "\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 1), 400, ReasonWSUpgrade},
		"no WebSocket version":     {upgradeRequest("Sec-WebSocket-Version"), 400, ReasonWSUpgrade},
		"old WebSocket version":    {upgradeRequest("Sec-WebSocket-Version: 8"), 426, ReasonWSUpgrade},
		"body":                     {upgradeRequest("Content-Length: 5"), 400, ReasonWSUpgrade},
		"body, disputed":           {upgradeRequest("Content-Length: 0, 5"), 400, ReasonWSUpgrade},
		"body, two lengths":        {strings.Replace(goodUpgrade, "\r\n\r\n", "\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n", 1), 400, ReasonWSUpgrade},
		"chunked":                  {upgradeRequest("Transfer-Encoding: chunked"), 400, ReasonWSUpgrade},
		"identity":                 {upgradeRequest("transfer-encoding: identity"), 400, ReasonWSUpgrade},
		"pipelined":                {goodUpgrade + "\x82", 400, ReasonWSUpgrade},
		"pipelined request":        {goodUpgrade + goodUpgrade, 400, ReasonWSUpgrade},
		"blank before colon":       {upgradeRequest("Content-Length : 5"), 400, ReasonWSUpgrade},
		"folded":                   {strings.Replace(goodUpgrade, "\r\nUpgrade:", "\r\n X: y\r\nUpgrade:", 1), 400, ReasonWSUpgrade},
		"bare LF":                  {strings.Replace(goodUpgrade, "\r\nUpgrade:", "\nUpgrade:", 1), 400, ReasonWSUpgrade},
		"bare CR":                  {upgradeRequest("X: a\rb"), 400, ReasonWSUpgrade},
		"bare CR in the target":    {requestLine("GET /mqtt?\r HTTP/1.1"), 400, ReasonWSUpgrade},
		"NUL":                      {upgradeRequest("X: a\x00b"), 400, ReasonWSUpgrade},
		"control character":        {upgradeRequest("X: a\x1bb"), 400, ReasonWSUpgrade},
		"no colon":                 {upgradeRequest()[:len(goodUpgrade)-2] + "X\r\n\r\n", 400, ReasonWSUpgrade},
		"no name":                  {strings.Replace(goodUpgrade, "Upgrade: ", ": ", 1), 400, ReasonWSUpgrade},
		"too large":                {upgradeRequest("X: " + strings.Repeat("x", maxUpgrade)), 431, ReasonWSTooLarge},
		"one too large":            {upgradeRequest("X: " + strings.Repeat("x", 1+maxUpgrade-len(goodUpgrade)-len("X: \r\n"))), 431, ReasonWSTooLarge},
		"too large, and not ended": {requestLine("GET /mqtt HTTP/1.1")[:100] + strings.Repeat("x", maxUpgrade-100), 431, ReasonWSTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			var w WebSocket
			answer, err := w.Upgrade([]byte(c.request))
			if !errors.Is(err, ErrUpgrade) {
				t.Fatalf("%q, %v", answer, err)
			}
			r, ok := err.(*refusal)
			if !ok || r.status != c.status || r.reason != c.reason {
				t.Errorf("%v; want %d, %s", err, c.status, c.reason)
			}
			res := parseAnswer(t, answer)
			if res.StatusCode != c.status {
				t.Errorf("answer %q", answer)
			}
			if v := res.Header.Get("Sec-WebSocket-Version"); (c.status == 426) != (v == "13") {
				t.Errorf("answer %q", answer)
			}
		})
	}
}

func TestOrigins(t *testing.T) {
	for _, c := range []struct {
		allowed []string
		origin  string
		want    bool
	}{
		{[]string{"https://app.example.com"}, "https://app.example.com", true},
		{[]string{"https://app.example.com"}, "https://app.example.com:443", true},
		{[]string{"HTTPS://App.Example.com:443"}, "https://app.example.com", true},
		{[]string{"https://app.example.com"}, "https://app.example.com:8443", false},
		{[]string{"https://app.example.com"}, "http://app.example.com", false},
		{[]string{"https://app.example.com"}, "https://app.example.com.evil.test", false},
		{[]string{"https://app.example.com"}, "https://evil.test/https://app.example.com", false},
		{[]string{"https://app.example.com"}, "https://user@app.example.com", false},
		{[]string{"https://app.example.com"}, "null", false},
		// With a list the server's own name is not implied: DNS rebinding makes every page same-origin.
		{[]string{"https://app.example.com"}, "https://broker.example.com", false},
		{[]string{"https://*.example.com"}, "https://a.example.com", true},
		{[]string{"https://*.example.com"}, "https://a.b.example.com", true},
		{[]string{"https://*.example.com"}, "https://example.com", false},
		{[]string{"https://*.example.com"}, "https://evilexample.com", false},
		{[]string{"https://*.example.com:8443"}, "https://a.example.com:8443", true},
		{[]string{"https://*.example.com:8443"}, "https://a.example.com", false},
		{[]string{"http://a.test", "https://b.test"}, "https://b.test", true},
		{[]string{"null"}, "null", true},
		{[]string{"*"}, "null", true},
		{[]string{"*"}, "https://whoever.test", true},
		{[]string{"*"}, "", true},
	} {
		cfg := Config{Transport: WS, Address: ":0", WebSocket: WebSocket{Origins: c.allowed}}
		if err := cfg.validate(); err != nil {
			t.Errorf("%q: %v", c.allowed, err)
			continue
		}
		if got := cfg.WebSocket.allows(request{host: "broker.example.com", origin: c.origin, page: true}); got != c.want {
			t.Errorf("%q, %q: %v", c.allowed, c.origin, got)
		}
		if !cfg.WebSocket.allows(request{host: "broker.example.com"}) {
			t.Errorf("%q: a client that is no page was refused", c.allowed)
		}
	}
}

// What a refused client reads is the status, even if it sent more than we read.
func TestRefusalArrives(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range []string{WS, WSS} {
		l := start(t, config(t, transport, ca))
		for name, c := range map[string]struct {
			request string
			status  int
			reason  Reason
		}{
			"origin":    {upgradeRequest("Origin: https://evil.example"), 403, ReasonWSOrigin},
			"path":      {requestLine("GET /other HTTP/1.1"), 404, ReasonWSPath},
			"too large": {upgradeRequest("Cookie: " + strings.Repeat("x", 30_000)), 431, ReasonWSTooLarge},
			"pipelined": {goodUpgrade + strings.Repeat("x", 30_000), 400, ReasonWSUpgrade},
		} {
			t.Run(transport+"/"+name, func(t *testing.T) {
				var conn net.Conn = dial(t, l.Addr())
				if transport == WSS {
					conn = tls.Client(conn, ca.client())
				}
				send(t, conn, []byte(c.request))
				b, err := io.ReadAll(conn)
				if err != nil {
					t.Errorf("read: %v", err)
				}
				if res := parseAnswer(t, b); res.StatusCode != c.status {
					t.Errorf("answer %q", b)
				}
				_ = conn.Close()
				if r := l.rejected(t, c.reason); r.origin.Transport != transport {
					t.Errorf("origin %+v", r.origin)
				}
			})
		}
	}
}

func FuzzUpgrade(f *testing.F) {
	for _, s := range []string{
		goodUpgrade, "", "GET", "GET / HTTP/1.1\r\n\r\n", goodUpgrade + "x", upgradeRequest("Origin: https://broker.example.com"), upgradeRequest("Origin: null"),
		upgradeRequest("Content-Length: 5"), upgradeRequest("Transfer-Encoding: chunked"), upgradeRequest("Sec-WebSocket-Extensions: permessage-deflate"),
		requestLine("POST /mqtt HTTP/1.1"), requestLine("GET /mqtt?x HTTP/1.1"), upgradeRequest("Sec-WebSocket-Protocol: a, mqttv3.1"), upgradeRequest("X: " + strings.Repeat("x", maxUpgrade)),
		requestLine("GET http://broker.example.com/mqtt HTTP/1.1"), upgradeRequest("Upgrade: h2c, WebSocket", "Connection: keep-alive, Upgrade"),
		strings.ReplaceAll(goodUpgrade, "\r\n", "\n"), "\x10\x0c\x00\x04MQTT",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var w WebSocket
		given := bytes.Clone(b)
		answer, err := w.Upgrade(bytes.Clone(b))
		switch {
		case err == ErrShort:
			if len(given) >= maxUpgrade || bytes.Contains(given, []byte("\r\n\r\n")) || answer != nil {
				t.Fatalf("%d bytes are not enough", len(given))
			}
			return
		case err != nil:
			if res := parseAnswer(t, answer); !errors.Is(err, ErrUpgrade) || res.StatusCode < 400 {
				t.Fatalf("%v, answer %q", err, answer)
			}
			return
		}
		res := parseAnswer(t, answer)
		if res.StatusCode != 101 || res.Header.Get("Sec-WebSocket-Extensions") != "" {
			t.Fatalf("answer %q", answer)
		}
		// An independent implementation must read the same request, and all of it.
		r := bufio.NewReader(bytes.NewReader(given))
		req, err := http.ReadRequest(r)
		if err != nil {
			// net/http judges targets and hosts more strictly; where it cannot follow, nothing can be compared.
			return
		}
		if r.Buffered() > 0 || req.ContentLength > 0 || len(req.TransferEncoding) > 0 {
			t.Fatalf("a body, or bytes behind: %q", given)
		}
		if req.Method != "GET" || !req.ProtoAtLeast(1, 1) || !strings.Contains(strings.ToLower(strings.Join(req.Header["Upgrade"], ",")), "websocket") || req.URL.Path != "/mqtt" {
			t.Fatalf("request %+v", req)
		}
		if p := res.Header.Get("Sec-WebSocket-Protocol"); !strings.Contains(strings.Join(req.Header["Sec-Websocket-Protocol"], ","), p) || p != "mqtt" && p != "mqttv3.1" {
			t.Fatalf("subprotocol %q of %q", p, req.Header["Sec-Websocket-Protocol"])
		}
	})
}
