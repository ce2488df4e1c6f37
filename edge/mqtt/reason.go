package mqtt

import "fmt"

// Reason codes of MQTT 5 (§2.4), in CONNACK and DISCONNECT. For MQTT 3 AppendConnack translates them.
const (
	Success              byte = 0x00 // also "normal disconnection"
	DisconnectWithWill   byte = 0x04 // DISCONNECT of a client: publish my Will
	UnspecifiedError     byte = 0x80
	MalformedPacket      byte = 0x81
	ProtocolError        byte = 0x82
	ImplementationError  byte = 0x83
	UnsupportedVersion   byte = 0x84
	ClientIDNotValid     byte = 0x85
	BadUserNamePassword  byte = 0x86
	NotAuthorized        byte = 0x87
	ServerUnavailable    byte = 0x88
	ServerBusy           byte = 0x89
	Banned               byte = 0x8A
	ServerShuttingDown   byte = 0x8B
	BadAuthMethod        byte = 0x8C
	KeepAliveTimeout     byte = 0x8D
	SessionTakenOver     byte = 0x8E
	PacketTooLarge       byte = 0x95
	MessageRateTooHigh   byte = 0x96
	QuotaExceeded        byte = 0x97
	AdministrativeAction byte = 0x98
	UseAnotherServer     byte = 0x9C
	ServerMoved          byte = 0x9D
	ConnectionRateHigh   byte = 0x9F
	MaximumConnectTime   byte = 0xA0
)

// Return codes of a CONNACK of MQTT 3.1 and 3.1.1 (3.1.1 §3.2.2.3). Zero is acceptance.
const (
	RefusedVersion       byte = 1
	RefusedClientID      byte = 2
	RefusedUnavailable   byte = 3
	RefusedUserName      byte = 4
	RefusedNotAuthorized byte = 5
)

// ReasonName names a code as logs and metrics show it. v says whose code it is: a CONNACK's return code
// for MQTT 3, a reason code otherwise. A code that has no name is written in hexadecimal: "0x42".
func ReasonName(v Version, code byte) string {
	if v == V31 || v == V311 {
		switch code {
		case RefusedVersion:
			code = UnsupportedVersion
		case RefusedClientID:
			code = ClientIDNotValid
		case RefusedUnavailable:
			code = ServerUnavailable
		case RefusedUserName:
			code = BadUserNamePassword
		case RefusedNotAuthorized:
			code = NotAuthorized
		case Success:
		default:
			return fmt.Sprintf("0x%02x", code)
		}
	}
	switch code {
	case Success:
		return "success"
	case DisconnectWithWill:
		return "disconnect_with_will"
	case UnspecifiedError:
		return "unspecified_error"
	case MalformedPacket:
		return "malformed_packet"
	case ProtocolError:
		return "protocol_error"
	case ImplementationError:
		return "implementation_error"
	case UnsupportedVersion:
		return "unsupported_version"
	case ClientIDNotValid:
		return "client_id_not_valid"
	case BadUserNamePassword:
		return "bad_user_name_or_password"
	case NotAuthorized:
		return "not_authorized"
	case ServerUnavailable:
		return "server_unavailable"
	case ServerBusy:
		return "server_busy"
	case Banned:
		return "banned"
	case ServerShuttingDown:
		return "server_shutting_down"
	case BadAuthMethod:
		return "bad_authentication_method"
	case KeepAliveTimeout:
		return "keep_alive_timeout"
	case SessionTakenOver:
		return "session_taken_over"
	case PacketTooLarge:
		return "packet_too_large"
	case MessageRateTooHigh:
		return "message_rate_too_high"
	case QuotaExceeded:
		return "quota_exceeded"
	case AdministrativeAction:
		return "administrative_action"
	case UseAnotherServer:
		return "use_another_server"
	case ServerMoved:
		return "server_moved"
	case ConnectionRateHigh:
		return "connection_rate_exceeded"
	case MaximumConnectTime:
		return "maximum_connect_time"
	}
	return fmt.Sprintf("0x%02x", code)
}

// returnCode is the CONNACK return code of MQTT 3 that says best what a reason code says.
// Codes 0 to 5 are return codes already.
func returnCode(code byte) byte {
	switch code {
	case UnsupportedVersion:
		return RefusedVersion
	case ClientIDNotValid:
		return RefusedClientID
	case BadUserNamePassword:
		return RefusedUserName
	case NotAuthorized:
		return RefusedNotAuthorized
	}
	if code <= RefusedNotAuthorized {
		return code
	}
	return RefusedUnavailable // busy, quota, shutting down, …: MQTT 3 has no other word
}
