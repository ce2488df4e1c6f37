package loadtest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"

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
	os.Exit(m.Run())
}

// startBroker returns the address of a broker; hooks may refuse or watch its clients.
func startBroker(t *testing.T, hooks ...mochi.Hook) string {
	t.Helper()
	server := mochi.New(&mochi.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if len(hooks) == 0 {
		hooks = []mochi.Hook{new(auth.AllowHook)}
	}
	for _, h := range hooks {
		if err := server.AddHook(h, nil); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := server.AddListener(listeners.NewNet("tcp", ln)); err != nil {
		t.Fatal(err)
	}
	if err := server.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return ln.Addr().String()
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

// until polls ok, and fails with what was seen last if it never is.
func until(t *testing.T, what string, ok func() (bool, any)) {
	t.Helper()
	var seen any
	for end := time.Now().Add(enough / 2); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		good, s := ok()
		if good {
			return
		}
		seen = s
	}
	t.Fatalf("%s: not within %v; seen last: %v", what, enough/2, seen)
}
