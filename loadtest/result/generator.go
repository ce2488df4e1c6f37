package result

import (
	"fmt"
	"runtime"
	"slices"
	"time"
)

// When the generator itself is too slow, the result says more about it than about its target.
const (
	// LateBound is by how much an event may begin after its intended time.
	LateBound = 10 * time.Millisecond
	// lateShare is the share of events (one in so many) that may be later than that.
	lateShare = 100
	// longestLag is what not a single event may exceed: such a pause is in every percentile that follows.
	longestLag = time.Second
	// busy is the share of its processors, in percent, above which the generator's want of them is the likely cause.
	busy = 90
	// maxReasons bounds Generator.Reasons.
	maxReasons = 32
)

// A Generator is what the load generator itself cost, and whether it kept its schedule.
type Generator struct {
	Processes   int64    `json:"processes"`
	Machine     string   `json:"machine"` // operating system and architecture
	GOMAXPROCS  int64    `json:"gomaxprocs"`
	CPUSeconds  float64  `json:"cpu_seconds"`  // user and system, of all processes; exact to a microsecond
	RSS         int64    `json:"rss_bytes"`    // resident memory of all processes at the end
	PeakRSS     int64    `json:"peak_bytes"`   // of each its largest, added up
	Descriptors int64    `json:"descriptors"`  // open at the end
	Limit       int64    `json:"limit"`        // of descriptors, of all processes
	Events      int64    `json:"events"`       // that had an intended time
	Late        int64    `json:"late"`         // of these, begun more than 10 ms after it
	LagMax      Micros   `json:"lag_max_us"`   // the same as in latency.lag, which has the whole distribution
	LagP99      Micros   `json:"lag_p99_us"`   //
	LatePercent float64  `json:"late_percent"` //
	Behind      bool     `json:"behind"`       // fell behind its schedule: latencies include its own delay
	Reasons     []string `json:"reasons"`      // why Behind, in words
	cpuMicros   int64    // CPUSeconds as an integer, since sums of floats depend on their order
}

// A Meter measures what this process costs from its start on.
type Meter struct{ before usage }

// usage is what the operating system says of this process; 0 where it says nothing.
type usage struct {
	cpu                            time.Duration
	rss, peak, descriptors, limits int64
}

// StartMeter starts measuring.
func StartMeter() Meter { return Meter{readUsage()} }

// Read returns what this process cost so far.
func (m Meter) Read() Generator {
	now := readUsage()
	g := Generator{
		Processes: 1, Machine: runtime.GOOS + "/" + runtime.GOARCH, GOMAXPROCS: int64(runtime.GOMAXPROCS(0)),
		RSS: now.rss, PeakRSS: max(now.peak, now.rss), Descriptors: now.descriptors, Limit: now.limits, Reasons: []string{},
	}
	g.setCPU((now.cpu - m.before.cpu).Microseconds())
	return g
}

func (g *Generator) setCPU(micros int64) {
	g.cpuMicros = micros
	g.CPUSeconds = float64(micros) / 1e6
}

// judge says whether the generator kept its schedule during a run.
func (g *Generator) judge(lag *Histogram, ran time.Duration) {
	g.derive(lag)
	var why string
	switch {
	case g.Late*lateShare > g.Events:
		why = fmt.Sprintf("%d of %d events (%.1f %%) began more than %v after their time, by up to %v",
			g.Late, g.Events, g.LatePercent, LateBound, lag.Max().Round(time.Microsecond))
	case lag.Max() > longestLag:
		why = fmt.Sprintf("an event began %v after its time", lag.Max().Round(time.Millisecond))
	default:
		return
	}
	if all := float64(g.GOMAXPROCS) * ran.Seconds(); all > 0 && 100*g.CPUSeconds/all > busy {
		why += fmt.Sprintf("; its %d processors were busy for %.0f %% of the time", g.GOMAXPROCS, 100*g.CPUSeconds/all)
	}
	g.Behind = true
	g.Reasons = []string{why}
}

// derive fills in what is computed.
func (g *Generator) derive(lag *Histogram) {
	g.LagMax, g.LagP99 = Micros(lag.Max().Microseconds()), Micros(lag.Percentile(99).Microseconds())
	g.LatePercent = 0
	if g.Events > 0 {
		g.LatePercent = 100 * float64(g.Late) / float64(g.Events)
	}
}

func (g *Generator) plus(o *Generator) {
	g.Machine = join(g.Machine, o.Machine)
	g.GOMAXPROCS = max(g.GOMAXPROCS, o.GOMAXPROCS)
	g.setCPU(g.cpuMicros + o.cpuMicros)
	from := o.numbers()
	for i, n := range g.numbers() {
		*n += *from[i]
	}
	g.Behind = g.Behind || o.Behind
	g.Reasons = union(g.Reasons, o.Reasons)
	g.Reasons = slices.Clip(g.Reasons[:min(len(g.Reasons), maxReasons)])
}

func (g *Generator) numbers() [7]*int64 {
	return [...]*int64{&g.Processes, &g.RSS, &g.PeakRSS, &g.Descriptors, &g.Limit, &g.Events, &g.Late}
}

func (g *Generator) check() error {
	for _, n := range g.numbers() {
		if err := counted("generator", *n); err != nil {
			return err
		}
	}
	if g.GOMAXPROCS < 0 || g.CPUSeconds < 0 || g.CPUSeconds > 1e12 || len(g.Reasons) > maxReasons {
		return fmt.Errorf("%w: generator: gomaxprocs %d, cpu_seconds %g, %d reasons", ErrInvalid, g.GOMAXPROCS, g.CPUSeconds, len(g.Reasons))
	}
	g.setCPU(int64(g.CPUSeconds*1e6 + 0.5))
	return nil
}
