package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/cmd/limpet/internal/demo/broker"
	"github.com/mochi-mqtt/server/v2/packets"
)

// withoutLimpet is a layout whose edges are none: each is a broker of its own, and nobody brings anybody home.
func withoutLimpet(t *testing.T) *layout {
	t.Helper()
	l := &layout{}
	for i := range l.edges {
		b, err := broker.Start(broker.Config{Name: brokerName(i), Listen: "127.0.0.1:0", Standalone: true, Logger: zerolog.Nop()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
		l.edges[i].TCP = b.Addr().String()
	}
	return l
}

func bound(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// come connects and settles an actor, or fails.
func come(t *testing.T, a *actor, edge int) (present bool) {
	t.Helper()
	present, err := a.come(bound(t), place{edge, overTCP})
	if err == nil {
		err = a.settle(bound(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	return present
}

// An actor at the broker that has its session is content, and one at another is not: the story's claims can break.
func TestActorComesHome(t *testing.T) {
	l := withoutLimpet(t)
	for _, version := range []byte{mqtt311, mqtt5} {
		a := &actor{version: version, layout: l}
		a.id = "client of MQTT " + a.protocol()
		if come(t, a, 0) || a.broker() != "b1" {
			t.Errorf("new: at %s, with a session", a.broker())
		}
		a.leave()

		post := &actor{id: "post", version: mqtt5, clean: true, layout: l}
		come(t, post, 0)
		for _, payload := range []string{"1", "2", "3", "4", "5"} {
			if err := post.tell(bound(t), a, payload); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.comeHome(bound(t), place{0, overTCP}); err != nil {
			t.Error(err)
		}
		if err := a.read(bound(t)); err != nil {
			t.Error(err)
		}

		// What was not sent is missed, and what is out of order is seen.
		if err := a.read(bound(t)); err == nil || !strings.Contains(err.Error(), `["last"]`) {
			t.Errorf("an empty queue: %v", err)
		}
		for _, payload := range []string{"1", "2", "4", "3", "5"} {
			if err := post.tell(bound(t), a, payload); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.read(bound(t)); err == nil || !strings.Contains(err.Error(), `"4" "3"`) {
			t.Errorf("out of order: %v", err)
		}
		a.leave()

		err := a.comeHome(bound(t), place{1, overTCP})
		if err == nil || !strings.Contains(err.Error(), "Session Present 0") || !strings.Contains(err.Error(), "on broker b2, its session is on b1") {
			t.Errorf("at another broker: %v", err)
		}
		a.leave()
		post.leave()
	}
}

// A clean actor leaves nothing behind.
func TestCleanActor(t *testing.T) {
	l := withoutLimpet(t)
	for _, version := range []byte{mqtt311, mqtt5} {
		a := &actor{id: "clean", version: version, clean: true, layout: l}
		come(t, a, 0)
		a.leave()
		a.clean = false
		if come(t, a, 0) {
			t.Errorf("MQTT %s: its session was kept", a.protocol())
		}
		a.leave()
	}
}

// Bystanders whose connection is taken over or cut are noticed, and nothing hangs on a connection that has ended.
func TestBystanders(t *testing.T) {
	l := withoutLimpet(t)
	a, b := &actor{id: "a", version: mqtt5, layout: l}, &actor{id: "b", version: mqtt311, layout: l}
	come(t, a, 0)
	come(t, b, 0)
	watched := watch([]*actor{a, b})
	fine := &claim{}
	if watched.prove(fine); !fine.held() {
		t.Error(fine.broken)
	}
	ended := time.Now()
	twin := &actor{id: "a", version: mqtt5, layout: l}
	come(t, twin, 0)
	if _, err := closing(bound(t), a.current(), ended, time.Minute); err != nil {
		t.Error(err)
	}
	if _, err := closing(bound(t), b.current(), ended, time.Millisecond); err == nil {
		t.Error("b is said to be closed")
	}
	seen := &claim{}
	watched.prove(seen)
	if len(seen.broken) != 1 || !strings.HasPrefix(seen.broken[0], "a: ") {
		t.Errorf("%q", seen.broken)
	}
	if err := a.tell(bound(t), b, "hello"); err == nil {
		t.Error("published on a connection that has ended")
	}
	if err := a.hear(bound(t), "nothing"); !errors.Is(err, errGone) {
		t.Errorf("waited on a connection that has ended: %v", err)
	}
	twin.leave()
	b.leave()
}

// A server that says no, or nothing, or nonsense.
func TestConnectRefused(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		want   string
	}{
		"server unavailable": {"\x20\x02\x00\x03", "refused with code 0x03"},
		"not a CONNACK":      {"\xd0\x00", "PingResp"},
		"hung up":            {"", "EOF"},
		"a length too large": {"\x20\xff\xff\xff\x7f", "a packet of 268435455 bytes"},
		"a length too long":  {"\x20\xff\xff\xff\xff\xff\x01", "malformed"},
	} {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			var b [512]byte
			if _, err := server.Read(b[:]); err == nil {
				_, _ = server.Write([]byte(c.answer))
			}
		}()
		_, _, err := connect(bound(t), client, hello{client: "c", version: mqtt311}, nil)
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	client, server := net.Pipe()
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := connect(ctx, client, hello{client: "c", version: mqtt5}, nil); err == nil {
		t.Error("connected to a server that is silent")
	}
}

func TestElsewhere(t *testing.T) {
	for _, over := range transports {
		for range 50 {
			from := place{1, over}
			if to := elsewhere(from); to.edge == from.edge || to.over == from.over {
				t.Fatalf("%s after %s", to, from)
			}
			if at := anywhere(0, 2); at.edge != 1 {
				t.Fatalf("%s, where only e2 was left", at)
			}
		}
	}
}

func FuzzReadPacket(f *testing.F) {
	for _, b := range []string{
		"\x20\x02\x01\x00", "\x20\x03\x00\x00\x00", "\x90\x04\x00\x01\x00\x01", "\x40\x02\x00\x07", "\x40\x04\x00\x07\x10\x00",
		"\x32\x09\x00\x03a/b\x00\x05hi", "\x32\x0a\x00\x03a/b\x00\x05\x00hi", "\xe0\x02\x8b\x00", "\xe0\x00", "\x30\xff\xff\xff\x7f",
	} {
		f.Add([]byte(b), true)
		f.Add([]byte(b), false)
	}
	f.Fuzz(func(t *testing.T, data []byte, five bool) {
		version := mqtt311
		if five {
			version = mqtt5
		}
		r := bytes.NewReader(data)
		pk, err := readPacket(bufio.NewReader(r), version)
		if err == nil && pk.FixedHeader.Remaining > len(data) {
			t.Errorf("a packet of %d bytes out of %d", pk.FixedHeader.Remaining, len(data))
		}
		if err == nil && packets.PacketNames[pk.FixedHeader.Type] == "" {
			t.Errorf("type %d", pk.FixedHeader.Type)
		}
	})
}
