package mqtt

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// unhex reads hexadecimal with white space and text in 'quotes' between.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var out []byte
	for i, part := range strings.Split(s, "'") {
		if i%2 == 1 {
			out = append(out, part...)
			continue
		}
		b, err := hex.DecodeString(strings.Join(strings.Fields(part), ""))
		if err != nil {
			t.Fatalf("bad hex %q: %v", part, err)
		}
		out = append(out, b...)
	}
	return out
}

const testLimit = 128 << 10

// connects are legal packets. Those named after a program were captured from it.
var connects = []struct {
	name string
	hex  string
	want Connect
}{
	{
		"mosquitto_pub 3.1", "101700064d51497364700302001e00096c696d7065742d3331",
		Connect{Version: V31, ClientID: []byte("limpet-31"), CleanStart: true, KeepAlive: 30, Size: 25},
	},
	{
		"mosquitto_pub 3.1 user, retained will", "103000064d514973647003ee003c00096c696d7065742d33310004772f33310004676f6e650003616e6e0006736563726574",
		Connect{
			Version: V31, ClientID: []byte("limpet-31"), Username: []byte("ann"), HasUsername: true, HasPassword: true,
			CleanStart: true, KeepAlive: 60, Will: true, WillQoS: 1, WillRetain: true, Size: 50,
		},
	},
	{
		"mosquitto_pub 3.1.1", "101600044d5154540402003c000a6c696d7065742d333131",
		Connect{Version: V311, ClientID: []byte("limpet-311"), CleanStart: true, KeepAlive: 60, Size: 24},
	},
	{
		"mosquitto_pub 3.1.1 without client ID", "100c00044d5154540402003c0000",
		Connect{Version: V311, ClientID: []byte{}, CleanStart: true, KeepAlive: 60, Size: 14},
	},
	{
		"mosquitto_sub 3.1.1 persistent, user, will", "103000044d51545404d4003c000a6c696d7065742d3331310005772f3331310004676f6e650003616e6e0006736563726574",
		Connect{
			Version: V311, ClientID: []byte("limpet-311"), Username: []byte("ann"), HasUsername: true, HasPassword: true,
			KeepAlive: 60, Will: true, WillQoS: 2, Size: 50,
		},
	},
	{
		"mosquitto_pub 5", "101800044d5154540502003c0321001400086c696d7065742d35",
		Connect{Version: V5, ClientID: []byte("limpet-5"), CleanStart: true, KeepAlive: 60, ReceiveMaximum: 20, Size: 26},
	},
	{
		"mosquitto_pub 5 without client ID", "101000044d5154540502003c032100140000",
		Connect{Version: V5, ClientID: []byte{}, CleanStart: true, KeepAlive: 60, ReceiveMaximum: 20, Size: 18},
	},
	{
		"mosquitto_sub 5 everything", "107900044d51545405ec003c2d21000a2700010000220007260004726f636b0004706f6f6c260004726f636b0005706f6f6c3217011100000e1000086c696d7065742d35" +
			"1e180000005a03000a746578742f706c61696e0200000005260001610001620003772f350004676f6e650003616e6e0006736563726574",
		Connect{
			Version: V5, ClientID: []byte("limpet-5"), Username: []byte("ann"), HasUsername: true, HasPassword: true,
			KeepAlive: 60, Will: true, WillQoS: 1, WillRetain: true, WillDelay: 90, HasSessionExpiry: true, SessionExpiry: 3600,
			ReceiveMaximum: 10, MaximumPacketSize: 65536, TopicAliasMaximum: 7, Size: 123,
		},
	},
	{
		"mosquitto_sub 5 never expires", "101d00044d5154540500003c0811ffffffff21001400086c696d7065742d35",
		Connect{Version: V5, ClientID: []byte("limpet-5"), KeepAlive: 60, HasSessionExpiry: true, SessionExpiry: NeverExpires, ReceiveMaximum: 20, Size: 31},
	},
	{
		"mosquitto bridge 3.1", "104a00064d5149736470832c003c000d6c696d7065742d627269646765002a245359532f62726f6b65722f636f6e6e656374696f6e2f6c696d7065742d6272696467652f7374617465000130",
		Connect{Version: V31, Bridge: true, ClientID: []byte("limpet-bridge"), KeepAlive: 60, Will: true, WillQoS: 1, WillRetain: true, Size: 76},
	},
	{
		"mosquitto bridge 3.1.1", "104800044d515454842c003c000d6c696d7065742d627269646765002a245359532f62726f6b65722f636f6e6e656374696f6e2f6c696d7065742d6272696467652f7374617465000130",
		Connect{Version: V311, Bridge: true, ClientID: []byte("limpet-bridge"), KeepAlive: 60, Will: true, WillQoS: 1, WillRetain: true, Size: 74},
	},
	{ // mosquitto 2.0 leaves the bridge bit out in MQTT 5
		"mosquitto bridge 5", "104d00044d515454052c003c03210014000d6c696d7065742d62726964676500002a245359532f62726f6b65722f636f6e6e656374696f6e2f6c696d7065742d6272696467652f7374617465000130",
		Connect{Version: V5, ClientID: []byte("limpet-bridge"), KeepAlive: 60, Will: true, WillQoS: 1, WillRetain: true, ReceiveMaximum: 20, Size: 79},
	},
	{
		"bridge bit with 5", "100e 0004'MQTT' 85 00 0000 00 0001'b'",
		Connect{Version: V5, Bridge: true, ClientID: []byte("b"), Size: 16},
	},
	{
		"3.1 with a long client ID", "102a 0006'MQIsdp' 03 00 0000 001c'abcdefghijklmnopqrstuvwxyz01'",
		Connect{Version: V31, ClientID: []byte("abcdefghijklmnopqrstuvwxyz01"), Size: 44},
	},
	{ // MQTT 3.1: the remaining length takes precedence over the flags
		"3.1 announced user name missing", "100f 0006'MQIsdp' 03 c2 0000 0001'a'",
		Connect{Version: V31, ClientID: []byte("a"), CleanStart: true, Size: 17},
	},
	{
		"3.1 announced password missing", "1012 0006'MQIsdp' 03 c2 0000 0001'a' 0001'u'",
		Connect{Version: V31, ClientID: []byte("a"), CleanStart: true, HasUsername: true, Username: []byte("u"), Size: 20},
	},
	{
		"3.1 will bits without will", "100f 0006'MQIsdp' 03 3a 0000 0001'a'",
		Connect{Version: V31, ClientID: []byte("a"), CleanStart: true, Size: 17},
	},
	{
		"3.1 user name that is not UTF-8", "1012 0006'MQIsdp' 03 82 0000 0001'a' 0001 ff",
		Connect{Version: V31, ClientID: []byte("a"), CleanStart: true, HasUsername: true, Username: []byte{0xff}, Size: 20},
	},
	{
		"remaining length in four bytes", "108d808000 0004'MQTT' 04 00 0000 0001'a'",
		Connect{Version: V311, ClientID: []byte("a"), Size: 18},
	},
	{
		"control characters and all planes", "101f 0004'MQTT' 04 00 0000 0013 01 1f 7f c280 c3bf 'é' e0a080 efbfbf f48fbfbf",
		Connect{Version: V311, ClientID: []byte("\x01\x1f\x7f\u0080ÿé\u0800\uffff\U0010ffff"), Size: 33},
	},
	{
		"empty user name, no password", "100f 0004'MQTT' 04 82 0000 0001'a' 0000",
		Connect{Version: V311, ClientID: []byte("a"), CleanStart: true, HasUsername: true, Username: []byte{}, Size: 17},
	},
	{ // [MQTT-3.1.2-19] of MQTT 5: a password may come alone
		"5 password alone", "1012 0004'MQTT' 05 42 0000 00 0001'a' 0002'pw'",
		Connect{Version: V5, ClientID: []byte("a"), CleanStart: true, HasPassword: true, Size: 20},
	},
	{
		"5 enhanced authentication, both requests", "1020 0004'MQTT' 05 02 0000 12 150005'SCRAM' 160003 010203 1701 1900 0001'a'",
		Connect{Version: V5, ClientID: []byte("a"), CleanStart: true, AuthMethod: true, Size: 34},
	},
	{
		"5 expiry 0", "1013 0004'MQTT' 05 00 0000 05 1100000000 0001'a'",
		Connect{Version: V5, ClientID: []byte("a"), HasSessionExpiry: true, Size: 21},
	},
	{
		"5 all will properties", "1040 0004'MQTT' 05 04 0000 00 0001'a' 2c 0101 0200000001 030001'c' 080001'r' 090002 0000 18ffffffff 260001'k'0001'v' 260001'k'0001'v' 260000 0000 0001't' 0000",
		Connect{Version: V5, ClientID: []byte("a"), Will: true, WillDelay: 0xffffffff, Size: 66},
	},
}

func TestParseConnect(t *testing.T) {
	for _, tt := range connects {
		t.Run(tt.name, func(t *testing.T) {
			b := unhex(t, tt.hex)
			for _, behind := range []string{"", "\x10", "\xc0\x00 and more"} {
				c, err := ParseConnect(append(bytes.Clone(b), behind...), testLimit)
				if err != nil {
					t.Fatalf("with %q behind: %v", behind, err)
				}
				if !reflect.DeepEqual(c, tt.want) {
					t.Fatalf("with %q behind:\n got %+v\nwant %+v", behind, c, tt.want)
				}
			}
			if c, err := ParseConnect(b, len(b)); err != nil || c.Size != len(b) {
				t.Errorf("limit %d: %v, size %d", len(b), err, c.Size)
			}
			if _, err := ParseConnect(b, len(b)-1); kindOf(err) != TooLarge {
				t.Errorf("limit %d: %v, want too_large", len(b)-1, err)
			}
			for n := range b {
				if _, err := ParseConnect(b[:n], testLimit); err != ErrShort {
					t.Errorf("first %d bytes: %v, want ErrShort", n, err)
				}
			}
		})
	}
}

// badConnects are refused. early is how many bytes are enough to see it; 0 = the whole packet. code −1: no CONNACK.
var badConnects = []struct {
	name    string
	hex     string
	kind    ErrorKind
	version Version
	code    int
	early   int
}{
	{"nothing of ours: TLS", "16030100f8", NotConnect, 0, -1, 1},
	{"nothing of ours: HTTP", "'GET / HTTP/1.1'", NotConnect, 0, -1, 1},
	{"type 0", "00", NotConnect, 0, -1, 1},
	{"PINGREQ", "c000", NotConnect, 0, -1, 1},
	{"PUBLISH", "3003 0001 61", NotConnect, 0, -1, 1},
	{"header flags", "1100", NotConnect, 0, -1, 1},
	{"fifth length byte", "10ffffffff7f 0004'MQTT'05", BadRemainingLength, 0, -1, 5},
	{"fifth length byte, all zero", "108080808000", BadRemainingLength, 0, -1, 5},
	{"largest length", "10ffffff7f", TooLarge, 0, -1, 5},
	{"largest length, 5", "10ffffff7f 0004'MQTT'05", TooLarge, V5, 0x95, 5},
	{"largest length, bridge 5", "10ffffff7f 0004'MQTT'85", TooLarge, V5, 0x95, 5},
	{"largest length, 3.1.1", "10ffffff7f 0004'MQTT'04", TooLarge, V311, -1, 5},
	{"one above the limit", "10fdff07 0004'MQTT'05", TooLarge, V5, 0x95, 4}, // 131,069 + 4 = 131,073
	{"empty", "1000", Truncated, 0, -1, 2},
	{"too short for anything", "100b 0004'MQTT' 04 02 003c 00", Truncated, 0, -1, 2},
	{"name length", "100c 0104'MQTT' 04 02 003c 0000", BadProtocolName, 0, -1, 3},
	{"name of another length", "100c 0005'MQTTX' 04 02 003c 0000", BadProtocolName, 0, -1, 4},
	{"name in lower case", "100c 0004'mqtt' 04 02 003c 0000", BadProtocolName, 0, -1, 5},
	{"name almost", "100e 0006'MQIsdP' 03 02 003c 0000", BadProtocolName, 0, -1, 10},
	{"MQTT level 3", "100c 0004'MQTT' 03 02 003c 0000", UnknownLevel, V311, 1, 9},
	{"MQTT level 0", "100c 0004'MQTT' 00 02 003c 0000", UnknownLevel, V311, 1, 9},
	{"MQTT level 6", "100c 0004'MQTT' 06 02 003c 0000", UnknownLevel, V5, 0x84, 9},
	{"MQTT level 6 bridge", "100c 0004'MQTT' 86 02 003c 0000", UnknownLevel, V5, 0x84, 9},
	{"MQIsdp level 4", "100e 0006'MQIsdp' 04 02 003c 0000", UnknownLevel, V31, 1, 11},
	{"reserved connect flag, 3.1.1", "100d 0004'MQTT' 04 03 003c 0001'a'", ReservedFlag, V311, -1, 10},
	{"reserved connect flag, 5", "100e 0004'MQTT' 05 03 003c 00 0001'a'", ReservedFlag, V5, 0x81, 10},
	{"Will QoS without a Will", "100d 0004'MQTT' 04 0a 003c 0001'a'", BadWillFlags, V311, -1, 10},
	{"Will Retain without a Will", "100e 0004'MQTT' 05 22 003c 00 0001'a'", BadWillFlags, V5, 0x81, 10},
	{"Will QoS 3", "100d 0004'MQTT' 04 1e 003c 0001'a'", BadWillFlags, V311, -1, 10},
	{"Will QoS 3, 3.1", "100f 0006'MQIsdp' 03 1e 003c 0001'a'", BadWillFlags, V31, -1, 12},
	{"password alone, 3.1.1", "1010 0004'MQTT' 04 42 003c 0001'a' 0001'p'", BadPasswordFlag, V311, -1, 10},
	{"password alone, 3.1", "1012 0006'MQIsdp' 03 42 003c 0001'a' 0001'p'", BadPasswordFlag, V31, -1, 12},
	{"client ID beyond the end", "100d 0004'MQTT' 04 02 003c 0002'a'", Truncated, V311, -1, 0},
	{"client ID of 65,535 in 1", "100e 0004'MQTT' 05 02 003c 00 ffff'a'", Truncated, V5, 0x81, 0},
	{"client ID missing, MQIsdp", "100c 0006'MQIsdp' 03 02 003c", Truncated, V31, -1, 0},
	{"client ID half a length", "100d 0006'MQIsdp' 03 02 003c 00", Truncated, V31, -1, 0},
	{"NUL in the client ID", "100f 0004'MQTT' 04 02 003c 0003'a'00'b'", BadClientID, V311, 2, 0},
	{"NUL in the client ID, 5", "1010 0004'MQTT' 05 02 003c 00 0003'a'00'b'", BadClientID, V5, 0x85, 0},
	{"surrogate in the client ID", "100f 0004'MQTT' 04 02 003c 0003 eda080", BadClientID, V311, 2, 0},
	{"overlong NUL", "1010 0006'MQIsdp' 03 02 003c 0002 c080", BadClientID, V31, 2, 0},
	{"overlong slash", "1010 0004'MQTT' 04 02 003c 0004 f08080af", BadClientID, V311, 2, 0},
	{"above U+10FFFF", "1010 0004'MQTT' 04 02 003c 0004 f4908080", BadClientID, V311, 2, 0},
	{"cut-off sequence", "100f 0004'MQTT' 04 02 003c 0003'a'e282", BadClientID, V311, 2, 0},
	{"stray continuation", "100d 0004'MQTT' 04 02 003c 0001 80", BadClientID, V311, 2, 0},
	{"empty client ID, session kept", "100c 0004'MQTT' 04 00 003c 0000", BadClientID, V311, 2, 0},
	{"empty client ID, 3.1", "100e 0006'MQIsdp' 03 02 003c 0000", BadClientID, V31, 2, 0},
	{"Will topic beyond the end", "1011 0004'MQTT' 04 06 003c 0001'a' 0005'ab'", Truncated, V311, -1, 0},
	{"Will message missing", "1010 0004'MQTT' 04 06 003c 0001'a' 0001't'", Truncated, V311, -1, 0},
	{"user name missing, 3.1.1", "100d 0004'MQTT' 04 82 003c 0001'a'", Truncated, V311, -1, 0},
	{"user name cut off, 3.1", "1010 0006'MQIsdp' 03 82 003c 0001'a' 00", Truncated, V31, -1, 0},
	{"password missing, 5", "1011 0004'MQTT' 05 c2 003c 00 0001'a' 0001'u'", Truncated, V5, 0x81, 0},
	{"user name not UTF-8", "1010 0004'MQTT' 04 82 003c 0001'a' 0001 ff", BadUTF8, V311, -1, 0},
	{"NUL in the user name, 5", "1011 0004'MQTT' 05 82 003c 00 0001'a' 0001 00", BadUTF8, V5, 0x81, 0},
	{"bytes left over", "100e 0004'MQTT' 04 02 003c 0001'a' 00", TrailingBytes, V311, -1, 0},
	{"bytes left over, 3.1", "1010 0006'MQIsdp' 03 02 003c 0001'a' 00", TrailingBytes, V31, -1, 0},
	{"bytes left over, 5", "1010 0004'MQTT' 05 02 003c 00 0001'a' 0000", TrailingBytes, V5, 0x81, 0},
	{"properties beyond the end", "100e 0004'MQTT' 05 02 003c 7f 0001'a'", Truncated, V5, 0x81, 0},
	{"property length of 268,435,455", "1011 0004'MQTT' 05 02 003c ffffff7f 0001'a'", Truncated, V5, 0x81, 0},
	{"property length of five bytes", "1012 0004'MQTT' 05 02 003c 8080808000 0001'a'", BadProperty, V5, 0x81, 0},
	{"property length cut off", "100c 0004'MQTT' 05 02 003c 8080", Truncated, V5, 0x81, 0},
	{"property length overlong", "100f 0004'MQTT' 05 02 003c 8000 0001'a'", BadProperty, V5, 0x81, 0},
	{"unknown property", "1010 0004'MQTT' 05 02 003c 02 7f00 0001'a'", BadProperty, V5, 0x81, 0},
	{"property 0", "1010 0004'MQTT' 05 02 003c 02 0000 0001'a'", BadProperty, V5, 0x81, 0},
	{"property identifier of two bytes", "1011 0004'MQTT' 05 02 003c 03 910000 0001'a'", BadProperty, V5, 0x81, 0},
	{"property of a CONNACK", "1011 0004'MQTT' 05 02 003c 03 13003c 0001'a'", BadProperty, V5, 0x81, 0},
	{"will property outside the Will", "1013 0004'MQTT' 05 02 003c 05 1800000001 0001'a'", BadProperty, V5, 0x81, 0},
	{"connect property in the Will", "1019 0004'MQTT' 05 06 003c 00 0001'a' 05 1100000001 0001't' 0000", BadProperty, V5, 0x81, 0},
	{"session expiry twice", "1018 0004'MQTT' 05 02 003c 0a 1100000001 1100000001 0001'a'", DuplicateProperty, V5, 0x82, 0},
	{"will delay twice", "101e 0004'MQTT' 05 06 003c 00 0001'a' 0a 1800000000 1800000000 0001't' 0000", DuplicateProperty, V5, 0x82, 0},
	{"property cut off", "1012 0004'MQTT' 05 02 003c 04 11000000 0001'a'", Truncated, V5, 0x81, 0},
	{"string property beyond the list", "1013 0004'MQTT' 05 02 003c 05 150003'ab' 0001'a'", Truncated, V5, 0x81, 0},
	{"user property without a value", "1012 0004'MQTT' 05 02 003c 04 260001'k' 0001'a'", Truncated, V5, 0x81, 0},
	{"receive maximum 0", "1011 0004'MQTT' 05 02 003c 03 210000 0001'a'", BadPropertyValue, V5, 0x82, 0},
	{"maximum packet size 0", "1013 0004'MQTT' 05 02 003c 05 2700000000 0001'a'", BadPropertyValue, V5, 0x82, 0},
	{"will properties missing", "100e 0004'MQTT' 05 06 003c 00 0001'a'", Truncated, V5, 0x81, 0},
}

func TestParseConnectRefuses(t *testing.T) {
	seen := map[ErrorKind]bool{}
	for _, tt := range badConnects {
		t.Run(tt.name, func(t *testing.T) {
			b := unhex(t, tt.hex)
			seen[tt.kind] = true
			c, err := ParseConnect(b, testLimit)
			var e *Error
			if !errors.As(err, &e) || e.Kind != tt.kind || e.Version != tt.version {
				t.Fatalf("got %v, want %v for version %v", err, tt.kind, tt.version)
			}
			if !reflect.DeepEqual(c, Connect{}) {
				t.Errorf("an error with fields: %+v", c)
			}
			if code, ok := e.Refusal(); ok != (tt.code >= 0) || ok && int(code) != tt.code {
				t.Errorf("refusal %#x, %v, want %#x", code, ok, tt.code)
			}
			early := tt.early
			if early == 0 {
				early = len(b)
			}
			for n := range b {
				_, err := ParseConnect(b[:n], testLimit)
				if n < early && err != ErrShort {
					t.Errorf("first %d bytes: %v, want ErrShort", n, err)
				}
				if n >= early && kindOf(err) != tt.kind {
					t.Errorf("first %d bytes: %v, want %v", n, err, tt.kind)
				}
			}
		})
	}
	for _, k := range []ErrorKind{NotConnack, NotDisconnect, BadPacketType} { // other parsers' kinds
		seen[k] = true
	}
	for _, k := range ErrorKinds() {
		if !seen[k] {
			t.Errorf("no case for %v", k)
		}
	}
}

func kindOf(err error) ErrorKind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}

func TestLongestClientID(t *testing.T) {
	for _, v := range []Version{V31, V311, V5} {
		id := bytes.Repeat([]byte("x"), 65535)
		b := AppendConnect(nil, &Connect{Version: v, ClientID: id})
		c, err := ParseConnect(b, testLimit)
		if err != nil || !bytes.Equal(c.ClientID, id) {
			t.Errorf("%v: %v, %d bytes", v, err, len(c.ClientID))
		}
		for _, n := range []int{5, 20, 1000, len(b) - 1} {
			if _, err := ParseConnect(b[:n], testLimit); err != ErrShort {
				t.Errorf("%v: first %d bytes: %v, want ErrShort", v, n, err)
			}
		}
		id[65534] = 0
		b = AppendConnect(nil, &Connect{Version: v, ClientID: id})
		if _, err := ParseConnect(b, testLimit); kindOf(err) != BadClientID {
			t.Errorf("%v: NUL at the end of a long client ID: %v", v, err)
		}
	}
	if b := AppendConnect([]byte("x"), &Connect{Version: V5, ClientID: make([]byte, 65536)}); string(b) != "x" {
		t.Errorf("a client ID of 65,536 bytes was written: %d bytes", len(b))
	}
	if b := AppendConnect([]byte("x"), &Connect{Version: 6}); string(b) != "x" {
		t.Errorf("a CONNECT of version 6 was written: %x", b)
	}
}

func TestConnectAliasesItsInput(t *testing.T) {
	b := unhex(t, "1010 0004'MQTT' 04 82 003c 0001'a' 0001'u'")
	c, err := ParseConnect(b, testLimit)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(c.ClientID, "overwritten"...)
	if !bytes.Equal(b, unhex(t, "1010 0004'MQTT' 04 82 003c 0001'a' 0001'u'")) {
		t.Fatalf("appending to the client ID wrote into the packet: %x", b)
	}
	b[14] = 'z'
	if string(c.ClientID) != "z" {
		t.Errorf("client ID %q was copied", c.ClientID)
	}
}

func TestPersistent(t *testing.T) {
	for _, tt := range []struct {
		c    Connect
		want bool
	}{
		{Connect{Version: V31}, true},
		{Connect{Version: V31, CleanStart: true}, false},
		{Connect{Version: V311}, true},
		{Connect{Version: V311, CleanStart: true}, false},
		{Connect{Version: V5}, false},
		{Connect{Version: V5, CleanStart: true}, false},
		{Connect{Version: V5, HasSessionExpiry: true}, false},
		{Connect{Version: V5, HasSessionExpiry: true, SessionExpiry: 1}, true},
		{Connect{Version: V5, HasSessionExpiry: true, SessionExpiry: NeverExpires, CleanStart: true}, true},
	} {
		if got := tt.c.Persistent(); got != tt.want {
			t.Errorf("%+v: %v", tt.c, got)
		}
	}
}

func TestAppendConnect(t *testing.T) {
	for _, tt := range []struct {
		c       Connect
		options []ConnectOption
		want    string
	}{
		{
			Connect{Version: V311, ClientID: []byte("limpet-311"), Username: []byte("ann"), HasUsername: true, HasPassword: true, KeepAlive: 60, Will: true, WillQoS: 2},
			[]ConnectOption{WithPassword([]byte("secret")), WithWill([]byte("w/311"), []byte("gone"))},
			"103000044d51545404d4003c000a6c696d7065742d3331310005772f3331310004676f6e650003616e6e0006736563726574",
		},
		{Connect{Version: V31, ClientID: []byte("limpet-31"), CleanStart: true, KeepAlive: 30}, nil, "101700064d51497364700302001e00096c696d7065742d3331"},
		{
			Connect{Version: V5, Bridge: true, ClientID: []byte("b"), Will: true, WillRetain: true, WillDelay: 7, HasSessionExpiry: true, SessionExpiry: 9, ReceiveMaximum: 1, MaximumPacketSize: 2, TopicAliasMaximum: 3, AuthMethod: true},
			[]ConnectOption{WithWill([]byte("t"), nil)},
			"102c 0004'MQTT' 85 24 0000 13 1100000009 210001 2700000002 220003 150000 0001'b' 05 1800000007 0001't' 0000",
		},
	} {
		got := AppendConnect([]byte("before"), &tt.c, tt.options...)
		if want := append([]byte("before"), unhex(t, tt.want)...); !bytes.Equal(got, want) {
			t.Errorf("%+v:\n got %x\nwant %x", tt.c, got, want)
		}
	}
}

// TestConnectRoundTrip writes legal CONNECTs and reads them back, whole and in every prefix.
func TestConnectRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.Rune().Filter(func(r rune) bool { return r != 0 }), 1, 40, -1)
		c := Connect{
			Version:    rapid.SampledFrom([]Version{V31, V311, V5}).Draw(t, "version"),
			Bridge:     rapid.Bool().Draw(t, "bridge"),
			ClientID:   []byte(text.Draw(t, "client")),
			CleanStart: rapid.Bool().Draw(t, "clean"),
			KeepAlive:  rapid.Uint16().Draw(t, "keep alive"),
			Will:       rapid.Bool().Draw(t, "will"),
		}
		if c.HasUsername = rapid.Bool().Draw(t, "user"); c.HasUsername {
			c.Username = []byte(text.Draw(t, "user name"))
		}
		c.HasPassword = (c.HasUsername || c.Version == V5) && rapid.Bool().Draw(t, "password")
		if c.Will {
			c.WillQoS = rapid.ByteRange(0, 2).Draw(t, "will QoS")
			c.WillRetain = rapid.Bool().Draw(t, "will retain")
		}
		if c.Version == V5 {
			if c.Will {
				c.WillDelay = rapid.Uint32().Draw(t, "will delay")
			}
			if c.HasSessionExpiry = rapid.Bool().Draw(t, "has expiry"); c.HasSessionExpiry {
				c.SessionExpiry = rapid.Uint32().Draw(t, "expiry")
			}
			c.ReceiveMaximum = rapid.Uint16().Draw(t, "receive maximum")
			c.MaximumPacketSize = rapid.Uint32().Draw(t, "packet size")
			c.TopicAliasMaximum = rapid.Uint16().Draw(t, "aliases")
			c.AuthMethod = rapid.Bool().Draw(t, "auth")
		}
		b := AppendConnect(nil, &c,
			WithPassword(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "secret")),
			WithWill([]byte(text.Draw(t, "topic")), rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "message")))
		c.Size = len(b)
		got, err := ParseConnect(b, testLimit)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Fatalf("%x: %v\n got %+v\nwant %+v", b, err, got, c)
		}
		for n := range b {
			if _, err := ParseConnect(b[:n], testLimit); err != ErrShort {
				t.Fatalf("first %d bytes of %x: %v", n, b, err)
			}
		}
	})
}

// TestTornPacketCostsItsLength: a long packet whose every byte comes alone must not be walked again and again.
// Its properties are bad from the first on, which is not looked at before the packet is complete.
func TestTornPacketCostsItsLength(t *testing.T) {
	b := unhex(t, "108010 0004'MQTT' 05 02 003c f40f")
	whole := 3 + 2048
	b = append(b, make([]byte, whole-len(b))...)
	for n := range b {
		if _, err := ParseConnect(b[:n], testLimit); err != ErrShort {
			t.Fatalf("first %d bytes: %v, want ErrShort", n, err)
		}
	}
	if _, err := ParseConnect(b, testLimit); kindOf(err) != BadProperty {
		t.Fatalf("whole: %v, want bad_property", err)
	}
}
