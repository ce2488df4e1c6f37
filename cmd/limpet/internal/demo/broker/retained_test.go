package broker

import (
	"testing"
	"time"
)

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a", "a", true},
		{"a", "b", false},
		{"a", "a/b", false},
		{"a/b", "a", false},
		{"#", "a", true},
		{"#", "a/b/c", true},
		{"a/#", "a", true},
		{"a/#", "a/b/c", true},
		{"a/#", "ab", false},
		{"+", "a", true},
		{"+", "a/b", false},
		{"+/+", "a/b", true},
		{"+/#", "a", true},
		{"a/+", "a", false},
		{"a/+", "a/", true},
		{"a/+/c", "a/b/c", true},
		{"a/+/c", "a/b/d", false},
		{"/+", "/a", true},
		{"+", "/a", false},
		{"#", "$SYS/broker/name", false},
		{"+/broker/name", "$SYS/broker/name", false},
		{"$SYS/#", "$SYS/broker/name", true},
	} {
		if got := matches(c.filter, c.topic); got != c.want {
			t.Errorf("%q matches %q: %v", c.filter, c.topic, got)
		}
	}
}

func TestNewestRetainedWins(t *testing.T) {
	put := func(r *retainedStore, payload, from string, stamp int64) bool {
		return r.put(&message{topic: "t", payload: []byte(payload), retain: true, from: from, stamp: stamp})
	}
	var r retainedStore
	now := time.Now()
	for _, c := range []struct {
		payload, from string
		stamp         int64
		stored        bool
		want          string
	}{
		{"one", "b1", 10, true, "one"},
		{"old", "b2", 9, false, "one"},
		{"one", "b1", 10, false, "one"},
		{"tie", "b2", 10, true, "tie"}, // the greater name
		{"", "b1", 20, true, ""},
		{"resurrected", "b3", 15, false, ""},
		{"two", "b3", 21, true, "two"},
	} {
		if stored := put(&r, c.payload, c.from, c.stamp); stored != c.stored {
			t.Errorf("%q of %d: stored %v", c.payload, c.stamp, stored)
		}
		got := ""
		if m := r.matching("#", now); len(m) == 1 {
			got = string(m[0].payload)
		}
		if got != c.want {
			t.Errorf("after %q of %d: %q, want %q", c.payload, c.stamp, got, c.want)
		}
	}
}

func TestPruneForgetsWhatIsOver(t *testing.T) {
	var r retainedStore
	now := time.Now()
	put := func(topic, payload string, stamp time.Time, expires int64) {
		r.put(&message{topic: topic, payload: []byte(payload), retain: true, stamp: stamp.UnixNano(), expires: expires})
	}
	put("live", "x", now.Add(-48*time.Hour), 0)
	put("expired", "x", now, now.Add(-time.Second).UnixMilli())
	put("cleared", "", now, 0)
	put("cleared long ago", "", now.Add(-tombstoneLife-time.Second), 0)
	put("$SYS/broker/name", "b1", now, 0)
	put("$SYS/broker/sessions/x", "", now, 0)
	if m := r.matching("expired", now); len(m) > 0 {
		t.Error("an expired message is given out")
	}
	if live := r.prune(now); live != 1 {
		t.Errorf("%d live", live)
	}
	for topic, want := range map[string]bool{
		"live": true, "expired": false, "cleared": true, "cleared long ago": false,
		"$SYS/broker/name": true, "$SYS/broker/sessions/x": false,
	} {
		if _, ok := r.byTopic[topic]; ok != want {
			t.Errorf("%s: kept %v", topic, ok)
		}
	}
	if shared := r.shared(); len(shared) != 2 {
		t.Errorf("%d are shared, want 2: live and cleared", len(shared))
	}
}
