package realtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/loadtest/result"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/etcdstore"
)

// The load tester proves the mesh: many lives of persistent clients over all transports, while a broker is restarted, etcd and NATS are away
// and an edge is killed. Whose broker lived comes home and misses nothing; whose died with it, in whose memory they were, the result names,
// and no others. The long form is in BENCHMARKS.md.
func TestLoadtestProvesTheMesh(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	state := filepath.Join(dir, "mesh.json")
	start(t, dir, "demo", []string{"TMPDIR=" + dir}, limpet, "demo", "--idle", "--shifted", "--state", state)
	var mesh struct {
		Etcd    []struct{ URL string }
		Brokers []struct {
			ID  string
			PID int
		}
	}
	read := func() error {
		text, err := os.ReadFile(state)
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &mesh)
	}
	until(t, 4*patience, "the demo", func() (bool, any) { err := read(); return err == nil, err })
	for more := 2; ; more-- {
		steady, err := prove(t, state, mesh.Etcd[0].URL, func() (int, error) { err := read(); return mesh.Brokers[1].PID, err })
		switch {
		case err == nil:
			return
		case steady || more == 0:
			t.Fatal(err)
		}
		t.Logf("to be proven again, since the machine stood still: %v", err)
	}
}

// prove runs the load tester once; steady reports whether the machine ran all the time, without which a broker is down that is not.
func prove(t *testing.T, state, etcd string, b2 func() (pid int, err error)) (steady bool, failure error) {
	before, err := b2()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, limpet, "loadtest", "verify", "--state", state, "-c", "200", "--lives", "4", "--quiet", "--allow-behind", "-o", "json",
		"--fault", "at 5s restart broker b2", "--fault", "at 8s stop etcd for 2s", "--fault", "at 11s stop nats for 2s", "--fault", "at 14s kill edge e1 for 2s",
		"--assert", "stickiness==100", "--assert", "lost==0", "--assert", "sessions_lost.unexplained==0")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	// Who is b2's as long as it lives, by the store's word.
	store, err := etcdstore.Open(etcdstore.Config{Endpoints: []string{etcd}, Mesh: "demo", Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	doomed := map[string]bool{}
	until(t, 4*patience, "the restart of b2", func() (bool, any) {
		now := map[string]bool{}
		listed := errors.New("listed")
		err := store.Watch(ctx, 0, func(b registry.Batch) error {
			for _, c := range b.Changes {
				if c.Kind == registry.KindAffinity && c.Affinity.Broker == "b2" && strings.Contains(c.Name, "-citizen-") {
					now[c.Name] = true
				}
			}
			if b.Done {
				return listed
			}
			return nil
		})
		if !errors.Is(err, listed) {
			return false, err
		}
		if pid, err := b2(); pid != before {
			return err == nil, err
		}
		doomed = now
		return false, len(now)
	})

	exit := <-ended
	res, err := result.Unmarshal(stdout.Bytes())
	if err != nil {
		t.Fatalf("%v, %v: %s\n%.2000s", exit, err, &stderr, &stdout)
	}
	steady = res.Generator.LagMax < 500_000
	v := res.Verify
	if exit != nil {
		return steady, fmt.Errorf("%w: %s, %+v", exit, &stderr, v)
	}
	if len(res.Faults) != 4 || v == nil || v.Judged < 200 || v.Disagreements.Count != 0 || len(doomed) < 20 {
		return steady, fmt.Errorf("%d faults, %d doomed, %+v", len(res.Faults), len(doomed), v)
	}
	var lost []string
	for _, l := range v.SessionsLost.Entries {
		lost = append(lost, l.Client)
	}
	slices.Sort(lost)
	for id := range doomed {
		if len(lost) > 0 && id[:strings.LastIndex(id, "-")] != lost[0][:strings.LastIndex(lost[0], "-")] {
			delete(doomed, id) // of an earlier run
		}
	}
	if want := slices.Sorted(maps.Keys(doomed)); !slices.Equal(lost, want) {
		return steady, fmt.Errorf("%d sessions lost, %d were b2's:\n%q\n%q", len(lost), len(want), lost, want)
	}
	m := v.Messages["mesh"]
	if m == nil || m.Lost != 0 || m.Expected < 1000 || m.Received == 0 {
		return steady, fmt.Errorf("messages: %+v", m)
	}
	t.Logf("%d reconnects judged, %d sessions lost, %+v", v.Judged, len(lost), m)
	return true, nil
}
