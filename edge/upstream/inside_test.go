package upstream

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/limpet-mesh/limpet/edge/tls13"
)

// pieces is a connection from which data comes in reads of such sizes, over and over.
type pieces struct {
	net.Conn
	data, sizes []byte
	turn        int
}

func (c *pieces) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.ErrClosedPipe
	}
	n := len(c.data)
	if len(c.sizes) > 0 {
		n = min(n, 1+int(c.sizes[c.turn%len(c.sizes)])*8)
		c.turn++
	}
	n = copy(p, c.data[:n])
	c.data = c.data[n:]
	return n, nil
}

func (c *pieces) Write(p []byte) (int, error) { return len(p), nil }

// However records are torn, what is inside of them is read in order and once; where one is damaged, nothing of it is.
func FuzzInside(f *testing.F) {
	f.Add(0, uint16(0), []byte{}, 0)
	f.Add(400, uint16(100), []byte{0}, 0)
	f.Add(40_000, uint16(16_000), []byte{255, 3, 0}, 0)
	f.Add(40_000, uint16(5000), []byte{200, 1}, 21_000)
	secret := bytes.Repeat([]byte{1}, 32)
	records := func(t *testing.T, client bool) *tls13.Records {
		r, err := tls13.New(tls13.Secrets{Suite: tls.TLS_AES_128_GCM_SHA256, Client: client, Read: secret, Write: secret})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	f.Fuzz(func(t *testing.T, size int, step uint16, sizes []byte, damage int) {
		payload := make([]byte, min(max(size, 0), 100_000))
		for i := range payload {
			payload[i] = byte(i % 251)
		}
		broker := records(t, false)
		var wire []byte
		for p := payload; len(p) > 0; {
			n := min(int(step)+1, len(p))
			wire, p = broker.Seal(wire, p[:n]), p[n:]
		}
		end := error(io.ErrClosedPipe)
		if step%2 == 0 {
			wire, end = broker.End(wire), io.EOF
		}
		if damage = min(damage, len(wire)-1); damage > 0 {
			wire[damage] ^= 1
		}
		c := &inside{conn: &pieces{data: wire, sizes: sizes}, layer: records(t, true)}
		var got []byte
		var err error
		for err == nil {
			p := make([]byte, 700)
			var n int
			n, err = c.Read(p)
			got = append(got, p[:n]...)
		}
		if damage > 0 {
			if !bytes.HasPrefix(payload, got) || len(got) > damage || err == io.EOF {
				t.Fatalf("%d bytes of %d, byte %d of the wire being damaged: %v", len(got), len(payload), damage, err)
			}
			return
		}
		if !bytes.Equal(got, payload) || err != end || len(c.rest) > 0 {
			t.Fatalf("%d bytes of %d came out, or others; %v, want %v; rest %d", len(got), len(payload), err, end, len(c.rest))
		}
	})
}
