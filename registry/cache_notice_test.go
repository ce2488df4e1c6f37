package registry

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestNoticeStandsUntilTheWatchIsThere(t *testing.T) {
	c := fed(t, 10, rec("a", "b1", 3), rec("old", "b1", 4))
	c.Note(notice("a", "b2", 15))
	c.Note(notice("new", "b3", 16))
	c.Note(notice("old", "", 17))
	expect(t, c, "a", "b2", SourceNotice)
	expect(t, c, "new", "b3", SourceNotice)
	expect(t, c, "old", "", SourceNotice)
	if a, _ := c.Lookup("p", "a"); a.Revision != 15 {
		t.Errorf("a notice's affinity is of revision %d, want 15", a.Revision)
	}

	feed(t, c, Batch{Revision: 14, Changes: []Change{rec("a", "b4", 14)}})
	expect(t, c, "a", "b2", SourceNotice) // newer than what the watch says
	feed(t, c, Batch{Revision: 15, Changes: []Change{rec("a", "b2", 15)}})
	expect(t, c, "a", "b2", SourceCache)
	progress(t, c, 17) // passes the other two without them
	expect(t, c, "new", "", SourceNew)
	expect(t, c, "old", "b1", SourceCache)
	if st := c.Status(); st.Notices != (NoticeCounts{Taken: 3, Confirmed: 1, Refuted: 2}) || st.Provisional != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestNoticeOfADeletionConfirmed(t *testing.T) {
	c := fed(t, 10, rec("a", "b1", 3))
	c.Note(notice("a", "", 11))
	feed(t, c, Batch{Revision: 11, Changes: []Change{gone("a", 11)}})
	progress(t, c, 11)
	expect(t, c, "a", "", SourceNew)
	if got := c.Status().Notices; got.Confirmed != 1 {
		t.Errorf("counts %+v", got)
	}
}

func TestNoticesInAnyOrder(t *testing.T) {
	c := fed(t, 10)
	c.Note(notice("a", "b3", 13))
	c.Note(notice("a", "b2", 12)) // overtaken
	c.Note(notice("a", "b3", 13)) // doubled
	expect(t, c, "a", "b3", SourceNotice)
	c.Note(notice("a", "b4", 14))
	feed(t, c, Batch{Revision: 13, Changes: []Change{rec("a", "b3", 13)}})
	expect(t, c, "a", "b4", SourceNotice)
	c.Note(notice("a", "b9", 13)) // the watch was there first
	feed(t, c, Batch{Revision: 14, Changes: []Change{rec("a", "b4", 14)}})
	expect(t, c, "a", "b4", SourceCache)
	if st := c.Status(); st.Notices != (NoticeCounts{Late: 3, Taken: 2, Confirmed: 2}) || st.Provisional != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestNoticesThatCannotBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		empty := NewCache(CacheConfig{})
		empty.Note(notice("a", "b1", 3))
		if got := empty.Status().Notices; got != (NoticeCounts{Early: 1}) {
			t.Errorf("before the first listing: %+v", got)
		}

		c := fed(t, 10)
		c.Note(Notice{Pool: "q", Key: "a", Affinity: Affinity{Broker: "b1"}, Revision: 11})
		c.Note(notice("a", "no-such-broker", 11))
		c.Note(notice("a", "b1", 10))
		c.Note(notice("a", "b1", -5))
		c.Note(notice("a", "b1", 1<<62))
		c.Note(notice("a", "b1", 10+noticeAhead+1))
		expect(t, c, "a", "", SourceNew)
		if got := c.Status().Notices; got != (NoticeCounts{Unknown: 2, Late: 2, Implausible: 2}) {
			t.Errorf("counts %+v", got)
		}
		// While the watch is silent the store may go on.
		time.Sleep(time.Minute)
		c.Note(notice("a", "b1", 10+noticeAhead+1))
		expect(t, c, "a", "b1", SourceNotice)
	})
}

func TestNoticesAreBounded(t *testing.T) {
	c := fed(t, 10)
	for i := range maxProvisional + 10 {
		c.Note(notice(fmt.Sprint(i), "b1", int64(11+i)))
	}
	if st := c.Status(); st.Provisional != maxProvisional || st.Notices.Full != 10 {
		t.Errorf("%d provisional, %+v", st.Provisional, st.Notices)
	}
	progress(t, c, 1<<20)
	if st := c.Status(); st.Provisional != 0 || c.notices.bytes != 0 {
		t.Errorf("%d provisional, %d bytes of them", st.Provisional, c.notices.bytes)
	}
	long := strings.Repeat("x", 65535)
	for i := range 1000 {
		c.Note(notice(long[:65000+i%500], "b1", int64(1<<20+1+i)))
	}
	if c.notices.bytes > maxProvisionalBytes || c.Status().Notices.Full < 700 {
		t.Errorf("%d bytes of notices, %+v", c.notices.bytes, c.Status().Notices)
	}
}

// A forged notice of a revision that the store reaches much later does not stand until then.
func TestNoticeExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fed(t, 10, rec("a", "b1", 3))
		c.Note(notice("a", "b2", 5000))
		for range 18 {
			time.Sleep(500 * time.Millisecond)
			progress(t, c, 10)
		}
		expect(t, c, "a", "b2", SourceNotice)
		for range 4 {
			time.Sleep(500 * time.Millisecond)
			progress(t, c, 10)
		}
		expect(t, c, "a", "b1", SourceCache)
		if st := c.Status(); st.Notices.Expired != 1 || st.Provisional != 0 {
			t.Errorf("status %+v", st)
		}
	})
}

// Without a watch the bus is all there is: what it said stands until a watch that is back has had its time.
func TestNoticeOutlivesAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fed(t, 10, rec("a", "b1", 3))
		c.broke(ErrUnavailable, false)
		c.Note(notice("a", "b2", 15))
		time.Sleep(time.Hour)
		expect(t, c, "a", "b2", SourceNotice)
		progress(t, c, 12)
		time.Sleep(500 * time.Millisecond)
		progress(t, c, 12)
		expect(t, c, "a", "b2", SourceNotice)
		feed(t, c, Batch{Revision: 15, Changes: []Change{rec("a", "b2", 15)}})
		expect(t, c, "a", "b2", SourceCache)
	})
}

func TestNoticesAcrossAListing(t *testing.T) {
	c := fed(t, 10, rec("a", "b1", 3))
	c.Note(notice("a", "b2", 15))
	c.Note(notice("c", "b3", 21))
	feed(t, c, listing(20, rec("a", "b4", 18)))
	expect(t, c, "a", "b4", SourceCache)
	expect(t, c, "c", "b3", SourceNotice)
	feed(t, c, Batch{Revision: 21, Changes: []Change{rec("c", "b3", 21)}})
	expect(t, c, "c", "b3", SourceCache)

	// What was said about another store is worth nothing.
	c.Note(notice("d", "b3", 30))
	c.broke(fmt.Errorf("%w: restored", ErrReset), false)
	feed(t, c, listing(5, rec("a", "b1", 3)))
	progress(t, c, 5)
	expect(t, c, "a", "b1", SourceCache)
	expect(t, c, "c", "b3", SourceCache) // known, and this store says nothing else
	expect(t, c, "d", "", SourceNew)
	if st := c.Status(); st.Revision != 5 || st.Provisional != 0 || c.notices.bytes != 0 {
		t.Errorf("status %+v, %d bytes of notices", st, c.notices.bytes)
	}
}

// Whatever the bus loses, doubles, delays, reorders and forges: once the watch has spoken, its word stands (promise 2).
func TestNoticesNeverOutlastTheWatch(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		c := fed(t, 10)
		truth := make(map[string]string)
		revision := int64(10)
		var late []Notice
		for range 300 {
			switch rnd.IntN(4) {
			case 0: // the store decides
				revision++
				key, broker := fmt.Sprint(rnd.IntN(20)), fmt.Sprintf("b%d", 1+rnd.IntN(9))
				n := notice(key, broker, revision)
				change := rec(key, broker, revision)
				if rnd.IntN(4) == 0 {
					n, change = notice(key, "", revision), gone(key, revision)
					delete(truth, key)
				} else {
					truth[key] = broker
				}
				late = append(late, n)
				if rnd.IntN(2) == 0 {
					c.Note(n)
				}
				feed(t, c, Batch{Revision: revision, Changes: []Change{change}})
			case 1:
				if len(late) > 0 {
					c.Note(late[rnd.IntN(len(late))])
				}
			case 2: // forged
				c.Note(notice(fmt.Sprint(rnd.IntN(20)), fmt.Sprintf("b%d", 1+rnd.IntN(9)), revision+int64(rnd.IntN(20))))
			case 3:
				if rnd.IntN(10) == 0 {
					var records []Change
					for key, broker := range truth {
						records = append(records, rec(key, broker, revision))
					}
					feed(t, c, listing(revision, records...))
				}
			}
		}
		progress(t, c, revision+20)
		for i := range 20 {
			key := fmt.Sprint(i)
			if a, _ := c.Lookup("p", key); a.Broker != truth[key] {
				t.Fatalf("seed %d: %s belongs to %q, the cache says %q", seed, key, truth[key], a.Broker)
			}
		}
		if st := c.Status(); st.Provisional != 0 || c.notices.bytes != 0 {
			t.Fatalf("seed %d: %d provisional, %d bytes", seed, st.Provisional, c.notices.bytes)
		}
	}
}
