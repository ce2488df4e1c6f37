package report

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

const second = int64(time.Second)

// hostile is a name that would be markup on a page and a command to a terminal.
const hostile = `<img src=x onerror="alert(1)">` + "\x1b[2J\u202e</script>'"

// sample is a realistic result: ten minutes of verify with a broker killed, etcd stopped and an edge frozen. The same
// seed gives the same result, made once; everybody gets a copy.
func sample() *result.Result { return makeSample().Clone() }

var makeSample = sync.OnceValue(func() *result.Result {
	dice := rand.New(rand.NewPCG(7, 11))
	r := result.NewRecorder(result.Config{Wall: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Warmup: 15 * time.Second})
	faults := []result.Fault{
		{Number: 1, Spec: "at 2m kill broker b2", Begin: 120 * second, End: 123 * second, Outcome: "killed; up again after 3 s"},
		{Number: 2, Spec: "at 4m stop etcd for 40s", Begin: 240 * second, End: 280 * second, Outcome: "stopped for 40 s"},
		{Number: 3, Spec: "at 7m freeze edge e1 5s", Begin: 420 * second, End: 425 * second, Outcome: "frozen for 5 s"},
	}
	for _, f := range faults {
		r.Fault(f)
	}
	times := func(median time.Duration) int64 {
		return int64(float64(median) * math.Exp(dice.NormFloat64()*0.45))
	}
	connected := int64(0)
	for s := range int64(600) {
		began := s * second
		want, gone := min(3000, 200*(s+1)), int64(0)
		switch s {
		case 120:
			gone = 1000
		case 420:
			gone = 700
		}
		r.Count(result.Closed, began, gone)
		connected -= gone
		r.Connected(-gone)
		for range gone {
			r.Error("reset", began)
		}
		slow := int64(0)
		if s >= 120 && s < 124 || s >= 420 && s < 427 {
			slow = second
		}
		back := min(want-connected, 280)
		r.Connected(back)
		connected += back
		for i := range back + 5 {
			now := began + i*second/400
			took := times(1800*time.Microsecond) + slow*int64(dice.IntN(3))
			r.Count(result.ConnectsStarted, now, 1)
			r.Count(result.Connects, now, 1)
			r.Count(result.SessionsPresent, now, 1)
			r.Connack.Record(now-took, now-took*9/10, now)
			if slow > 0 && i%9 == 0 {
				f := faults[s/300*2]
				r.Outage(f.Number, f.Spec, f.Begin, now+times(900*time.Millisecond))
			}
		}
		for i := range 150 * connected / 3000 {
			now := began + i*second/160
			ack := times(600*time.Microsecond) + slow*int64(dice.IntN(2))/3
			r.Fired(now-int64(dice.IntN(300_000)), now)
			r.Count(result.Publishes, now, 10)
			r.Count(result.Acked, now, 10)
			r.Count(result.Receives, now, 10)
			r.Count(result.BytesOut, now, 640)
			r.Count(result.BytesIn, now, 700)
			r.Puback.Record(now-ack, now-ack, now)
			r.E2E.Record(now-ack*7/5, now-ack*6/5, now)
		}
		r.Tick(began + second)
	}
	r.Error("timeout", 599*second)
	res := r.Finish(600 * second)
	// What depends on the machine is made the same everywhere.
	g := &res.Generator
	g.CPUSeconds, g.RSS, g.PeakRSS, g.Descriptors, g.GOMAXPROCS, g.Machine = 48.2, 61<<20, 66<<20, 3021, 2, "linux/amd64"
	res.Tool, res.Verb, res.Name = "limpet 1.0", "verify", "nightly"
	res.Targets = []string{"tcp://127.0.0.1:1883", "wss://127.0.0.1:8884/mqtt"}
	res.Plan = json.RawMessage(`{"verb":"verify","clients":3000,"lives":10}`)
	v := &result.Verify{
		Clients: 3000, Connects: 7500, Reconnects: 4500, Judged: 3500, Sticky: 3500, HomeAway: 1000,
		Homes: result.Tally{"b1": 1004, "b2": 991, "b3": 1005},
		Messages: map[string]*result.Messages{
			"mesh":    {Sent: 880_000, Acked: 880_000, Expected: 880_000, Received: 879_214, LostWithSession: 786, DuplicatedAfterResend: 12},
			"control": {Sent: 40_000, Acked: 40_000, Expected: 40_000, Received: 40_000, Reordered: 31},
		},
	}
	for i := range int64(1000) {
		v.SessionsLost.Add(result.Loss{
			At: 121*second + i*2e6, Client: fmt.Sprintf("verify-%05d", 3*i), Broker: "b2", Met: "b2",
			Reason: "its broker was killed", Fault: faults[0].Spec,
		})
	}
	for i := range int64(31) {
		v.Anomalies.Add(result.Anomaly{
			At: 300*second + i*second, Kind: "reordered", Group: "control", Publisher: "p7", Topic: "verify/p7", Subscriber: "control-00012",
			QoS: 1, Sequence: 40_000 + i, To: 40_000 + i,
		})
	}
	res.Verify = v
	var all []result.Assertion
	for _, text := range []string{"stickiness>=99.99", "lost==0", "sessions_lost.unexplained==0", "connack.p99<50ms"} {
		a, err := result.ParseAssertion(text)
		if err != nil {
			panic(err)
		}
		all = append(all, a)
	}
	res.Judge(all)
	return res
})

// dangerous is a result in which every text comes from an enemy.
func dangerous() *result.Result {
	res := result.New()
	res.Tool, res.Verb, res.Name, res.Targets, res.Notes = hostile, hostile, hostile, []string{hostile}, []string{hostile}
	plan, err := json.Marshal(map[string]string{"name": hostile})
	if err != nil {
		panic(err)
	}
	res.Plan = plan
	res.Errors[hostile] = 3
	res.Duration = 10 * second
	res.Series.Rows = []result.Row{{T: 1, Connects: 5, Publishes: 7, Errors: 1}}
	res.Faults = []result.Fault{{Number: 1, Spec: hostile, Begin: second, End: 2 * second, Outcome: hostile, Error: hostile}}
	res.Generator.Behind, res.Generator.Reasons, res.Generator.Machine = true, []string{hostile}, hostile
	res.Verify = &result.Verify{Homes: result.Tally{hostile: 1}, Messages: map[string]*result.Messages{hostile: {Lost: 1}}}
	res.Verify.SessionsLost.Add(result.Loss{Client: hostile, Broker: hostile, Met: hostile, Reason: hostile, Fault: hostile})
	res.Verify.Moves.Add(result.Move{Client: hostile, From: hostile, To: hostile, Reason: hostile})
	res.Verify.Disagreements.Add(result.Disagreement{Client: hostile, Detail: hostile})
	res.Verify.Anomalies.Add(result.Anomaly{Kind: hostile, Group: hostile, Publisher: hostile, Topic: hostile, Subscriber: hostile})
	res.Race = &result.Race{Pairs: 1, Split: 1}
	res.Race.Splits.Add(result.Split{Client: hostile, Brokers: hostile})
	res.Sweep = &result.Sweep{Objective: hostile, Steps: []result.SweepStep{{Rate: 5}}}
	res.Assertions = []result.Outcome{{Assertion: hostile, Why: hostile}, {Assertion: hostile, Passed: true, Actual: hostile}}
	return res
}
