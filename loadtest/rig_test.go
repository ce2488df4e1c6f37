package loadtest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/limpet-mesh/limpet/loadtest/internal/mochitest"
	"github.com/limpet-mesh/limpet/loadtest/liar"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// TestMain is also what the workers of these tests run.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "worker" {
		if err := Work(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) { // its default
		_ = f.Value.Set("8") // the tests wait more than they work
	}
	os.Exit(m.Run())
}

// nameTopic has a retained message with a broker's name, which is its address.
const nameTopic = "broker/name"

// startBroker returns the address of a broker; hooks may refuse or watch its clients.
func startBroker(t *testing.T, hooks ...mochi.Hook) string {
	t.Helper()
	if len(hooks) == 0 {
		hooks = []mochi.Hook{new(auth.AllowHook)}
	}
	server, at := mochitest.Start(t, hooks...)
	if err := server.Publish(nameTopic, []byte(at.String()), true, 0); err != nil {
		t.Fatal(err)
	}
	return at.String()
}

// gate lets publishers in when there are so many subscriptions, since nobody keeps what comes too early.
type gate struct {
	mochi.HookBase
	missing atomic.Int64
	open    chan struct{}
}

func newGate(subscriptions int64) *gate {
	g := &gate{open: make(chan struct{})}
	g.missing.Store(subscriptions)
	return g
}

func (*gate) ID() string { return "gate" }

func (*gate) Provides(b byte) bool {
	return b == mochi.OnConnectAuthenticate || b == mochi.OnACLCheck || b == mochi.OnSubscribed
}

func (*gate) OnACLCheck(*mochi.Client, string, bool) bool { return true }

func (g *gate) OnConnectAuthenticate(c *mochi.Client, _ packets.Packet) bool {
	if strings.HasPrefix(c.ID, "limpet-pub") {
		select {
		case <-g.open:
		case <-time.After(enough):
			return false
		}
	}
	return true
}

func (g *gate) OnSubscribed(*mochi.Client, packets.Packet, []byte) {
	if g.missing.Add(-1) == 0 {
		close(g.open)
	}
}

// startLiar puts a proxy before a broker.
func startLiar(t *testing.T, broker string) *liar.Liar {
	t.Helper()
	l, err := liar.Listen(liar.Config{Brokers: []string{broker}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return l
}

// publishers is a plan of some that publish.
func publishers(at string, clients int, rate string) *Plan {
	return &Plan{Verb: "pub", Endpoints: []string{"tcp://" + at}, Fleets: []Fleet{{
		Name: "pub", Clients: clients, Session: Session{Clean: true}, Publish: &Publishing{Topic: "t/%i", QoS: 1, Rate: schedule(rate)},
	}}}
}

func schedule(text string) pace.Spec { return mustSchedule(text) }

// enough is a multiple of what any of these runs takes.
const enough = time.Minute

func runPlan(t *testing.T, p *Plan, o Options) (*result.Result, error) {
	t.Helper()
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	res, err := Run(ctx, p, o)
	if res != nil && res.Interrupted {
		t.Errorf("it was not done within %v", enough)
	}
	return res, err
}
