package upstream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/registry"
)

// The numbers of the resolver.
const (
	// DefaultRefresh is how often a name in use is looked up anew. The records' own TTL does not come through Go's resolver;
	// 30 s is what cluster DNS hands out.
	DefaultRefresh = 30 * time.Second
	// refreshJitter spreads the look-ups of edges that started together: every wait is 1 ± refreshJitter of the refresh.
	refreshJitter = 0.2
	// lookupTimeout outlasts a dead first name server: the system's resolver gives each one 5 s, twice.
	lookupTimeout = 15 * time.Second
	// failureHold is how long a failed look-up answers for a name without addresses, so that a storm of clients asks DNS once a second.
	failureHold = time.Second
	// doubtHold is the shortest time between two look-ups that failed dials ask for.
	doubtHold = time.Second
	// idleRefreshes is how many refreshes a name lives without being asked for: 5 minutes.
	idleRefreshes = 10
	// maxNames bounds the set. A mesh has tens of brokers.
	maxNames = 4096
	// maxAddrs bounds the addresses kept of one answer.
	maxAddrs = 32
	// parallelLookups bounds the look-ups in flight.
	parallelLookups = 16
)

// A LookupNetIPer asks DNS. net.Resolver is one.
type LookupNetIPer interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// ResolverConfig says how a Resolver works. The zero value is the default.
type ResolverConfig struct {
	DNS     LookupNetIPer // nil = the system's resolver
	Refresh time.Duration // between two look-ups of a name in use, ± 20 %; 0 = DefaultRefresh
	Log     zerolog.Logger
}

// A Resolver turns brokers' addresses into socket addresses. Literal addresses are answered at once; names from a cache that
// Run fills and refreshes for as long as they are asked for. When DNS fails, the last answer stands.
type Resolver struct {
	dns     LookupNetIPer
	refresh time.Duration
	log     zerolog.Logger

	names   atomic.Pointer[map[string]*name] // by Broker.Address; replaced as a whole, under mu
	wake    chan struct{}                    // something is due earlier than Run knows
	slots   chan struct{}                    // one for each look-up in flight
	refused atomic.Pointer[func(netip.AddrPort) bool]
	stopped chan struct{} // closed when Run has returned

	lookups, failures atomic.Uint64

	mu sync.Mutex // the fields of name that say so, and the writing of names
}

// name is one address of the cache.
type name struct {
	host  string // "" = a literal, which is never looked up
	port  uint16
	addrs atomic.Pointer[[]netip.AddrPort] // nil until the first answer
	asked atomic.Bool                      // since the last refresh

	// Guarded by Resolver.mu.
	due    time.Time // of the next refresh
	busy   bool      // a look-up is in flight
	ended  time.Time // when the last look-up ended
	err    error     // of the last look-up
	idle   int       // refreshes since it was asked for
	answer chan struct{}
}

// ResolverStats are counts since the resolver was made, and its present size.
type ResolverStats struct {
	Names    int    // addresses held, literals included
	Stale    int    // names whose last look-up failed and whose older answer is served
	Lookups  uint64 // questions put to DNS
	Failures uint64 // of these, unanswered
}

// NewResolver returns a Resolver that answers literal addresses; names need Run.
func NewResolver(c ResolverConfig) *Resolver {
	r := &Resolver{
		dns:     c.DNS,
		refresh: c.Refresh,
		log:     c.Log,
		wake:    make(chan struct{}, 1),
		slots:   make(chan struct{}, parallelLookups),
		stopped: make(chan struct{}),
	}
	if r.dns == nil {
		r.dns = net.DefaultResolver
	}
	if r.refresh <= 0 {
		r.refresh = DefaultRefresh
	}
	r.names.Store(&map[string]*name{})
	return r
}

// Refuse makes the resolver leave out the addresses for which own is true: those where the broker's client itself listens. own is called for every
// address that is asked for, from any goroutine.
func (r *Resolver) Refuse(own func(netip.AddrPort) bool) { r.refused.Store(&own) }

// others are the addresses that are not refused; ok is false if that leaves none.
func (r *Resolver) others(addrs []netip.AddrPort) (rest []netip.AddrPort, ok bool) {
	own := r.refused.Load()
	if own == nil || !slices.ContainsFunc(addrs, *own) {
		return addrs, true
	}
	rest = slices.DeleteFunc(slices.Clone(addrs), *own)
	return rest, len(rest) > 0
}

// Lookup returns all addresses of a broker, IPv4 and IPv6, in the order of preference that the resolver gave. It never
// blocks, and does not allocate for an address that was seen before. ok is false for a name without an answer yet, and
// for an address that is malformed or refused: call Resolve then, in a goroutine. The slice must not be changed.
func (r *Resolver) Lookup(b *registry.Broker) (addrs []netip.AddrPort, ok bool) {
	n := (*r.names.Load())[b.Address]
	if n == nil {
		return r.literal(b.Address)
	}
	if !n.asked.Load() { // no write to a shared line while it is set
		n.asked.Store(true)
	}
	if p := n.addrs.Load(); p != nil {
		return r.others(*p)
	}
	return nil, false
}

// literal answers an address that needs no DNS, and keeps it while there is room.
func (r *Resolver) literal(address string) ([]netip.AddrPort, bool) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || ap.Port() == 0 {
		return nil, false
	}
	addrs := []netip.AddrPort{netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}
	n := &name{}
	n.addrs.Store(&addrs)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(address, n)
	return r.others(addrs)
}

// add puts a name into the set unless another is there already or the set is full. Callers hold mu.
func (r *Resolver) add(address string, n *name) bool {
	old := *r.names.Load()
	if len(old) >= maxNames || old[address] != nil {
		return false
	}
	n.asked.Store(true)
	n.due = time.Now().Add(r.wait())
	set := make(map[string]*name, len(old)+1)
	maps.Copy(set, old)
	set[address] = n
	r.names.Store(&set)
	return true
}

// wait is the time to a name's next refresh.
func (r *Resolver) wait() time.Duration {
	return time.Duration(float64(r.refresh) * (1 - refreshJitter + 2*refreshJitter*rand.Float64()))
}

// Resolve is Lookup that waits for DNS where it must: for all callers of one name there is one question, which goes on for
// later callers when ctx ends. It needs Run. A name that failed within the last second fails at once.
// Errors wrap ErrConfig, ErrDNS or ErrSelf.
func (r *Resolver) Resolve(ctx context.Context, b *registry.Broker) ([]netip.AddrPort, error) {
	if addrs, ok := r.Lookup(b); ok {
		return addrs, nil
	}
	n, answer, err := r.want(b.Address)
	if err != nil {
		return nil, err
	}
	if answer != nil {
		select {
		case <-answer:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %q is still asked for: %w", ErrDNS, b.Address, context.Cause(ctx))
		case <-r.stopped:
			return nil, fmt.Errorf("%w: %q: the resolver has stopped", ErrDNS, b.Address)
		}
	}
	if p := n.addrs.Load(); p != nil {
		rest, ok := r.others(*p)
		if !ok {
			return nil, fmt.Errorf("%w: %s", ErrSelf, b.Address)
		}
		return rest, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return nil, n.err
}

// want sees to it that a name is being looked up, and returns what closes with the answer: nil if an answer stands.
func (r *Resolver) want(address string) (*name, <-chan struct{}, error) {
	host, port, err := splitAddress(address)
	if err != nil {
		return nil, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := (*r.names.Load())[address]
	if n == nil {
		n = &name{host: host, port: port}
		if !r.add(address, n) {
			return nil, nil, fmt.Errorf("%w: %q: more than %d broker addresses in use", ErrDNS, address, maxNames)
		}
	}
	if n.addrs.Load() != nil || n.err != nil && !n.busy && time.Since(n.ended) < failureHold {
		return n, nil, nil
	}
	if n.answer == nil {
		n.answer = make(chan struct{})
		r.hasten(n)
	}
	return n, n.answer, nil
}

// Doubt says that a dial of b failed: its name, if it has one, is looked up anew at once, at most once a second.
// Dial does that by itself.
func (r *Resolver) Doubt(b *registry.Broker) {
	n := (*r.names.Load())[b.Address]
	if n == nil || n.host == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(n.ended) >= doubtHold {
		r.hasten(n)
	}
}

// hasten makes n due. Callers hold mu.
func (r *Resolver) hasten(n *name) {
	n.due = time.Now()
	r.stir()
}

func (r *Resolver) stir() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run looks names up until ctx ends, waits for the look-ups in flight, and returns nil. It may be called once.
func (r *Resolver) Run(ctx context.Context) error {
	defer close(r.stopped)
	var flights sync.WaitGroup
	defer flights.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-r.wake:
		}
		due, next := r.collect()
		for _, n := range due {
			flights.Go(func() { r.lookup(ctx, n) })
		}
		timer.Reset(next)
	}
}

// collect takes the names that are due, drops those that nobody asks for, and says how long there is nothing to do.
func (r *Resolver) collect() (due []*name, next time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	next = r.refresh
	var dropped []string
	for address, n := range *r.names.Load() {
		if n.busy {
			continue
		}
		if wait := n.due.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		n.idle++
		if n.asked.Swap(false) {
			n.idle = 0
		}
		switch {
		case n.idle >= idleRefreshes:
			dropped = append(dropped, address)
		case n.host == "":
			n.due = now.Add(r.wait())
			next = min(next, n.due.Sub(now))
		default:
			n.busy = true
			due = append(due, n)
		}
	}
	if dropped != nil {
		set := maps.Clone(*r.names.Load())
		for _, address := range dropped {
			delete(set, address)
		}
		r.names.Store(&set)
	}
	return due, next
}

// lookup asks DNS for one name and takes the answer down.
func (r *Resolver) lookup(ctx context.Context, n *name) {
	r.slots <- struct{}{}
	defer func() { <-r.slots }()
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	r.lookups.Add(1)
	ips, err := r.dns.LookupNetIP(ctx, "ip", n.host)
	addrs := socketAddrs(ips, n.port)
	if err == nil && len(addrs) == 0 {
		err = errors.New("no address in the answer")
	}
	if err != nil {
		r.failures.Add(1)
		err = fmt.Errorf("%w: %s: %w", ErrDNS, n.host, err)
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell(n, addrs, err)
	if err == nil && !sameSet(n.addrs.Load(), addrs) {
		n.addrs.Store(&addrs)
	}
	n.busy, n.ended, n.err = false, time.Now(), err
	n.due = n.ended.Add(r.wait())
	if n.answer != nil {
		close(n.answer)
		n.answer = nil
	}
	r.stir()
}

// tell logs what changed with an answer: nothing most of the time.
func (r *Resolver) tell(n *name, addrs []netip.AddrPort, err error) {
	old := n.addrs.Load()
	switch {
	case err != nil && n.err == nil && !errors.Is(err, context.Canceled):
		r.log.Warn().Str("host", n.host).Bool("stale", old != nil).Err(err).Msg("broker name not resolved")
	case err == nil && n.err != nil:
		r.log.Info().Str("host", n.host).Int("addresses", len(addrs)).Msg("broker name resolved again")
	case err == nil && old != nil && !sameSet(old, addrs):
		r.log.Info().Str("host", n.host).Int("addresses", len(addrs)).Msg("broker name has other addresses")
	}
}

// Stats returns the resolver's counts.
func (r *Resolver) Stats() ResolverStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := *r.names.Load()
	s := ResolverStats{Names: len(names), Lookups: r.lookups.Load(), Failures: r.failures.Load()}
	for _, n := range names {
		if n.err != nil && n.addrs.Load() != nil {
			s.Stale++
		}
	}
	return s
}

// socketAddrs pairs each address with the port: unmapped, without repetitions, at most maxAddrs.
func socketAddrs(ips []netip.Addr, port uint16) []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, ip := range ips {
		a := netip.AddrPortFrom(ip.Unmap(), port)
		if len(addrs) < maxAddrs && ip.IsValid() && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// sameSet reports whether two answers differ in their order at most: name servers rotate it.
func sameSet(old *[]netip.AddrPort, addrs []netip.AddrPort) bool {
	if old == nil || len(*old) != len(addrs) {
		return false
	}
	for _, a := range addrs {
		if !slices.Contains(*old, a) {
			return false
		}
	}
	return true
}

// splitAddress takes a broker's address apart.
func splitAddress(address string) (host string, port uint16, err error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("%w: broker address %q: want host:port, with an IPv6 address in brackets", ErrConfig, address)
	}
	p, err := strconv.ParseUint(service, 10, 16)
	if err != nil || p == 0 {
		return "", 0, fmt.Errorf("%w: broker address %q: want a port from 1 to 65535", ErrConfig, address)
	}
	if host == "" {
		return "", 0, fmt.Errorf("%w: broker address %q: the host is missing", ErrConfig, address)
	}
	return host, uint16(p), nil
}
