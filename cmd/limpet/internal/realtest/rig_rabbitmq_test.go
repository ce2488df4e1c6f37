package realtest

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/upstream"
	"github.com/limpet-mesh/limpet/registry"
)

// rabbitmq is a cluster of RabbitMQ nodes on loopback, run as any user, that demand a PROXY header of their MQTT clients.
type rabbitmq struct {
	ctl     string // path of rabbitmqctl
	env     []string
	brokers []*broker
}

// rabbitPatience is how long a cluster may take to form: half a minute on two idle cores.
const rabbitPatience = 3 * time.Minute

// startRabbitMQ starts three nodes, one after the other: started together, each may found a cluster of client IDs of its own, which never meet
// again, although the nodes have joined. ready makes them mirror sessions.
func startRabbitMQ(t *testing.T, dir string) *rabbitmq {
	t.Helper()
	// Debian's wrappers in /usr/sbin insist on a user of theirs.
	found, _ := filepath.Glob("/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server")
	if len(found) == 0 {
		missing(t, "RabbitMQ is not installed (make deps installs it)")
	}
	epmd := program(t, "epmd")
	server := found[len(found)-1]
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(home, ".erlang.cookie"), "LIMPETTEST")
	if err := os.Chmod(filepath.Join(home, ".erlang.cookie"), 0o400); err != nil {
		t.Fatal(err)
	}
	epmdPort := freePort(t)
	c := &rabbitmq{ctl: filepath.Join(filepath.Dir(server), "rabbitmqctl")}
	c.env = []string{
		"HOME=" + home, "ERL_EPMD_ADDRESS=127.0.0.1", fmt.Sprint("ERL_EPMD_PORT=", epmdPort), "RABBITMQ_CONF_ENV_FILE=/dev/null",
	}
	daemon := start(t, dir, "epmd", c.env, epmd)
	listening(t, patience, daemon, fmt.Sprintf("127.0.0.1:%d", epmdPort))

	var peers strings.Builder
	for i := range 3 {
		fmt.Fprintf(&peers, "cluster_formation.classic_config.nodes.%d = rmq%d@localhost\n", i+1, i+1)
	}
	for i := range 3 {
		b := &broker{id: fmt.Sprintf("rmq%d", i+1), address: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
		c.brokers = append(c.brokers, b)
		at := filepath.Join(dir, b.id)
		if err := os.Mkdir(at, 0o700); err != nil {
			t.Fatal(err)
		}
		amqp := freePort(t)
		conf := writeFile(t, filepath.Join(at, "rabbitmq.conf"), fmt.Sprintf("listeners.tcp.default = 127.0.0.1:%d\n"+
			"mqtt.listeners.tcp.1 = %s\nmqtt.proxy_protocol = true\nmqtt.allow_anonymous = true\nmqtt.default_user = guest\n"+
			"mqtt.default_pass = guest\nmqtt.subscription_ttl = 1800000\ncluster_formation.peer_discovery_backend = classic_config\n%s",
			amqp, b.address, peers.String()))
		plugins := writeFile(t, filepath.Join(at, "enabled_plugins"), "[rabbitmq_mqtt].")
		b.proc = start(t, dir, b.id, append([]string{
			"RABBITMQ_NODENAME=" + b.id + "@localhost", "RABBITMQ_NODE_IP_ADDRESS=127.0.0.1", fmt.Sprint("RABBITMQ_NODE_PORT=", amqp),
			fmt.Sprint("RABBITMQ_DIST_PORT=", freePort(t)), "RABBITMQ_MNESIA_BASE=" + filepath.Join(at, "mnesia"),
			"RABBITMQ_LOG_BASE=" + filepath.Join(at, "log"), "RABBITMQ_LOGS=-", "RABBITMQ_CONFIG_FILE=" + conf,
			"RABBITMQ_ENABLED_PLUGINS_FILE=" + plugins,
			"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none",
			"RUNNING_UNDER_SYSTEMD=true", // the script gives way to the node, which then is our child
		}, c.env...), server)
		listening(t, rabbitPatience, b.proc, b.address)
		until(t, rabbitPatience, b.id+" accepts a client", func() (bool, any) {
			ack, err := accepted(b.address)
			return err == nil && ack == "\x20\x02\x00\x00", fmt.Sprintf("%x %v", ack, err)
		})
	}
	return c
}

// accepted returns the CONNACK that a broker which demands a PROXY header gives a client.
func accepted(address string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, dialTimeout)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return "", err
	}
	// RabbitMQ 3.10 fails on a header without addresses.
	self := &relay.Origin{Client: conn.LocalAddr().(*net.TCPAddr).AddrPort(), Server: conn.RemoteAddr().(*net.TCPAddr).AddrPort()}
	if _, err := conn.Write(appendConnect(upstream.AppendProxy(nil, registry.ProxyV2, self), "is-it-ready", true)); err != nil {
		return "", err
	}
	ack := make([]byte, 4)
	_, err = io.ReadFull(conn, ack)
	return string(ack), err
}

// ready has each session's queue mirrored.
func (c *rabbitmq) ready(t *testing.T) {
	t.Helper()
	policy := start(t, t.TempDir(), "policy", c.env, c.ctl, "-n", "rmq1@localhost", "set_policy", "mqtt-ha", "^mqtt-subscription-",
		`{"ha-mode":"all","ha-sync-mode":"automatic"}`)
	select {
	case <-policy.exited:
	case <-time.After(2 * time.Minute):
		t.Fatal("rabbitmqctl does not end")
	}
	if policy.err != nil {
		t.Fatalf("set_policy: %v: %s", policy.err, policy.output())
	}
}
