package node

import (
	"context"
	"fmt"
	"os"
)

// heed reloads at each hangup, until ctx ends.
func (n *Node) heed(ctx context.Context, hangups <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangups:
			n.reload()
		}
	}
}

// reload reads the certificates, keys and client authorities of all listeners again, for the connections to come. A listener for which that
// fails goes on with those it has; the others have nothing to do with it.
func (n *Node) reload() {
	read, secure := []string{}, 0
	for i, l := range n.listeners {
		conf := l.Config()
		if conf.TLS == nil {
			continue
		}
		secure++
		field := fmt.Sprintf("listeners[%d].tls", i)
		if err := l.Reload(*conf.TLS); err != nil {
			n.log.Warn().Err(n.locate(field, err)).Str("listener", conf.Name).Msg("SIGHUP: certificates are not replaced, since a file cannot be used: the listener goes on with those it has")
			continue
		}
		read = append(read, conf.Name)
		n.warnOf(n.mistakes(field)) // it has expired, say
	}
	const rest = "the rest of the configuration is not read again: that takes a restart"
	switch {
	case secure == 0:
		n.log.Info().Msg("SIGHUP: no listener has certificates to read again; " + rest)
	case len(read) > 0:
		n.log.Info().Strs("reloaded", read).Msg("SIGHUP: certificates, keys and client authorities are read again, for connections to come; " + rest)
	}
}
