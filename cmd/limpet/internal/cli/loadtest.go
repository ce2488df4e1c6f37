package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

func loadtestCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "loadtest VERB",
		Short: "Prove what an MQTT endpoint or a mesh does under load",
		Long: `Loadtest runs very many MQTT clients against edges, or any broker, and says what
they saw. Every connect and every message has an intended time, from which its
latency counts; when this program itself is too slow for the schedule, it says so.

Letters mean what they mean to emqtt-bench where it has them: -h is the host, and
help is --help alone. In topics, IDs, user names and passwords %i is the client's
number and %c its ID.

Exit codes: 0 done; 1 failed, for example because nobody could connect, or a worker
died; 2 called wrongly; 4 the generator fell behind its schedule, unless
--allow-behind; 99 an assertion failed. Of several the first in the order 1, 99, 4.
Ctrl-C ends the run in order, with the results of what ran; a second one at once.`,
		Example: `  limpet loadtest conn -h broker.example -c 10000 -R 500
  limpet loadtest pubsub --edge mqtt://10.0.0.1 --edge mqtt://10.0.0.2 -c 1000 -q 1 --duration 1m --html run.html
  limpet demo --idle --state mesh.json &
  limpet loadtest verify --state mesh.json -c 3000 --fault 'at 30s restart broker b2' --assert 'stickiness==100' --assert 'lost==0'`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef(cmd, "expected a verb: %s", strings.Join(verbsOf(cmd), ", "))
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return usagef(cmd, "unknown verb %q: did you mean %q?", args[0], near[0])
			}
			return usagef(cmd, "unknown verb %q: expected one of %s", args[0], strings.Join(verbsOf(cmd), ", "))
		},
		DisableFlagsInUseLine: true,
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(
		connCommand(),
		pubCommand(),
		subCommand(),
		pubsubCommand(),
		stormCommand(),
		verifyCommand(),
		raceCommand(),
		sweepCommand(),
		scenarioCommand(),
		reportCommand(),
		workerCommand(),
	)
	for _, sub := range cmd.Commands() {
		sub.Flags().Bool("help", false, "tell what "+sub.Name()+" does") // cobra's own would take -h
		sub.Flags().SortFlags = false
		sub.SetFlagErrorFunc(flagError)
	}
	return cmd
}

func verbsOf(cmd *cobra.Command) []string {
	var names []string
	for _, sub := range cmd.Commands() {
		if !sub.Hidden {
			names = append(names, sub.Name())
		}
	}
	return names
}
