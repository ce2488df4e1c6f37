package client

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/hooks/auth"

	"github.com/limpet-mesh/limpet/loadtest/internal/mochitest"
	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// brokers start the real ones; each returns where it listens.
var brokers = map[string]func(t *testing.T) netip.AddrPort{"mochi": startMochi, "mosquitto": startMosquitto}

func startMochi(t *testing.T) netip.AddrPort {
	t.Helper()
	_, at := mochitest.Start(t, new(auth.AllowHook))
	return at
}

func startMosquitto(t *testing.T) netip.AddrPort {
	t.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		if path = "/usr/sbin/mosquitto"; !exists(path) {
			if os.Getenv("CI") == "true" {
				t.Fatal("mosquitto is not installed")
			}
			t.Skip("mosquitto is not installed")
		}
	}
	at := refusing(t) // a port that was free just now
	conf := filepath.Join(t.TempDir(), "mosquitto.conf")
	text := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\npersistence false\n", at.Port())
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			c.Close()
			return at
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestRealBrokers: a session on brokers that others wrote.
func TestRealBrokers(t *testing.T) {
	for name, start := range brokers {
		for _, d := range drivers[:2] {
			for _, v := range []mqtt.Version{mqtt.V31, mqtt.V311, mqtt.V5} {
				t.Run(fmt.Sprintf("%s/%s/MQTT %v", name, d.name, v), func(t *testing.T) {
					t.Parallel()
					ep := &wire.Endpoint{Addr: start(t)} // ends after its clients
					e, _ := startEngine(t, Config{Dialer: newDialer(t, wire.Config{}), Loops: d.loops})
					con := &mqtt.Connect{Version: v, ID: "sub", KeepAlive: 60, Expiry: 100}
					told := make(recorder, 100)
					sub, pub := &Client{Handler: told}, &Client{Handler: make(recorder, 100)}
					open := func(c *Client, con *mqtt.Connect, present bool) {
						t.Helper()
						if err := e.Open(c, ep, con); err != nil {
							t.Fatal(err)
						}
						if v != mqtt.V31 { // whose CONNACK does not say
							c.Handler.(recorder).expect(t, fmt.Sprintf("connack %v", present))
						} else if got := <-c.Handler.(recorder); got != "connack true" && got != "connack false" {
							t.Fatal(got)
						}
					}
					open(sub, con, false)
					if err := sub.Subscribe(1, "a/+", 2); err != nil {
						t.Fatal(err)
					}
					told.expect(t, "acked 1 0x02")
					open(pub, &mqtt.Connect{Version: v, ID: "pub", Clean: true}, false)
					publish := func(token uint64, payload string, qos byte) {
						t.Helper()
						if err := pub.Publish(token, []byte("a/b"), []byte(payload), qos, false); err != nil {
							t.Fatal(err)
						}
						if qos > 0 {
							pub.Handler.(recorder).expect(t, fmt.Sprintf("acked %d 0x00", token))
						}
					}
					for qos := range byte(3) {
						publish(7, "online", qos)
						told.expect(t, fmt.Sprintf("publish a/b online %d", qos))
					}

					// Behind the first answer comes our PUBCOMP, behind the second the broker has it: nothing is left to be sent again.
					for range 2 {
						if err := sub.Subscribe(2, "c", 0); err != nil {
							t.Fatal(err)
						}
						if got := <-told; !strings.HasPrefix(got, "acked 2 ") { // mochi refuses an ID that it uses itself
							t.Fatalf("told %q", got)
						}
					}

					// Away for a while: what is sent meanwhile comes with the session.
					sub.Disconnect(nil)
					told.expect(t, "closed session: disconnect")
					publish(8, "offline", 1)
					open(sub, con, true)
					if got := <-told; !strings.HasPrefix(got, "publish a/b offline 1") { // DUP if it was sent before the DISCONNECT came
						t.Errorf("told %q", got)
					}

					// Somebody else takes the session over.
					other := &Client{Handler: make(recorder, 100)}
					open(other, con, true)
					// mochi says so, also to clients of MQTT 3, for whom that packet does not exist; mosquitto 2.0.11 just closes.
					if got := <-told; got != "closed session: closed" && got != "closed session: reset" && !strings.HasPrefix(got, "closed session: disconnected") {
						t.Errorf("told %q", got)
					}
					if err := other.Unsubscribe(3, "a/+"); err != nil {
						t.Fatal(err)
					}
					got := <-other.Handler.(recorder)
					if strings.HasPrefix(got, "publish a/b offline 1") { // its PUBACK had not come before the takeover
						got = <-other.Handler.(recorder)
					}
					if got != "acked 3 0x00" {
						t.Errorf("told %q", got)
					}
				})
			}
		}
	}
}

// TestRefusedCredentials: a real broker's refusal, in each version's words.
func TestRefusedCredentials(t *testing.T) {
	_, at := mochitest.Start(t) // no hook: nobody may connect
	for v, code := range map[mqtt.Version]string{mqtt.V311: "0x05", mqtt.V5: "0x86"} {
		r := newRig(t, drivers[0], Config{}, wire.Config{})
		r.con = mqtt.Connect{Version: v, ID: "x", User: "u", HasUser: true, Clean: true}
		r.ep.Addr = at
		r.open()
		r.told.expect(t, "closed connack: refusal "+code)
	}
}
