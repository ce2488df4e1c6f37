package node

import (
	"errors"
	"fmt"

	"github.com/limpet-mesh/limpet/edge"
	"github.com/limpet-mesh/limpet/edge/config"
	"github.com/limpet-mesh/limpet/edge/listen"
	"github.com/limpet-mesh/limpet/edge/relay"
)

// listen opens the listeners. All that cannot be opened are told of at once: two edges on one machine clash in every port.
func (n *Node) listen() error {
	var errs []error
	for i := range n.conf.Listeners {
		l, err := n.server.Listen(listener(&n.conf.Listeners[i], n.conf))
		n.listeners = append(n.listeners, l)
		switch {
		case errors.Is(err, listen.ErrBind):
			errs = append(errs, n.locate(fmt.Sprintf("listeners[%d].address", i), err))
		case errors.Is(err, listen.ErrCertificate):
			errs = append(errs, n.locate(fmt.Sprintf("listeners[%d].tls", i), err))
		case err != nil:
			errs = append(errs, n.locate(fmt.Sprintf("listeners[%d]", i), err))
		}
	}
	return errors.Join(errs...)
}

// listener turns a configured listener into the server's.
func listener(l *config.Listener, c *config.Edge) edge.Listener {
	limits := &c.Limits
	out := edge.Listener{
		Pool: l.Pool,
		Config: listen.Config{
			Name: l.Name, Transport: string(l.Type), Address: l.Address, ProxyFrom: l.ProxyProtocol.From,
			HandshakeTimeout: limits.ConnectTimeout, MaxHandshakes: limits.Handshakes, TLSRecords: tlsRecords[c.TLSRecords],
		},
		Limits: relay.Limits{ConnectSize: limits.ConnectSize, ConnectTimeout: limits.ConnectTimeout, KeepAlive: limits.KeepAlive},
	}
	if l.WebSocket != nil {
		out.WebSocket = listen.WebSocket{Path: l.WebSocket.Path, Origins: l.WebSocket.Origins}
	}
	if t := l.TLS; t != nil {
		out.TLS = &listen.TLSConfig{MinVersion: t.MinVersion, ClientCAs: t.ClientCA, ClientAuth: clientAuth[t.ClientAuth]}
		for _, c := range t.Certificates {
			out.TLS.Certificates = append(out.TLS.Certificates, listen.KeyPair{Cert: c.Cert, Key: c.Key})
		}
	}
	return out
}

var clientAuth = map[config.ClientAuth]listen.ClientAuth{
	config.ClientAuthNone: listen.ClientAuthNone, config.ClientAuthRequest: listen.ClientAuthRequest, config.ClientAuthRequire: listen.ClientAuthRequire,
}
