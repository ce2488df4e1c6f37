package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/limpet-mesh/limpet/edge/config"
	"github.com/limpet-mesh/limpet/registry/embedded"
)

// storeServers is what `limpet store` runs.
type storeServers struct {
	data                         string
	listen                       string
	etcdPort, peerPort, natsPort uint16
	only                         string
	noSync                       bool
	logLevel                     string
}

func storeCommand() *cobra.Command {
	var s storeServers
	cmd := &cobra.Command{
		Use:   "store --data DIR",
		Short: "Run the stores of a small mesh: etcd and NATS in one process",
		Long: `Store runs an etcd server and a NATS server in this process, prints their
addresses, and ends in order on SIGINT or SIGTERM; SIGHUP is ignored. It is one
node; its data directory can be given to a stand-alone etcd later.`,
		Example: "  limpet store --data /var/lib/limpet",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.only != "" && s.only != "etcd" && s.only != "nats" {
				return usagef(cmd, "--only: expected one of etcd, nats, found %q", s.only)
			}
			if s.data == "" && s.only != "nats" {
				return usagef(cmd, "--data: expected a directory for etcd's data")
			}
			if _, err := zerolog.ParseLevel(s.logLevel); err != nil {
				return usagef(cmd, "--log-level: expected one of trace, debug, info, warn, error, found %q", s.logLevel)
			}
			log, queue := openLog(config.Log{Level: s.logLevel}, cmd.ErrOrStderr())
			defer queue.close()
			defer serveOnRegardless(log)()
			return s.run(cmd.Context(), cmd.OutOrStdout(), log)
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.data, "data", "", "`DIR` for etcd's data; made if it is not there")
	f.StringVar(&s.listen, "listen", "127.0.0.1", "`HOST` or IP address for clients")
	f.Uint16Var(&s.etcdPort, "etcd-port", 2379, "`PORT` of etcd for clients; 0 = any free")
	f.Uint16Var(&s.peerPort, "peer-port", 2380, "`PORT` of etcd for other nodes, on loopback; 0 = any free")
	f.Uint16Var(&s.natsPort, "nats-port", 4222, "`PORT` of NATS; 0 = any free")
	f.StringVar(&s.only, "only", "", "run one `STORE` alone: etcd or nats")
	f.BoolVar(&s.noSync, "no-sync", false, "never wait for the disk: a crash of the machine may lose everything")
	f.StringVar(&s.logLevel, "log-level", "info", "`LEVEL`: trace, debug, info, warn or error")
	_ = f.MarkHidden("no-sync") // for the demo, whose data nobody misses; it is registered
	return cmd
}

// run starts the servers, tells where they are, and closes them when ctx ends: NATS first, since nothing is lost with it.
func (s *storeServers) run(ctx context.Context, out io.Writer, log zerolog.Logger) (err error) {
	if ip := net.ParseIP(s.listen); s.listen != "localhost" && (ip == nil || !ip.IsLoopback()) {
		log.Warn().Str("address", s.listen).Msg("the stores ask nobody for a password: whoever reaches this address can change the mesh")
	}
	if s.only != "nats" {
		dir := filepath.Join(s.data, "etcd")
		if err := writable(dir); err != nil {
			return fmt.Errorf("--data: %w: choose a directory that this user may write", err)
		}
		etcd, err := embedded.StartEtcd(embedded.EtcdConfig{
			Dir: dir, Logger: log, NoSync: s.noSync,
			ClientAddr: address(s.listen, s.etcdPort), PeerAddr: address("127.0.0.1", s.peerPort),
		})
		if err != nil {
			return s.explain(err, "--etcd-port or --peer-port")
		}
		defer func() { err = errors.Join(err, etcd.Close()) }()
		fmt.Fprintf(out, "etcd %s\n", etcd.URL())
		log.Info().Str("url", etcd.URL()).Str("data", dir).Msg("etcd serves")
	}
	if s.only != "etcd" {
		nats, err := embedded.StartNATS(embedded.NATSConfig{Addr: address(s.listen, s.natsPort), Logger: log})
		if err != nil {
			return s.explain(err, "--nats-port")
		}
		defer func() { err = errors.Join(err, nats.Close()) }()
		fmt.Fprintf(out, "nats %s\n", nats.URL())
		log.Info().Str("url", nats.URL()).Msg("NATS serves")
	}
	<-ctx.Done()
	log.Info().Msg("stopping")
	return nil
}

func address(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// explain names the flag that helps.
func (s *storeServers) explain(err error, flag string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w (%s)", err, flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w (--listen)", err)
	}
	return err
}

// writable makes dir if it is not there, and reports whether files can be made in it.
func writable(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".writable-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}
