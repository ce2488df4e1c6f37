package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-mesh/limpet/loadtest"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

func verifyCommand() *cobra.Command {
	var l loadFlags
	var v loadtest.Verify
	var qos []string
	var rate rateFlag
	var noControl bool
	cmd := &cobra.Command{
		Use: "verify", Short: "Prove that clients come home and that no message is lost",
		Long: `Verify runs persistent clients that live many lives: each connects somewhere, gets a
numbered stream of messages, also what was sent while it was away, drops its
connection in one of several ways, and comes back by another way. The result says
which broker each client met, which sessions and messages were lost, duplicated,
reordered or late, and which fault explains what.

With --control, or --state, a tenth of the clients goes straight to one broker and
stays with it: what happens to them brokers do by themselves.

What tells the broker (--identity, all that are named must agree):
  session-present  the broker still knows the session
  topic            a retained message that differs by broker (--identity-topic)
  admin            the edges, at their admin addresses (--admin)`,
		Example: "  limpet loadtest verify --state mesh.json -c 3000 --lives 10 --fault 'at 30s restart broker b2' --assert 'stickiness==100' --assert 'lost==0'",
	}
	f := cmd.Flags()
	f.IntVarP(&v.Clients, "count", "c", 300, "clients")
	_ = l.connect.Set("500/s")
	f.VarP(&l.connect, "connrate", "R", "first connects a second of all clients, or a schedule")
	f.IntVar(&v.Lives, "lives", 10, "of each client")
	f.DurationVar(&v.Up, "up", 3*time.Second, "how long a life lasts, half to one and a half times")
	f.DurationVar(&v.Down, "down", time.Second, "how long a client is away then, likewise")
	f.StringSliceVar(&v.Drop, "drop", []string{"clean", "abrupt", "half-open"}, "how lives end")
	f.IntVar(&v.Feeders, "feeders", 0, "clients that publish (default: one for each 100)")
	f.Var(&rate, "rate", "messages a second of all streams, or a schedule (default: one for each client every 2 s)")
	f.StringSliceVarP(&qos, "qos", "q", []string{"1", "2"}, "of the streams, in turn")
	f.IntVarP(&v.Size, "size", "s", loadtest.DefaultSize, "bytes of payload")
	f.StringSliceVarP(&v.Versions, "version", "V", []string{"3.1.1", "5"}, "of MQTT, in turn")
	f.StringVar(&v.Retry, "retry", "paho", "how clients come back that were cut off: "+retries())
	f.DurationVar(&v.Late, "late", 5*time.Second, "after how long a message is late")
	f.StringSliceVar(&v.Identity, "identity", []string{"session-present"}, "what tells the broker (default with --state: session-present,topic,admin)")
	f.StringVar(&v.Topic, "identity-topic", "$SYS/broker/name", "of the message with the broker's name")
	f.StringSliceVar(&v.Admin, "admin", nil, "URLs of the edges' admin addresses (default: those of --state)")
	f.StringVar(&v.Pool, "pool", "", "of the listeners, which --identity admin asks for (default \"default\")")
	f.StringSliceVar(&v.Control, "control", nil, "URLs of brokers for the control group")
	f.BoolVar(&noControl, "no-control", false, "with --state: no control group")
	l.targetFlags.add(f)
	l.runFlags.add(f)
	return loadCommand(cmd, &l, func(cmd *cobra.Command, p *loadtest.Plan) error {
		if v.Lives == 0 { // which in a plan is the default
			return usagef(cmd, "--lives: expected at least 1, found 0")
		}
		for _, text := range qos {
			q, err := strconv.ParseUint(text, 10, 8)
			if err != nil || q > 2 {
				return usagef(cmd, "-q: expected some of 0, 1, 2, found %q", text)
			}
			v.QoS = append(v.QoS, int(q))
		}
		v.Rate, v.Connect = rate.Spec, l.connect.Spec
		if l.state != "" && !cmd.Flags().Changed("identity") {
			v.Identity = []string{"session-present", "topic", "admin"}
		}
		if len(v.Admin) == 0 {
			v.Admin = l.admins
		}
		if len(v.Control) == 0 && !noControl {
			v.Control = l.brokers
		}
		p.Verify = &v
		return nil
	})
}

func raceCommand() *cobra.Command {
	var l loadFlags
	var r loadtest.Race
	var rate rateFlag
	cmd := &cobra.Command{
		Use: "race", Short: "Connect one new client ID twice at the same instant",
		Long: `Race has pairs of clients with one new ID connect at the same instant, or --gap
apart, through different edges, and counts the IDs that end on two brokers. The
broker's name comes from a retained message that differs by broker.`,
		Example: "  limpet loadtest race --state mesh.json -c 1000 --assert 'race.split==0'",
	}
	f := cmd.Flags()
	f.IntVarP(&r.Pairs, "count", "c", 200, "pairs")
	f.DurationVar(&r.Gap, "gap", 0, "between the two connects of a pair")
	f.VarP(&rate, "connrate", "R", "pairs a second, or a schedule (default 200/s)")
	f.StringVar(&r.Topic, "identity-topic", "$SYS/broker/name", "of the message with the broker's name")
	l.targetFlags.add(f)
	l.runFlags.add(f)
	return loadCommand(cmd, &l, func(_ *cobra.Command, p *loadtest.Plan) error {
		r.Rate, p.Race = rate.Spec, &r
		return nil
	})
}

func sweepCommand() *cobra.Command {
	var l loadFlags
	var pub publishFlags
	var s loadtest.Sweep
	var objective, verb string
	var step time.Duration
	cmd := &cobra.Command{
		Use: "sweep", Short: "Raise the rate until an objective breaks: where is the knee?",
		Long: `Sweep runs one load after the other, each at a higher rate, until the objective
breaks, and then halves the gap between the last rate that kept it and the first
that broke it. A rate that was not reached counts as broken. What is raised follows
from the objective: connack.* connects, puback.* publishes, e2e.* pairs of publisher
and subscriber; --of says otherwise.`,
		Example: "  limpet loadtest sweep -c 100 -q 1 --objective 'puback.p99<50ms' --from 1000 --step 10s",
		Args:    cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&objective, "objective", "puback.p99<50ms", "what must hold at each rate, as of --assert")
	f.Float64Var(&s.From, "from", 1000, "first rate, a second")
	f.Float64Var(&s.To, "to", 0, "last rate (default: until it breaks)")
	f.Float64Var(&s.Factor, "factor", 2, "from one rate to the next")
	f.Float64Var(&s.Precision, "precision", 0.1, "gap at which to stop, as a share of the rate")
	f.DurationVar(&step, "step", 10*time.Second, "how long each rate is measured")
	f.StringVar(&verb, "of", "", "what is raised: conn, pub or pubsub")
	pub.add(f, 1)
	l.add(f, "clients, or pairs", true)
	l.targetFlags.add(f)
	l.runFlags.add(f)
	for _, name := range []string{"rate", "interval-of-msg", "limit", "duration", "warmup"} {
		_ = f.MarkHidden(name) // the sweep says these
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for _, name := range []string{"rate", "interval-of-msg", "limit", "duration", "warmup", "fault"} {
			if f.Changed(name) {
				return usagef(cmd, "--%s: not for a sweep, which says this itself", name)
			}
		}
		var err error
		if s.Objective, err = result.ParseAssertion(objective); err != nil {
			return usagef(cmd, "--objective: %s", strings.TrimPrefix(err.Error(), "result: "))
		}
		if verb == "" {
			verb = loadtest.SweepOf(s.Objective)
		}
		if step < time.Second {
			return usagef(cmd, "--step: expected at least 1s, found %v", step)
		}
		if err := s.Check(); err != nil {
			return usagef(cmd, "--%s", strings.TrimPrefix(err.Error(), "loadtest: sweep: "))
		}
		base := &loadtest.Plan{Verb: "sweep"}
		if base.Fleets, err = sweepFleets(cmd, &l, &pub, verb); err != nil {
			return err
		}
		if err := l.targetFlags.into(cmd, base); err != nil {
			return err
		}
		if err := l.runFlags.into(cmd, base); err != nil {
			return err
		}
		s.Plan = func(rate float64) *loadtest.Plan { return atRate(base, verb, rate, step) }
		if err := checkPlan(cmd, s.Plan(s.From)); err != nil {
			return err
		}
		return l.sweep(cmd, &s, base)
	}
	return cmd
}

// sweepFleets is what a sweep repeats, without its rate.
func sweepFleets(cmd *cobra.Command, l *loadFlags, pub *publishFlags, verb string) ([]loadtest.Fleet, error) {
	switch verb {
	case "conn":
		fleet, err := l.fleet(cmd, "conn", 1)
		return []loadtest.Fleet{fleet}, err
	case "pub":
		fleet, err := l.fleet(cmd, "pub", l.clients)
		if err != nil {
			return nil, err
		}
		fleet.Publish, err = pub.publishing(cmd, l.clients)
		return []loadtest.Fleet{fleet}, err
	case "pubsub":
		return pubsubFleets(cmd, l, pub, "pairs", 1)
	}
	return nil, usagef(cmd, "--of: expected one of conn, pub, pubsub, found %q", verb)
}

// atRate is base at a rate.
func atRate(base *loadtest.Plan, verb string, rate float64, step time.Duration) *loadtest.Plan {
	p := *base
	p.Fleets = append([]loadtest.Fleet(nil), base.Fleets...)
	last := &p.Fleets[len(p.Fleets)-1]
	if verb == "conn" {
		last.Connect, last.Clients, p.Duration = perSecond(rate), max(int(rate*step.Seconds()), 1), step
		return &p
	}
	publish := *last.Publish
	publish.Rate = perSecond(rate)
	last.Publish = &publish
	p.Warmup = (last.Start + lasts(last.Connect, last.Clients) + 2*time.Second).Truncate(time.Second)
	p.Duration = p.Warmup + step
	return &p
}

// sweep runs a sweep and tells what came of it.
func (o *runFlags) sweep(cmd *cobra.Command, s *loadtest.Sweep, base *loadtest.Plan) error {
	last := &latest{}
	errs := cmd.ErrOrStderr()
	s.Run = func(ctx context.Context, p *loadtest.Plan) (*result.Result, error) {
		return o.interpret(ctx, cmd, p, last.set)
	}
	s.Tell = func(step result.SweepStep) {
		if o.quiet {
			return
		}
		verdict := "kept"
		switch {
		case step.Behind:
			verdict = "the generator fell behind"
		case !step.Kept:
			verdict = "broken"
		}
		fmt.Fprintf(errs, "%.0f/s: %.0f/s done, p50 %v, p99 %v, max %v: %s\n", step.Rate, step.Achieved,
			microseconds(step.P50), microseconds(step.P99), microseconds(step.Max), verdict)
	}
	quiet := *o
	quiet.quiet = true // steps are told one by one
	watch, err := quiet.watch(cmd, last, 0)
	if err != nil {
		return err
	}
	res, err := s.Find(cmd.Context())
	if watching := watch(); err == nil {
		err = watching
	}
	if res == nil && cmd.Context().Err() != nil {
		return errors.New("ended before the first step was done")
	}
	return o.finish(cmd, res, base.Assert, err)
}

func microseconds(m result.Micros) time.Duration { return time.Duration(m) * time.Microsecond }

func scenarioCommand() *cobra.Command {
	var t targetFlags
	var o runFlags
	cmd := &cobra.Command{
		Use: "scenario FILE", Short: "Run what a YAML file describes",
		Long: `Scenario runs a plan in YAML; "-" is standard input. Flags go before what the file
says; --fault and --assert add to it. A short one:

  name: morning
  endpoints: [mqtt://127.0.0.1:1883]
  duration: 1m
  fleets:
    - {name: sensors, clients: 500, connect: 100/s, publish: {topic: s/%i, qos: 1, rate: "ramp 100..1000 over 50s"}}
    - {name: board, clients: 1, subscribe: [{filter: s/#, qos: 1}]}
  faults: [at 20s freeze pid 4711 for 2s]
  assert: [e2e.p99<100ms, errors==0]`,
		Example: "  limpet loadtest scenario morning.yaml --html morning.html",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, name := cmd.InOrStdin(), "standard input"
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return usage(cmd, err)
				}
				defer f.Close()
				in, name = f, args[0]
			}
			p, err := loadtest.ReadPlan(name, in, func(p *loadtest.Plan) error {
				if t.state == "" {
					t.state = p.State
				}
				return errors.Join(t.into(cmd, p), o.into(cmd, p))
			})
			if errors.Is(err, loadtest.ErrPlan) {
				return &exitError{codeUsage, err}
			}
			if err != nil {
				return err
			}
			return o.run(cmd, p)
		},
	}
	t.noDefault = true
	f := cmd.Flags()
	t.add(f)
	o.add(f)
	return cmd
}

func reportCommand() *cobra.Command {
	var o runFlags
	cmd := &cobra.Command{
		Use: "report FILE...", Short: "Add up results and show them again",
		Long: `Report reads results that -o json wrote, adds up those of several runs or machines
exactly, and shows the sum in any format. What they asserted is judged anew by the
sum; --assert says what to judge it by instead.`,
		Example: "  limpet loadtest report east.json west.json --html both.html --assert 'e2e.p99.9<100ms'",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(cmd); err != nil {
				return err
			}
			sum := result.New()
			var asserts []result.Assertion
			for _, name := range args {
				res, err := readResult(name)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				sum.Add(res)
				asserts = addAsserted(asserts, res)
			}
			set(cmd.Flags(), "name", &sum.Name, o.name)
			if len(o.asserts) > 0 {
				asserts = o.asserts
			}
			return o.finish(cmd, sum, asserts, nil)
		},
	}
	o.addOutput(cmd.Flags())
	return cmd
}

// addAsserted adds what a result asserted, each once.
func addAsserted(all []result.Assertion, r *result.Result) []result.Assertion {
	for _, o := range r.Assertions {
		a, err := result.ParseAssertion(o.Assertion)
		if err == nil && !slices.ContainsFunc(all, func(b result.Assertion) bool { return a.String() == b.String() }) {
			all = append(all, a)
		}
	}
	return all
}

func readResult(name string) (*result.Result, error) {
	f := os.Stdin
	if name != "-" {
		var err error
		if f, err = os.Open(name); err != nil {
			return nil, errors.Unwrap(err) // the name is said already
		}
		defer f.Close()
	}
	return result.Decode(f)
}

// workerCommand is the hidden verb of the processes that --workers starts.
func workerCommand() *cobra.Command {
	return &cobra.Command{
		Use: "worker", Short: "Run a share of a plan, which comes on standard input", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return loadtest.Work(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}
