package mqtt

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWritten compares what is written with bytes that were put together by hand from the specifications.
func TestWritten(t *testing.T) {
	expiry := uint32(0x01020304)
	full := Connect{
		ID: "id", User: "u", HasUser: true, Password: []byte("p"), HasPassword: true, KeepAlive: 60, Expiry: 7, ReceiveMaximum: 10,
		Will: &Will{Topic: "w", Payload: []byte("x"), QoS: 1, Retain: true},
	}
	connect := func(v Version, c Connect) []byte {
		c.Version = v
		if err := c.Check(); err != nil {
			t.Fatal(err)
		}
		return c.Append(nil)
	}
	publish := func(v Version, p Publish) []byte { return AppendPublish(nil, v, &p) }
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"CONNECT 3.1", connect(V31, Connect{ID: "a", Clean: true}), "10 0f 0006 4d5149736470 03 02 0000 0001 61"},
		{"CONNECT 3.1.1", connect(V311, Connect{ID: "a", Clean: true, KeepAlive: 10}), "10 0d 0004 4d515454 04 02 000a 0001 61"},
		{"CONNECT 3.1.1, all", connect(V311, full), "10 1a 0004 4d515454 04 ec 003c 0002 6964 0001 77 0001 78 0001 75 0001 70"},
		{"CONNECT 5", connect(V5, Connect{ID: "", Clean: true}), "10 0d 0004 4d515454 05 02 0000 00 0000"},
		{"CONNECT 5, all", connect(V5, full), "10 24 0004 4d515454 05 ec 003c 08 11 00000007 21 000a 0002 6964 00 0001 77 0001 78 0001 75 0001 70"},
		{"PUBLISH QoS 0", publish(V311, Publish{Topic: []byte("t"), Payload: []byte("m")}), "30 04 0001 74 6d"},
		{"PUBLISH QoS 1", publish(V311, Publish{Topic: []byte("t"), QoS: 1, ID: 0x1234, Retain: true}), "33 05 0001 74 1234"},
		{"PUBLISH 5, QoS 2, DUP", publish(V5, Publish{Topic: []byte("t"), QoS: 2, ID: 1, Dup: true, Payload: []byte("m")}), "3c 07 0001 74 0001 00 6d"},
		{"PUBACK 3", AppendAck(nil, V311, PUBACK, 0x1234, 0x87), "40 02 1234"},
		{"PUBREC 5", AppendAck(nil, V5, PUBREC, 1, 0x87), "50 03 0001 87"},
		{"PUBREL 5", AppendAck(nil, V5, PUBREL, 1, 0), "62 02 0001"},
		{"SUBSCRIBE 3", AppendSubscribe(nil, V311, 1, Subscription{"a/b", 1}, Subscription{"c", 2}), "82 0c 0001 0003 612f62 01 0001 63 02"},
		{"SUBSCRIBE 5", AppendSubscribe(nil, V5, 1, Subscription{"a", 0}), "82 07 0001 00 0001 61 00"},
		{"UNSUBSCRIBE 3", AppendUnsubscribe(nil, V311, 2, "a", "b"), "a2 08 0002 0001 61 0001 62"},
		{"UNSUBSCRIBE 5", AppendUnsubscribe(nil, V5, 2, "a"), "a2 06 0002 00 0001 61"},
		{"PINGREQ", AppendPingreq(nil), "c0 00"},
		{"DISCONNECT 3", AppendDisconnect(nil, V311, 4, &expiry), "e0 00"},
		{"DISCONNECT 5", AppendDisconnect(nil, V5, 0, nil), "e0 00"},
		{"DISCONNECT 5, with Will", AppendDisconnect(nil, V5, 4, nil), "e0 01 04"},
		{"DISCONNECT 5, expiry", AppendDisconnect(nil, V5, 0, &expiry), "e0 07 00 05 11 01020304"},
	} {
		if want := unhex(t, c.want); !bytes.Equal(c.got, want) {
			t.Errorf("%s:\n got %x\nwant %x", c.name, c.got, want)
		}
	}
}

func TestTooLongToBeWritten(t *testing.T) {
	long := strings.Repeat("x", MaxString+1)
	for _, c := range []Connect{
		{Version: V5, ID: long},
		{Version: V5, User: long, HasUser: true},
		{Version: V5, Password: []byte(long), HasPassword: true},
		{Version: V5, Will: &Will{Topic: long}},
		{Version: V5, Will: &Will{Payload: []byte(long)}},
	} {
		if err := c.Check(); !errors.Is(err, ErrTooLong) {
			t.Errorf("Check: %v", err)
		}
	}
	for _, c := range []Connect{{}, {Version: 6}, {Version: V5, Will: &Will{QoS: 3}}} {
		if c.Check() == nil {
			t.Errorf("%+v passes", c)
		}
	}
	if _, err := PublishSize(V5, &Publish{Topic: []byte(long)}); !errors.Is(err, ErrTooLong) {
		t.Errorf("PublishSize: %v", err)
	}
}

// TestPublishSize: it is the number of bytes, at each width of the Remaining Length.
func TestPublishSize(t *testing.T) {
	for _, n := range []int{0, 1, 120, 121, 122, 123, 124, 125, 126, 127, 128, 16_376, 16_380, 16_384, 2_097_140, 2_097_152} {
		for _, v := range []Version{V311, V5} {
			for qos := range byte(3) {
				p := Publish{Topic: []byte("t"), Payload: make([]byte, n), QoS: qos}
				got, err := PublishSize(v, &p)
				if want := len(AppendPublish(nil, v, &p)); err != nil || got != want {
					t.Errorf("payload of %d bytes, QoS %d, MQTT %v: %d, %v, want %d", n, qos, v, got, err, want)
				}
			}
		}
	}
}
