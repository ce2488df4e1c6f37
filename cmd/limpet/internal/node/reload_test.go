package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/edge/config"
	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// reloading is an edge whose certificates change: pairs NAME.pem and NAME.key in dir, by the name of their listener.
type reloading struct {
	*testing.T
	dir     string
	at      Addresses
	hangups chan os.Signal

	mu   sync.Mutex
	log  bytes.Buffer
	read int // of the log
}

func (r *reloading) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

// startReloading starts an edge with a listener of each kind that has certificates, and one that has none.
func startReloading(t *testing.T, records config.TLSRecords) *reloading {
	r := &reloading{T: t, dir: t.TempDir(), hangups: make(chan os.Signal, 1)}
	text := "mesh: m\nid: e\nstore: none\nmesh_file: mesh.yaml\nadmin: {address: '127.0.0.1:0'}\nshutdown: {grace: 3s}\ntls_records: " + string(records) +
		"\nlisteners:\n- {type: tcp, address: '127.0.0.1:0'}\n"
	for _, name := range []string{"tls", "wss", "quic"} {
		r.renew(name)
		text += fmt.Sprintf("- {type: %s, address: '127.0.0.1:0', tls: {certificates: [{cert: %[1]s.pem, key: %[1]s.key}]}}\n", name)
	}
	r.renew("mutual")
	r.renew("devices")
	text += "- {name: mutual, type: tls, address: '127.0.0.1:0', tls: {certificates: [{cert: mutual.pem, key: mutual.key}], client_ca: devices.pem, client_auth: require}}\n"
	r.put("edge.yaml", text)
	r.put("mesh.yaml", fmt.Sprintf("mesh: m\npools: [{name: default, probe: {type: none}, brokers: [{id: b, address: %q}]}]\n", serveMQTT(t)))
	conf, err := config.LoadEdge(filepath.Join(r.dir, "edge.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	r.at, _ = startWith(t, conf, Options{Log: zerolog.New(r), Hangups: r.hangups})
	return r
}

func (r *reloading) put(name, text string) {
	r.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
		r.Fatal(err)
	}
}

func (r *reloading) renew(name string) { certificate(r.T, r.dir, name, time.Now().AddDate(0, 6, 0)) }

func (r *reloading) pair(name string) tls.Certificate {
	r.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(r.dir, name+".pem"), filepath.Join(r.dir, name+".key"))
	if err != nil {
		r.Fatal(err)
	}
	return pair
}

// said is a line of the log.
type said struct {
	Level, Message, Error, Listener string
	Reloaded                        []string
}

// hangup sends one, and returns what is said up to the line that ends a reload.
func (r *reloading) hangup() (lines []said) {
	r.Helper()
	r.hangups <- syscall.SIGHUP
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		r.mu.Lock()
		text := slices.Clone(r.log.Bytes()[r.read:])
		r.mu.Unlock()
		for {
			line, rest, whole := bytes.Cut(text, []byte("\n"))
			if !whole {
				break
			}
			r.read += len(line) + 1
			text = rest
			var s said
			if err := json.Unmarshal(line, &s); err != nil {
				r.Fatalf("%s: %v", line, err)
			}
			if s.Message == "closed" || s.Message == "rejected before MQTT" {
				continue
			}
			lines = append(lines, s)
			if s.Level == "info" && strings.HasPrefix(s.Message, "SIGHUP: ") {
				return lines
			}
		}
		if time.Now().After(end) {
			r.Fatalf("a SIGHUP is not answered; the log has %+v", lines)
		}
	}
}

// dial shakes hands with a listener, showing some certificate.
func (r *reloading) dial(name, device string) *tls.Conn {
	r.Helper()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	if device != "" {
		pair := r.pair(device)
		d.Config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", r.at.Listeners[name])
	if err != nil {
		r.Fatalf("%s: %v", name, err)
	}
	r.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(3 * patience))
	return c.(*tls.Conn)
}

// shown is the certificate that a newcomer at a listener sees.
func (r *reloading) shown(name string) []byte {
	r.Helper()
	if name != "quic" {
		c := r.dial(name, "")
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Raw
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	c, err := quic.DialAddr(ctx, r.at.Listeners[name], &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"mqtt"}}, nil)
	if err != nil {
		r.Fatal(err)
	}
	defer c.CloseWithError(0, "")
	return c.ConnectionState().TLS.PeerCertificates[0].Raw
}

// shows expects that newcomers see what is in the files, but for some that keep what they had.
func (r *reloading) shows(when string, kept map[string][]byte) {
	r.Helper()
	for _, name := range []string{"tls", "wss", "quic", "mutual"} {
		want, is := kept[name]
		if !is {
			want = r.pair(name).Certificate[0]
		}
		if name == "mutual" {
			c := r.dial(name, "devices")
			if !bytes.Equal(c.ConnectionState().PeerCertificates[0].Raw, want) {
				r.Errorf("%s, %s: another certificate", when, name)
			}
			c.Close()
		} else if !bytes.Equal(r.shown(name), want) {
			r.Errorf("%s, %s: another certificate", when, name)
		}
	}
}

// SIGHUP has the TLS files of all listeners read again. What lives goes on, what cannot be used changes nothing and is told.
func TestReload(t *testing.T) {
	for _, records := range []config.TLSRecords{config.TLSRecordsStdlib, config.TLSRecordsLimpet} {
		t.Run(string(records), func(t *testing.T) {
			r := startReloading(t, records)
			r.shows("at the start", nil)
			connect := func(name, device string) (*tls.Conn, error) {
				c := r.dial(name, device)
				c.Write(mqtt.AppendConnect(nil, &mqtt.Connect{Version: mqtt.V311, ClientID: []byte(name + device), CleanStart: true}))
				_, err := io.ReadFull(c, make([]byte, 4))
				return c, err
			}
			live, err := connect("tls", "")
			if err != nil {
				t.Fatal(err)
			}
			goesOn := func() {
				t.Helper()
				ping, pong := "\x30\x04\x00\x01t.", make([]byte, 6) // PUBLISH
				if _, err := io.WriteString(live, ping); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(live, pong); err != nil || string(pong) != ping {
					t.Fatalf("a client that was there: %q, %v", pong, err)
				}
			}
			goesOn()

			for range 2 {
				for _, name := range []string{"tls", "wss", "quic", "mutual"} {
					r.renew(name)
				}
				lines := r.hangup()
				last := lines[len(lines)-1]
				if !slices.Equal(last.Reloaded, []string{"tls", "wss", "quic", "mutual"}) || !strings.Contains(last.Message, "the rest of the configuration is not read again") {
					t.Errorf("said %+v", last)
				}
				for _, s := range lines {
					if strings.Contains(s.Message, "SIGHUP") && s.Level != "info" || strings.Contains(s.Message, "attention") {
						t.Errorf("said %+v", s)
					}
				}
				r.shows("after a reload", nil)
				goesOn()
			}

			// Half a file, and a key that belongs to another certificate.
			kept := map[string][]byte{"wss": r.pair("wss").Certificate[0], "quic": r.pair("quic").Certificate[0]}
			r.renew("tls")
			r.put("wss.pem", "-----BEGIN CERT")
			wrong, err := os.ReadFile(filepath.Join(r.dir, "tls.key"))
			if err != nil {
				t.Fatal(err)
			}
			r.put("quic.key", string(wrong))
			told := map[string]string{}
			lines := r.hangup()
			for _, s := range lines {
				if s.Level == "warn" {
					told[s.Listener] += s.Error
				}
			}
			if len(told) != 2 || !strings.Contains(told["wss"], "edge.yaml:11:") || !strings.Contains(told["wss"], "wss.pem: expected a certificate") || !strings.Contains(told["quic"], "quic.key does not belong to the certificate in") {
				t.Errorf("warned of %q", told)
			}
			if last := lines[len(lines)-1]; !slices.Equal(last.Reloaded, []string{"tls", "mutual"}) {
				t.Errorf("said %+v", last)
			}
			r.shows("with broken files", kept)
			goesOn()

			// Mended, with another authority of clients, and one certificate that has expired: that is shown, and told.
			r.renew("wss")
			certificate(t, r.dir, "quic", time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC))
			former, err := connect("mutual", "devices")
			if err != nil {
				t.Fatal(err)
			}
			for _, end := range []string{".pem", ".key"} {
				if err := os.Rename(filepath.Join(r.dir, "devices"+end), filepath.Join(r.dir, "former"+end)); err != nil {
					t.Fatal(err)
				}
			}
			r.renew("devices")
			expired := false
			for _, s := range r.hangup() {
				if s.Level == "warn" {
					expired = strings.Contains(s.Message, "attention") && strings.Contains(s.Error, "quic.pem: expired on 2020-01-02T03:04:05Z")
					if !expired {
						t.Errorf("warned of %+v", s)
					}
				}
			}
			if !expired {
				t.Error("nothing is said of a certificate that has expired")
			}
			r.shows("when all is mended", nil)
			goesOn()
			if _, err := connect("mutual", "former"); err == nil {
				t.Error("a client of the former authority is accepted")
			}
			if _, err := connect("mutual", "devices"); err != nil {
				t.Errorf("a client of the new authority: %v", err)
			}
			if _, err := former.Write([]byte{0x30, 0x03, 0x00, 0x01, 't'}); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(former, make([]byte, 5)); err != nil {
				t.Errorf("a client of the former authority that was there: %v", err)
			}
		})
	}
}

// Without certificates a reload has nothing to do, and says so.
func TestReloadOfNothing(t *testing.T) {
	mesh := write(t, "mesh.yaml", "mesh: test\npools: [{name: default, brokers: [{id: b, address: '127.0.0.1:1'}]}]\n")
	r := &reloading{T: t, hangups: make(chan os.Signal, 1)}
	_, stop := startWith(t, load(t, "store: none\nmesh_file: "+mesh, ""), Options{Log: zerolog.New(r), Hangups: r.hangups})
	for range 2 {
		if lines := r.hangup(); !strings.Contains(lines[len(lines)-1].Message, "no listener has certificates") {
			t.Errorf("said %+v", lines)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
