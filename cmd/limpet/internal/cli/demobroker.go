package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/limpet-mesh/limpet/cmd/limpet/internal/demo/broker"
)

// demoBrokerCommand is the hidden verb that `limpet demo` runs its brokers with, a process each, so that any can be
// killed or frozen by itself.
func demoBrokerCommand() *cobra.Command {
	var (
		config    broker.Config
		peers     []string
		readyFile string
		logLevel  string
	)
	cmd := &cobra.Command{
		Use:    "demo-broker --name NAME --listen ADDRESS [--link-listen ADDRESS --peer NAME=ADDRESS ...]",
		Short:  "Run one broker of the demo",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level, err := zerolog.ParseLevel(logLevel)
			if err != nil {
				return fmt.Errorf("--log-level: %w", err)
			}
			config.Logger = zerolog.New(cmd.ErrOrStderr()).Level(level).With().Timestamp().Logger()
			if config.Peers, err = parsePeers(peers); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			b, err := broker.Start(config)
			if err != nil {
				return err
			}
			if readyFile != "" {
				if err := writeReady(readyFile, b); err != nil {
					return errors.Join(err, b.Close())
				}
			}
			<-ctx.Done()
			stop() // a second signal kills
			return b.Close()
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&config.Name, "name", "", "name of the broker")
	flags.StringVar(&config.Listen, "listen", "", "address for MQTT over TCP")
	flags.StringVar(&config.LinkListen, "link-listen", "", "address for the links of the other brokers")
	flags.StringArrayVar(&peers, "peer", nil, "name and link address of another broker, NAME=ADDRESS (repeatable)")
	flags.BoolVar(&config.ProxyProtocol, "proxy-protocol", false, "honor PROXY protocol headers from loopback")
	flags.BoolVar(&config.Standalone, "standalone", false, "share nothing with other brokers")
	flags.StringVar(&readyFile, "ready-file", "", "file to write, as JSON, when clients are accepted")
	flags.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func parsePeers(args []string) (map[string]string, error) {
	peers := make(map[string]string, len(args))
	for _, arg := range args {
		name, address, ok := strings.Cut(arg, "=")
		if !ok || name == "" || address == "" {
			return nil, fmt.Errorf("--peer %q: want NAME=ADDRESS, as in b2=127.0.0.1:22002", arg)
		}
		if _, twice := peers[name]; twice {
			return nil, fmt.Errorf("--peer %q: there is a peer of that name already", arg)
		}
		peers[name] = address
	}
	return peers, nil
}

// demoBrokerReady is what --ready-file gets.
type demoBrokerReady struct {
	Name string `json:"name"`
	MQTT string `json:"mqtt"`           // address
	Link string `json:"link,omitempty"` // address
	PID  int    `json:"pid"`
}

// writeReady writes the file in one step: who finds it finds all of it.
func writeReady(path string, b *broker.Broker) error {
	ready := demoBrokerReady{Name: b.Name(), MQTT: b.Addr().String(), PID: os.Getpid()}
	if a := b.LinkAddr(); a != nil {
		ready.Link = a.String()
	}
	data, err := json.Marshal(ready)
	if err != nil {
		return err
	}
	temporary := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d", filepath.Base(path), os.Getpid()))
	if err := os.WriteFile(temporary, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
