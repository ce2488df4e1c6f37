package config

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// head is a correct edge file of six lines; what follows it begins in line 7.
const head = `mesh: m
id: e1
store: none
mesh_file: m.yaml
listeners:
  - {type: tcp, address: ":1000"}
`

// pool is a correct mesh file of five lines, open for more fields of its broker and its pool.
const pool = `mesh: m
pools:
- name: p
  brokers:
  - {id: b1, address: "h:1"}
`

// mistakes: one small file for each class of mistake, and every line that it deserves. "f:" stands before each.
var mistakes = []struct{ name, file, want string }{
	// The file as YAML.
	{"empty", "", "1:1: mesh: required field is missing\n1:1: store: required field is missing\n1:1: listeners: required field is missing"},
	{"text instead of a mapping", "x", `1:1: expected a mapping with one of admin, id, limits, listeners, log, loops, mesh, mesh_file, shutdown, store, tls_records, found "x"`},
	{"bracket not closed", "a: [1, 2", "1:4: not valid YAML: expected ']' to what begins here, found the end of the file"},
	{"brace not closed", "a: {b: c\nd: e", "2:1: not valid YAML: expected ',' or '}', found \"d\""},
	{"comma forgotten", "a: [b c: d]", "1:8: not valid YAML: expected ',' or ']', found \":\": text with a ':' in it may need quotes"},
	{"bracket too much", "a: ]", "1:4: not valid YAML: expected a value, found \"]\""},
	{"colon in text", "a: b: c", "1:5: not valid YAML: expected a new line after the value, found \":\": text with a ':' in it may need quotes"},
	{"two values", "a: 'b' 'c'", "1:8: not valid YAML: expected a new line after the value, found \"c\""},
	{"block on the line of its name", "a: - b", "1:4: not valid YAML: expected a value, found \"-\""},
	{"no colon", "a: 1\n'b'\nc: 2", "3:1: not valid YAML: expected ':' after a field's name, found \"c\""},
	{"no colon at the end", "a: 1\n'b'", "2:1: not valid YAML: expected ':' after a field's name, found the end of the file"},
	{"list among fields", "a: 1\n- b", "2:1: not valid YAML: expected a field, found \"-\""},
	{"block of text", "a: |\n  b", "1:4: blocks of text ('|', '>') are not supported: use quotes"},
	{"on the line of the start", "--- a: b", "1:5: not valid YAML: expected a new line after '---', found \"a\""},
	{"a long mistake", "a: >" + strings.Repeat("b", 1000), `1:4: not valid YAML: invalid header option: "` + strings.Repeat("b", 76) + "…"},
	{"after the end", "a: b\n...\nc: d", "3:1: not valid YAML: expected nothing more, found \"c\""},
	{"quote not closed", "a: 'b", "1:4: not valid YAML: could not find end character of single-quoted text"},
	{"tab", "a:\tb\n\tc: d", "2:1: not valid YAML: found a tab where only spaces may indent (YAML 1.2.2 §6.1): replace it by spaces"},
	{"tab behind spaces", "a:\n  b: c\n  \td: e", "3:3: not valid YAML: found a tab where only spaces may indent (YAML 1.2.2 §6.1): replace it by spaces"},
	{"tab first", "\ta: b", "1:2: not valid YAML: found a tab where only spaces may indent (YAML 1.2.2 §6.1): replace it by spaces"},
	{"bad indentation", "a:\n  - b\n c: d", `3:2: not valid YAML: expected a line that begins in column 1, like those above, or further left, found "c"`},
	{"IPv6 without quotes", "a: [::]:1883", `1:8: not valid YAML: expected a new line after the value, found ":1883": text with a ':' in it may need quotes`},
	{"not UTF-8", "a: b\nc: \xff", "2:4: expected text in UTF-8 without control characters"},
	{"NUL", "a: \x00", "1:4: expected text in UTF-8 without control characters"},
	{"anchor", "a: &x b", "1:4: anchors and aliases are not supported: write the value out"},
	{"alias", "a: *x", "1:4: anchors and aliases are not supported: write the value out"},
	{"merge key", "<<: {a: b}", "1:1: anchors and aliases are not supported: write the value out"},
	{"tag", "a: !!str b", "1:4: tags are not supported: quote text that begins with '!'"},
	{"directive", "%YAML 1.2\n---\na: b", "1:1: directives are not supported"},
	{"complex key", "? a\n: b", "1:1: complex keys ('?') are not supported"},
	{"second document", "a: b\n---\nc: d", "2:1: expected one YAML document, found a second"},
	{"mesh file", "mesh: m\npools: []", "1:1: expected the configuration of an edge, found that of a mesh"},

	// Fields.
	{"misspelt field", head + "shutdwon: {}", `7:1: shutdwon: unknown field: did you mean "shutdown"?`},
	{"field in another case", head + "limits: {connectSize: 1MiB}", `7:10: limits.connectSize: unknown field: did you mean "connect_size"?`},
	{"unknown field", head + "limits: {speed: 1}", "7:10: limits.speed: unknown field: expected one of connect_size, connect_timeout, connections, handshakes, keep_alive"},
	{"duplicate field", head + "loops: 1\nloops: 2", "8:1: loops: duplicate field: it is set in line 7"},
	{"empty field", head + "loops:", "7:1: loops: expected a whole number from 0 to 1024, found nothing"},
	{"empty text", head + `log: {level: ""}`, `7:14: log.level: expected one of trace, debug, info, warn, error, found ""`},
	{"list instead of a mapping", head + "log: [info]", "7:6: log: expected a mapping with one of format, level, found a list"},
	{"mapping instead of a list", "mesh: m\nid: e\nstore: none\nmesh_file: f\nlisteners: {type: tcp}", "5:12: listeners: expected a list of listeners, found a mapping (text with a ':' in it may need quotes)"},
	{"empty list", "mesh: m\nid: e\nstore: none\nmesh_file: f\nlisteners: []", "5:12: listeners: expected a list of listeners, found an empty list"},

	// Values.
	{"name", "mesh: My_Mesh\nid: e\nstore: none\nmesh_file: f\nlisteners: [{type: tcp}]", `1:7: mesh: expected a name of 1 to 63 letters a-z, digits and '-', found "My_Mesh": did you mean "my-mesh"?`},
	{"escaped control character", head + `log: {level: "a\0"}`, `7:14: log.level: expected one of trace, debug, info, warn, error, found "a\x00"`},
	{"closed set", head + "log: {level: warning}", `7:14: log.level: expected one of trace, debug, info, warn, error, found "warning": did you mean "warn"?`},
	{"duration without unit", head + "shutdown: {grace: 10}", `7:19: shutdown.grace: expected a duration from 1ms to 1h, such as 10s or 1h30m, found "10": did you mean "10s"?`},
	{"duration in days", head + "shutdown: {grace: 7d}", `7:19: shutdown.grace: expected a duration from 1ms to 1h, such as 10s or 1h30m, found "7d": did you mean "168h"?`},
	{"duration too long", head + "limits: {connect_timeout: 1h}", `7:27: limits.connect_timeout: expected a duration from 100ms to 5m, such as 10s or 1h30m, found "1h"`},
	{"size with a decimal unit", head + "limits: {connect_size: 64kB}", `7:24: limits.connect_size: expected a size from 1KiB to 1MiB, such as 131072 or 128KiB, found "64kB": did you mean "64KiB"?`},
	{"size too small", head + "limits: {connect_size: 12}", `7:24: limits.connect_size: expected a size from 1KiB to 1MiB, such as 131072 or 128KiB, found "12"`},
	{"number", head + "limits: {handshakes: many}", `7:22: limits.handshakes: expected a whole number from 1 to 1000000, found "many"`},
	{"octal number", head + "loops: 010", `7:8: loops: expected a whole number from 0 to 1024, found "010": did you mean "10"?`},
	{"zeros", head + "loops: 00", `7:8: loops: expected a whole number from 0 to 1024, found "00": did you mean "0"?`},
	{"octal size", head + "limits: {connect_size: 0131072}", `7:24: limits.connect_size: expected a size from 1KiB to 1MiB, such as 131072 or 128KiB, found "0131072": did you mean "131072"?`},
	{"negative number", head + "limits: {connections: -1}", `7:23: limits.connections: expected a whole number from 0 to 100000000, found "-1"`},

	{"too small a factor", head + "limits: {keep_alive: 1}", `7:22: limits.keep_alive: expected a number from 1.5 to 10, or off, found "1"`},
	{"a factor that is none", head + "limits: {keep_alive: nan}", `7:22: limits.keep_alive: expected a number from 1.5 to 10, or off, found "nan"`},
	{"a factor in another form", head + "limits: {keep_alive: 2e0}", `7:22: limits.keep_alive: expected a number from 1.5 to 10, or off, found "2e0"`},
	{"whose records", head + "tls_records: limpit", `7:14: tls_records: expected one of stdlib, limpet, found "limpit": did you mean "limpet"?`},

	// Listeners.
	{"type missing", head + "  - {name: a}", "7:5: listeners[1].type: required field is missing"},
	{"type", head + "  - {type: tpc}", `7:12: listeners[1].type: expected one of tcp, tls, ws, wss, quic, found "tpc": did you mean "tcp"?`},
	{"port alone", head + "  - {type: ws, address: 8083}", `7:25: listeners[1].address: expected host:port, :port or a host, found "8083": did you mean ":8083"?`},
	{"port too high", head + "  - {type: ws, address: 'h:65536'}", `7:25: listeners[1].address: expected host:port, :port or a host, found "h:65536"`},
	{"IPv4 with a typing error", head + "  - {type: ws, address: 127.0.0.256}", `7:25: listeners[1].address: expected host:port, :port or a host, found "127.0.0.256"`},
	{"address parsed as a mapping", head + "  - {type: ws, address: {a: 1}}", `7:25: listeners[1].address: expected host:port, :port or a host, found a mapping (text with a ':' in it may need quotes)`},
	{"default name twice", head + "  - {type: tcp, address: ':2'}", `7:5: listeners[1].name: required field is missing: "tcp", the default, is the name of listeners[0]`},
	{"name twice", head + "  - {type: ws, name: tcp}", `7:22: listeners[1].name: duplicate name "tcp": listeners[0] has it`},
	{"port twice", head + "  - {type: ws, address: '127.0.0.1:1000'}", `7:25: listeners[1].address: expected an address of its own, found "127.0.0.1:1000", which clashes with listeners[0].address (:1000)`},
	{"default port twice", head + "  - {type: ws, name: a}\n  - {type: ws, name: b}", `8:5: listeners[2].address: expected an address of its own, found ":8083", which clashes with listeners[1].address (:8083)`},
	{"port of the admin API", head + "  - {type: ws, address: ':9883'}", `7:25: listeners[1].address: expected an address of its own, found ":9883", which clashes with admin.address (127.0.0.1:9883)`},
	{"tls missing", head + "  - {type: tls}", "7:5: listeners[1].tls: required field is missing: a tls listener needs a certificate"},
	{"tls on tcp", head + "  - {type: ws, tls: {}}", `7:21: listeners[1].tls: not for a listener of type ws: did you mean type "wss"?`},
	{"no certificate", head + "  - {type: tls, tls: {certificates: []}}", "7:37: listeners[1].tls.certificates: expected a list of certificates, mappings with cert and key, found an empty list"},
	{"no key", head + "  - {type: tls, tls: {certificates: [{cert: a}]}}", "7:38: listeners[1].tls.certificates[0].key: required field is missing"},
	{"TLS version", head + "  - {type: tls, tls: {certificates: [{cert: a, key: b}], min_version: 1.0}}", `7:71: listeners[1].tls.min_version: expected one of 1.2, 1.3, found "1.0": did you mean "1.2"?`},
	{"TLS version of QUIC", head + "  - {type: quic, tls: {certificates: [{cert: a, key: b}], min_version: 1.2}}", "7:72: listeners[1].tls.min_version: expected 1.3 on a listener of type quic, which has no other (RFC 9001 §4.2)"},
	{"client_auth missing", head + "  - {type: tls, tls: {certificates: [{cert: a, key: b}], client_ca: c}}", "7:22: listeners[1].tls.client_auth: required field is missing: with client_ca, expected one of request, require"},
	{"client_auth none", head + "  - {type: tls, tls: {certificates: [{cert: a, key: b}], client_ca: c, client_auth: none}}", `7:85: listeners[1].tls.client_auth: expected one of request, require with client_ca, found "none"`},
	{"client_ca missing", head + "  - {type: tls, tls: {certificates: [{cert: a, key: b}], client_auth: require}}", `7:22: listeners[1].tls.client_ca: required field is missing: client_auth "require" needs authorities`},
	{"websocket on tcp", head + "  - {type: tcp, name: a, address: ':2', websocket: {}}", "7:52: listeners[1].websocket: expected only on a listener of type ws or wss, found on one of type tcp"},
	{"websocket path", head + "  - {type: ws, websocket: {path: mqtt}}", `7:34: listeners[1].websocket.path: expected a path that begins with '/', such as /mqtt, found "mqtt": did you mean "/mqtt"?`},
	{"origin without scheme", head + "  - {type: ws, websocket: {origins: [App.example.com]}}", `7:38: listeners[1].websocket.origins[0]: expected an origin such as https://app.example.com, found "App.example.com": did you mean "https://app.example.com"?`},
	{"origin with a path", head + "  - {type: ws, websocket: {origins: ['https://a/b']}}", `7:38: listeners[1].websocket.origins[0]: expected an origin such as https://app.example.com, found "https://a/b": did you mean "https://a"?`},
	{"origin with a port too high", head + "  - {type: ws, websocket: {origins: ['https://a.b:99999']}}", `7:38: listeners[1].websocket.origins[0]: expected an origin such as https://app.example.com, found "https://a.b:99999"`},
	{"origin with port 0", head + "  - {type: ws, websocket: {origins: ['https://a.b:0']}}", `7:38: listeners[1].websocket.origins[0]: expected an origin such as https://app.example.com, found "https://a.b:0"`},
	{"origin without its port", head + "  - {type: ws, websocket: {origins: ['https://[::1]:']}}", `7:38: listeners[1].websocket.origins[0]: expected an origin such as https://app.example.com, found "https://[::1]:": did you mean "https://[::1]"?`},
	{"origin with zeros", head + "  - {type: ws, websocket: {origins: ['https://a.b:08443']}}", `7:38: listeners[1].websocket.origins[0]: expected an origin such as https://app.example.com, found "https://a.b:08443": did you mean "https://a.b:8443"?`},
	{"origin twice", head + "  - {type: ws, websocket: {origins: ['*', '*']}}", `7:43: listeners[1].websocket.origins[1]: duplicate origin "*"`},
	{"proxy without sources", head + "  - {type: ws, proxy_protocol: {}}", "7:32: listeners[1].proxy_protocol.from: required field is missing"},
	{"CIDR", head + "  - {type: ws, proxy_protocol: {from: [10.1.2.3/8]}}", `7:40: listeners[1].proxy_protocol.from[0]: expected a CIDR such as 10.0.0.0/8, found "10.1.2.3/8": did you mean "10.0.0.0/8"?`},
	{"proxy on QUIC", head + "  - {type: quic, tls: {certificates: [{cert: a, key: b}]}, proxy_protocol: {from: [10.0.0.0/8]}}", "7:76: listeners[1].proxy_protocol: not for a listener of type quic: no PROXY header goes over UDP"},

	// Admin and store.
	{"admin for everybody", head + "admin: {address: '0.0.0.0:9883'}", `7:18: admin.address: expected a loopback address such as 127.0.0.1:9883 (the admin API has no authentication), found "0.0.0.0:9883": did you mean "127.0.0.1:9883"?`},
	{"store", "mesh: m\nid: e\nstore: nine\nlisteners: [{type: tcp}]", `3:8: store: expected none, or a mapping with one of etcd, nats, found "nine": did you mean "none"?`},
	{"no etcd", "mesh: m\nid: e\nstore: {nats: {urls: ['nats://h']}}\nlisteners: [{type: tcp}]", "3:8: store.etcd: required field is missing"},
	{"no mesh_file", "mesh: m\nid: e\nstore: none\nlisteners: [{type: tcp}]", "1:1: mesh_file: required field is missing: without a store, the pools come from a mesh file"},
	{"mesh_file and a store", "mesh: m\nid: e\nstore: {etcd: {endpoints: ['http://h']}}\nmesh_file: f\nlisteners: [{type: tcp}]", `4:12: mesh_file: expected only with "store: none": the pools come from the store`},
	{"URL without a scheme", "mesh: m\nid: e\nstore: {etcd: {endpoints: ['h:2379']}}\nlisteners: [{type: tcp}]", `3:28: store.etcd.endpoints[0]: expected a URL such as http://127.0.0.1:2379, found "h:2379": did you mean "http://h:2379"?`},
	{"URL with a path", "mesh: m\nid: e\nstore: {etcd: {endpoints: ['http://h/x']}}\nlisteners: [{type: tcp}]", `3:28: store.etcd.endpoints[0]: expected a URL such as http://127.0.0.1:2379, found "http://h/x": did you mean "http://h:2379"?`},
	{"URL twice", "mesh: m\nid: e\nstore: {etcd: {endpoints: ['http://h', 'http://h:2379']}}\nlisteners: [{type: tcp}]", `3:40: store.etcd.endpoints[1]: duplicate URL "http://h:2379"`},
	{"two schemes", "mesh: m\nid: e\nstore: {etcd: {endpoints: ['http://h', 'https://i']}}\nlisteners: [{type: tcp}]", `3:40: store.etcd.endpoints[1]: expected http as in the first endpoint, found "https://i:2379"`},
	{"http with tls", "mesh: m\nid: e\nstore: {etcd: {endpoints: ['http://h'], tls: {ca: a}}}\nlisteners: [{type: tcp}]", `3:28: store.etcd.endpoints[0]: expected https, because tls is set, found "http://h:2379": did you mean "https://h:2379"?`},
	{"user without a password", "mesh: m\nid: e\nstore: {etcd: {endpoints: ['http://h'], username: u}}\nlisteners: [{type: tcp}]", "3:15: store.etcd.password_file: required field is missing: username is set"},
	{"password without a user", "mesh: m\nid: e\nstore: {etcd: {endpoints: ['http://h'], password_file: u}}\nlisteners: [{type: tcp}]", "3:15: store.etcd.username: required field is missing: password_file is set"},
	{"certificate without a key", "mesh: m\nid: e\nstore: {etcd: {endpoints: ['https://h'], tls: {cert: a}}}\nlisteners: [{type: tcp}]", "3:47: store.etcd.tls.key: required field is missing: cert is set"},
	{"key without a certificate", "mesh: m\nid: e\nstore: {etcd: {endpoints: ['https://h'], tls: {key: a}}}\nlisteners: [{type: tcp}]", "3:47: store.etcd.tls.cert: required field is missing: key is set"},
	{"two logins", "mesh: m\nid: e\nstore: {etcd: {endpoints: ['http://h']}, nats: {urls: ['nats://h'], credentials: c, username: u, password_file: p}}\nlisteners: [{type: tcp}]", "3:82: store.nats.credentials: expected either credentials or username, found both"},

	// Several at once, in order of position.
	{"several", head + "log: {level: x}\nlimits: {y: 1}\nloops: z", "7:14: log.level: expected one of trace, debug, info, warn, error, found \"x\"\n8:10: limits.y: unknown field: expected one of connect_size, connect_timeout, connections, handshakes, keep_alive\n9:8: loops: expected a whole number from 0 to 1024, found \"z\""},
}

var meshMistakes = []struct{ name, file, want string }{
	{"empty", "", "1:1: mesh: required field is missing\n1:1: pools: required field is missing"},
	{"edge file", "mesh: m\nlisteners: []", "1:1: expected the configuration of a mesh, found that of an edge"},
	{"no pools", "mesh: m\npools:", "2:1: pools: expected a list of pools, found nothing"},
	{"no brokers", "mesh: m\npools: [{name: p}]", "2:9: pools[0].brokers: required field is missing"},
	{"pool twice", pool + "- {name: p, brokers: [{id: b, address: 'h:1'}]}", `6:10: pools[1].name: duplicate name "p": pools[0] has it`},
	{"broker twice", pool + "  - {id: b1, address: 'h:2'}", `6:10: pools[0].brokers[1].id: duplicate id "b1": pools[0].brokers[0] has it`},
	{"address twice", pool + "  - {id: b2, address: 'H:1'}", `6:23: pools[0].brokers[1].address: duplicate address "h:1": pools[0].brokers[0] has it`},
	{"no port", pool + "  - {id: b2, address: h}", `6:23: pools[0].brokers[1].address: expected host:port, found "h": did you mean "h:1883"?`},
	{"no host", pool + "  - {id: b2, address: ':1'}", `6:23: pools[0].brokers[1].address: expected host:port, found ":1"`},
	{"weight", pool + "  - {id: b2, address: 'h:2', weight: 0}", `6:38: pools[0].brokers[1].weight: expected a whole number from 1 to 1000, found "0"`},
	{"transport", pool + "  - {id: b2, address: 'h:2', transport: ssl}", `6:41: pools[0].brokers[1].transport: expected one of tcp, tls, ws, wss, found "ssl"`},
	{"proxy version", pool + "  - {id: b2, address: 'h:2', proxy_protocol: 2}", `6:46: pools[0].brokers[1].proxy_protocol: expected one of none, v1, v2, found "2"`},
	{"relative file", pool + "  - {id: b2, address: 'h:2', transport: tls, tls: {ca: ca.pem}}", `6:56: pools[0].brokers[1].tls.ca: expected the absolute path of a PEM file with authorities, as on every edge's machine, found "ca.pem"`},
	{"server name", pool + "  - {id: b2, address: 'h:2', transport: tls, tls: {server_name: 'a b'}}", `6:65: pools[0].brokers[1].tls.server_name: expected a host name, found "a b"`},
	{"tls on tcp", pool + "  - {id: b2, address: 'h:2', tls: {ca: /a}}", "6:35: pools[0].brokers[1].tls: expected only with transport tls or wss, found with tcp"},
	{"path on tcp", pool + "  - {id: b2, address: 'h:2', path: /a}", "6:36: pools[0].brokers[1].path: expected only with transport ws or wss, found with tcp"},
	{"policy", pool + "  policy: hsah", `6:11: pools[0].policy: expected hash, found "hsah": did you mean "hash"?`},
	{"sessions", pool + "  sessions: replicate", `6:13: pools[0].sessions: expected one of local, replicated, found "replicate": did you mean "replicated"?`},
	{"ttl above max_ttl", pool + "  ttl: 2h\n  max_ttl: 1h", `6:8: pools[0].ttl: expected at most max_ttl (1h), found "2h"`},
	{"dial above connect", pool + "  dial_timeout: 11s", "6:17: pools[0].dial_timeout: expected dial_timeout (11s) to be at most connect_timeout (10s)"},
	{"connect below dial", pool + "  connect_timeout: 1s", "6:20: pools[0].connect_timeout: expected dial_timeout (3s) to be at most connect_timeout (1s)"},
	{"probe", pool + "  probe: {type: http, rise: 0}", "6:17: pools[0].probe.type: expected one of mqtt, tcp, none, found \"http\"\n6:29: pools[0].probe.rise: expected a whole number from 1 to 100, found \"0\""},
}

func TestMistakesOfEdges(t *testing.T) {
	for _, c := range mistakes {
		t.Run(c.name, func(t *testing.T) {
			e, err := ParseEdge("f", []byte(c.file))
			checkMistakes(t, e == nil, err, c.want)
		})
	}
}

func TestMistakesOfMeshes(t *testing.T) {
	for _, c := range meshMistakes {
		t.Run(c.name, func(t *testing.T) {
			m, err := ParseMesh("f", []byte(c.file))
			checkMistakes(t, m == nil, err, c.want)
		})
	}
}

func checkMistakes(t *testing.T, none bool, err error, want string) {
	t.Helper()
	if err == nil || !none {
		t.Fatalf("accepted, want\n%s", want)
	}
	if got := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\nf:", "\n"), "f:"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var one *Error
	if !errors.As(err, &one) || one.File != "f" || one.Pos.Line == 0 || one.Pos.Column == 0 {
		t.Errorf("errors.As found %+v", one)
	}
}

func TestFilesWithoutMistakesBesideTheTables(t *testing.T) {
	if _, err := ParseEdge("f", []byte(head)); err != nil {
		t.Error(err)
	}
	if _, err := ParseMesh("f", []byte(pool)); err != nil {
		t.Error(err)
	}
}

func TestManyMistakesAreCut(t *testing.T) {
	var b strings.Builder
	b.WriteString(head)
	const wrong = 300
	for i := range wrong {
		fmt.Fprintf(&b, "  - {type: t%d}\n", i)
	}
	_, err := ParseEdge("f", []byte(b.String()))
	var es Errors
	if !errors.As(err, &es) || len(es) != MaxErrors+1 {
		t.Fatalf("got %d errors: %v", len(es), err)
	}
	for i, e := range es[:MaxErrors] {
		if e.Pos.Line != 7+i {
			t.Errorf("error %d is about line %d", i, e.Pos.Line)
		}
	}
	if got, want := es[MaxErrors].Error(), fmt.Sprintf("f: and %d more mistakes", wrong-MaxErrors); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Large files whose shapes are hard on parsers: none may take long, and none more memory than its text deserves.
func TestHostileShapes(t *testing.T) {
	fill := func(s string) string { return strings.Repeat(s, MaxFile/4/len(s)) }
	deep := func(s string) string { return s + ": expected at most 32 levels of nesting" }
	const top = "f:1:1: expected a mapping with "
	for name, c := range map[string]struct{ file, want string }{
		"brackets":        {fill("["), deep("f:1:32")},
		"braces":          {fill("{a: "), deep("f:1:125")},
		"dashes":          {fill("- "), deep("f:1:65")},
		"colons":          {fill("a: "), "f:1:5: not valid YAML: expected a new line"},
		"closed brackets": {fill("[]"), "f:1:3: not valid YAML: expected nothing more"},
		"quotes":          {fill("'a' "), "f:1:5: not valid YAML: expected nothing more"},
		"empty entries":   {fill("-\n"), top},
		"empty fields":    {fill("- a:\n"), top},
		"empty mappings":  {"[" + fill("{},") + "]", top},
		"fields":          {fill("a:\n"), "f:1:1: a: unknown field"},
		"flow fields":     {"{" + fill("a: b,") + "}", "f:1:2: a: unknown field"},
		"same field":      {"loops: 1\n" + fill("loops: 1\n"), "f:2:1: loops: duplicate field"},
		"escapes":         {"a: \"" + fill("\\x41") + "\"", "f:1:1: a: unknown field"},
		"listeners":       {"listeners: [" + fill("{type: tcp},") + "]", "f:1:1: mesh: required"},
		"wrong listeners": {"listeners:\n" + fill("- {type: x}\n"), "f:1:1: mesh: required"},
		"comments":        {fill("# x\n"), "f:1:1: mesh: required"},
		"documents":       {fill("---\n"), "f:2:1: expected one YAML document"},
		"size":            {strings.Repeat("#", MaxFile+1), "f: expected at most 1048576 bytes"},
		"indents": {func() string {
			var b strings.Builder
			for i := range 1000 {
				fmt.Fprintf(&b, "%sa:\n", strings.Repeat(" ", i))
			}
			return b.String()
		}(), deep("f:33:33")},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := ParseEdge("f", []byte(c.file))
		runtime.ReadMemStats(&after)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: got %.200v, want %s", name, err, c.want)
		}
		// The lexer makes some 300 bytes for each token, and copies what it reads a few times.
		if got := after.TotalAlloc - before.TotalAlloc; got > 150<<20 {
			t.Errorf("%s: allocated %d MiB", name, got>>20)
		} else {
			t.Logf("%s: allocated %d MiB", name, got>>20)
		}
	}
}

func TestLargestMesh(t *testing.T) {
	var b strings.Builder
	b.WriteString("mesh: m\npools:\n- name: p\n  brokers:\n")
	n := 0
	for ; b.Len() < MaxFile-200; n++ {
		fmt.Fprintf(&b, "  - id: b%d\n    address: 10.0.0.1:%d\n    weight: 3\n    tls: {ca: /a}\n    transport: tls\n", n, n%65535+1)
		if n == 65000 {
			t.Fatal("addresses would repeat")
		}
	}
	m, err := ParseMesh("f", []byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Pools[0].Brokers) != n {
		t.Errorf("%d brokers, want %d", len(m.Pools[0].Brokers), n)
	}
}
