package edge

import (
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/router"
)

// seldom lets something be said every warnEvery.
type seldom struct{ last atomic.Int64 }

// now reports whether it is time, and takes the turn.
func (s *seldom) now() bool {
	last, now := s.last.Load(), time.Now().UnixNano()
	return (last == 0 || now-last >= int64(warnEvery)) && s.last.CompareAndSwap(last, now)
}

// log writes the session's one line.
func (c *client) log(sum relay.Summary, at registry.BrokerRef, why router.Why) {
	e := c.ln.srv.log.Info()
	if !e.Enabled() {
		return
	}
	key := c.key
	if c.assigned {
		e.Bool("assigned", true)
		if !c.named {
			key = "" // it was placed by random bytes, which mean nothing to anybody
		}
	}
	var address [64]byte
	e.Str("reason", sum.Reason.String()).Str("pool", c.ln.pool).Str("key", printable(key)).Str("broker", at.Broker).
		Str("edge", c.ln.srv.conf.ID).Str("listener", c.ln.name).Str("transport", c.ln.transport).
		Bytes("client_address", netip.AddrPortFrom(c.address, c.port).AppendTo(address[:0]))
	if why != router.WhyNone {
		e.Stringer("why", why)
	}
	if sum.Detail != "" {
		e.Str("detail", printable(sum.Detail))
	}
	if sum.Refused != 0 {
		e.Uint8("connack", sum.Refused)
	}
	e.Uint64("bytes_from_client", sum.Bytes[relay.Client]).Uint64("bytes_from_broker", sum.Bytes[relay.Broker]).
		Uint64("packets_from_client", sum.Packets[relay.Client]).Uint64("packets_from_broker", sum.Packets[relay.Broker]).
		Dur("to_connect_ms", sum.Connect).Dur("to_broker_ms", sum.Dialed).Dur("to_connack_ms", sum.Connack).Dur("total_ms", sum.Total).
		Msg("closed")
}

// maxPrintable bounds what a stranger's text takes in a log line, in bytes.
const maxPrintable = 256

// printable escapes what is no printable text, so that a client ID cannot forge a line or steer a terminal, and cuts what is long.
func printable(s string) string {
	cut := ""
	if len(s) > maxPrintable {
		n := maxPrintable
		for n > maxPrintable-utf8.UTFMax && !utf8.RuneStart(s[n]) {
			n--
		}
		cut = "…+" + strconv.Itoa(len(s)-n)
		s = s[:n]
	}
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		plain = s[i] >= 0x20 && s[i] < 0x7f && s[i] != '\\'
	}
	if plain {
		return s + cut
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			b.WriteString(`\x`)
			b.WriteString(strconv.FormatUint(uint64(s[0])|0x100, 16)[1:])
		case r == '\\' || !strconv.IsPrint(r):
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String() + cut
}
