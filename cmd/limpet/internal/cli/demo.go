package cli

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/limpet-mesh/limpet/cmd/limpet/internal/demo"
)

func demoCommand() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a mesh on this machine and watch it bring clients home",
		Long: `Demo runs etcd, NATS, three brokers and three edges on this machine, a process
each, and tells a story with two dozen clients: they come home by other edges
and transports, and etcd, an edge and a broker are killed under them. Every
claim of the story is checked, and told at its end. The mesh stays up, for you
to play with, until Ctrl-C.

The edges listen on 127.0.0.1, 127.0.0.2 and 127.0.0.3 with the standard ports
(1883, 8883, 8083, 8084, 14567/udp; admin 9883) where these are free, else on
other ports of 127.0.0.1.`,
		Example: "  limpet demo --once\n  limpet demo --idle --state mesh.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.Once && o.Idle:
				return usagef(cmd, "expected one of --once, --idle, found both: there is no story to end after")
			case o.Standalone && !o.Idle:
				return usagef(cmd, "--standalone: expected with --idle: the story is about brokers that share what is published")
			case o.Clients < demo.MinClients || o.Clients > demo.MaxClients:
				return usagef(cmd, "--clients: expected %d to %d, found %d", demo.MinClients, demo.MaxClients, o.Clients)
			}
			ctx := cmd.Context()
			if !signal.Ignored(syscall.SIGHUP) { // as under nohup
				hangup, stop := signal.NotifyContext(ctx, syscall.SIGHUP) // the terminal is closed
				defer stop()
				ctx = hangup
			}
			// Without a handler a write to a pipe that nobody reads would end this process at once, and nothing in order.
			pipes := make(chan os.Signal, 1)
			signal.Notify(pipes, syscall.SIGPIPE)
			defer signal.Stop(pipes)
			o.Out = cmd.OutOrStdout()
			return demo.Run(ctx, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Once, "once", false, "end after the story, with 0 only if every claim held")
	f.BoolVar(&o.Idle, "idle", false, "tell no story")
	f.StringVar(&o.State, "state", "", "`FILE` to write where everything is, as JSON")
	f.IntVar(&o.Clients, "clients", demo.DefaultClients, "`NUMBER` of clients in the story")
	f.BoolVar(&o.Standalone, "standalone", false, "with --idle: brokers that share nothing with each other")
	f.BoolVar(&o.Shifted, "shifted", false, "leave the standard ports alone")
	return cmd
}

// demoChildCommand is the hidden verb that runs another one as a process of a demo, with whose end it ends.
func demoChildCommand() *cobra.Command {
	var leash, name string
	cmd := &cobra.Command{
		Use:    "demo-child --leash PATH --name NAME -- VERB ARGUMENT...",
		Short:  "Run a verb as a process of a running demo",
		Hidden: true,
		Args:   cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, release, err := demo.Leash(cmd.Context(), leash, name)
			if err != nil {
				return fmt.Errorf("--leash: %w", err)
			}
			defer release()
			verb := root()
			verb.SetArgs(args)
			verb.SetOut(cmd.OutOrStdout())
			verb.SetErr(cmd.ErrOrStderr())
			return verb.ExecuteContext(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVar(&leash, "leash", "", "socket of the demo")
	f.StringVar(&name, "name", "", "of the process in the demo")
	return cmd
}
