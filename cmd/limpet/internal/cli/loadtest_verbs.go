package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/limpet-mesh/limpet/loadtest"
	"github.com/limpet-mesh/limpet/loadtest/pace"
)

// loadFlags are what the verbs that run fleets of clients have in common.
type loadFlags struct {
	targetFlags
	sessionFlags
	runFlags
	clients  int
	connect  rateFlag
	interval int // ms between two connects: another way to say connect
	first    int
	prefix   string
}

// loadCommand is a verb that builds a plan out of flags.
func loadCommand(cmd *cobra.Command, l *loadFlags, who func(*cobra.Command, *loadtest.Plan) error) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("expected no argument, found %q", args[0])
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		p := &loadtest.Plan{Verb: cmd.Name()}
		for _, fill := range []func(*cobra.Command, *loadtest.Plan) error{l.targetFlags.into, l.runFlags.into, who} {
			if err := fill(cmd, p); err != nil {
				return err
			}
		}
		if err := checkPlan(cmd, p); err != nil {
			return err
		}
		return l.run(cmd, p)
	}
	return cmd
}

// add adds the flags of clients; those of a verb's own come before, those of the run after it.
func (l *loadFlags) add(f *pflag.FlagSet, count string, clean bool) {
	f.IntVarP(&l.clients, "count", "c", 200, count)
	_ = l.connect.Set("1000/s")
	f.VarP(&l.connect, "connrate", "R", "connects a second of all clients, or a schedule such as 'poisson 500/s'")
	f.IntVarP(&l.interval, "interval", "i", 0, "milliseconds between two connects, instead of -R")
	f.IntVarP(&l.first, "startnumber", "n", 0, "number of the first client")
	f.StringVar(&l.prefix, "prefix", "", "of client IDs, which its number follows (default limpet-VERB-)")
	l.sessionFlags.add(f, clean)
}

// fleet is a fleet with what the flags say of clients.
func (l *loadFlags) fleet(cmd *cobra.Command, name string, clients int) (loadtest.Fleet, error) {
	f := loadtest.Fleet{
		Name: name, Clients: clients, First: l.first, Connect: l.connect.Spec, Session: l.session(len(l.faults) > 0),
	}
	if cmd.Flags().Changed("interval") {
		if l.interval < 1 || cmd.Flags().Changed("connrate") {
			return f, usagef(cmd, "-i: expected milliseconds from 1, without -R, found %d", l.interval)
		}
		f.Connect = perSecond(1000 / float64(l.interval))
	}
	if l.prefix != "" {
		f.ID = strings.ReplaceAll(l.prefix, "%", "%%") + "%i"
		if name != cmd.Name() { // several fleets must not share IDs
			f.ID = strings.ReplaceAll(l.prefix, "%", "%%") + name + "-%i"
		}
	}
	return f, nil
}

// perSecond is a steady schedule.
func perSecond(rate float64) pace.Spec {
	spec, err := pace.Parse(strconv.FormatFloat(rate, 'f', -1, 64) + "/s")
	if err != nil {
		spec, _ = pace.Parse(strconv.Itoa(pace.MaxRate) + "/s")
	}
	return spec
}

// publishFlags say what is published.
type publishFlags struct {
	topic    string
	qos      uint8
	retain   bool
	size     int
	interval int // ms between two messages of a client
	rate     rateFlag
	limit    int
}

func (p *publishFlags) add(f *pflag.FlagSet, qos uint8) {
	f.StringVarP(&p.topic, "topic", "t", "limpet/load/%i", "topic")
	f.Uint8VarP(&p.qos, "qos", "q", qos, "0, 1 or 2")
	f.IntVarP(&p.size, "size", "s", loadtest.DefaultSize, fmt.Sprintf("bytes of payload; from %d on messages carry their time", loadtest.HeaderSize))
	f.IntVarP(&p.interval, "interval-of-msg", "I", 1000, "milliseconds between two messages of a client")
	f.Var(&p.rate, "rate", "messages a second of all clients, or a schedule such as 'ramp 100..1000 over 1m', instead of -I")
	f.IntVarP(&p.limit, "limit", "L", 0, "messages in all; 0 = no limit")
	f.BoolVarP(&p.retain, "retain", "r", false, "publish retained messages")
}

// publishing is what the flags say for so many publishers.
func (p *publishFlags) publishing(cmd *cobra.Command, publishers int) (*loadtest.Publishing, error) {
	out := &loadtest.Publishing{Topic: p.topic, QoS: p.qos, Retain: p.retain, Size: p.size, Rate: p.rate.Spec}
	f := cmd.Flags()
	switch {
	case f.Changed("rate") && f.Changed("interval-of-msg"):
		return nil, usagef(cmd, "expected one of -I and --rate, found both")
	case p.size < 1:
		return nil, usagef(cmd, "-s: expected at least 1 byte, found %d", p.size)
	case p.limit < 0:
		return nil, usagef(cmd, "-L: expected a number of messages, found %d", p.limit)
	case !f.Changed("rate") && p.interval < 1:
		return nil, usagef(cmd, "-I: expected milliseconds from 1, found %d", p.interval)
	case !f.Changed("rate"):
		out.Rate = perSecond(float64(publishers) * 1000 / float64(p.interval))
	}
	if p.limit > 0 {
		spec, err := pace.Parse(fmt.Sprintf("%d at %s", p.limit, out.Rate))
		if err != nil {
			return nil, usagef(cmd, "-L: expected with a steady rate, found --rate %q", out.Rate)
		}
		out.Rate = spec
	}
	return out, nil
}

func connCommand() *cobra.Command {
	var l loadFlags
	cmd := &cobra.Command{
		Use: "conn", Short: "Connect clients and hold them",
		Example: "  limpet loadtest conn -h broker.example -c 15000 -R 1000 --duration 1m --assert 'connack.p99<50ms'",
	}
	f := cmd.Flags()
	l.add(f, "clients", true)
	l.targetFlags.add(f)
	l.runFlags.add(f)
	return loadCommand(cmd, &l, func(cmd *cobra.Command, p *loadtest.Plan) error {
		fleet, err := l.fleet(cmd, "conn", l.clients)
		p.Fleets = []loadtest.Fleet{fleet}
		return err
	})
}

func pubCommand() *cobra.Command {
	var l loadFlags
	var pub publishFlags
	cmd := &cobra.Command{
		Use: "pub", Short: "Publish at a steady rate, whatever the broker takes",
		Example: "  limpet loadtest pub -c 100 -I 100 -t 'sensors/%i' -q 1 --warmup 5s --duration 1m",
	}
	f := cmd.Flags()
	pub.add(f, 0)
	l.add(f, "clients that publish", true)
	l.targetFlags.add(f)
	l.runFlags.add(f)
	return loadCommand(cmd, &l, func(cmd *cobra.Command, p *loadtest.Plan) error {
		fleet, err := l.fleet(cmd, "pub", l.clients)
		if err != nil {
			return err
		}
		fleet.Publish, err = pub.publishing(cmd, l.clients)
		p.Fleets = []loadtest.Fleet{fleet}
		return err
	})
}

func subCommand() *cobra.Command {
	var l loadFlags
	var topics []string
	var qos uint8
	cmd := &cobra.Command{
		Use: "sub", Short: "Subscribe, and count what comes",
		Example: "  limpet loadtest sub -c 500 -t 'sensors/#' -q 1",
	}
	f := cmd.Flags()
	f.StringArrayVarP(&topics, "topic", "t", []string{"limpet/load/%i"}, "filter; may be repeated")
	f.Uint8VarP(&qos, "qos", "q", 0, "0, 1 or 2")
	l.add(f, "clients that subscribe", true)
	l.targetFlags.add(f)
	l.runFlags.add(f)
	return loadCommand(cmd, &l, func(cmd *cobra.Command, p *loadtest.Plan) error {
		fleet, err := l.fleet(cmd, "sub", l.clients)
		for _, t := range topics {
			fleet.Subscribe = append(fleet.Subscribe, loadtest.Subscription{Filter: t, QoS: qos})
		}
		p.Fleets = []loadtest.Fleet{fleet}
		return err
	})
}

func pubsubCommand() *cobra.Command {
	var l loadFlags
	var pub publishFlags
	var pattern string
	var others int
	cmd := &cobra.Command{
		Use: "pubsub", Short: "Publish and receive: pairs, fan-in or fan-out",
		Long: `Pubsub measures the way from a publisher to its subscribers.

  pairs    -c publishers, each with a subscriber of its own
  fan-in   -c publishers, whose messages all go to the subscribers (--others, 1)
  fan-out  -c subscribers, which all get the messages of the publishers (--others, 1)`,
		Example: "  limpet loadtest pubsub -c 100 -I 100 -q 1 --duration 30s\n  limpet loadtest pubsub --pattern fan-out -c 1000 -I 1000 --duration 30s",
	}
	f := cmd.Flags()
	f.StringVar(&pattern, "pattern", "pairs", "pairs, fan-in or fan-out")
	f.IntVar(&others, "others", 1, "clients at the other end of fan-in and fan-out")
	pub.add(f, 0)
	l.add(f, "clients, see above", true)
	l.targetFlags.add(f)
	l.runFlags.add(f)
	return loadCommand(cmd, &l, func(cmd *cobra.Command, p *loadtest.Plan) (err error) {
		p.Fleets, err = pubsubFleets(cmd, &l, &pub, pattern, others)
		return err
	})
}

// pubsubFleets has subscribers connect first, and then publishers.
func pubsubFleets(cmd *cobra.Command, l *loadFlags, pub *publishFlags, pattern string, others int) ([]loadtest.Fleet, error) {
	publishers, subscribers, filter := l.clients, l.clients, pub.topic
	if others < 1 {
		return nil, usagef(cmd, "--others: expected at least 1, found %d", others)
	}
	switch pattern {
	case "pairs":
		if !strings.Contains(pub.topic, "%i") && l.clients > 1 {
			return nil, usagef(cmd, "-t: expected %%i in it, so that each pair has a topic of its own, found %q (or use --pattern)", pub.topic)
		}
	case "fan-in", "fan-out":
		if pattern == "fan-in" {
			subscribers = others
		} else {
			publishers = others
		}
		levels := strings.Split(pub.topic, "/")
		for i, level := range levels {
			switch {
			case level == "%i" || level == "%c":
				levels[i] = "+"
			case strings.Contains(level, "%i") || strings.Contains(level, "%c"):
				return nil, usagef(cmd, "-t: expected %%i as a level of its own, found %q", pub.topic)
			}
		}
		filter = strings.Join(levels, "/")
	default:
		return nil, usagef(cmd, "--pattern: expected one of pairs, fan-in, fan-out, found %q", pattern)
	}
	subs, err := l.fleet(cmd, "sub", subscribers)
	if err != nil {
		return nil, err
	}
	subs.Subscribe = []loadtest.Subscription{{Filter: filter, QoS: pub.qos}}
	pubs, err := l.fleet(cmd, "pub", publishers)
	if err != nil {
		return nil, err
	}
	pubs.Start = lasts(subs.Connect, subscribers) + 200*time.Millisecond
	pubs.Publish, err = pub.publishing(cmd, publishers)
	return []loadtest.Fleet{subs, pubs}, err
}

// lasts is how long a schedule takes for n events.
func lasts(spec pace.Spec, n int) (last time.Duration) {
	s := pace.Limit(spec.New(1), n)
	for {
		at, ok := s.Next()
		if !ok {
			return last
		}
		last = at
	}
}

func stormCommand() *cobra.Command {
	var l loadFlags
	var back rateFlag
	var s loadtest.Storm
	cmd := &cobra.Command{
		Use: "storm", Short: "Cut everybody off at once, and see them come back",
		Long: `Storm connects clients, resets all connections at the same instant, and has the
clients connect again: all at once, or at a rate. What each of them suffers is its
outage: from the cut to its first message that is acknowledged.`,
		Example: "  limpet loadtest storm -c 10000 --back 2000 --times 3 --every 30s",
	}
	f := cmd.Flags()
	f.Var(&back, "back", "connects a second of those who come back, or a schedule (default: all at once)")
	f.IntVar(&s.Times, "times", 1, "storms")
	f.DurationVar(&s.At, "at", 0, "of the first storm, from the start (default: a second after the last connect)")
	f.DurationVar(&s.Every, "every", 10*time.Second, "from one storm to the next")
	l.add(f, "clients", false)
	l.targetFlags.add(f)
	l.runFlags.add(f)
	return loadCommand(cmd, &l, func(cmd *cobra.Command, p *loadtest.Plan) error {
		if s.Times < 1 {
			return usagef(cmd, "--times: expected at least 1, found %d", s.Times)
		}
		fleet, err := l.fleet(cmd, "storm", l.clients)
		if fleet.Retry == "" {
			fleet.Retry = "paho"
		}
		s.Connect = back.Spec
		fleet.Storm = &s
		p.Fleets = []loadtest.Fleet{fleet}
		return err
	})
}
