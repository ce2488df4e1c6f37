package failover

import "time"

// The numbers of failover, together, each with its reason.
const (
	// doubtWithin bounds when an edge probes a broker that another edge doubts; each waits a random part of it, so that a broker
	// is not struck by all edges at once. The promise is that all have probed within 1 s: this, a confirmation and some network.
	doubtWithin = 500 * time.Millisecond

	// confirmAfter is the pause before a refused connection is tried again. A refusal is a host's own word that nobody listens,
	// so two of them count as much as a whole row of failures.
	confirmAfter = 100 * time.Millisecond

	// settleEvery is the longest pause between probes while a broker is between up and down.
	settleEvery = time.Second

	// probeGap is the shortest pause between two probes that doubts ask for: strangers can cause resets, and so doubts.
	probeGap = 250 * time.Millisecond

	// tellEvery limits how often an edge announces its doubt about one broker.
	tellEvery = time.Second

	// remember is how long an edge counts after its lease ended without a farewell: the brokers that died with it must not
	// look better because one who saw them die is dead too.
	remember = 60 * time.Second

	// turnEvery is the pace of all that is not an event: whether the store is in reach, who probes, what a verdict waits for.
	turnEvery = 250 * time.Millisecond

	// awayAfter is how long the watch must be silent until the store counts as away. A watch in reach says something every 500 ms;
	// a store that elects a leader may pause for a second or two, which is no reason to do anything.
	awayAfter = 3 * time.Second

	// repeatEvery is how often reports are repeated on the bus while the store is away, and freshFor how long such a report
	// speaks for its edge: three of them may be lost.
	repeatEvery = 2 * time.Second
	freshFor    = 7 * time.Second

	// skew is how far in the future a verdict may have begun by our clock before we stop believing in it.
	skew = 5 * time.Second

	// writeTimeout bounds one call to the store: a report, a verdict, a farewell.
	writeTimeout = 2 * time.Second

	// joinTimeout bounds one attempt to register.
	joinTimeout = 5 * time.Second

	// tellApart is how often an edge that cannot join says so: nobody else will notice that two edges have one id.
	tellApart = time.Minute

	// retryMin and retryMax bound the back-off of reports, registrations and campaigns.
	retryMin = 200 * time.Millisecond
	retryMax = 5 * time.Second

	// overlayGrace is how long local verdicts outlive the store's return beyond a new leader's Settle: it needs a
	// moment to be elected and to count.
	overlayGrace = 5 * time.Second

	// defaultConcurrency bounds the probes under way at one edge.
	defaultConcurrency = 64
)
