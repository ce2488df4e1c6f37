package cli

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParsePeers(t *testing.T) {
	got, err := parsePeers([]string{"b2=127.0.0.1:22002", "b3=[::1]:22003"})
	if err != nil || len(got) != 2 || got["b2"] != "127.0.0.1:22002" || got["b3"] != "[::1]:22003" {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range [][]string{{"b2"}, {"=x"}, {"b2="}, {"b2=x", "b2=y"}} {
		if _, err := parsePeers(bad); err == nil || !strings.Contains(err.Error(), "--peer") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestDemoBrokerRefuses(t *testing.T) {
	for want, args := range map[string][]string{
		"no address":     {"--name", "b1"},
		"name":           {"--listen", "127.0.0.1:0"},
		"want NAME=":     {"--name", "b1", "--listen", "127.0.0.1:0", "--peer", "b2"},
		"--log-level":    {"--name", "b1", "--listen", "127.0.0.1:0", "--log-level", "loud"},
		"unknown flag":   {"--nmae", "b1"},
		"for their link": {"--name", "b1", "--listen", "127.0.0.1:0", "--peer", "b2=127.0.0.1:1"},
	} {
		cmd := demoBrokerCommand()
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		cmd.SetErr(new(bytes.Buffer))
		cmd.SetArgs(args)
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", args, err, want)
		}
	}
}

// The verb, as a process: says where it is when it is ready, serves, and ends in order on SIGTERM.
func TestDemoBrokerVerb(t *testing.T) {
	const env = "LIMPET_TEST_DEMO_BROKER_READY"
	if ready := os.Getenv(env); ready != "" { // this is the process
		cmd := demoBrokerCommand()
		cmd.SetArgs([]string{"--name", "b1", "--listen", "127.0.0.1:0", "--link-listen", "127.0.0.1:0", "--ready-file", ready})
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Error(err)
		}
		return
	}
	ready := filepath.Join(t.TempDir(), "ready")
	process := exec.Command(os.Args[0], "-test.run=^TestDemoBrokerVerb$")
	process.Env = append(os.Environ(), env+"="+ready)
	var output bytes.Buffer
	process.Stdout, process.Stderr = &output, &output
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = process.Process.Kill() }() // has ended, unless the test failed

	var data []byte
	for deadline := time.Now().Add(30 * time.Second); ; {
		var err error
		if data, err = os.ReadFile(ready); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond)
	}
	var said demoBrokerReady
	if err := json.Unmarshal(data, &said); err != nil || said.Name != "b1" || said.Link == "" || said.PID != process.Process.Pid {
		t.Fatalf("%s: %v", data, err)
	}
	conn, err := net.Dial("tcp", said.MQTT)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01c")); err != nil {
		t.Fatal(err)
	}
	var connack [4]byte
	if _, err := conn.Read(connack[:]); err != nil || connack != [4]byte{0x20, 2, 0, 0} {
		t.Fatalf("%x, %v", connack, err)
	}
	if err := process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := process.Wait(); err != nil {
		t.Errorf("%v\n%s", err, &output)
	}
}
