package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// usageTemplate is cobra's in the words of ours: limpet has verbs, and an argument's place is in capitals.
const usageTemplate = `Usage:
  {{.UseLine}}
{{if .HasAvailableSubCommands}}
Verbs:
{{range .Commands}}{{if .IsAvailableCommand}}  {{rpad .Name .NamePadding}} {{.Short}}
{{end}}{{end}}{{end}}{{if .HasExample}}
Examples:
{{.Example}}
{{end}}{{if .HasAvailableLocalFlags}}
Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{end}}{{if .HasAvailableSubCommands}}
"{{.CommandPath}} VERB --help" tells more about a verb.
{{end}}`

// helpCommand takes the place of cobra's, which ends with 0 for a verb that is not there.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "help [VERB]",
		Short:   "Tell more about a verb",
		Example: "  limpet help check",
		Args:    cobra.ArbitraryArgs, // that name no verb are told of below
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err == nil && len(rest) > 0 {
				err = noVerb(about, rest[0])
			}
			if err != nil {
				return usage(cmd.Root(), err)
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// noArgs refuses arguments, and shows by an example of the verb how it is called.
func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.HasExample():
		return fmt.Errorf("expected no argument, as in %q, found %q", example(cmd), args[0])
	}
	return fmt.Errorf("expected no argument, found %q", args[0])
}

// example is the first one of a verb.
func example(cmd *cobra.Command) string {
	line, _, _ := strings.Cut(strings.TrimSpace(cmd.Example), "\n")
	return line
}
