package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/limpet-mesh/limpet/loadtest"
	"github.com/limpet-mesh/limpet/loadtest/report"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// runFlags say how a run goes, and where its results go.
type runFlags struct {
	name                       string
	duration, warmup, settle   time.Duration
	seed                       uint64
	workers                    int
	faults                     faultsFlag
	asserts                    assertsFlag
	allowBehind, quiet         bool
	format, html, hgrm, listen string
}

func (o *runFlags) add(f *pflag.FlagSet) {
	f.DurationVar(&o.duration, "duration", 0, "of the run, warm-up included (default: until all is done, or for ever)")
	f.DurationVar(&o.warmup, "warmup", 0, "from the start: not in the totals")
	f.DurationVar(&o.settle, "settle", 0, "how long what is under way at the end may still arrive, at most (default 10s; verify 30s)")
	f.Uint64Var(&o.seed, "seed", 0, "of every choice (default 1)")
	f.IntVar(&o.workers, "workers", 1, "processes that share the clients")
	f.Var(&o.faults, "fault", "what to break, such as 'at 30s kill broker b2 for 10s'; may be repeated")
	o.addOutput(f)
	f.StringVar(&o.listen, "prometheus", "", "address to serve metrics on, such as 127.0.0.1:9200")
	f.BoolVar(&o.quiet, "quiet", false, "show nothing before the end")
}

// addOutput adds what is also good for results that exist already.
func (o *runFlags) addOutput(f *pflag.FlagSet) {
	f.Var(&o.asserts, "assert", "what must hold, such as 'lost==0' or 'connack.p99<50ms'; may be repeated")
	f.BoolVar(&o.allowBehind, "allow-behind", false, "exit 0 also if the generator fell behind its schedule")
	f.StringVar(&o.name, "name", "", "of the run, in results")
	f.StringVarP(&o.format, "output", "o", "text", "text, json or csv")
	f.StringVar(&o.html, "html", "", "file to write a page with graphs to")
	f.StringVar(&o.hgrm, "hgrm", "", "file to write the distributions to, one for each latency: run.hgrm becomes run.connack.hgrm and so on")
}

// into fills in what a plan says of the run itself.
func (o *runFlags) into(cmd *cobra.Command, p *loadtest.Plan) error {
	f := cmd.Flags()
	if err := o.check(cmd); err != nil {
		return err
	}
	if o.workers < 1 || o.workers > maxWorkers {
		return usagef(cmd, "--workers: expected 1 to %d, found %d", maxWorkers, o.workers)
	}
	set(f, "duration", &p.Duration, o.duration)
	set(f, "warmup", &p.Warmup, o.warmup)
	set(f, "settle", &p.Settle, o.settle)
	set(f, "seed", &p.Seed, o.seed)
	set(f, "name", &p.Name, o.name)
	p.Faults = append(p.Faults, o.faults...)
	p.Assert = append(p.Assert, o.asserts...)
	return nil
}

const maxWorkers = 1024

func (o *runFlags) check(cmd *cobra.Command) error {
	if !slices.Contains([]string{"text", "json", "csv"}, o.format) {
		return usagef(cmd, "-o: expected one of text, json, csv, found %q", o.format)
	}
	for _, out := range []struct{ flag, path string }{{"--html", o.html}, {"--hgrm", o.hgrm}} {
		if out.path == "" {
			continue
		}
		if err := report.Creatable(out.path); err != nil {
			return usagef(cmd, "%s: %s", out.flag, strings.TrimPrefix(err.Error(), "report: "))
		}
	}
	return nil
}

// checkPlan makes a plan's mistakes mistakes of the call.
func checkPlan(cmd *cobra.Command, p *loadtest.Plan) error {
	err := p.Check()
	e, ok := errors.AsType[*loadtest.PlanError](err)
	if !ok {
		return usage(cmd, err)
	}
	field := e.Field
	if name, ok := flagNames[field]; ok {
		return usagef(cmd, "%s: %s", name, e.Message)
	}
	if i := strings.LastIndexByte(field, '.'); i >= 0 {
		field = field[i+1:]
	}
	field, _, _ = strings.Cut(field, "[")
	name := cmp.Or(flagNames[field], field)
	return usagef(cmd, "%s: %s", name, e.Message)
}

// flagNames are those of a plan's fields where they differ.
var flagNames = map[string]string{
	"sources": "--ifaddr", "drop": "--drop", "identity": "--identity", "admin": "--admin", "versions": "-V", "control": "--control", "clients": "-c", "pairs": "-c", "topic": "-t", "filter": "-t", "qos": "-q", "size": "-s", "version": "-V", "id": "--prefix", "endpoints": "--edge",
	"choose": "--choose", "network": "--network", "warmup": "--warmup", "duration": "--duration", "settle": "--settle", "retry": "--retry",
	"faults": "--fault", "lives": "--lives", "rate": "--rate", "tls": "--cert, --key", "expiry": "-x", "gap": "--gap", "times": "--times",
	"first": "-n", "every": "--every", "at": "--at", "up": "--up", "down": "--down", "late": "--late", "feeders": "--feeders",
	"keep": "-k", "user": "-u", "verify.topic": "--identity-topic", "race.topic": "--identity-topic",
}

// run runs a plan that has been checked and tells what came of it.
func (o *runFlags) run(cmd *cobra.Command, plan *loadtest.Plan) error {
	last := &latest{}
	watch, err := o.watch(cmd, last, plan.Duration)
	if err != nil {
		return err
	}
	res, err := o.interpret(cmd.Context(), cmd, plan, last.set)
	if watching := watch(); err == nil {
		err = watching
	}
	return o.finish(cmd, res, plan.Assert, err)
}

// interpret runs a plan here, or in workers.
func (o *runFlags) interpret(ctx context.Context, cmd *cobra.Command, plan *loadtest.Plan, tell func(*result.Result)) (*result.Result, error) {
	if o.workers <= 1 {
		return loadtest.Run(ctx, plan, loadtest.Options{Tell: tell})
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("starting workers: %w", err)
	}
	crew := loadtest.Workers{N: o.workers, Command: []string{self, "loadtest", "worker"}, Stderr: cmd.ErrOrStderr(), Tell: tell}
	return crew.Run(ctx, plan)
}

// latest is the newest result of a run.
type latest struct{ p atomic.Pointer[result.Result] }

func (l *latest) set(r *result.Result) { l.p.Store(r) }
func (l *latest) get() *result.Result  { return l.p.Load() }

// watch shows a run while it goes on, to people and to Prometheus, until the function that it returns is called.
func (o *runFlags) watch(cmd *cobra.Command, last *latest, planned time.Duration) (end func() error, err error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(cmd.Context()))
	var all sync.WaitGroup
	var exported error
	if o.listen != "" {
		exporter, err := report.Listen(o.listen, last.get)
		if err != nil {
			cancel()
			return nil, usagef(cmd, "--prometheus: %s", strings.TrimPrefix(err.Error(), "report: metrics: "))
		}
		if !o.quiet {
			fmt.Fprintf(cmd.ErrOrStderr(), "metrics: http://%s/metrics\n", exporter.Addr())
		}
		all.Go(func() { exported = exporter.Run(ctx) })
	}
	if !o.quiet {
		errs := cmd.ErrOrStderr()
		all.Go(func() {
			shown, stop := context.WithCancel(ctx)
			defer stop()
			defer context.AfterFunc(cmd.Context(), stop)()
			_ = report.NewLive(errs, last.get, planned).Run(shown) // who sees nothing still gets the results
			if ctx.Err() == nil && cmd.Context().Err() != nil {
				fmt.Fprintln(errs, "ending in order, with what is under way; Ctrl-C again ends at once")
			}
		})
	}
	return func() error {
		cancel()
		all.Wait()
		return exported
	}, nil
}

// finish judges a result, writes it wherever it shall go, and makes the exit code of it. err is what went wrong so far.
func (o *runFlags) finish(cmd *cobra.Command, res *result.Result, asserts []result.Assertion, err error) error {
	if res == nil {
		return err
	}
	res.Tool = "limpet " + currentVersion().Version
	failed := res.Judge(asserts)
	errs := []error{err}
	if err == nil || o.format != "text" || res.Counters[result.Connects]+res.Warmup.Counters[result.Connects] > 0 { // else the error says it all
		errs = append(errs, report.Write(cmd.OutOrStdout(), o.format, res))
	}
	if o.html != "" {
		errs = append(errs, report.WriteHTML(o.html, res))
	}
	if o.hgrm != "" {
		_, err := report.WriteHGRM(o.hgrm, res)
		errs = append(errs, err)
	}
	switch err := errors.Join(errs...); {
	case err != nil:
		return err
	case failed > 0:
		return &exitError{codeAssertion, o.failures(res)}
	case res.Generator.Behind && !o.allowBehind:
		return &exitError{codeBehind, fmt.Errorf("the generator fell behind its schedule: %s (--allow-behind makes this no failure)", strings.Join(res.Generator.Reasons, "; "))}
	}
	return nil
}

// failures says which assertions failed, unless the text on the terminal has just said so.
func (o *runFlags) failures(res *result.Result) error {
	if o.format == "text" {
		return nil
	}
	var all []error
	for _, f := range res.Failed() {
		all = append(all, fmt.Errorf("assertion %s failed: %s", f.Assertion, f.Why))
	}
	return errors.Join(all...)
}
