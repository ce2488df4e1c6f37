package loadtest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

// TestRunPubsub: every message is counted where it passes, however it goes.
func TestRunPubsub(t *testing.T) {
	t.Parallel()
	at := startBroker(t, newGate(6))
	p := &Plan{Verb: "pubsub", Endpoints: []string{"tcp://" + at}}
	for qos := range byte(3) {
		topic := "q" + string('0'+qos) + "/"
		p.Fleets = append(p.Fleets,
			Fleet{Name: "sub" + topic, Clients: 2, Session: Session{Clean: true}, Subscribe: []Subscription{{Filter: topic + "#", QoS: qos}}},
			Fleet{
				Name: "pub" + topic, Clients: 3, Session: Session{Clean: true, Version: "3.1.1"},
				Publish: &Publishing{Topic: topic + "%i", QoS: qos, Rate: schedule("50 at 500/s")},
			})
	}
	res, err := runPlan(t, p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := res.Counters
	if c[result.Connects] != 15 || c[result.Subscribed] != 6 || c[result.Publishes] != 150 || c[result.Acked] != 100 || c[result.Receives] != 300 || c[result.Errors] != 0 {
		t.Errorf("counted %+v, errors %v, notes %q", c, res.Errors, res.Notes)
	}
	for l, want := range map[result.Latency]int64{
		result.Connack: 15, result.Suback: 6, result.Puback: 100, result.E2E: 300, result.E2EService: 300,
	} {
		if got := res.Latency[l].Count(); got != want {
			t.Errorf("%v has %d, want %d", l, got, want)
		}
	}
	if len(res.Notes) != 0 {
		t.Errorf("notes %q", res.Notes)
	}
}

// TestRunWaitsForWhatIsOutstanding: what a pause at the end holds up is waited for, and counts from when it was intended.
func TestRunWaitsForWhatIsOutstanding(t *testing.T) {
	t.Parallel()
	l := startLiar(t, startBroker(t))
	p := publishers(l.Addr(), 2, "100 at 500/s") // takes 0.2 s
	p.Settle = enough / 2
	resume := l.Pause() // not even the CONNECTs get through
	defer resume()
	over := make(chan struct{})
	go func() {
		<-over
		resume()
	}()
	res, err := runPlan(t, p, Options{over: func() { close(over) }})
	if err != nil {
		t.Fatal(err)
	}
	if h := &res.Latency[result.Puback]; h.Count() != 100 || len(res.Notes) != 0 {
		t.Errorf("%d acknowledged, notes %q", h.Count(), res.Notes)
	}
	for _, latency := range []result.Latency{result.Puback, result.Connack} { // the last message was due 198 ms after the first
		if h := &res.Latency[latency]; h.Max() < 150*time.Millisecond {
			t.Errorf("%v took %v at most, though the pause lasted for the run", latency, h.Max())
		}
	}
}

// TestRunSaysWhatWasNotDone when what is outstanding never comes.
func TestRunSaysWhatWasNotDone(t *testing.T) {
	t.Parallel()
	at := startBroker(t)
	l := startLiar(t, at)
	defer l.Pause()()
	p := publishers(at, 2, "100 at 500/s")
	p.Endpoints, p.Choose = append(p.Endpoints, "tcp://"+l.Addr()), "round-robin" // one of the two gets no CONNACK
	p.Settle = 300 * time.Millisecond
	res, err := runPlan(t, p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	const want = "of what was to be published, 50 messages were not sent and 0 not acknowledged when the run ended (1 client was not connected then)"
	if notes := strings.Join(res.Notes, "\n"); res.Counters[result.Acked] != 50 || notes != want {
		t.Errorf("%d of 100 were acknowledged, notes %q", res.Counters[result.Acked], notes)
	}
}

// TestRunEndsWhenTold: with what ran, and without waiting for what is under way.
func TestRunEndsWhenTold(t *testing.T) {
	t.Parallel()
	p := publishers(startBroker(t), 2, "100/s")
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	res, err := Run(ctx, p, Options{Tell: func(r *result.Result) {
		if r.Counters[result.Acked] > 0 {
			cancel()
		}
	}})
	if err != nil || !res.Interrupted || res.Counters[result.Acked] == 0 {
		t.Errorf("%v: %+v", err, res)
	}
}

// TestRunNobodyGetsThrough: one line says where, why, and what to look at.
func TestRunNobodyGetsThrough(t *testing.T) {
	t.Parallel()
	speaks := func(words string) func(*testing.T) string {
		return func(t *testing.T) string {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					_, _ = c.Read(make([]byte, 100))
					_, _ = c.Write([]byte(words))
					c.Close()
				}
			}()
			return "tcp://" + ln.Addr().String()
		}
	}
	for name, c := range map[string]struct {
		at   func(*testing.T) string
		want string
	}{
		"refused": {func(t *testing.T) string {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			return "tcp://" + ln.Addr().String()
		}, "connection refused: nobody listens there"},
		"http":        {speaks("HTTP/1.1 400 Bad Request\r\n\r\n"), "this is no MQTT server"},
		"silent":      {speaks(""), "in answer to CONNECT: is it MQTT, and this transport?"},
		"no tls":      {func(t *testing.T) string { return "mqtts://" + startBroker(t) }, "during the handshake: does it speak this transport?"},
		"no ws":       {func(t *testing.T) string { return "ws://" + startBroker(t) + "/mqtt" }, "does it speak this transport?"},
		"credentials": {func(t *testing.T) string { return "tcp://" + startBroker(t, new(refusal)) }, "refused: bad user name or password (code 0x86)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := publishers("", 1, "100/s")
			p.Endpoints = []string{c.at(t)}
			res, err := runPlan(t, p, Options{})
			if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want %s", err, c.want)
			}
			if res == nil || res.Counters[result.Errors] == 0 {
				t.Errorf("no result with the error: %+v", res)
			}
		})
	}
}

// refusal is a broker that knows nobody.
type refusal struct{ mochi.HookBase }

func (*refusal) ID() string { return "refusal" }
func (*refusal) Provides(b byte) bool {
	return bytes.Contains([]byte{mochi.OnConnectAuthenticate}, []byte{b})
}

func (*refusal) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return false }

// TestRunVerify is a small one of everything: lives, QoS, versions, a control group; all come home and nothing is lost. (This broker shuffles
// what it kept for those who were away, and under load forgets a QoS 2 message now and then.)
func TestRunVerify(t *testing.T) {
	t.Parallel()
	at := "tcp://" + startBroker(t)
	p := &Plan{Verb: "verify", Endpoints: []string{at}, Verify: &Verify{
		Clients: 20, Lives: 3, Up: 200 * time.Millisecond, Down: 50 * time.Millisecond, QoS: []int{0, 1}, Rate: schedule("200/s"),
		Feeders: 3, Control: []string{at}, Drop: []string{"clean", "abrupt"},
	}}
	res, err := runPlan(t, p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	v := res.Verify
	if percent, ok := v.Stickiness(); !ok || percent != 100 || v.Reconnects != 18*2 || v.SessionsLost.Count != 0 {
		t.Errorf("%v %%, %+v", percent, v)
	}
	for _, group := range []string{"mesh", "control"} {
		m := v.Messages[group]
		if m == nil || m.Expected == 0 || m.Received < m.Expected || m.Lost+m.LostWithSession != 0 {
			t.Errorf("%s: %+v, %+v", group, m, v.Anomalies)
		}
	}
}

// TestRunRace: one broker splits nobody; two that know nothing of each other split every pair.
func TestRunRace(t *testing.T) {
	t.Parallel()
	one, other := "tcp://"+startBroker(t), "tcp://"+startBroker(t)
	for _, c := range []struct {
		at    []string
		split int64
	}{{[]string{one, one}, 0}, {[]string{one, other}, 5}} {
		p := &Plan{Verb: "race", Endpoints: c.at, Choose: "round-robin", Race: &Race{Pairs: 5, Topic: nameTopic}}
		res, err := runPlan(t, p, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if r := res.Race; r.Pairs != 5 || r.Unknown != 0 || r.Split != c.split || r.Splits.Count != c.split {
			t.Errorf("%q: %+v", c.at, r)
		}
	}
}

// TestRunStorm: everybody is cut off and comes back, and what that took is told for the storm.
func TestRunStorm(t *testing.T) {
	t.Parallel()
	p := &Plan{Verb: "storm", Endpoints: []string{"tcp://" + startBroker(t)}, Fleets: []Fleet{{
		Clients: 20, Session: Session{Retry: "fixed:50ms"}, Storm: &Storm{At: 500 * time.Millisecond},
	}}}
	res, err := runPlan(t, p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := res.Counters // of connects, those that were cut off before they had their CONNACK are missing
	if c[result.ConnectsStarted] != 40 || c[result.Connects] < 20 || c[result.Errors] != 0 || res.Latency[result.Outage].Count() != 20 {
		t.Errorf("%+v, %d outages, errors %v", c, res.Latency[result.Outage].Count(), res.Errors)
	}
	if len(res.Faults) != 1 || res.Faults[0].Spec != "storm" || res.Faults[0].Outage.Count() != 20 {
		t.Errorf("faults %+v", res.Faults)
	}
}
