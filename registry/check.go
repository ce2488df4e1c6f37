package registry

import "fmt"

// CheckName returns an error that says what is wrong with the name of a mesh, pool, edge or broker; nil for a valid one.
func CheckName(what, name string) error {
	if ValidName(name) {
		return nil
	}
	return fmt.Errorf("registry: %.80q cannot name %s: want 1 to %d of a-z, 0-9 and -", name, what, MaxNameLen)
}

// CheckRef returns the error of a broker's reference that no Store takes.
func CheckRef(ref BrokerRef) error {
	if err := CheckName("a pool", ref.Pool); err != nil {
		return err
	}
	return CheckName("a broker", ref.Broker)
}

// CheckAdmin returns the error of an admin state that no Store takes, since no edge would know it. None is one.
func CheckAdmin(s AdminState) error {
	switch s {
	case "", AdminReady, AdminDraining, AdminOut:
		return nil
	}
	return fmt.Errorf("registry: %.80q is no admin state: want %s, %s or %s", s, AdminReady, AdminDraining, AdminOut)
}

// CheckWrites returns the error of a batch that no Store takes, nil for one that it takes: see Store.Commit.
func CheckWrites(ws []Write) error {
	if len(ws) > MaxCommit {
		return fmt.Errorf("registry: %d writes in one commit, at most %d", len(ws), MaxCommit)
	}
	seen := make(map[PinRef]struct{}, len(ws))
	for i := range ws {
		w := &ws[i]
		ref := PinRef{w.Pool, w.Key}
		if _, ok := seen[ref]; ok {
			return fmt.Errorf("registry: key %.80q of pool %s twice in one commit", w.Key, w.Pool)
		}
		seen[ref] = struct{}{}
		if err := CheckName("a pool", w.Pool); err != nil {
			return err
		}
		if w.Lease < 0 {
			return fmt.Errorf("registry: a lease of %v for key %.80q", w.Lease, w.Key)
		}
		for _, f := range w.Facts {
			if f.Kind != KindPool && f.Kind != KindAdmin && f.Kind != KindVerdict {
				return fmt.Errorf("registry: a fact of kind %d for key %.80q", f.Kind, w.Key)
			}
		}
	}
	return nil
}
