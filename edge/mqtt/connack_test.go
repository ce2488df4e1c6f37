package mqtt

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

// connacks are legal packets. Those named after a program were captured from it.
var connacks = []struct {
	name    string
	hex     string
	version Version
	want    Connack
}{
	{"mosquitto 3.1", "20020000", V31, Connack{Size: 4}},
	{"mosquitto 3.1.1", "20020000", V311, Connack{Size: 4}},
	{"mosquitto 3.1.1 session present", "20020100", V311, Connack{SessionPresent: true, Size: 4}},
	{"mosquitto 3.1.1 not authorized", "20020005", V311, Connack{Code: RefusedNotAuthorized, Size: 4}},
	{"mosquitto 3.1.1 client ID refused", "20020002", V311, Connack{Code: RefusedClientID, Size: 4}},
	{"mosquitto 5", "200900000622000a210014", V5, Connack{Size: 11}},
	{"mosquitto 5 session present", "200901000622000a210014", V5, Connack{SessionPresent: true, Size: 11}},
	{
		"mosquitto 5 assigned client ID", "203500003222000a1200296175746f2d39324343343943302d314331342d364543412d463044392d353435363742313841383031210014", V5,
		Connack{AssignedClientID: []byte("auto-92CC49C0-1C14-6ECA-F0D9-54567B18A801"), Size: 55},
	},
	{"mosquitto 5 keep alive", "200c01000922000a13003c210014", V5, Connack{SessionPresent: true, HasServerKeepAlive: true, ServerKeepAlive: 60, Size: 14}},
	{"mosquitto 5 not authorized", "2003008700", V5, Connack{Code: NotAuthorized, Size: 5}},
	{"a broker of 3.1.1 answers 5", "20020001", V5, Connack{Code: RefusedVersion, Size: 4}},
	{"3.1 reserved byte", "20020100", V31, Connack{Size: 4}},
	{"3.1 reserved byte, all bits", "2002ff00", V31, Connack{Size: 4}},
	{
		"5 every property",
		"2046 00 00 43 1100000e10 120001'x' 130000 150001'm' 160001'd' 1a0001'r' 1c0001's' 1f0001'w' 21ffff 22ffff 2401 2500 260001'k'0001'v' 260001'k'0001'v' 27ffffffff 2801 2900 2a01", V5,
		Connack{AssignedClientID: []byte("x"), HasSessionExpiry: true, SessionExpiry: 3600, HasServerKeepAlive: true, Size: 72},
	},
	{"5 expiry 0", "2008 00 00 05 1100000000", V5, Connack{HasSessionExpiry: true, Size: 10}},
	{"remaining length in four bytes", "2082808000 0000", V311, Connack{Size: 7}},
}

func TestParseConnack(t *testing.T) {
	for _, tt := range connacks {
		t.Run(tt.name, func(t *testing.T) {
			b := unhex(t, tt.hex)
			for _, behind := range []string{"", "\x30\x03\x00\x01a"} {
				c, err := ParseConnack(append(bytes.Clone(b), behind...), tt.version)
				if err != nil || !reflect.DeepEqual(c, tt.want) {
					t.Fatalf("with %q behind: %v\n got %+v\nwant %+v", behind, err, c, tt.want)
				}
			}
			for n := range b {
				if _, err := ParseConnack(b[:n], tt.version); err != ErrShort {
					t.Errorf("first %d bytes: %v, want ErrShort", n, err)
				}
			}
		})
	}
}

func TestParseConnackRefuses(t *testing.T) {
	for _, tt := range []struct {
		name    string
		hex     string
		version Version
		kind    ErrorKind
		early   int // how many bytes are enough to see it; 0 = the whole packet
	}{
		{"AUTH first", "f000", V5, NotConnack, 1},
		{"HTTP", "'HTTP/1.1 400 Bad Request'", V311, NotConnack, 1},
		{"header flags", "21020000", V311, NotConnack, 1},
		{"fifth length byte", "20ffffffff7f", V5, BadRemainingLength, 5},
		{"largest length", "20ffffff7f", V5, TooLarge, 5},
		{"one above the bound", "20fdff07", V5, TooLarge, 4}, // 131,069 + 4
		{"empty", "2000", V311, Truncated, 2},
		{"one byte", "200100", V5, Truncated, 2},
		{"3 with properties", "2003000000", V311, TrailingBytes, 2},
		{"reserved flags", "20020200", V311, ReservedFlag, 0},
		{"reserved flags, 5", "2003800000", V5, ReservedFlag, 0},
		{"property length beyond the end", "2003000005", V5, Truncated, 0},
		{"property length of 268,435,455", "20060000ffffff7f", V5, Truncated, 0},
		{"property length cut off", "2004000080 80", V5, Truncated, 0},
		{"unknown property", "2005 0000 02 7f00", V5, BadProperty, 0},
		{"will delay", "2008 0000 05 1800000001", V5, BadProperty, 0},
		{"assigned twice", "200b 0000 08 120001'x' 120001'x'", V5, DuplicateProperty, 0},
		{"assigned beyond the list", "2007 0000 04 12ffff'x'", V5, Truncated, 0},
		{"assigned with NUL", "2008 0000 05 120002'x'00", V5, BadClientID, 0},
		{"assigned ill-formed", "2007 0000 04 120001 ff", V5, BadClientID, 0},
		{"bytes left over", "2004 0000 00 00", V5, TrailingBytes, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := unhex(t, tt.hex)
			c, err := ParseConnack(b, tt.version)
			var e *Error
			if !errors.As(err, &e) || e.Kind != tt.kind {
				t.Fatalf("got %v, want %v", err, tt.kind)
			}
			if !reflect.DeepEqual(c, Connack{}) {
				t.Errorf("an error with fields: %+v", c)
			}
			if code, ok := e.Refusal(); ok {
				t.Errorf("the client would be blamed for its broker with %#x", code)
			}
			early := tt.early
			if early == 0 {
				early = len(b)
			}
			for n := range b {
				_, err := ParseConnack(b[:n], tt.version)
				if n < early && err != ErrShort || n >= early && kindOf(err) != tt.kind {
					t.Errorf("first %d bytes: %v", n, err)
				}
			}
		})
	}
}

func TestLongestAssignedClientID(t *testing.T) {
	// 2 + 3 bytes before the properties, 3 + 65,535 of property: remaining length 65,543.
	b := unhex(t, "20878004 0000 828004 12ffff")
	b = append(b, bytes.Repeat([]byte("y"), 65535)...)
	c, err := ParseConnack(b, V5)
	if err != nil || len(c.AssignedClientID) != 65535 || c.Size != len(b) {
		t.Fatalf("%v, %d bytes, size %d of %d", err, len(c.AssignedClientID), c.Size, len(b))
	}
	if _, err := ParseConnack(b[:len(b)-1], V5); err != ErrShort {
		t.Errorf("one byte less: %v", err)
	}

	// The same and a reason string, MaxConnack bytes together: remaining length 131,068, 131,063 of it properties.
	longest := append(unhex(t, "20fcff07 0000 f7ff07"), b[9:]...)
	longest = append(append(longest, unhex(t, "1ffff2")...), bytes.Repeat([]byte("r"), 65_522)...)
	if c, err := ParseConnack(longest, V5); err != nil || len(c.AssignedClientID) != 65535 || c.Size != MaxConnack {
		t.Errorf("a CONNACK of %d bytes: %v, %d bytes, size %d", len(longest), err, len(c.AssignedClientID), c.Size)
	}
}

func TestAppendConnack(t *testing.T) {
	for _, tt := range []struct {
		version Version
		present bool
		code    byte
		want    string
	}{
		{V311, false, Success, "20020000"},
		{V311, true, Success, "20020100"},
		{V311, true, ServerBusy, "20020003"}, // [MQTT-3.2.2-4]
		{V31, true, Success, "20020000"},
		{V31, false, UnsupportedVersion, "20020001"},
		{V311, false, UnsupportedVersion, "20020001"},
		{V311, false, ClientIDNotValid, "20020002"},
		{V311, false, ServerUnavailable, "20020003"},
		{V311, false, ServerBusy, "20020003"},
		{V311, false, QuotaExceeded, "20020003"},
		{V311, false, UnspecifiedError, "20020003"},
		{V311, false, ServerShuttingDown, "20020003"},
		{V311, false, 0xff, "20020003"},
		{V311, false, 0x06, "20020003"},
		{V311, false, BadUserNamePassword, "20020004"},
		{V311, false, NotAuthorized, "20020005"},
		{V311, false, RefusedVersion, "20020001"},
		{V311, false, RefusedClientID, "20020002"},
		{V31, false, RefusedUnavailable, "20020003"},
		{V311, false, RefusedUserName, "20020004"},
		{V311, false, RefusedNotAuthorized, "20020005"},
		{V5, false, Success, "2003000000"},
		{V5, true, Success, "2003010000"},
		{V5, true, SessionTakenOver, "2003008e00"}, // [MQTT-3.2.2-6]
		{V5, false, ServerBusy, "2003008900"},
		{0, true, Success, ""},
		{6, false, ServerBusy, ""},
	} {
		got := AppendConnack([]byte("before"), tt.version, tt.present, tt.code)
		if want := append([]byte("before"), unhex(t, tt.want)...); !bytes.Equal(got, want) {
			t.Errorf("%v %v %#x: got %x, want %s", tt.version, tt.present, tt.code, got[6:], tt.want)
		}
		if tt.want == "" {
			continue
		}
		c, err := ParseConnack(got[6:], tt.version)
		if err != nil || c.Size != len(got)-6 || tt.version == V5 && c.Code != tt.code {
			t.Errorf("%v %v %#x: read back %+v, %v", tt.version, tt.present, tt.code, c, err)
		}
	}
}

func TestParseDisconnect(t *testing.T) {
	for _, tt := range []struct {
		name    string
		hex     string
		version Version
		want    Disconnect
		kind    ErrorKind
	}{
		{"mosquitto_pub 3.1.1", "e000", V311, Disconnect{}, 0},
		{"3.1", "e000", V31, Disconnect{}, 0},
		{"mosquitto_pub 5", "e000", V5, Disconnect{}, 0},
		{
			"mosquitto_pub 5 with properties", "e014001211000000782600016b0001761f0003627965", V5,
			Disconnect{HasSessionExpiry: true, SessionExpiry: 120},
			0,
		},
		{"reason alone", "e00104", V5, Disconnect{Reason: DisconnectWithWill}, 0},
		{"reason, no properties", "e0029c00", V5, Disconnect{Reason: UseAnotherServer}, 0},
		{"expiry 0", "e007 00 05 1100000000", V5, Disconnect{HasSessionExpiry: true}, 0},
		{"never", "e007 04 05 11ffffffff", V5, Disconnect{Reason: DisconnectWithWill, HasSessionExpiry: true, SessionExpiry: NeverExpires}, 0},
		{"server reference", "e007 9d 05 1c0002'b2'", V5, Disconnect{Reason: ServerMoved}, 0},
		{"remaining length in four bytes", "e080808000", V311, Disconnect{}, 0},

		{"nothing", "", V5, Disconnect{}, Truncated},
		{"half a header", "e0", V5, Disconnect{}, Truncated},
		{"half a packet", "e00200", V5, Disconnect{}, Truncated},
		{"more than a packet", "e000c000", V5, Disconnect{}, TrailingBytes},
		{"another packet", "c000", V5, Disconnect{}, NotDisconnect},
		{"header flags", "e100", V311, Disconnect{}, NotDisconnect},
		{"3.1.1 with a body", "e00100", V311, Disconnect{}, TrailingBytes},
		{"fifth length byte", "e08080808000", V5, Disconnect{}, BadRemainingLength},
		{"largest length", "e0ffffff7f", V5, Disconnect{}, Truncated},
		{"property length beyond the end", "e0020001", V5, Disconnect{}, Truncated},
		{"bytes left over", "e003000000", V5, Disconnect{}, TrailingBytes},
		{"expiry twice", "e00c 00 0a 1100000001 1100000001", V5, Disconnect{}, DuplicateProperty},
		{"assigned client ID", "e006 00 04 120001'x'", V5, Disconnect{}, BadProperty},
	} {
		d, err := ParseDisconnect(unhex(t, tt.hex), tt.version)
		if kindOf(err) != tt.kind || d != tt.want || (err == nil) != (tt.kind == 0) {
			t.Errorf("%s: got %+v, %v, want %+v, %v", tt.name, d, err, tt.want, tt.kind)
		}
		var e *Error
		if errors.As(err, &e) && e.Version != tt.version {
			t.Errorf("%s: the error is for version %v, want %v", tt.name, e.Version, tt.version)
		}
	}
}

func TestAppendDisconnect(t *testing.T) {
	for _, tt := range []struct {
		version Version
		want    string
	}{{V5, "e0028b00"}, {V311, ""}, {V31, ""}, {0, ""}} {
		got := AppendDisconnect([]byte("before"), tt.version, ServerShuttingDown)
		if want := append([]byte("before"), unhex(t, tt.want)...); !bytes.Equal(got, want) {
			t.Errorf("%v: got %x, want %s", tt.version, got, tt.want)
		}
	}
	d, err := ParseDisconnect(AppendDisconnect(nil, V5, ServerShuttingDown), V5)
	if err != nil || d.Reason != ServerShuttingDown {
		t.Errorf("read back %+v, %v", d, err)
	}
}

func TestNames(t *testing.T) {
	if len(ErrorKinds()) != int(BadPropertyValue) {
		t.Errorf("%d kinds, the last is %d", len(ErrorKinds()), BadPropertyValue)
	}
	names := map[string]ErrorKind{}
	for _, k := range ErrorKinds() {
		s := k.String()
		if old, twice := names[s]; twice || s == "" || s == "unknown" {
			t.Errorf("kind %d is named %q like kind %d", k, s, old)
		}
		names[s] = k
	}
	reasons := map[string]byte{}
	for i := range 256 {
		c := byte(i)
		s := ReasonName(V5, c)
		if old, twice := reasons[s]; twice {
			t.Errorf("codes %#x and %#x are both %q", old, c, s)
		}
		reasons[s] = c
	}
	for _, tt := range []struct{ got, want string }{
		{ErrorKind(0).String(), "unknown"},
		{lastKind.String(), "unknown"},
		{CONNECT.String(), "CONNECT"},
		{DISCONNECT.String(), "DISCONNECT"},
		{AUTH.String(), "AUTH"},
		{PacketType(16).String(), "PacketType(16)"},
		{V31.String() + V311.String() + V5.String() + Version(6).String(), "3.13.1.15unknown"},
		{ReasonName(V311, 0), "success"},
		{ReasonName(V311, 3), "server_unavailable"},
		{ReasonName(V31, 5), "not_authorized"},
		{ReasonName(V311, 0x87), "0x87"},
		{ReasonName(V5, 0x8e), "session_taken_over"},
		{ReasonName(V5, 3), "0x03"},
		{(&Error{Kind: TooLarge}).Error(), "mqtt: too_large"},
		{(&Error{Kind: BadClientID, Version: V311, Detail: "empty"}).Error(), "mqtt: bad_client_id: empty (MQTT 3.1.1)"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}
