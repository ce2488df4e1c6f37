package mqtt

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// program finds an installed program. Where CI says that all is installed, its absence is a failure.
func program(t *testing.T, name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		if path = "/usr/sbin/" + name; fileExists(path) {
			return path
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// firstPacket starts a program that connects to the address it is given, and parses the CONNECT that it sends.
func firstPacket(t *testing.T, start func(host, port string) *exec.Cmd) Connect {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cmd := start(host, port)
	var said bytes.Buffer // read only after Wait
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%v said:\n%s", cmd.Args, said.String())
		}
	}()

	deadline := time.Now().Add(20 * time.Second)
	if err := l.(*net.TCPListener).SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatalf("%v did not connect: %v", cmd.Args, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	var got []byte
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		got = append(got, buf[:n]...)
		c, perr := ParseConnect(got, testLimit)
		if perr == nil {
			return c
		}
		if perr != ErrShort || err != nil {
			t.Fatalf("%v sent %x: %v, %v", cmd.Args, got, perr, err)
		}
	}
}

// TestMosquittoClient reads what the installed mosquitto_pub really sends.
func TestMosquittoClient(t *testing.T) {
	pub := program(t, "mosquitto_pub")
	for _, v := range []Version{V31, V311, V5} {
		c := firstPacket(t, func(host, port string) *exec.Cmd {
			name := map[Version]string{V31: "mqttv31", V311: "mqttv311", V5: "mqttv5"}[v]
			return exec.Command(pub, "-h", host, "-p", port, "-V", name, "-i", "limpet-é", "-u", "ann", "-P", "secret", "-k", "77",
				"-t", "t/x", "-m", "hello", "--will-topic", "w", "--will-qos", "1", "--will-retain")
		})
		if c.Version != v || c.Bridge || string(c.ClientID) != "limpet-é" || string(c.Username) != "ann" || !c.HasPassword ||
			!c.CleanStart || c.KeepAlive != 77 || !c.Will || c.WillQoS != 1 || !c.WillRetain || c.Persistent() {
			t.Errorf("%v: %+v", v, c)
		}
	}
}

// TestMosquittoBridge reads what a bridge of the installed mosquitto really sends.
func TestMosquittoBridge(t *testing.T) {
	broker := program(t, "mosquitto")
	for _, v := range []Version{V31, V311, V5} {
		c := firstPacket(t, func(host, port string) *exec.Cmd {
			dir := t.TempDir()
			conf := filepath.Join(dir, "mosquitto.conf")
			// A listener of its own, which mosquitto demands, on a socket file that nobody else can have taken.
			// "user" counts only where the test runs as root: the directory is root's then.
			text := fmt.Sprintf("user root\nlistener 0 %s\nallow_anonymous true\nconnection rock\naddress %s:%s\nbridge_protocol_version %s\n"+
				"remote_clientid limpet-bridge\ncleansession false\ntopic # both 1\n",
				filepath.Join(dir, "s"), host, port, map[Version]string{V31: "mqttv31", V311: "mqttv311", V5: "mqttv50"}[v])
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return exec.Command(broker, "-c", conf)
		})
		// mosquitto 2.0 sets the bridge bit in MQTT 3 only.
		if c.Version != v || v != V5 && !c.Bridge || string(c.ClientID) != "limpet-bridge" || c.CleanStart || !c.Will {
			t.Errorf("%v: %+v", v, c)
		}
	}
}
