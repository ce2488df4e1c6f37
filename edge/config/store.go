package config

import (
	"fmt"
	"strings"
)

// readStore reads "none", or where etcd and NATS are.
func readStore(v value) (s Store) {
	if v.node.kind == scalar {
		if v.node.text == "none" {
			return Store{None: true}
		}
		v.expected("none, or a mapping with one of etcd, nats", nearest(v.node.text, []string{"none"}))
		return s
	}
	v.mapping(fields{
		"etcd": func(v value) { s.Etcd = readEtcd(v) },
		"nats": func(v value) { s.NATS = readNATS(v) },
	}, "etcd")
	return s
}

func readEtcd(v value) *Etcd {
	e := &Etcd{}
	v.mapping(fields{
		"endpoints": func(v value) {
			e.Endpoints = v.urls("http://127.0.0.1:2379", 2379, "http", "https")
			for i, u := range e.Endpoints {
				if first, _, _ := strings.Cut(e.Endpoints[0], ":"); u != "" && first != "" && !strings.HasPrefix(u, first+":") {
					v.r.addf(fmt.Sprintf("%s[%d]", v.path, i), "expected %s as in the first endpoint, found %q", first, u)
				}
			}
		},
		"username":      func(v value) { e.Username = v.plain("a user name") },
		"password_file": func(v value) { e.PasswordFile = v.file("a file with the password") },
		"tls":           func(v value) { e.TLS = readClientTLS(v) },
	}, "endpoints")
	v.login()
	if e.TLS != nil {
		for i, u := range e.Endpoints {
			if strings.HasPrefix(u, "http:") {
				v.r.addf(fmt.Sprintf("%s[%d]", v.child("endpoints"), i), "expected https, because tls is set, found %q: did you mean %q?", u, "https"+u[4:])
			}
		}
	}
	return e
}

func readNATS(v value) *NATS {
	n := &NATS{}
	v.mapping(fields{
		"urls":          func(v value) { n.URLs = v.urls("nats://127.0.0.1:4222", 4222, "nats", "tls") },
		"username":      func(v value) { n.Username = v.plain("a user name") },
		"password_file": func(v value) { n.PasswordFile = v.file("a file with the password") },
		"credentials":   func(v value) { n.Credentials = v.file("a NATS credentials file") },
		"tls":           func(v value) { n.TLS = readClientTLS(v) },
	}, "urls")
	v.login()
	if n.Credentials != "" && n.Username != "" {
		v.r.addf(v.child("credentials"), "expected either credentials or username, found both")
	}
	return n
}

// login checks that a user name and its password come together.
func (v value) login() {
	user, password := v.has("username"), v.has("password_file")
	switch {
	case user && !password:
		v.r.addf(v.child("password_file"), "required field is missing: username is set")
	case password && !user:
		v.r.addf(v.child("username"), "required field is missing: password_file is set")
	}
}

// urls reads a list of servers, at least one, each once.
func (v value) urls(example string, port int, schemes ...string) (out []string) {
	seen := map[string]bool{}
	v.list("URLs such as "+example, 1, func(_ int, v value) {
		u := parsed(v, "a URL such as "+example, func(s string) (string, string, bool) { return parseURL(s, port, schemes...) })
		if u != "" && seen[u] {
			v.fail("duplicate URL %q", u)
		}
		seen[u] = true
		out = append(out, u)
	})
	return out
}

func readClientTLS(v value) *ClientTLS {
	t := &ClientTLS{}
	v.mapping(fields{
		"ca":   func(v value) { t.CA = v.file("a PEM file with authorities") },
		"cert": func(v value) { t.Cert = v.file("a PEM file with the client certificate") },
		"key":  func(v value) { t.Key = v.file("a PEM file with the client certificate's private key") },
	})
	v.pair("cert", "key")
	return t
}

// pair checks that two fields are set together.
func (v value) pair(a, b string) {
	if v.has(a) && !v.has(b) {
		v.r.addf(v.child(b), "required field is missing: %s is set", a)
	}
	if v.has(b) && !v.has(a) {
		v.r.addf(v.child(a), "required field is missing: %s is set", b)
	}
}
