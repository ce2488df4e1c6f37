package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/ws"
	"github.com/limpet-mesh/limpet/registry"
)

// echo sends back what it reads.
func echo(c net.Conn) {
	io.Copy(c, c)
	c.(interface{ CloseWrite() error }).CloseWrite()
}

// exchange writes through s, in pieces of several sizes, and expects every byte back; then half-closes and expects the end.
func exchange(t *testing.T, s relay.Stream) {
	t.Helper()
	deadline := time.Now().Add(patience)
	if err := errors.Join(s.SetReadDeadline(deadline), s.SetWriteDeadline(deadline)); err != nil {
		t.Fatal(err)
	}
	var sent []byte
	for i, n := range []int{1, 2, 125, 126, 127, 4096, ws.MaxSealed - ws.MaxHeader, ws.MaxSealed, 65535, 65536, 200_000} {
		sent = append(sent, bytes.Repeat([]byte{byte('a' + i)}, n)...)
	}
	written := make(chan error, 1)
	go func() {
		rest := sent
		for n := 1; len(rest) > 0; n = n*3 + 1 {
			k := min(n, len(rest))
			if wrote, err := s.Write(rest[:k]); err != nil || wrote != k {
				written <- errors.Join(err, errors.New("short write"))
				return
			}
			rest = rest[k:]
		}
		written <- s.CloseWrite()
	}()
	got, err := io.ReadAll(s)
	if err != nil {
		t.Errorf("read: %v after %d of %d bytes", err, len(got), len(sent))
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back for %d, or others", len(got), len(sent))
	}
	if err := <-written; err != nil {
		t.Errorf("write: %v", err)
	}
}

func TestDialTCP(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		address := serve(t, host+":0", echo)
		s, err := newDialer(t, nil).Dial(within(t, patience), tcpBroker(address), nil)
		if err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		exchange(t, s)
		s.Close()
	}
}

// A dial without a deadline has one all the same.
func TestDialWithoutDeadline(t *testing.T) {
	d := newDialer(t, nil)
	d.connect = func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		end, ok := ctx.Deadline()
		if left := time.Until(end); !ok || left > registry.DefaultDialTimeout {
			t.Errorf("deadline %v (%v)", left, ok)
		}
		return nil, syscall.ECONNREFUSED
	}
	if _, err := d.Dial(context.Background(), tcpBroker("192.0.2.1:1883"), nil); !Refused(err) {
		t.Error(err)
	}
}

func TestSocketOptions(t *testing.T) {
	address := serve(t, "127.0.0.1:0", echo)
	c, err := connectTCP(within(t, patience), netip.MustParseAddrPort(address))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		for name, o := range map[string][2]int{
			"TCP_NODELAY":  {syscall.IPPROTO_TCP, syscall.TCP_NODELAY},
			"SO_KEEPALIVE": {syscall.SOL_SOCKET, syscall.SO_KEEPALIVE},
		} {
			if v, err := syscall.GetsockoptInt(int(fd), o[0], o[1]); err != nil || v == 0 {
				t.Errorf("%s is %d (%v), want it on", name, v, err)
			}
		}
		checkTimers(t, int(fd))
	})
}

// The header and the first packet arrive in one piece: one segment, as one read shows.
func TestHeaderLeavesWithFirstWrite(t *testing.T) {
	first := make(chan string, 1)
	address := serve(t, "127.0.0.1:0", func(c net.Conn) {
		b := make([]byte, 4096)
		n, _ := c.Read(b)
		first <- string(b[:n])
		io.Copy(io.Discard, c)
	})
	d := newDialer(t, nil)
	for range 20 { // two segments could be read as one now and then
		header := []byte("PROXY UNKNOWN\r\n")
		s, err := d.Dial(within(t, patience), tcpBroker(address), header)
		if err != nil {
			t.Fatal(err)
		}
		copy(header, "scratched here.") // the caller's buffer is its own again
		if n, err := s.Write([]byte("CONNECT")); n != 7 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		if got := <-first; got != "PROXY UNKNOWN\r\nCONNECT" {
			t.Errorf("the first read brought %q", got)
		}
		if n, err := s.Write([]byte("more")); n != 4 || err != nil {
			t.Errorf("the second write: %d, %v", n, err)
		}
		s.Close()
	}
}

func TestHeaderLeavesWithCloseWrite(t *testing.T) {
	all := make(chan string, 1)
	address := serve(t, "127.0.0.1:0", func(c net.Conn) {
		b, _ := io.ReadAll(c)
		all <- string(b)
	})
	s, err := newDialer(t, nil).Dial(within(t, patience), tcpBroker(address), []byte("PROXY UNKNOWN\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := <-all; got != "PROXY UNKNOWN\r\n" {
		t.Errorf("the broker read %q", got)
	}
}

// shortWriter takes as many bytes as it is told, then fails.
type shortWriter struct {
	net.Conn
	took []byte
	room int
}

func (w *shortWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.room)
	w.took, w.room = append(w.took, p[:n]...), w.room-n
	if n < len(p) {
		return n, os.ErrDeadlineExceeded
	}
	return n, nil
}

func TestHeaderSurvivesShortWrites(t *testing.T) {
	for room := range 12 {
		w := &shortWriter{room: room}
		c := &prefixed{Conn: w, prefix: []byte("HEADER")}
		n, err := c.Write([]byte("data"))
		if want := max(0, min(room-6, 4)); n != want || (err == nil) != (n == 4) {
			t.Errorf("room %d: wrote %d, %v; want %d", room, n, err, want)
		}
		w.room = 100
		if _, err := c.Write([]byte("data")[n:]); err != nil || string(w.took) != "HEADERdata" {
			t.Errorf("room %d: in all %q, %v", room, w.took, err)
		}
	}
}

// Of the two addresses only one answers.
func TestDialTriesEveryAddress(t *testing.T) {
	address := serve(t, "127.0.0.1:0", echo)
	_, port, _ := net.SplitHostPort(address)
	dns := &fakeDNS{}
	dns.set("mq.example", "::1", "127.0.0.1")
	d := newDialer(t, dns)
	for range 20 { // whichever comes first
		s, err := d.Dial(within(t, patience), tcpBroker("mq.example:"+port), nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
}

// An address that swallows everything leaves time for the next one.
func TestDialSharesItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		dns.set("mq.example", "192.0.2.1", "192.0.2.2", "192.0.2.3")
		d := newDialer(t, dns)
		here, there := net.Pipe()
		defer there.Close()
		var tried []string
		d.connect = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			tried = append(tried, addr.Addr().String())
			if len(tried) < 3 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return pipeConn{here}, nil
		}
		start := time.Now()
		s, err := d.Dial(within(t, 3*time.Second), tcpBroker("mq.example:1883"), nil)
		if err != nil {
			t.Fatalf("%v, tried %v", err, tried)
		}
		s.Close()
		slices.Sort(tried)
		if want := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}; !slices.Equal(tried, want) {
			t.Errorf("tried %v, want each once", tried)
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("two dead addresses took %v of 3 s, want a third each", took)
		}
	})
}

// The deadline of the dial does not outlive it.
func TestDialDeadlineEndsWithTheDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		d := newDialer(t, nil)
		d.connect = func(context.Context, netip.AddrPort) (net.Conn, error) { return pipeConn{here}, nil }
		broker := make(chan error, 1)
		go func() {
			r := bufio.NewReader(there)
			io.WriteString(there, strings.ReplaceAll(goodUpgrade, "{accept}", acceptKey(readRequest(r))))
			time.Sleep(time.Hour)
			_, err := io.WriteString(there, frame(finBinary, "late"))
			broker <- errors.Join(err, there.Close())
		}()
		s, err := d.Dial(within(t, time.Second), wsBroker("192.0.2.1:8083"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(s); string(got) != "late" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		s.Close()
		if err := <-broker; err != nil {
			t.Error(err)
		}
	})
}

// pipeConn is a net.Pipe that can be a Stream.
type pipeConn struct{ net.Conn }

func (pipeConn) CloseWrite() error { return nil }

func TestDialBeginsAnywhere(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("mq.example", "192.0.2.1", "192.0.2.2", "192.0.2.3")
	d := newDialer(t, dns)
	first := make(map[netip.AddrPort]int)
	d.connect = func(_ context.Context, addr netip.AddrPort) (net.Conn, error) {
		first[addr]++
		here, there := net.Pipe()
		there.Close()
		return pipeConn{here}, nil
	}
	for range 300 {
		s, err := d.Dial(within(t, patience), tcpBroker("mq.example:1883"), nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	if len(first) != 3 {
		t.Errorf("%d addresses came first, want each of the 3 now and then: %v", len(first), first)
	}
}

func TestRefused(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		address := closedPort(t, host)
		_, err := newDialer(t, nil).Dial(within(t, patience), tcpBroker(address), nil)
		if !Refused(err) || Reason(err) != ReasonRefused || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v (reason %s)", host, err, Reason(err))
		}
		if !strings.Contains(err.Error(), "b1") || !strings.Contains(err.Error(), address) {
			t.Errorf("%q names neither broker nor address", err)
		}
	}
}

// A listener whose accept queue is full leaves connects unanswered: that is no refusal.
func TestTimeoutIsNotRefusal(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(
		syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
		syscall.Listen(fd, 0),
	); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*syscall.SockaddrInet4).Port)).String()
	d := newDialer(t, nil)
	for range 100 { // as many as the queue takes, then one that must wait
		s, err := d.Dial(within(t, 200*time.Millisecond), tcpBroker(address), nil)
		if err == nil {
			defer s.Close()
			continue
		}
		if Refused(err) || Reason(err) != ReasonTimeout {
			t.Errorf("%v (reason %s), want a timeout", err, Reason(err))
		}
		return
	}
	t.Error("100 connections fit into a queue of none")
}

func TestDialCanceled(t *testing.T) {
	d := newDialer(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	d.connect = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
		cancel()
		<-ctx.Done()
		return connectTCP(ctx, addr)
	}
	_, err := d.Dial(ctx, tcpBroker("127.0.0.1:1883"), nil)
	if Reason(err) != ReasonCanceled || Refused(err) {
		t.Errorf("%v (reason %s)", err, Reason(err))
	}
}

func TestReasonOfSeveralAddresses(t *testing.T) {
	type answers map[string]error
	for _, c := range []struct {
		name    string
		answers answers
		want    string
	}{
		{"all refused", answers{"192.0.2.1": syscall.ECONNREFUSED, "192.0.2.2": syscall.ECONNREFUSED}, ReasonRefused},
		{"one is silent", answers{"192.0.2.1": syscall.ECONNREFUSED, "192.0.2.2": syscall.ETIMEDOUT}, ReasonTimeout},
		{"one host is away", answers{"192.0.2.1": syscall.ECONNREFUSED, "192.0.2.2": syscall.EHOSTUNREACH}, ReasonUnreachable},
		{"no IPv6 here", answers{"192.0.2.1": syscall.ECONNREFUSED, "2001:db8::1": syscall.ENETUNREACH}, ReasonRefused},
		{"no IPv6 here at all", answers{"192.0.2.1": syscall.ECONNREFUSED, "2001:db8::1": syscall.EAFNOSUPPORT}, ReasonRefused},
		{"no network", answers{"192.0.2.1": syscall.ENETUNREACH, "2001:db8::1": syscall.ENETUNREACH}, ReasonUnreachable},
		{"out of descriptors", answers{"192.0.2.1": syscall.EMFILE, "192.0.2.2": syscall.ECONNREFUSED}, ReasonLocal},
		{"a fault unknown", answers{"192.0.2.1": syscall.EPROTO, "192.0.2.2": syscall.ECONNREFUSED}, ReasonOther},
	} {
		dns := &fakeDNS{}
		for ip := range c.answers {
			dns.set("mq.example", append(ipsOf(dns), ip)...)
		}
		d := newDialer(t, dns)
		d.connect = func(_ context.Context, addr netip.AddrPort) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", c.answers[addr.Addr().String()])}
		}
		for range 10 { // in both orders
			_, err := d.Dial(within(t, patience), tcpBroker("mq.example:1883"), nil)
			if Reason(err) != c.want || Refused(err) != (c.want == ReasonRefused) {
				t.Errorf("%s: reason %s, refused %v, want %s: %v", c.name, Reason(err), Refused(err), c.want, err)
			}
		}
	}
}

func ipsOf(dns *fakeDNS) (ips []string) {
	for _, ip := range dns.hosts["mq.example"] {
		ips = append(ips, ip.String())
	}
	return ips
}

// A refusal by the first address says nothing of a second one that there was no time for.
func TestRefusedOnlyByAll(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("mq.example", "192.0.2.1", "192.0.2.2")
	d := newDialer(t, dns)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	d.connect = func(context.Context, netip.AddrPort) (net.Conn, error) {
		<-ctx.Done()
		return nil, syscall.ECONNREFUSED
	}
	if _, err := d.Dial(ctx, tcpBroker("mq.example:1883"), nil); Refused(err) || Reason(err) != ReasonTimeout {
		t.Errorf("%v (reason %s)", err, Reason(err))
	}
}

// A failed dial asks DNS again: the broker may have moved.
func TestFailedDialDoubtsTheName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		dns.set("mq.example", "192.0.2.1")
		d := newDialer(t, dns)
		d.connect = func(context.Context, netip.AddrPort) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
		for want := 1; want <= 3; want++ {
			time.Sleep(doubtHold)
			if _, err := d.Dial(within(t, patience), tcpBroker("mq.example:1883"), nil); !Refused(err) {
				t.Fatal(err)
			}
			synctest.Wait()
			if n := dns.questions(); n != want {
				t.Errorf("%d questions, want %d", n, want)
			}
		}
	})
}

func TestReason(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{syscall.ECONNREFUSED, ReasonRefused}, // as a driver's own sockets have it
		{syscall.ETIMEDOUT, ReasonTimeout},
		{syscall.EHOSTUNREACH, ReasonUnreachable},
		{syscall.ECONNRESET, ReasonReset},
		{io.EOF, ReasonReset},
		{syscall.EMFILE, ReasonLocal},
		{context.Canceled, ReasonCanceled},
		{context.DeadlineExceeded, ReasonTimeout},
		{os.ErrDeadlineExceeded, ReasonTimeout},
		{errors.Join(ErrTLS, os.ErrDeadlineExceeded), ReasonTimeout},
		{errors.Join(ErrTLS, io.EOF), ReasonTLS},
		{errors.Join(ErrWebSocket, io.EOF), ReasonWebSocket},
		{&ws.Error{Code: ws.CodeProtocol, Err: io.EOF}, ReasonWebSocket},
		{ws.CloseError(1011), ReasonWebSocket},
		{errors.Join(ErrConnack, io.EOF), ReasonMQTT},
		{errors.New("?"), ReasonOther},
	} {
		if got := Reason(c.err); got != c.want || got != "" && !slices.Contains(Reasons(), got) {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}

func TestDialMalformedBroker(t *testing.T) {
	for _, b := range []*registry.Broker{
		{ID: "b1", Address: "127.0.0.1"},
		{ID: "b1", Address: "127.0.0.1:1", Transport: "udp"},
		{ID: "b1", Address: "127.0.0.1:1", Transport: registry.TransportWS, Path: "mqtt"},
		{ID: "b1", Address: "127.0.0.1:1", Transport: registry.TransportWS, Path: "/a\r\nX: y"},
		{ID: "b1", Address: "a\r\nX: y:1", Transport: registry.TransportWS},
	} {
		_, err := newDialer(t, nil).Dial(within(t, patience), b, nil)
		if !errors.Is(err, ErrConfig) || Reason(err) != ReasonConfig {
			t.Errorf("%+v: %v (reason %s)", b, err, Reason(err))
		}
	}
}
