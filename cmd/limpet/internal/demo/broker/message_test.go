package broker

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"pgregory.net/rapid"
)

func drawMessage(t *rapid.T) *message {
	m := &message{
		topic:         rapid.StringMatching(`[a-z/]{1,40}`).Draw(t, "topic"),
		payload:       rapid.SliceOfN(rapid.Byte(), 0, 2000).Draw(t, "payload"),
		qos:           byte(rapid.IntRange(0, 2).Draw(t, "qos")),
		retain:        rapid.Bool().Draw(t, "retain"),
		hasFormat:     rapid.Bool().Draw(t, "has format"),
		contentType:   rapid.String().Draw(t, "content type"),
		responseTopic: rapid.String().Draw(t, "response topic"),
		expires:       rapid.Int64().Draw(t, "expires"),
		stamp:         rapid.Int64().Draw(t, "stamp"),
		from:          rapid.StringMatching(`[a-z0-9-]{0,63}`).Draw(t, "from"),
	}
	if m.hasFormat {
		m.format = byte(rapid.IntRange(0, 1).Draw(t, "format"))
	}
	if c := rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "correlation"); len(c) > 0 {
		m.correlation = c
	}
	for range rapid.IntRange(0, 4).Draw(t, "user properties") {
		m.user = append(m.user, packets.UserProperty{Key: rapid.String().Draw(t, "key"), Val: rapid.String().Draw(t, "value")})
	}
	return m
}

func TestMessageSurvivesItsEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawMessage(t)
		encoded := want.encode(nil)
		got, err := decodeMessage(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		head := len(encoded) - len(want.payload) // the payload alone has no end of its own
		cut := rapid.IntRange(0, head-1).Draw(t, "cut")
		if _, err := decodeMessage(encoded[:cut]); !errors.Is(err, errMessage) {
			t.Fatalf("the first %d of %d bytes were taken for a message", cut, len(encoded))
		}
	})
}

func TestPeersMayNotPublishEverything(t *testing.T) {
	for _, topic := range []string{"", "$SYS/broker/name", "$sys/x", "a/+", "a/#"} {
		m := &message{topic: topic}
		if _, err := decodeMessage(m.encode(nil)); !errors.Is(err, errMessage) {
			t.Errorf("topic %q: %v", topic, err)
		}
	}
	m := &message{topic: "a", qos: 3}
	if _, err := decodeMessage(m.encode(nil)); !errors.Is(err, errMessage) {
		t.Errorf("QoS 3: %v", err)
	}
}

func TestExpiryCountsDown(t *testing.T) {
	m := &message{expires: time.Unix(100, 0).UnixMilli()}
	for _, c := range []struct {
		at      time.Time
		expired bool
		left    uint32
	}{
		{time.Unix(90, 0), false, 10},
		{time.Unix(90, 1e6), false, 10}, // rounds up: a message that is left has a second at least
		{time.Unix(99, 999e6), false, 1},
		{time.Unix(100, 0), true, 1},
	} {
		p := m.properties(c.at)
		if m.expired(c.at) != c.expired || p.MessageExpiryInterval != c.left {
			t.Errorf("at %v: expired %v, %d s left; want %v, %d", c.at, m.expired(c.at), p.MessageExpiryInterval, c.expired, c.left)
		}
	}
}

func TestFrameBounds(t *testing.T) {
	frame := func(length uint32, body string) *bufio.Reader {
		return bufio.NewReader(strings.NewReader(string(binary.BigEndian.AppendUint32(nil, length)) + "\x07" + body))
	}
	for _, c := range []struct {
		name string
		r    *bufio.Reader
		want error
	}{
		{"empty", frame(0, ""), errFrame},
		{"above the bound", frame(101, strings.Repeat("x", 100)), errFrame},
		{"huge", frame(1<<32-1, ""), errFrame},
		{"cut", frame(100, "xyz"), io.ErrUnexpectedEOF},
		{"at the bound", frame(100, strings.Repeat("x", 99)), nil},
	} {
		if kind, body, err := readFrame(c.r, 100); !errors.Is(err, c.want) || err == nil && (kind != framePing || len(body) != 99) {
			t.Errorf("%s: kind %d, %d bytes, %v; want %v", c.name, kind, len(body), err, c.want)
		}
	}
}

// A length alone allocates next to nothing.
func TestFrameAllocatesWhatArrives(t *testing.T) {
	head := append(binary.BigEndian.AppendUint32(nil, maxFrame), frameMessage)
	const rounds = 100
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := bufio.NewReader(nil)
	for range rounds {
		r.Reset(bytes.NewReader(head))
		if _, _, err := readFrame(r, maxFrame); err == nil {
			t.Fatal("a frame of five bytes was taken for a whole one")
		}
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / rounds; got > 128<<10 {
		t.Errorf("%d bytes were allocated for five", got)
	}
}

func TestGreetings(t *testing.T) {
	h := hello{name: "b1", incarnation: 1 << 60}
	if got, err := decodeHello(h.encode()); err != nil || got != h {
		t.Errorf("hello: %+v, %v", got, err)
	}
	w := welcome{name: "b2", incarnation: 7, last: 1 << 50}
	if got, err := decodeWelcome(w.encode()); err != nil || got != w {
		t.Errorf("welcome: %+v, %v", got, err)
	}
	other := h.encode()
	other[4]++ // the version
	for _, b := range [][]byte{nil, other, append(h.encode(), 0), []byte("GET / HTTP/1.1\r\n\r\n")} {
		if _, err := decodeHello(b); err == nil {
			t.Errorf("%q is no hello", b)
		}
	}
}

// FuzzFrame reads whatever a peer may send: frames, greetings, messages. What is taken for a message is encoded
// to the same again.
func FuzzFrame(f *testing.F) {
	seed := func(kind byte, body []byte) {
		var buf bytes.Buffer
		w := bufio.NewWriter(&buf)
		if err := errors.Join(writeFrame(w, kind, body), w.Flush()); err != nil {
			f.Fatal(err)
		}
		f.Add(buf.Bytes())
	}
	m := &message{
		topic: "a/b", payload: []byte("hello"), qos: 2, retain: true, stamp: 1, from: "b1",
		user: []packets.UserProperty{{Key: "k", Val: "v"}}, correlation: []byte{1},
	}
	seed(frameHello, hello{name: "b1", incarnation: 1}.encode())
	seed(frameWelcome, welcome{name: "b1", incarnation: 1, last: 3}.encode())
	seed(frameRetained, m.encode(nil))
	seed(frameMessage, append(uint64Bytes(9), m.encode(nil)...))
	seed(frameAck, uint64Bytes(9))
	seed(framePing, nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReader(bytes.NewReader(data))
		for {
			kind, body, err := readFrame(r, 1<<16)
			if err != nil {
				return
			}
			switch kind {
			case frameHello:
				if h, err := decodeHello(body); err == nil && !bytes.Equal(h.encode(), body) {
					t.Fatalf("%q is taken for %+v", body, h)
				}
			case frameWelcome:
				if w, err := decodeWelcome(body); err == nil && !bytes.Equal(w.encode(), body) {
					t.Fatalf("%q is taken for %+v", body, w)
				}
			case frameMessage:
				if _, body, err = decodeSequence(body); err != nil {
					continue
				}
				fallthrough
			case frameRetained:
				m, err := decodeMessage(body)
				if err != nil {
					continue
				}
				again, err := decodeMessage(m.encode(nil))
				if err != nil || !reflect.DeepEqual(again, m) {
					t.Fatalf("%+v became %+v, %v", m, again, err)
				}
			}
		}
	})
}
