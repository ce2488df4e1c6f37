package broker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const sysRoot = "$SYS/"

// underSys reports whether a topic is a broker's own.
func underSys(topic string) bool { return len(topic) >= 4 && strings.EqualFold(topic[:4], "$SYS") }

// sys publishes a retained message of this broker's own: no peer gets it. A nil payload clears it.
func (b *Broker) sys(topic string, payload []byte) {
	m := &message{topic: sysRoot + topic, payload: payload, retain: true, stamp: b.clock.next(), from: b.config.Name}
	b.retained.put(m)
	b.deliver(m)
}

// sysJSON publishes v as JSON.
func (b *Broker) sysJSON(topic string, v any) {
	payload, err := json.Marshal(v)
	if err != nil { // plain structs
		panic(err)
	}
	b.sys(topic, payload)
}

// reportFigures publishes counters and gauges.
func (b *Broker) reportFigures(now time.Time, retained int) {
	b.mu.Lock()
	connected, total := 0, len(b.sessions)
	for _, c := range b.owners {
		if c.established {
			connected++
		}
	}
	b.mu.Unlock()
	for topic, n := range map[string]int64{
		"broker/uptime":            int64(now.Sub(b.started) / time.Second),
		"broker/clients/connected": int64(connected),
		"broker/clients/total":     int64(total),
		"broker/messages/received": atomic.LoadInt64(&b.server.Info.MessagesReceived),
		"broker/messages/sent":     atomic.LoadInt64(&b.server.Info.MessagesSent),
		"broker/retained":          int64(retained),
	} {
		b.sys(topic, strconv.AppendInt(nil, n, 10))
	}
}

func (b *Broker) reportPeer(s PeerStatus) { b.sysJSON("broker/peers/"+s.Name, s) }

// reportSession publishes a session's state when it changes hands.
func (b *Broker) reportSession(s *session) { b.sysJSON(sessionTopic(s.id), b.sessionStatus(s)) }

// sessionTopic is broker/sessions/ and the client ID, bytes outside [A-Za-z0-9._-] as %XX; of one that would be
// longer than 256 bytes ~ and its SHA-256.
func sessionTopic(client string) string {
	var name strings.Builder
	for i := 0; i < len(client) && name.Len() <= 256; i++ {
		switch c := client[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
			name.WriteByte(c)
		default:
			name.WriteByte('%')
			name.WriteString(strings.ToUpper(hex.EncodeToString([]byte{c})))
		}
	}
	if name.Len() > 256 {
		sum := sha256.Sum256([]byte(client))
		return "broker/sessions/~" + hex.EncodeToString(sum[:])
	}
	return "broker/sessions/" + name.String()
}
