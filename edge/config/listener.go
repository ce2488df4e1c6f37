package config

import (
	"crypto/tls"
	"fmt"
)

func readListener(v value) Listener {
	l := Listener{Pool: DefaultPool}
	var address, secure, upgrade, proxy *value
	keep := func(p **value) func(value) { return func(v value) { *p = &v } }
	v.mapping(fields{
		"name":           func(v value) { l.Name = v.name() },
		"type":           func(v value) { l.Type = oneOf(v, listenerTypes...) },
		"address":        keep(&address),
		"pool":           func(v value) { l.Pool = v.name() },
		"proxy_protocol": keep(&proxy),
		"tls":            keep(&secure),
		"websocket":      keep(&upgrade),
	}, "type")
	if l.Type == "" { // a mistake that is reported: what depends on the type cannot be judged
		return l
	}
	if !v.has("name") {
		l.Name = string(l.Type)
	}
	l.Address = fmt.Sprintf(":%d", l.Type.Port())
	if address != nil {
		l.Address = parsed(*address, "host:port, :port or a host", func(s string) (string, string, bool) {
			return parseAddress(s, l.Type.Port(), true)
		})
	}
	switch {
	case secure == nil && l.Type.Encrypted():
		v.r.addf(v.child("tls"), "required field is missing: a %s listener needs a certificate", l.Type)
	case secure != nil && !l.Type.Encrypted():
		other := map[ListenerType]ListenerType{TCP: TLS, WS: WSS}[l.Type]
		secure.fail("not for a listener of type %s: did you mean type %q?", l.Type, other)
	case secure != nil:
		l.TLS = readServerTLS(*secure, l.Type)
	}
	if l.Type.WebSocket() {
		l.WebSocket = &WebSocket{Path: DefaultWebSocketPath}
		if upgrade != nil {
			readWebSocket(*upgrade, l.WebSocket)
		}
	} else if upgrade != nil {
		upgrade.fail("expected only on a listener of type ws or wss, found on one of type %s", l.Type)
	}
	if proxy != nil {
		if l.Type == QUIC {
			proxy.fail("not for a listener of type quic: no PROXY header goes over UDP")
		} else {
			l.ProxyProtocol = readProxyProtocol(*proxy)
		}
	}
	return l
}

func readProxyProtocol(v value) (p ProxyProtocol) {
	v.mapping(fields{"from": func(v value) {
		v.list("CIDRs of the proxies to trust, such as 10.0.0.0/8", 1, func(_ int, v value) {
			p.From = append(p.From, parsed(v, "a CIDR such as 10.0.0.0/8", parsePrefix))
		})
	}}, "from")
	return p
}

func readServerTLS(v value, t ListenerType) *ServerTLS {
	s := &ServerTLS{MinVersion: tls.VersionTLS12, ClientAuth: ClientAuthNone}
	v.mapping(fields{
		"certificates": func(v value) {
			v.list("certificates, mappings with cert and key", 1, func(_ int, v value) {
				var c Certificate
				v.mapping(fields{
					"cert": func(v value) { c.Cert = v.file("a PEM file with the certificate and its chain") },
					"key":  func(v value) { c.Key = v.file("a PEM file with the private key") },
				}, "cert", "key")
				s.Certificates = append(s.Certificates, c)
			})
		},
		"min_version": func(v value) {
			versions := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}
			s.MinVersion = versions[oneOf(v, "1.2", "1.3")]
			if t == QUIC && s.MinVersion == tls.VersionTLS12 {
				v.fail("expected 1.3 on a listener of type quic, which has no other (RFC 9001 §4.2)")
			}
		},
		"client_ca":   func(v value) { s.ClientCA = v.file("a PEM file with authorities of clients") },
		"client_auth": func(v value) { s.ClientAuth = oneOf(v, ClientAuthNone, ClientAuthRequest, ClientAuthRequire) },
	}, "certificates")
	if t == QUIC {
		s.MinVersion = tls.VersionTLS13
	}
	switch ca := v.has("client_ca"); {
	case ca && !v.has("client_auth"):
		v.r.addf(v.child("client_auth"), "required field is missing: with client_ca, expected one of request, require")
	case ca && s.ClientAuth == ClientAuthNone:
		v.r.addf(v.child("client_auth"), "expected one of request, require with client_ca, found %q", ClientAuthNone)
	case !ca && (s.ClientAuth == ClientAuthRequest || s.ClientAuth == ClientAuthRequire):
		v.r.addf(v.child("client_ca"), "required field is missing: client_auth %q needs authorities", s.ClientAuth)
	}
	return s
}

func readWebSocket(v value, w *WebSocket) {
	v.mapping(fields{
		"path": func(v value) { w.Path = v.requestPath() },
		"origins": func(v value) {
			seen := map[string]bool{}
			v.list("origins such as https://app.example.com", 0, func(_ int, v value) {
				o := parsed(v, "an origin such as https://app.example.com", parseOrigin)
				if seen[o] && o != "" {
					v.fail("duplicate origin %q", o)
				}
				seen[o] = true
				w.Origins = append(w.Origins, o)
			})
		},
	})
}
