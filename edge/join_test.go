package edge

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/tls13"
	"github.com/limpet-mesh/limpet/edge/upstream"
	"github.com/limpet-mesh/limpet/registry"
)

// brokerCertificate is a certificate for 127.0.0.1, and the file of the authority behind it: itself.
func brokerCertificate(t *testing.T) (pair tls.Certificate, file string) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

// mirror is a broker that accepts everybody and sends back all that follows, until its client ends.
func mirror(t *testing.T, c net.Conn, ended chan<- error) {
	c.SetDeadline(time.Now().Add(patience))
	k := &mqtt.Connect{Version: mqtt.V311}
	connect := make([]byte, len(mqtt.AppendConnect(nil, persistent("x"))))
	if _, err := io.ReadFull(c, connect); err != nil {
		t.Errorf("CONNECT: %v", err)
		return
	}
	c.Write(mqtt.AppendConnack(nil, k.Version, false, 0))
	_, err := io.Copy(c, c)
	ended <- err
}

// TestBrokersBehindLayers sends a client's packets through the edge to brokers over TLS and WebSocket, and back.
func TestBrokersBehindLayers(t *testing.T) {
	for name, c := range map[string]struct {
		over    registry.Transport
		policy  tls13.Policy
		version uint16
	}{
		"tls 1.2":              {registry.TransportTLS, tls13.Own, tls.VersionTLS12},
		"tls 1.3":              {registry.TransportTLS, tls13.Crypto, tls.VersionTLS13},
		"tls 1.3, own records": {registry.TransportTLS, tls13.Own, tls.VersionTLS13},
		"ws":                   {registry.TransportWS, tls13.Crypto, 0},
		"wss":                  {registry.TransportWSS, tls13.Crypto, tls.VersionTLS13},
		"wss, own records":     {registry.TransportWSS, tls13.Own, tls.VersionTLS13},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pair, ca := brokerCertificate(t)
			ended := make(chan error, 1)
			var wg sync.WaitGroup
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"mqtt"}})
				if err != nil {
					t.Errorf("upgrade: %v", err)
					return
				}
				defer ws.CloseNow()
				ctx, cancel := context.WithTimeout(r.Context(), patience)
				defer cancel()
				ws.SetReadLimit(-1)
				mirror(t, websocket.NetConn(ctx, ws, websocket.MessageBinary), ended)
			}))
			b := registry.Broker{ID: "b", Address: server.Listener.Addr().String(), Transport: c.over}
			if c.over != registry.TransportWS {
				b.TLS.CA = ca
				server.Listener = tls.NewListener(server.Listener, &tls.Config{Certificates: []tls.Certificate{pair}, MaxVersion: c.version})
			}
			if c.over == registry.TransportTLS {
				wg.Go(func() {
					conn, err := server.Listener.Accept()
					if err != nil {
						return
					}
					defer conn.Close()
					mirror(t, conn, ended)
				})
			} else {
				server.Start()
			}
			t.Cleanup(func() {
				server.Close()
				wg.Wait()
			})

			m := newMesh(t, "b1")
			e := m.edge("e1", func(conf *Config, _ *Listener) {
				conf.Dialer = upstream.NewDialer(upstream.DialerConfig{Resolver: conf.Resolver, TLSRecords: c.policy})
			})
			m.pool.Brokers = []registry.Broker{b}
			m.putPool(e.State().Pools["default"].Revision)
			eventually(t, "the broker is known", func() (bool, any) {
				p := e.State().Pools["default"]
				return p.Brokers[0].ID == "b", p
			})
			s, ack := e.connect(persistent("x"))
			if ack.Code != 0 {
				t.Fatalf("CONNACK %#x\n%s", ack.Code, e.log)
			}
			var sent []byte
			for _, size := range []int{1, 100, 20_000, 1, 300_000, 5} { // payload of PUBLISH packets with QoS 0
				body := append([]byte("\x00\x01t"), strings.Repeat("x", size)...)
				sent = append(binary.AppendUvarint(append(sent, 0x30), uint64(len(body))), body...)
			}
			written := make(chan error, 1)
			go func() {
				_, err := s.Write(sent)
				written <- err
			}()
			got := make([]byte, len(sent))
			s.SetReadDeadline(time.Now().Add(patience))
			if n, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("%d bytes of %d came back, or others: %v\n%s", n, len(sent), err, e.log)
			}
			if err := <-written; err != nil {
				t.Error(err)
			}
			s.Write([]byte{0xe0, 0}) // DISCONNECT
			s.Close()
			select {
			case err := <-ended:
				if errors.Is(err, io.ErrUnexpectedEOF) {
					t.Error("the broker was not told the end of its TLS connection or WebSocket")
				}
			case <-time.After(patience):
				t.Errorf("the broker still has the client\n%s", e.log)
			}
		})
	}
}
