package broker

import (
	"strings"
	"sync"
	"time"
)

// retainedStore holds the newest retained message of each topic, and a tombstone (no payload) where the newest
// cleared it [MQTT-3.3.1-6]: without one, a peer that has not heard of the clearing would bring the message back.
// The zero value is ready to use.
type retainedStore struct {
	mu      sync.RWMutex
	byTopic map[string]*message
}

// put stores m if it is newer than what its topic has, and reports whether it did.
func (r *retainedStore) put(m *message) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.byTopic[m.topic]; old != nil && !m.newer(old) {
		return false
	}
	if r.byTopic == nil {
		r.byTopic = make(map[string]*message)
	}
	r.byTopic[m.topic] = m
	return true
}

// matching returns the live messages that a new subscription to filter is sent [MQTT-3.3.1-9].
func (r *retainedStore) matching(filter string, now time.Time) []*message {
	r.mu.RLock()
	defer r.mu.RUnlock()
	live := func(m *message) bool { return m != nil && len(m.payload) > 0 && !m.expired(now) }
	if !strings.ContainsAny(filter, "+#") {
		if m := r.byTopic[filter]; live(m) {
			return []*message{m}
		}
		return nil
	}
	var out []*message
	for topic, m := range r.byTopic {
		if live(m) && matches(filter, topic) {
			out = append(out, m)
		}
	}
	return out
}

// shared returns everything that peers should know: all but $SYS, tombstones included.
func (r *retainedStore) shared() []*message {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]*message, 0, len(r.byTopic))
	for topic, m := range r.byTopic {
		if !underSys(topic) {
			out = append(out, m)
		}
	}
	return out
}

// prune forgets expired messages and old tombstones, and all tombstones if there are too many.
// It returns the number of live messages, $SYS aside.
func (r *retainedStore) prune(now time.Time) (live int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var dead []string
	for topic, m := range r.byTopic {
		switch {
		case m.expired(now):
			delete(r.byTopic, topic)
		case underSys(topic):
			if len(m.payload) == 0 { // nobody else has it
				delete(r.byTopic, topic)
			}
		case len(m.payload) > 0:
			live++
		case now.Sub(time.Unix(0, m.stamp)) > tombstoneLife:
			delete(r.byTopic, topic)
		default:
			dead = append(dead, topic)
		}
	}
	if len(dead) > tombstonesKept {
		for _, topic := range dead {
			delete(r.byTopic, topic)
		}
	}
	return live
}

// matches reports whether a topic name matches a topic filter (MQTT 5 §4.7). Wildcards at the front do not match
// names that begin with $ [MQTT-4.7.2-1].
func matches(filter, topic string) bool {
	if topic != "" && topic[0] == '$' && filter != "" && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	for {
		if filter == "#" {
			return true
		}
		f, filterRest, filterMore := strings.Cut(filter, "/")
		t, topicRest, topicMore := strings.Cut(topic, "/")
		switch {
		case f != "+" && f != t:
			return false
		case !topicMore:
			return !filterMore || filterRest == "#" // "a/#" matches "a" too, §4.7.1.2
		case !filterMore:
			return false
		}
		filter, topic = filterRest, topicRest
	}
}
