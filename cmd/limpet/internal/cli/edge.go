package cli

import (
	stdlog "log"

	"github.com/spf13/cobra"

	"github.com/limpet-mesh/limpet/cmd/limpet/internal/node"
	"github.com/limpet-mesh/limpet/edge/config"
)

func edgeCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "edge -c FILE",
		Short: "Run an edge: accept clients and bring them home",
		Long: `Edge accepts MQTT clients on the listeners of its configuration and relays
each to the broker that its key belongs to. It starts without its store if it
must, says that it is degraded, and heals. SIGINT or SIGTERM stops accepting,
lets the sessions go within shutdown.grace, and ends with 0.

SIGHUP reads the TLS files of the listeners again, where the configuration said
at the start that they are: certificates, keys and authorities of clients, for
the connections to come. A listener with a file that cannot be used goes on with
what it has, and the log says why. The rest of the configuration is not read
again: that takes a restart.`,
		Example: "  limpet edge -c edge.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef(cmd, "-c: expected a configuration file")
			}
			conf, err := config.LoadEdge(file)
			if err != nil {
				return err
			}
			log, queue := openLog(conf.Log, cmd.ErrOrStderr())
			defer queue.close()
			hangups, end := serveOn()
			defer end()
			guardMemory(log)
			// Libraries that write to the standard logger (quic-go, of UDP buffers that the kernel keeps small) write to ours.
			stdlog.SetFlags(0)
			stdlog.SetOutput(log.With().Str("from", "library").Logger())
			return node.Run(cmd.Context(), conf, node.Options{Version: currentVersion().Version, Log: log, LogLost: queue.lost.Load, Hangups: hangups})
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration `FILE`")
	return cmd
}
