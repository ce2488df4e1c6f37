package result

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
)

// maxList bounds the entries that a List keeps.
const maxList = 1000

// A List counts what was added and keeps the first entries, by time. Its zero value is empty.
type List[T entry[T]] struct {
	Count   int64 `json:"count"`
	Entries []T   `json:"entries"` // at most 1,000, ascending by time
}

// An entry has a total order, so that the first of two lists together are the first of their sum.
type entry[T any] interface{ compare(T) int }

// Add counts an entry, and keeps it if there is room or a later one gives way.
func (l *List[T]) Add(e T) {
	l.Count++
	i, _ := slices.BinarySearchFunc(l.Entries, e, func(a, b T) int { return a.compare(b) })
	if i == maxList {
		return
	}
	if len(l.Entries) == maxList {
		l.Entries = l.Entries[:maxList-1]
	}
	l.Entries = slices.Insert(l.Entries, i, e)
}

func (l *List[T]) plus(o *List[T]) {
	l.Count += o.Count
	if len(o.Entries) == 0 {
		return
	}
	all := slices.Concat(l.Entries, o.Entries)
	slices.SortFunc(all, func(a, b T) int { return a.compare(b) })
	l.Entries = slices.Clip(all[:min(len(all), maxList)])
}

func (l *List[T]) check(name string) error {
	if l.Count < int64(len(l.Entries)) || l.Count > maxCount || len(l.Entries) > maxList {
		return fmt.Errorf("%w: %s counts %d and lists %d", ErrInvalid, name, l.Count, len(l.Entries))
	}
	if !slices.IsSortedFunc(l.Entries, func(a, b T) int { return a.compare(b) }) {
		return fmt.Errorf("%w: %s is not in order", ErrInvalid, name)
	}
	return nil
}

// MarshalJSON writes an empty list as [], not null.
func (l List[T]) MarshalJSON() ([]byte, error) {
	type plain List[T]
	if l.Entries == nil {
		l.Entries = []T{}
	}
	return json.Marshal(plain(l))
}

func (a Loss) compare(b Loss) int {
	return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Client, b.Client), cmp.Compare(a.Broker, b.Broker),
		cmp.Compare(a.Met, b.Met), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Fault, b.Fault))
}

func (a Move) compare(b Move) int {
	return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Client, b.Client), cmp.Compare(a.From, b.From),
		cmp.Compare(a.To, b.To), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Fault, b.Fault))
}

func (a Disagreement) compare(b Disagreement) int {
	return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Client, b.Client), cmp.Compare(a.Detail, b.Detail))
}

func (a Anomaly) compare(b Anomaly) int {
	return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Group, b.Group),
		cmp.Compare(a.Publisher, b.Publisher), cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Subscriber, b.Subscriber),
		cmp.Compare(a.QoS, b.QoS), cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.To, b.To))
}

func (a Split) compare(b Split) int {
	return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Client, b.Client), cmp.Compare(a.Brokers, b.Brokers))
}
