// Package cli is the command line of limpet.
//
//	os.Exit(cli.Main(os.Args[1:]))
//
// Each verb is a function that returns its *cobra.Command, in a file of its own;
// root puts them together. A verb reads its input, writes what was asked for to
// the command's output, and returns an error for everything else: Main alone
// prints errors, a line each, and decides the exit code. A verb that runs until
// it is told to stop waits for the end of its command's context, which SIGINT
// and SIGTERM bring; a second signal kills. Those that clients depend on are ended
// by nothing else (signals.go).
//
// Exit codes: 0 done, 1 failed, 2 called wrongly, 3 `apply --diff` found
// something to change, 4 the generator of `loadtest` fell behind its schedule,
// 99 an assertion of `loadtest` failed.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	codeFailed    = 1
	codeUsage     = 2
	codeDiffers   = 3
	codeBehind    = 4
	codeAssertion = 99
)

// Main runs limpet with the arguments after its name, and returns the exit code.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)() // the second signal has its usual effect
	return run(ctx, args, os.Stdout, os.Stderr)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(stderr, "limpet: %s\n", strings.TrimRight(line, "\r\n"))
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	return codeFailed
}

// root is the command without a verb.
func root() *cobra.Command {
	var version bool
	cmd := &cobra.Command{
		Use:   "limpet VERB",
		Short: "A distributed sticky-routing mesh for MQTT",
		Long: `Limpet brings every MQTT client home: whichever edge a client reaches, its
connection is carried to the broker that holds its session.`,
		SilenceErrors:         true, // run prints them
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return noVerb(cmd, args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if version {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), currentVersion())
				return err
			}
			cmd.SetOut(cmd.ErrOrStderr())
			return errors.Join(cmd.Help(), &exitError{code: codeUsage, err: errors.New("expected a verb")})
		},
	}
	cmd.Flags().BoolVar(&version, "version", false, "print the version, as the verb does")
	cmd.SuggestionsMinimumDistance = 2
	cmd.SetUsageTemplate(usageTemplate)
	cmd.SetHelpCommand(helpCommand())
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, err) })
	cmd.AddCommand(
		applyCommand(),
		checkCommand(),
		demoBrokerCommand(),
		demoChildCommand(),
		demoCommand(),
		edgeCommand(),
		loadtestCommand(),
		storeCommand(),
		versionCommand(),
	)
	checkArgs(cmd)
	return cmd
}

// noVerb is the error about a verb that cmd does not have.
func noVerb(cmd *cobra.Command, name string) error {
	hint := ""
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		hint = fmt.Sprintf(": did you mean %q?", near[0])
	}
	return fmt.Errorf("unknown verb %q%s", name, hint)
}

// checkArgs makes wrong arguments of cmd and the verbs below it usage errors.
func checkArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error { return usage(cmd, check(cmd, args)) }
	}
	for _, sub := range cmd.Commands() {
		checkArgs(sub)
	}
}

// exitError ends limpet with a code of its own.
type exitError struct {
	code int
	err  error // printed; nil = nothing is
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usage marks err as a mistake in the call, and says where the right one is told. A nil err stays nil.
func usage(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{codeUsage, fmt.Errorf("%w (see \"%s --help\")", err, cmd.CommandPath())}
}

// usagef is usage with a message.
func usagef(cmd *cobra.Command, format string, args ...any) error {
	return usage(cmd, fmt.Errorf(format, args...))
}

// plural is "1 broker", "2 brokers".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
