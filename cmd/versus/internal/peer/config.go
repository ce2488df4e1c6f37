package peer

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Setup is one proxy before its brokers.
type Setup struct {
	Mode    Mode
	Dir     string // for files; of its own
	Listen  string // 127.0.0.1:port
	Admin   string // 127.0.0.1:port, for limpet
	Brokers []string
	Cert    string // PEM; Cert+".key" its key, Cert+".both" certificate and key
	Clients int    // at most, at once
}

// Configure returns the files to write, by name in s.Dir, and the command that then runs the proxy in the foreground. None for Direct.
func (p Peer) Configure(s Setup) (files map[string]string, argv []string) {
	file := func(name string) string { return filepath.Join(s.Dir, name) }
	switch p.Kind {
	case Limpet:
		return map[string]string{"edge.yaml": p.edge(s), "mesh.yaml": mesh(s)}, []string{p.Program, "edge", "-c", file("edge.yaml")}
	case HAProxy:
		return map[string]string{"haproxy.cfg": p.haproxy(s)}, []string{p.Program, "-db", "-q", "-f", file("haproxy.cfg")}
	case NGINX:
		return map[string]string{"nginx.conf": p.nginx(s)}, []string{p.Program, "-p", s.Dir, "-c", file("nginx.conf"), "-e", file("error.log")}
	case Floor:
		return nil, append([]string{p.Program, s.Listen}, s.Brokers...)
	}
	return nil, nil
}

// text joins lines; those that are empty are left out.
func text(lines ...string) string {
	var b strings.Builder
	for _, l := range lines {
		if strings.TrimSpace(l) != "" {
			b.WriteString(strings.TrimRight(l, "\n") + "\n")
		}
	}
	return b.String()
}

// when is s if cond.
func when(cond bool, s string) string {
	if cond {
		return s
	}
	return ""
}

// each writes a line for each broker.
func each(brokers []string, line func(i int, address string) string) string {
	var lines []string
	for i, b := range brokers {
		lines = append(lines, line(i+1, b))
	}
	return strings.Join(lines, "\n")
}

func (p Peer) edge(s Setup) string {
	kind := map[Mode]string{Plain: "tcp"}[s.Mode]
	if kind == "" {
		kind = string(s.Mode)
	}
	var top, secure []string
	loops := fmt.Sprintf("loops: %d", p.Threads)
	for _, set := range p.settings {
		if name, inTLS := strings.CutPrefix(set.name, "tls."); inTLS {
			secure = append(secure, fmt.Sprintf("      %s: %s", name, set.value))
			continue
		}
		if set.name == "loops" {
			loops = ""
		}
		top = append(top, set.name+": "+set.value)
	}
	if !s.Mode.Encrypted() {
		secure = nil
	}
	return text(
		"mesh: versus",
		"id: edge",
		"store: none",
		"mesh_file: "+filepath.Join(s.Dir, "mesh.yaml"),
		loops,
		strings.Join(top, "\n"),
		"listeners:",
		"  - type: "+kind,
		"    address: "+s.Listen,
		when(s.Mode.Encrypted(), fmt.Sprintf("    tls:\n      certificates:\n        - {cert: %s, key: %s}", s.Cert, s.Cert+".key")),
		strings.Join(secure, "\n"),
		"admin: {address: \""+s.Admin+"\"}",
		"log: {level: warn}",
	)
}

func mesh(s Setup) string {
	return text(
		"mesh: versus",
		"pools:",
		"  - name: default",
		"    probe: {type: tcp, interval: 2s, timeout: 2s, rise: 2, fall: 3}",
		"    brokers:",
		each(s.Brokers, func(i int, a string) string {
			return fmt.Sprintf("      - {id: b%d, address: %q, proxy_protocol: v2}", i, a)
		}),
	)
}

// haproxy has what HAProxy's own documentation advises for MQTT, and all that saves it work: no log, one listener for each number of threads,
// the system calls that tcp-smart-accept, tcp-smart-connect and defer-accept save, and of TLS what is cheapest.
func (p Peer) haproxy(s Setup) string {
	bind := "  bind " + s.Listen + " defer-accept backlog 16384"
	if s.Mode.Encrypted() {
		bind += " ssl crt " + s.Cert + ".both ssl-min-ver TLSv1.3 ciphersuites TLS_AES_128_GCM_SHA256 curves X25519"
	}
	if s.Mode == WSS {
		bind += " alpn http/1.1"
	}
	kind := "tcp"
	if s.Mode.WebSocket() {
		kind = "http"
	}
	tcp := kind == "tcp"
	return text(
		"global",
		fmt.Sprintf("  maxconn %d", s.Clients+100),
		fmt.Sprintf("  nbthread %d", p.Threads),
		"defaults",
		"  mode "+kind,
		"  timeout connect 5s",
		"  timeout client 1h",
		"  timeout server 1h",
		"  timeout tunnel 1h",
		when(!tcp, "  timeout http-request 10s"),
		"  option tcp-smart-accept",
		"  option tcp-smart-connect",
		"frontend clients",
		bind,
		fmt.Sprintf("  maxconn %d", s.Clients+100),
		when(tcp, "  tcp-request inspect-delay 10s\n  tcp-request content reject unless { req.payload(0,0),mqtt_is_valid }"),
		"  default_backend brokers",
		"backend brokers",
		"  balance roundrobin",
		when(tcp, "  stick-table type string len 64 size 200k expire 7d\n  stick on req.payload(0,0),mqtt_field_value(connect,client_identifier)"),
		each(s.Brokers, func(i int, a string) string {
			return fmt.Sprintf("  server b%d %s send-proxy-v2 check check-send-proxy inter 2s", i, a)
		}),
	)
}

func (p Peer) nginx(s Setup) string {
	listen := "    listen " + s.Listen + when(s.Mode.Encrypted(), " ssl") + when(s.Mode.WebSocket(), " deferred") + " backlog=16384;"
	secure := when(s.Mode.Encrypted(), text(
		"    ssl_certificate "+s.Cert+";",
		"    ssl_certificate_key "+s.Cert+".key;",
		"    ssl_protocols TLSv1.3;",
		"    ssl_ecdh_curve X25519;",
		"    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;",
	))
	servers := each(s.Brokers, func(_ int, a string) string { return "    server " + a + " max_fails=0;" })
	head := text(
		when(!s.Mode.WebSocket(), "load_module /usr/lib/nginx/modules/ngx_stream_module.so;"),
		fmt.Sprintf("worker_processes %d;", p.Threads),
		fmt.Sprintf("worker_rlimit_nofile %d;", 2*s.Clients+500),
		"daemon off;",
		"user root;",
		"pid "+filepath.Join(s.Dir, "nginx.pid")+";",
		fmt.Sprintf("events { worker_connections %d; use epoll; }", 2*s.Clients+200),
	)
	if !s.Mode.WebSocket() {
		return head + text(
			"stream {",
			"  upstream brokers {\n    hash $remote_addr consistent;\n"+servers+"\n  }",
			"  server {",
			listen,
			secure,
			"    proxy_pass brokers;\n    proxy_protocol on;\n    proxy_timeout 1h;",
			"  }",
			"}",
		)
	}
	temp := ""
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temp += fmt.Sprintf("  %s_temp_path %s;\n", kind, filepath.Join(s.Dir, kind))
	}
	return head + text(
		"http {",
		"  access_log off;",
		temp,
		"  upstream brokers {\n    hash $remote_addr consistent;\n"+servers+"\n  }",
		"  server {",
		listen,
		secure,
		"    location / {\n      proxy_pass http://brokers;\n      proxy_http_version 1.1;\n      proxy_set_header Upgrade $http_upgrade;",
		"      proxy_set_header Connection upgrade;\n      proxy_read_timeout 1h;\n      proxy_send_timeout 1h;\n    }",
		"  }",
		"}",
	)
}

// Differences is what a reader of the figures has to know.
func Differences(modes []Mode) []string {
	all := []string{
		"A message is one that the proxy relayed: a publish and its echo are two. CPU is that of the proxy's processes, by their CPU clocks; what the kernel does " +
			"for a packet on loopback is charged to whoever writes. Only ratios of the same run mean something.",
		"limpet and HAProxy keep one broker for a client ID; limpet also scans packet boundaries both ways, counts packets, and has metrics of it. HAProxy's rule reads the " +
			"CONNECT, then it relays blindly. NGINX cannot read MQTT (that is NGINX Plus): it hashes the client's address.",
		"PROXY header to the broker: v2 by limpet and HAProxy, v1 by NGINX's stream module, none by its http module. Nobody writes a log line for a connection; limpet by default does. " +
			"limpet and HAProxy probe the brokers every 2 s over TCP, NGINX never.",
		"floor is a bound, no proxy: a C program of one thread that reads and writes each message, and does nothing else (no packets, counts, timeouts, limits, half closes). What it costs is the kernel's.",
		"limpet runs without stores (`store: none`): a mesh writes a client's record to etcd once, behind its CONNACK, which is not in these figures.",
		"limpet and HAProxy wait for a client's first bytes in the kernel (defer-accept), and so does NGINX's http module; its stream module cannot. GOMAXPROCS of limpet is as it chooses itself, and its garbage collector may use it: " +
			"one loop is one busy thread, not a bound on its threads, unless it is pinned.",
		"Less what `direct` has in the same repetition: added latency, machine, and memory with the kernel's. Machine is all CPU that was not idle, without broker, generator and " +
			"other programs: the kernel's threads and interrupts are in it, where a proxy could hide work. Memory of an idle client is what RSS grew, divided by their number; with " +
			"the kernel's is also what its slabs (sockets), page tables and stacks grew.",
	}
	for _, m := range modes {
		if m.Encrypted() {
			all = append(all, "TLS: 1.3, X25519, AES-128-GCM, ECDSA P-256 for all; clients offer nothing else. Go issues one session ticket for each full handshake, OpenSSL two. "+
				"`direct` has no TLS: its latency is a bound for the machine, not for the mode.")
			break
		}
	}
	for _, m := range modes {
		if m.WebSocket() {
			all = append(all, "WebSocket: limpet ends it, unmasks, and speaks MQTT to the broker. HAProxy and NGINX (http) pass the upgrade and then bytes: the broker behind them, and `direct`, "+
				"speaks WebSocket itself, and its work is in no proxy's figure. They cannot see the client ID there, and so are not sticky by it (HAProxy: round robin).")
			break
		}
	}
	return all
}
