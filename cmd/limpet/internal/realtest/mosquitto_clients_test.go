package realtest

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// versions are MQTT 3.1, 3.1.1 and 5 in mosquitto's words.
var versions = []string{"mqttv31", "mqttv311", "mqttv5"}

// cli are Mosquitto's command line clients.
type cli struct{ pub, sub, version string }

func mosquittoCLI(t *testing.T) cli {
	t.Helper()
	return cli{pub: program(t, "mosquitto_pub"), sub: program(t, "mosquitto_sub")}
}

// at is the part of a command line that says where the broker is.
func (c cli) at(d door) []string {
	host, port, _ := net.SplitHostPort(d.edge.at[d.listener])
	args := []string{"-V", c.version, "-h", host, "-p", port}
	if d.listener == "tls" {
		args = append(args, "--cafile", d.edge.pki.ca)
	}
	return args
}

// publish runs mosquitto_pub; each line of input is a message if args have -l.
func (c cli) publish(t *testing.T, d door, input string, args ...string) {
	t.Helper()
	if _, err := command(t, patience, []byte(input), c.pub, append(c.at(d), args...)...); err != nil {
		t.Fatal(err)
	}
}

// subscribe runs mosquitto_sub until it ends by itself, and returns the lines that it printed.
func (c cli) subscribe(t *testing.T, d door, args ...string) []string {
	t.Helper()
	out, err := command(t, patience, nil, c.sub, append(c.at(d), args...)...)
	if err != nil {
		t.Fatalf("%v; it printed %q", err, out)
	}
	return strings.Fields(out)
}

// mosquittoClients has sessions of each version at each TCP and TLS listener of each edge.
func mosquittoClients(t *testing.T, m *mesh) {
	c := mosquittoCLI(t)
	large := writeFile(t, filepath.Join(t.TempDir(), "large"), strings.Repeat("0123456789abcdef", 1<<16))
	listeners := []string{"tcp", "tls"}
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := c
			c.version = version
			for i, e := range m.edges {
				for j, listener := range listeners {
					first := door{e, listener}
					second := door{m.edges[(i+1)%3], listeners[(j+1)%2]}
					third := door{m.edges[(i+2)%3], listeners[(j+1)%2]}
					t.Run(first.String(), func(t *testing.T) {
						c.story(t, fmt.Sprintf("m%s-%s-%s", version[4:], e.id, listener), large, first, second, third)
					})
				}
			}
		})
	}
}

// story is homecoming.run, told by command lines. An ID has at most 23 bytes in MQTT 3.1.
func (c cli) story(t *testing.T, id, large string, first, second, third door) {
	topic := "cli/" + id
	// A session with a subscription, then ten messages for it while it is away.
	c.subscribe(t, first, "-i", id, "-c", "-q", "2", "-t", topic+"/queued", "-E")
	c.publish(t, second, "0\n1\n2\n3\n4\n", "-l", "-q", "1", "-t", topic+"/queued")
	c.publish(t, second, "5\n6\n7\n8\n9\n", "-l", "-q", "2", "-t", topic+"/queued")
	if got := strings.Join(c.subscribe(t, third, "-i", id, "-c", "-q", "2", "-t", topic+"/queued", "-C", "10"), " "); got != "0 1 2 3 4 5 6 7 8 9" {
		t.Errorf("queued messages: %s", got)
	}

	// Live: a retained message says that the subscriber is there.
	c.publish(t, second, "", "-r", "-q", "1", "-t", topic+"/kept", "-m", "k")
	format := []string{"-q", "2", "-F", "%t qos=%q retained=%r length=%l"}
	live := start(t, t.TempDir(), id+".live", nil, append(append([]string{c.sub}, c.at(first)...), append(format, "-i", id+"-l", "-t", topic+"/#")...)...)
	live.lineWith(t, patience, topic+"/kept qos=1 retained=1 length=1")
	for qos := range 3 {
		c.publish(t, second, "", "-q", fmt.Sprint(qos), "-t", topic+"/live", "-m", strings.Repeat("x", 10+qos))
		live.lineWith(t, patience, fmt.Sprintf("%s/live qos=%d retained=0 length=%d", topic, qos, 10+qos))
	}
	c.publish(t, second, "", "-q", "1", "-t", topic+"/large", "-f", large)
	live.lineWith(t, patience, fmt.Sprintf("%s/large qos=1 retained=0 length=%d", topic, 1<<20))

	mortal := start(t, t.TempDir(), id+".mortal", nil, append(append([]string{c.sub}, c.at(third)...),
		"-i", id+"-w", "-t", topic+"/kept", "--will-topic", topic+"/will", "--will-payload", "gone", "--will-qos", "1")...)
	mortal.lineWith(t, patience, "k")
	mortal.signal(syscall.SIGKILL)
	live.lineWith(t, patience, topic+"/will qos=1 retained=0 length=4")
	c.publish(t, second, "", "-r", "-q", "1", "-t", topic+"/kept", "-n")
}
