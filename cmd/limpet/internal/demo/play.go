package demo

import (
	"fmt"
	"net"
	"strings"
)

// addresses shows where everything is, and the first lines to paste.
func (d *demo) addresses() {
	s, l := d.out, d.mesh.layout
	t := table{header: []string{"edge", "host", "tcp", "tls", "ws", "wss", "quic", "admin"}}
	for i, a := range l.edges {
		host, tcp := split(a.TCP)
		row := []string{edgeName(i), host, tcp}
		for _, address := range []string{a.TLS, a.WS, a.WSS, a.QUIC, a.Admin} {
			_, port := split(address)
			row = append(row, port)
		}
		t.rows = append(t.rows, row)
	}
	s.line("")
	s.lines(t.lines(s))
	for i, why := range l.shifted {
		if why != nil {
			s.line("%s%s has other than the standard ports: %v", indent, edgeName(i), why)
		}
	}
	s.line("")
	var names []string
	for i, b := range l.brokers {
		names = append(names, brokerName(i)+" "+b.mqtt)
	}
	s.line("%sbrokers  %s", indent, strings.Join(names, ", "))
	s.line("%setcd     %s   keys under /limpet/%s/", indent, d.mesh.etcdURL(), meshName)
	s.line("%sNATS     %s", indent, d.mesh.natsURL())
	s.line("%sCA       %s", indent, d.mesh.pki.ca)
	s.line("")
	if d.Standalone {
		s.line("The brokers share nothing: a subscriber hears who publishes on its own broker.")
	}
	s.line("Paste into other terminals, any edge will do:")
	s.line("%s%s -t 't/#'", indent, client("mosquitto_sub", l.edges[0].TCP, ""))
	s.line("%s%s -t t/xyz -m hello", indent, client("mosquitto_pub", l.edges[1].TCP, ""))
	s.line("%s%s -t t/xyz -m hello", indent, client("mosquitto_pub", l.edges[2].TLS, d.mesh.pki.ca))
}

// play says what else there is to do in a demo that stays.
func (d *demo) play() {
	s, l := d.out, d.mesh.layout
	s.line("")
	s.line("%s", s.bold("Your turn. Ctrl-C ends the demo."))
	s.line("A session, and its homecoming: start this, stop it, publish, and start it")
	s.line("again at another edge.")
	s.line("%s%s -i me -c -q 1 -t 'mine/#'", indent, client("mosquitto_sub", l.edges[0].TCP, ""))
	s.line("%s%s -q 1 -t mine/1 -m 'while you were away'", indent, client("mosquitto_pub", l.edges[1].TCP, ""))
	s.line("%s%s -i me -c -q 1 -t 'mine/#'", indent, client("mosquitto_sub", l.edges[2].TCP, ""))
	s.line("What an edge thinks of the mesh, and which broker a client gets, by any edge:")
	s.line("%scurl 'http://%s/readyz?verbose'", indent, l.edges[0].Admin)
	s.line("%s%s -i anybody -C 1 -t '%s'", indent, client("mosquitto_sub", l.edges[1].TCP, ""), nameTopic)
	s.line("Kill (-9) or freeze (-STOP, -CONT) whatever you like:")
	for _, some := range [][]*child{d.mesh.edges[:], d.mesh.brokers[:], {d.mesh.etcd, d.mesh.nats}} {
		var pids []string
		for _, c := range some {
			pids = append(pids, fmt.Sprintf("%s %d", c.name, c.pid()))
		}
		s.line("%s%s", indent, strings.Join(pids, ", "))
	}
	s.line("What is killed is told here, with the line that brings it back. Logs:")
	s.line("%s%s", indent, d.mesh.sup.logs)
}

// client is the beginning of a command line of mosquitto's clients.
func client(program, address, ca string) string {
	host, port := split(address)
	line := program + " -h " + host
	if port != fmt.Sprint(standard[0]) {
		line += " -p " + port
	}
	if ca != "" {
		line += " --cafile " + quote([]string{ca})
	}
	return line
}

func split(address string) (host, port string) {
	host, port, _ = net.SplitHostPort(address)
	return host, port
}
