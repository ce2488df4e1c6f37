package loadtest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/fault"
	"github.com/limpet-mesh/limpet/loadtest/result"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// sound is a plan with everything, which Check takes.
func sound() *Plan {
	return &Plan{
		Endpoints: []string{"h", "wss://h/mqtt"}, Choose: "round-robin", Network: "ip4", Sources: []string{"127.0.0.2"},
		Warmup: time.Second, Duration: time.Minute,
		Fleets: []Fleet{{
			Clients: 2, Subscribe: []Subscription{{Filter: "a/#", QoS: 1}},
			Publish: &Publishing{Topic: "t", Rate: schedule("1/s")}, Storm: &Storm{Times: 2},
		}},
		Verify: &Verify{Clients: 10, Drop: []string{"clean"}, QoS: []int{0, 1, 2}, Versions: []string{"5", "3.1.1"}, Identity: []string{"topic"}, Size: 64},
		Race:   &Race{Pairs: 5},
	}
}

// TestCheck spoils one thing of a sound plan at a time.
func TestCheck(t *testing.T) {
	if err := sound().Check(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		spoil          func(p *Plan)
		field, message string
	}{
		{func(p *Plan) { p.Endpoints = nil }, "endpoints", "expected at least one"},
		{func(p *Plan) { p.Endpoints[1] = "http://h" }, "endpoints[1]", "http"},
		{func(p *Plan) { p.Choose = "radnom" }, "choose", `did you mean "random"?`},
		{func(p *Plan) { p.Network = "ipv4" }, "network", `did you mean "ip4"?`},
		{func(p *Plan) { p.Sources[0] = "0.0.0.0" }, "sources[0]", "expected an IP address of this machine"},
		{func(p *Plan) { p.Sources[0] = "203.0.113.7" }, "sources[0]", "expected an IP address of this machine, found 203.0.113.7"},
		{func(p *Plan) { p.Fleets[0].User = "a\xff" }, "fleets[0].user", "expected UTF-8"},
		{func(p *Plan) { p.Fleets[0].ID = "a\xff%i" }, "fleets[0].id", "expected UTF-8"},
		{func(p *Plan) { p.Sources = slices.Repeat(p.Sources, maxSources+1) }, "sources", "at most"},
		{func(p *Plan) { p.TLS.Key = "k" }, "tls", "cert and key together"},
		{func(p *Plan) { p.Warmup = time.Minute }, "warmup", "leaves nothing"},
		{func(p *Plan) { p.Duration = -1 }, "duration", "no negative duration"},
		{func(p *Plan) { p.Fleets, p.Verify, p.Race = nil, nil, nil }, "", "nobody to run"},
		{func(p *Plan) { p.Fleets = slices.Repeat(p.Fleets, maxFleets+1) }, "fleets", "at most 256, found 257"},
		{func(p *Plan) { p.Fleets[0].Clients = maxClients + 1 }, "fleets[0].clients", "expected 1 to 10000000"},
		{func(p *Plan) { p.Fleets[0].First = -1 }, "fleets[0].first", "no negative"},
		{func(p *Plan) { p.Fleets[0].ID = "same" }, "fleets[0].id", "expected %i in it"},
		{func(p *Plan) { p.Fleets[0].Version = "6" }, "fleets[0].version", "expected 3.1, 3.1.1 or 5"},
		{func(p *Plan) { p.Fleets[0].Expiry = -1 }, "fleets[0].expiry", "no negative"},
		{func(p *Plan) { p.Fleets[0].Keep = 65536 * time.Second }, "fleets[0].keep", "expected 0 to 65535 seconds, found 65536"},
		{func(p *Plan) { p.Fleets[0].Expiry = 1 << 32 * time.Second }, "fleets[0].expiry", "expected 0 to 4294967295 seconds"},
		{func(p *Plan) { p.Fleets[0].Retry = "phao" }, "fleets[0].retry", "there are none, paho,"},
		{func(p *Plan) { p.Fleets[0].Subscribe[0].Filter = "" }, "fleets[0].subscribe[0].filter", "expected a filter"},
		{func(p *Plan) { p.Fleets[0].Subscribe[0].Filter = "s/#/b" }, "fleets[0].subscribe[0].filter", "expected # alone and as the last level"},
		{func(p *Plan) { p.Verify.Topic = "a/#" }, "verify.topic", "without + and #"},
		{func(p *Plan) { p.Race.Topic = "+" }, "race.topic", "without + and #"},
		{func(p *Plan) { p.Fleets[0].Subscribe[0].QoS = 3 }, "fleets[0].subscribe[0].qos", "expected 0, 1 or 2"},
		{func(p *Plan) { p.Fleets[0].Publish.Topic = "a/+" }, "fleets[0].publish.topic", "without + and #"},
		{func(p *Plan) { p.Fleets[0].Publish.Rate = Publishing{}.Rate }, "fleets[0].publish.rate", "expected a schedule"},
		{func(p *Plan) { p.Fleets[0].Publish.Size = maxPayload + 1 }, "fleets[0].publish.size", "expected 0 to"},
		{func(p *Plan) { p.Fleets[0].Storm.Times = -1 }, "fleets[0].storm.times", "no negative"},
		{func(p *Plan) { p.Fleets[0].Storm.Every = -1 }, "fleets[0].storm.every", "no negative"},
		{func(p *Plan) { p.Verify.Clients = 0 }, "verify.clients", "expected 1 to"},
		{func(p *Plan) { p.Verify.Lives = maxLives + 1 }, "verify.lives", "expected 1 to"},
		{func(p *Plan) { p.Verify.Drop[0] = "abrubt" }, "verify.drop[0]", `did you mean "abrupt"?`},
		{func(p *Plan) { p.Verify.QoS[2] = 3 }, "verify.qos[2]", "expected 0, 1 or 2"},
		{func(p *Plan) { p.Verify.Versions[0] = "4.0" }, "verify.versions[0]", "expected 3.1"},
		{func(p *Plan) { p.Verify.Identity[0] = "admni" }, "verify.identity[0]", "session-present, topic"},
		{func(p *Plan) { p.Verify.Size = HeaderSize - 1 }, "verify.size", "at least 32 bytes"},
		{func(p *Plan) { p.Verify.Control = []string{"tcp://"} }, "verify.control[0]", ""},
		{func(p *Plan) { p.Race.Pairs = 0 }, "race.pairs", "expected 1 to"},
		{func(p *Plan) { p.Race.Gap = -1 }, "race.gap", "no negative"},
		{func(p *Plan) {
			f, err := fault.Parse("at 1s kill broker b2")
			if err != nil {
				t.Fatal(err)
			}
			p.Faults = []fault.Fault{f}
		}, "faults", "state"},
	} {
		p := sound()
		c.spoil(p)
		err := p.Check()
		e, ok := errors.AsType[*PlanError](err)
		if !ok || e.Field != c.field || !strings.Contains(e.Message, c.message) || !errors.Is(err, ErrPlan) {
			t.Errorf("%v, want %s: …%s…", err, c.field, c.message)
		}
	}
}

// TestCheckFilter: MQTT 5 §4.7.1 and §4.8.2.
func TestCheckFilter(t *testing.T) {
	for _, good := range []string{"#", "+", "/", "/#", "+/+/#", "a//b", "a/%i/%c", "$SYS/#", "$share/g/#", "$share/g//", "$share/g/a/+", "$shared/#"} {
		if err := checkFilter("filter", good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		"": "expected a filter", "a/#/b": "# alone and as the last", "a#": "# alone", "##": "# alone", "a+/b": "+ alone", "++": "+ alone",
		"$share/": "$share/NAME/FILTER", "$share/g": "$share/NAME/FILTER", "$share/g/": "$share/NAME/FILTER", "$share//a": "$share/NAME/FILTER",
		"$share/+/a": "$share/NAME/FILTER", "$share/g/#/a": "# alone", "a\x00": "no NUL", "a\xff": `expected UTF-8, found "a\xff"`,
		strings.Repeat("a", 65536): "at most 65535 bytes",
	} {
		if err := checkFilter("filter", bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %q", bad, err, want)
		}
	}
}

// TestPlansTellNoPasswords: results go to pages and bug reports.
func TestPlansTellNoPasswords(t *testing.T) {
	p := sound()
	p.Fleets[0].Password = "s3cret"
	if text := fmt.Sprintf("%+v", *p.public()); strings.Contains(text, "s3cret") {
		t.Error(text)
	}
	if p.Fleets[0].Password != "s3cret" {
		t.Error("the plan itself lost it")
	}
}

// TestEveryErrorHasItsWord: what ends a connection against the client's will is counted from the start, and so is what ends a message.
func TestEveryErrorHasItsWord(t *testing.T) {
	want := []string{"publish", "subscribe", "queue", "other"} // of messages, and what cannot be
	for _, reason := range client.Reasons() {
		if reason == wire.Reason(wire.ErrCancelled) { // our own end, too
			continue
		}
		if !(client.Cause{Reason: reason}).Own() && !slices.Contains(want, reason) {
			want = append(want, reason)
		}
	}
	got := result.Reasons()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("results count\n%q, but there are\n%q", got, want)
	}
}

func TestExpand(t *testing.T) {
	for in, want := range map[string]string{"a": "a", "%i": "7", "%c/%i": "id/7", "%%i": "%i", "%x%": "%x%", "": ""} {
		if got := expand(in, 7, "id"); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestHeader(t *testing.T) {
	h := header{run: 1, from: 2, sequence: 3, intended: -4, sent: 5}
	p := make([]byte, HeaderSize)
	h.put(p)
	if got, ok := readHeader(p, 1); !ok || got != h {
		t.Errorf("%+v, %v", got, ok)
	}
	if _, ok := readHeader(p, 2); ok {
		t.Error("another run's message was taken")
	}
	if _, ok := readHeader(p[:HeaderSize-1], 1); ok {
		t.Error("a short message was taken")
	}
}

// TestShares: however many processes share a plan, each client, message and pair has one of them.
func TestShares(t *testing.T) {
	for of := range 5 {
		for n := range 12 {
			seen := make([]int, n)
			for index := range max(of, 1) {
				s := Share{index, of}
				for i := range s.count(n) {
					seen[s.number(i)]++
				}
			}
			if slices.ContainsFunc(seen, func(k int) bool { return k != 1 }) {
				t.Errorf("%d things, %d shares: %v", n, of, seen)
			}
		}
	}
}

func TestDescriptors(t *testing.T) {
	p := &Plan{Fleets: []Fleet{{Clients: 1000}}, Race: &Race{Pairs: 10}}
	if got := p.descriptors(Share{}); got != 1000+20+spareDescriptors {
		t.Errorf("%d", got)
	}
	if got := p.descriptors(Share{1, 4}); got != 250+2*3+spareDescriptors {
		t.Errorf("a quarter: %d", got)
	}
	v := &Plan{Verify: &Verify{Clients: 100, Feeders: 5, Up: 5 * time.Second, Down: 5 * time.Second, Drop: []string{"half-open"}}}
	if got := v.descriptors(Share{}); got != 100+5+150+spareDescriptors { // each leaves one half-open for 10 + 5 s of every 10
		t.Errorf("half-open: %d", got)
	}
	if got := enoughShares(p, 200); got != 8 {
		t.Errorf("%d processes of 200 descriptors", got)
	}
	huge := &Plan{Fleets: []Fleet{{Clients: maxClients}, {Clients: maxClients}}}
	for range 6 {
		huge.Fleets = append(huge.Fleets, huge.Fleets...)
	}
	if err := huge.checkDescriptors(Share{}); !errors.Is(err, ErrDescriptors) || !strings.Contains(err.Error(), "ulimit -n 1280000064") {
		t.Errorf("%v", err)
	}
}
