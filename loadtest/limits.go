package loadtest

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrDescriptors is what Run returns when the system does not allow as many open files as the plan's clients need.
var ErrDescriptors = errors.New("loadtest: too few file descriptors")

const (
	spareDescriptors = 64               // for everything but clients
	halfOpenLasts    = 10 * time.Second // after its client has returned: client.Config.Grace
	racersAtOnce     = 2000             // that are not done yet, at most
)

// descriptors estimates how many files a share of the plan has open at most.
func (p *Plan) descriptors(s Share) uint64 {
	n := spareDescriptors
	for i := range p.Fleets {
		n += s.count(p.Fleets[i].Clients)
	}
	if p.Verify != nil {
		v := p.Verify.withDefaults()
		clients := s.count(v.Clients)
		n += clients + s.count(v.Feeders) + len(v.Control)
		if slices.Contains(v.Drop, "half-open") {
			n += int(float64(clients) / float64(len(v.Drop)) * float64(halfOpenLasts+v.Down) / float64(v.Up+v.Down))
		}
	}
	if p.Race != nil {
		n += min(2*s.count(p.Race.Pairs), racersAtOnce)
	}
	return uint64(n)
}

// checkDescriptors raises the limit of open files as far as needed, or says that it cannot.
func (p *Plan) checkDescriptors(s Share) error {
	need := p.descriptors(s)
	if have := raiseDescriptors(need); have < need {
		err := fmt.Errorf("%w: %d are needed, and the limit is %d: raise it (ulimit -n %d)", ErrDescriptors, need, have, need)
		if n := enoughShares(p, have); n > 0 {
			err = fmt.Errorf("%w, or use more worker processes (%d would do)", err, n)
		}
		return err
	}
	return nil
}

// enoughShares is into how many processes a plan must be parted to fit each into a limit; 0 = however many, it does not.
func enoughShares(p *Plan, limit uint64) int {
	for of := 2; of <= 1000; of++ {
		if p.descriptors(Share{Of: of}) <= limit {
			return of
		}
	}
	return 0
}
