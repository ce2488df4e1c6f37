package upstream

import (
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/gobwas/ws"
)

const (
	// subprotocol is what a client asks for and a broker must select. [MQTT-6.0.0-3], [MQTT-6.0.0-4]
	subprotocol = "mqtt"
	// maxUpgrade bounds the broker's answer to the upgrade, in bytes.
	maxUpgrade = 16 << 10
)

// upgrade makes a WebSocket of conn: RFC 6455 §4.1, the client's side, strictly. It returns what the broker sent behind its
// answer. Deadlines are the caller's.
func upgrade(conn io.ReadWriter, u *url.URL) (early []byte, err error) {
	bounded := &boundedReader{ReadWriter: conn, left: maxUpgrade}
	br, hs, err := ws.Dialer{Protocols: []string{subprotocol}}.Upgrade(bounded, u)
	if br != nil {
		defer ws.PutReader(br)
	}
	if err != nil {
		if status, ok := errors.AsType[ws.StatusError](err); ok {
			return nil, fmt.Errorf("%w: GET %s was answered with status %d instead of 101: check the broker's path", ErrWebSocket, u.RequestURI(), int(status))
		}
		return nil, fmt.Errorf("%w: upgrade: %w", ErrWebSocket, err)
	}
	if hs.Protocol != subprotocol {
		return nil, fmt.Errorf("%w: the server did not select the subprotocol %q", ErrWebSocket, subprotocol)
	}
	if br != nil {
		early = make([]byte, br.Buffered())
		if _, err := io.ReadFull(br, early); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrWebSocket, err)
		}
	}
	return early, nil
}

var errUpgradeTooLong = errors.New("answer longer than 16 KiB")

// boundedReader fails once more than left bytes were asked of it.
type boundedReader struct {
	io.ReadWriter
	left int
}

func (r *boundedReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, errUpgradeTooLong
	}
	n, err := r.ReadWriter.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, err
}
