package realtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/edge/config"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/etcdstore"
)

// stores are the real etcd and NATS of a mesh, a process each.
type stores struct {
	etcd, nats       *proc
	etcdURL, natsURL string
}

func startStores(t testing.TB, dir string) *stores {
	t.Helper()
	s := &stores{}
	etcdPort, natsPort := freePort(t), freePort(t)
	s.etcd = start(t, dir, "etcd", nil, limpet, "store", "--only", "etcd", "--data", filepath.Join(dir, "store"),
		"--etcd-port", fmt.Sprint(etcdPort), "--peer-port", "0")
	s.nats = start(t, dir, "nats", nil, limpet, "store", "--only", "nats", "--nats-port", fmt.Sprint(natsPort))
	s.etcdURL = strings.Fields(s.etcd.lineWith(t, patience, "etcd http"))[1]
	s.natsURL = strings.Fields(s.nats.lineWith(t, patience, "nats nats"))[1]
	return s
}

// open returns a client of the store of a mesh, for looking at its records.
func (s *stores) open(t testing.TB, mesh string) *etcdstore.Store {
	t.Helper()
	st, err := etcdstore.Open(etcdstore.Config{Endpoints: []string{s.etcdURL}, Mesh: mesh, Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

// facts lists all that a store holds: the routing state, and the affinities of a pool.
func facts(ctx context.Context, st registry.Store, pool string) (*registry.State, map[string]registry.Affinity, error) {
	state, records := &registry.State{}, map[string]registry.Affinity{}
	listed := errors.New("listed")
	err := st.Watch(ctx, 0, func(b registry.Batch) error {
		for _, c := range b.Changes {
			if c.Kind == registry.KindAffinity && c.PoolName == pool && !c.Deleted {
				records[c.Name] = c.Affinity
			}
		}
		state = state.Apply(b.Changes, b.Revision)
		if b.Done {
			return listed
		}
		return nil
	})
	if !errors.Is(err, listed) {
		return nil, nil, err
	}
	return state, records, nil
}

// recorded lists the affinities of a pool.
func recorded(t testing.TB, st registry.Store, pool string) map[string]registry.Affinity {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, records, err := facts(ctx, st, pool)
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// awaitRecords waits until etcd holds, of every key, the broker that is wanted.
func awaitRecords(t testing.TB, st registry.Store, pool string, want map[string]string) map[string]registry.Affinity {
	t.Helper()
	var got map[string]registry.Affinity
	until(t, patience, "records in etcd", func() (bool, any) {
		got = recorded(t, st, pool)
		var wrong []string
		for key, broker := range want {
			if got[key].Broker != broker {
				wrong = append(wrong, fmt.Sprintf("%s: %q, want %s", key, got[key].Broker, broker))
			}
		}
		return len(wrong) == 0, fmt.Sprintf("%d of %d are wrong: %.500s", len(wrong), len(want), strings.Join(wrong, ", "))
	})
	return got
}

// poolText is a pool in the words of a mesh file.
type poolText struct {
	name    string
	options string   // "rehome_after: 2s, sessions: local"
	brokers []string // each "{id: …, address: …}"
}

// apply writes the pools of a mesh with `limpet apply`.
func (s *stores) apply(t testing.TB, dir, mesh string, pools ...poolText) []registry.Pool {
	t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "mesh: %s\npools:\n", mesh)
	for _, p := range pools {
		options := ""
		if p.options != "" {
			options = ", " + p.options
		}
		fmt.Fprintf(&text, "- {name: %s%s, brokers: [%s]}\n", p.name, options, strings.Join(p.brokers, ", "))
	}
	file := filepath.Join(dir, mesh+".yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := command(t, 20*time.Second, nil, limpet, "apply", "-f", file, "--etcd", s.etcdURL)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, text.String())
	}
	m, err := config.LoadMesh(file)
	if err != nil {
		t.Fatal(err)
	}
	return m.Pools
}
