package wire

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1" // the handshake's own hash (RFC 6455 §1.3): it proves understanding, not identity
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

const (
	subprotocol   = "mqtt"                                 // [MQTT-6.0.0-3]
	acceptGUID    = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11" // RFC 6455 §1.3
	maxAnswer     = 16 << 10                               // bytes of the answer's header
	maxCameBefore = 4 << 10                                // of frames that came in one piece with it
)

// readers are for the moments of an upgrade.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, maxCameBefore) }}

// upgrade makes conn, which lies over tcp, a WebSocket.
func (d *Dialer) upgrade(ctx context.Context, tcp *tcpConn, conn Conn, ep *Endpoint) (*wsConn, error) {
	c := &wsConn{Conn: conn, tcp: tcp}
	err := d.within(ctx, tcp.TCPConn, func() (err error) {
		nonce := newNonce()
		if _, err := conn.Write(appendUpgrade(nil, ep, nonce)); err != nil {
			return err
		}
		c.rest, err = readAnswer(conn, nonce)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// newNonce is 16 random bytes in base64 (RFC 6455 §4.1).
func newNonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.StdEncoding.EncodeToString(b[:])
}

// appendUpgrade writes the request (RFC 6455 §4.1).
func appendUpgrade(b []byte, ep *Endpoint, nonce string) []byte {
	host := ep.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if ep.Port != ep.Transport.Port() {
		host = net.JoinHostPort(ep.Host, strconv.Itoa(int(ep.Port)))
	}
	return fmt.Appendf(b, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: "+subprotocol+"\r\n\r\n", ep.Path, host, nonce)
}

// readAnswer reads the server's answer, and returns the bytes that came after it.
func readAnswer(r io.Reader, nonce string) (rest []byte, err error) {
	limited := &io.LimitedReader{R: r, N: maxAnswer}
	br := readers.Get().(*bufio.Reader)
	br.Reset(limited)
	defer func() { br.Reset(nil); readers.Put(br) }()
	answer, err := http.ReadResponse(br, nil)
	if err != nil {
		switch {
		case limited.N == 0:
			err = fmt.Errorf("%w: the answer's header is longer than %d bytes", ErrUpgrade, maxAnswer)
		case sentinel(err) == ErrOther:
			err = fmt.Errorf("%w: the answer is not HTTP: %.90w", ErrUpgrade, err)
		}
		return nil, err
	}
	if err := checkAnswer(answer, nonce); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUpgrade, err)
	}
	if n := br.Buffered(); n > 0 {
		came, _ := br.Peek(n)
		rest = append(rest, came...)
	}
	return rest, nil
}

// checkAnswer does what RFC 6455 §4.1 asks of a client after the status line.
func checkAnswer(a *http.Response, nonce string) error {
	sum := sha1.Sum([]byte(nonce + acceptGUID))
	h := a.Header
	switch {
	case a.StatusCode != http.StatusSwitchingProtocols:
		return fmt.Errorf("the server says %.100q", a.Status)
	case !hasToken(h, "Upgrade", "websocket"), !hasToken(h, "Connection", "upgrade"):
		return errors.New("the answer does not upgrade to websocket")
	case h.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]):
		return errors.New("wrong Sec-WebSocket-Accept")
	case h.Get("Sec-WebSocket-Extensions") != "":
		return errors.New("the server chose an extension that was not offered")
	case h.Get("Sec-WebSocket-Protocol") != subprotocol: // [MQTT-6.0.0-4]
		return fmt.Errorf("the server's subprotocol is %.100q, not %q", h.Get("Sec-WebSocket-Protocol"), subprotocol)
	}
	return nil
}

// hasToken looks for a word in a comma-separated header.
func hasToken(h http.Header, name, token string) bool {
	for _, line := range h.Values(name) {
		for word := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(word), token) {
				return true
			}
		}
	}
	return false
}
