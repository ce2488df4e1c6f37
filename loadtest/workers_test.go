package loadtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

func crewOf(n int) *Workers {
	return &Workers{N: n, Command: []string{os.Args[0], "worker"}, Stderr: os.Stderr}
}

func runWorkers(t *testing.T, w *Workers, p *Plan) (*result.Result, error) {
	t.Helper()
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	return w.Run(ctx, p)
}

// TestWorkersAddUp: three processes do exactly what one would, each client and each message once.
func TestWorkersAddUp(t *testing.T) {
	t.Parallel()
	p := publishers(startBroker(t, newGate(2)), 7, "100 at 500/s")
	p.Fleets[0].Publish.Topic = "all" // of all processes
	p.Fleets = append(p.Fleets, Fleet{Name: "sub", Clients: 2, Session: Session{Clean: true}, Subscribe: []Subscription{{Filter: "all", QoS: 1}}})
	res, err := runWorkers(t, crewOf(3), p)
	if err != nil {
		t.Fatal(err)
	}
	if c := res.Counters; c[result.Connects] != 9 || c[result.Publishes] != 100 || c[result.Acked] != 100 || c[result.Receives] != 200 || c[result.Errors] != 0 {
		t.Errorf("%+v, errors %v, notes %q", c, res.Errors, res.Notes)
	}
	if puback, e2e := res.Latency[result.Puback].Count(), res.Latency[result.E2E].Count(); puback != 100 || e2e != 200 {
		t.Errorf("%d PUBACKs and %d receipts in the distributions", puback, e2e)
	}
	if res.Generator.Processes != 4 || res.Verb != "pub" || res.Interrupted {
		t.Errorf("%+v", res)
	}
}

// TestWorkersTakeTurns: each client publishes as often as in one process, and a worker without clients keeps nobody.
func TestWorkersTakeTurns(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ workers, clients, messages int }{{2, 3, 30}, {5, 1, 2}} {
		p := publishers(startBroker(t, newGate(1)), c.clients, fmt.Sprintf("%d at 200/s", c.messages))
		p.Fleets[0].Publish.Topic = "of/%i"
		p.Fleets = append(p.Fleets, Fleet{Name: "sub", Clients: 1, Session: Session{Clean: true}, Subscribe: []Subscription{{Filter: "of/0", QoS: 1}}})
		res, err := runWorkers(t, crewOf(c.workers), p)
		if err != nil {
			t.Fatal(err)
		}
		if n := res.Counters; n[result.Acked] != int64(c.messages) || n[result.Receives] != int64(c.messages/c.clients) {
			t.Errorf("%d workers, %d clients: %+v", c.workers, c.clients, n)
		}
	}
}

// TestAWorkerThatDiesIsTold: the others go on, and their results stand; that a part is missing is an error and in the result.
func TestAWorkerThatDiesIsTold(t *testing.T) {
	t.Parallel()
	p := publishers(startBroker(t), 4, "100/s")
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	w := crewOf(2)
	var victim, survivor int
	w.Started = func(pids []int) { victim, survivor = pids[1], pids[0] }
	kill := sync.OnceFunc(func() { _ = syscall.Kill(victim, syscall.SIGKILL) })
	killed := int64(0)
	w.Tell = func(r *result.Result) {
		switch acked := r.Counters[result.Acked]; {
		case acked == 0:
		case killed == 0:
			kill()
			killed = acked
		case acked > killed+100: // of the survivor, who goes on
			cancel()
		}
	}
	res, err := w.Run(ctx, p)
	if !errors.Is(err, ErrWorker) || !strings.Contains(err.Error(), "worker 2 of 2") || !strings.Contains(err.Error(), "killed") {
		t.Errorf("%v", err)
	}
	if res == nil {
		t.Fatal("no result")
	}
	if notes := strings.Join(res.Notes, "\n"); !strings.Contains(notes, "worker 2 of 2 ended early (signal: killed)") {
		t.Errorf("notes %q", notes)
	}
	if acked := res.Counters[result.Acked]; acked <= killed+100 {
		t.Errorf("%d acknowledged, %d when the worker was killed", acked, killed)
	}
	if err := syscall.Kill(survivor, 0); err != syscall.ESRCH {
		t.Errorf("the other worker is still there: %v", err)
	}
}

// TestWorkersThatDoNotStart are told at once, and leave nobody behind.
func TestWorkersThatDoNotStart(t *testing.T) {
	t.Parallel()
	p := publishers("127.0.0.1:1", 2, "1/s")
	for _, c := range []struct {
		command []string
		want    string
	}{
		{[]string{"/nonexistent/limpet"}, "starting a worker"},
		{[]string{"true"}, "worker 1 of 2: it said nothing more"},
		{[]string{"false"}, "worker 1 of 2: exit status 1"},
		{[]string{"echo", "hello"}, `worker 1 of 2: it said "hello"`},
	} {
		w := &Workers{N: 2, Command: c.command}
		if _, err := runWorkers(t, w, p); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %s", c.command, err, c.want)
		}
	}
}

// TestWorkersFindNobody: what all of them find is told once.
func TestWorkersFindNobody(t *testing.T) {
	t.Parallel()
	_, err := runWorkers(t, crewOf(2), publishers("127.0.0.1:1", 2, "1/s"))
	if err == nil || strings.Count(err.Error(), "connection refused: nobody listens there") != 1 || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
}

// TestWorkTakesNoNonsense: a worker that is told nothing, or no plan, says so and ends.
func TestWorkTakesNoNonsense(t *testing.T) {
	for in, want := range map[string]string{
		"":        "expected a plan on stdin",
		"hello\n": "expected a plan on stdin",
		"{}\n":    "expected a plan on stdin",
		`{"plan":{"endpoints":[]},"share":{"index":0,"of":1}}` + "\n": "endpoints: expected at least one",
	} {
		var out bytes.Buffer
		if err := Work(t.Context(), strings.NewReader(in), &out); err != nil {
			t.Error(err)
		}
		if got := out.String(); !strings.Contains(got, want) {
			t.Errorf("told %q it says %q", in, got)
		}
	}
	if err := Work(t.Context(), strings.NewReader(""), full{}); err == nil {
		t.Error("nobody can be told, and it says nothing")
	}
}

// full is a pipe without a reader.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, fmt.Errorf("full") }
