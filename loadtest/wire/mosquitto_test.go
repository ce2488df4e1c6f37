package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestMosquitto says CONNECT and hears CONNACK through the WebSocket library that most brokers of small sites have (libwebsockets).
func TestMosquitto(t *testing.T) {
	program, err := exec.LookPath("mosquitto")
	if err != nil {
		program = "/usr/sbin/mosquitto" // Debian's place, which is not on everybody's path
		if _, err := os.Stat(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal("mosquitto is not installed")
			}
			t.Skip("mosquitto is not installed")
		}
	}
	l := listen(t)
	ep := endpoint(t, WS, l.Addr().(*net.TCPAddr).AddrPort())
	second := listen(t)
	other := endpoint(t, TCP, second.Addr().(*net.TCPAddr).AddrPort())
	_, _ = l.Close(), second.Close()
	file := filepath.Join(t.TempDir(), "mosquitto.conf")
	// Mosquitto 2.0.11 ends at once if all its listeners are WebSocket's: the first is for nobody.
	conf := fmt.Sprintf("listener %d 127.0.0.1\nlistener %d 127.0.0.1\nprotocol websockets\nallow_anonymous true\npersistence false\n", other.Port, ep.Port)
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	broker := exec.Command(program, "-c", file)
	var said bytes.Buffer
	broker.Stdout, broker.Stderr = &said, &said
	if err := broker.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = broker.Process.Kill()
		_ = broker.Wait()
		if t.Failed() {
			t.Logf("mosquitto said:\n%s", &said)
		}
	})

	d := newDialer(t, Config{Linger: time.Second})
	var c Conn
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if c, err = d.Dial(t.Context(), ep); err == nil {
			break
		}
		if !errors.Is(err, ErrRefused) || time.Now().After(deadline) {
			t.Fatalf("mosquitto does not answer: %v", err)
		}
	}
	defer c.Abort()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	for _, exchange := range [][2]string{
		{"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03abc", "\x20\x02\x00\x00"}, // CONNECT, CONNACK
		{"\xc0\x00", "\xd0\x00"}, // PINGREQ, PINGRESP
	} {
		if _, err := c.Write([]byte(exchange[0])); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(exchange[1]))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != exchange[1] {
			t.Fatalf("%x for %x, %v", got, exchange[0], err)
		}
	}
	if _, err := c.Write([]byte("\xe0\x00")); err != nil { // DISCONNECT
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); Reason(err) != "closed" {
		t.Errorf("after DISCONNECT: %v (%s), want closed", err, Reason(err))
	}
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}

	plain := *ep
	plain.Transport, plain.Host = WSS, "localhost"
	failure(t, d, &plain, StageHandshake, ErrTLS)
}
