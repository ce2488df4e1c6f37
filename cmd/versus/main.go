//go:build linux

// Command versus compares limpet with HAProxy and NGINX on one machine, and says what differs.
//
//	make versus                                    # everything: an hour or two
//	make versus ARGS='--quick --peers limpet,haproxy,direct'
//	go run ./cmd/versus --modes tls --figures saturated,idle --reps 3 --json tls.json
//	go run ./cmd/versus --program before=/tmp/old/limpet --peers before,limpet,haproxy --modes plain
//
// Broker (package sink), generator (package load) and proxy (package peer) are a process each, on loopback. A figure is measured by one peer after
// the other, each with processes of its own, and then all over again: what disturbs the machine meets all of them, and a ratio is that of two
// neighbours. The table has medians, the ratio to HAProxy with as many threads (median of the repetitions' ratios), and how far it spread.
//
// A figure counts only if all that was sent came back, every client connected, and every known one came home; what does not count is listed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/peer"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main: exit codes are 0 done, 1 failed, 2 called wrongly.
func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		return child(args, os.Stdin, stdout, stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "versus:", err)
		return 2
	}
	if err := compare(ctx, p, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "versus:", err)
		return 1
	}
	return 0
}

// params say what is compared, and how long.
type params struct {
	Modes   []peer.Mode `json:"modes"`
	Peers   []peer.Peer `json:"-"`
	Figures []string    `json:"figures"` // empty: those of the mode
	Reps    int         `json:"reps"`
	JSON    string      `json:"-"`
	Pin     string      `json:"pin"`
	Quick   bool        `json:"quick"`

	Warmup   time.Duration `json:"warmup"`
	Window   time.Duration `json:"window"` // of measuring
	Settle   time.Duration `json:"settle"` // before idle clients are measured
	Conns    int           `json:"conns"`  // that carry messages
	Inflight int           `json:"inflight"`
	Payload  int           `json:"payload"`
	Idle     int           `json:"idle"`     // clients
	Connects int           `json:"connects"` // clients
	Brokers  int           `json:"brokers"`
	Patience time.Duration `json:"patience"` // for a quiet machine, before each measuring
	missing  []string
}

func parse(args []string, stderr io.Writer) (*params, error) {
	p := &params{Brokers: 3}
	programs := peer.Programs{"limpet": "bin/limpet", "haproxy": "haproxy", "nginx": "nginx", "floor": "cc"}
	f := flag.NewFlagSet("versus", flag.ContinueOnError)
	f.SetOutput(stderr)
	modes := f.String("modes", "plain,tls,ws,wss", "what clients speak to the proxy")
	peers := f.String("peers", "limpet,limpet-2,haproxy,haproxy-2,nginx,floor,direct", "PROGRAM[-THREADS][:SETTING=VALUE…],…; settings are of limpet's edge.yaml, tls.X of its listener")
	figures := f.String("figures", "", "messages a second such as 2k, saturated, connect, idle (default: 2k,20k,saturated,connect,idle, with 5k instead of 20k where there is TLS or WebSocket)")
	f.IntVar(&p.Reps, "reps", 5, "repetitions")
	f.StringVar(&p.JSON, "json", "", "write everything to `FILE`")
	f.StringVar(&p.Pin, "pin", "auto", "proxy on cores of its own: always, never, or auto: when saturated. Only where a core is left for the others")
	f.BoolVar(&p.Quick, "quick", false, "a smoke test: its figures mean nothing")
	f.DurationVar(&p.Warmup, "warmup", time.Second, "before measuring")
	f.DurationVar(&p.Window, "window", 4*time.Second, "of measuring")
	f.DurationVar(&p.Settle, "settle", 4*time.Second, "from the last connect to the measuring of idle clients")
	f.IntVar(&p.Conns, "conns", 1000, "clients that carry messages")
	f.IntVar(&p.Inflight, "inflight", 1, "messages that each of them has under way when saturated")
	f.IntVar(&p.Payload, "payload", 100, "bytes of a message")
	f.IntVar(&p.Idle, "idle", 8000, "idle clients")
	f.IntVar(&p.Connects, "connects", 2000, "clients that connect")
	f.DurationVar(&p.Patience, "patience", 0, "wait so long at most, before each measuring, for a machine that does little else, and measure again what was disturbed")
	f.Func("program", "`NAME=FILE`: another build of limpet, or where a program is (may be repeated)", func(s string) error {
		name, file, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("expected NAME=FILE")
		}
		programs[name] = file
		return nil
	})
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if p.Quick {
		p.Reps, p.Warmup, p.Window, p.Settle = 1, 100*time.Millisecond, 300*time.Millisecond, 100*time.Millisecond
		p.Conns, p.Idle, p.Connects = 50, 200, 100
	}
	if f.NArg() > 0 || p.Reps < 1 || p.Conns < 1 || p.Inflight < 1 || p.Idle < 1 || p.Connects < 1 || p.Window <= 0 {
		return nil, fmt.Errorf("expected flags with values above zero, and nothing else (--help)")
	}
	if !slices.Contains([]string{"auto", "always", "never"}, p.Pin) {
		return nil, fmt.Errorf("--pin %s: expected auto, always or never", p.Pin)
	}
	for _, m := range strings.Split(*modes, ",") {
		if !slices.Contains(peer.Modes, peer.Mode(m)) {
			return nil, fmt.Errorf("--modes: no mode %q: plain, tls, ws, wss", m)
		}
		p.Modes = append(p.Modes, peer.Mode(m))
	}
	if *figures != "" {
		p.Figures = strings.Split(*figures, ",")
	}
	for _, name := range p.Figures {
		if _, ok := rateOf(name); !ok && !slices.Contains([]string{saturated, connect, idle}, name) {
			return nil, fmt.Errorf("--figures: no figure %q: a rate such as 2k, saturated, connect, idle", name)
		}
	}
	for _, name := range strings.Split(*peers, ",") {
		one, err := peer.Parse(name, programs)
		if err != nil {
			return nil, fmt.Errorf("--peers: %w", err)
		}
		if todo := one.Missing(); todo != "" {
			p.missing = append(p.missing, fmt.Sprintf("%s is left out: %s is not there (%s)", name, one.Program, todo))
			continue
		}
		p.Peers = append(p.Peers, one)
	}
	if len(p.Peers) == 0 {
		return nil, fmt.Errorf("nothing to compare: %s", strings.Join(p.missing, "; "))
	}
	return p, nil
}

// The figures that are no rates.
const (
	saturated = "saturated"
	connect   = "connect"
	idle      = "idle"
)

// figures are those of a mode.
func (p *params) figures(m peer.Mode) []string {
	switch {
	case len(p.Figures) > 0:
		return p.Figures
	case m == peer.Plain:
		return []string{"2k", "20k", saturated, connect, idle}
	}
	return []string{"2k", "5k", saturated, connect, idle}
}

// rateOf reads a figure that is a rate: "2k", "500".
func rateOf(figure string) (float64, bool) {
	digits, thousands := strings.CutSuffix(figure, "k")
	n, err := strconv.ParseFloat(digits, 64)
	if thousands {
		n *= 1000
	}
	return n, err == nil && n > 0
}
