package cli

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startStore runs `limpet store` in this process until it serves, and returns what its lines say and how to end it.
func startStore(t *testing.T, args ...string) (urls map[string]string, stop func() (code int, stderr string)) {
	t.Helper()
	var out, errs lockedBuffer
	ctx, cancel := context.WithCancel(t.Context())
	exit := make(chan int, 1)
	args = append([]string{"store", "--etcd-port", "0", "--peer-port", "0", "--nats-port", "0"}, args...)
	go func() { exit <- run(ctx, args, &out, &errs) }()
	stop = func() (int, string) {
		t.Helper()
		cancel()
		select {
		case code := <-exit:
			exit <- code
			return code, errs.String()
		case <-time.After(60 * time.Second):
			t.Fatalf("limpet store does not end: %s", errs.String())
			return 0, ""
		}
	}
	t.Cleanup(func() { stop() })

	want := 2
	for _, a := range args {
		if a == "--only" {
			want = 1
		}
	}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		urls = map[string]string{}
		for line := range strings.Lines(out.String()) {
			name, url, _ := strings.Cut(strings.TrimSpace(line), " ")
			urls[name] = url
		}
		if len(urls) == want {
			return urls, stop
		}
		select {
		case code := <-exit:
			exit <- code
			t.Fatalf("limpet store ended with %d: %s", code, errs.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("limpet store does not serve: stdout %q, stderr %q", out.String(), errs.String())
		}
	}
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	urls, stop := startStore(t, "--data", dir)
	if !strings.HasPrefix(urls["etcd"], "http://127.0.0.1:") || !strings.HasPrefix(urls["nats"], "nats://127.0.0.1:") {
		t.Errorf("addresses: %v", urls)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(urls["nats"], "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()

	mesh := write(t, filepath.Join(dir, "mesh.yaml"), "mesh: m\npools: [{name: p, brokers: [{id: b, address: 'h:1'}]}]\n")
	apply := []string{"apply", "-f", mesh, "--etcd", urls["etcd"], "--timeout", "30s"}
	expect(t, dir, append(apply, "--diff"), codeDiffers, "pool p: would be created (1 broker)\n  brokers[b]: added, h:1\n", "")
	expect(t, dir, apply, 0, "pool p: created (1 broker)\n  brokers[b]: added, h:1\n", "")
	expect(t, dir, apply, 0, "pool p: unchanged\n", "")
	expect(t, dir, append(apply, "--mesh", "other", "--diff"), codeDiffers, "pool p: would be created (1 broker)\n  brokers[b]: added, h:1\n", "")

	code, _, stderr := limpet(t, "store", "--data", dir, "--etcd-port", "0", "--peer-port", "0", "--only", "etcd")
	if code != codeFailed || !strings.Contains(stderr, "is in use: stop the other etcd or limpet store") || strings.Count(stderr, "limpet: ") != 1 {
		t.Errorf("a second one in the same directory: exit %d, %s", code, stderr)
	}
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(urls["etcd"], "http://"))
	code, _, stderr = limpet(t, "store", "--data", t.TempDir(), "--etcd-port", port, "--peer-port", "0", "--only", "etcd")
	if code != codeFailed || !strings.Contains(stderr, "another program listens there; stop it or choose another port (--etcd-port") {
		t.Errorf("etcd's port in use: exit %d, %s", code, stderr)
	}
	_, port, _ = net.SplitHostPort(strings.TrimPrefix(urls["nats"], "nats://"))
	code, _, stderr = limpet(t, "store", "--nats-port", port, "--only", "nats")
	if code != codeFailed || !strings.Contains(stderr, "another program listens there; stop it or choose another port (--nats-port)") {
		t.Errorf("NATS's port in use: exit %d, %s", code, stderr)
	}

	if code, stderr := stop(); code != 0 || strings.Contains(stderr, "limpet: ") {
		t.Errorf("exit %d, %s", code, stderr)
	}

	// What was applied is there again.
	urls, _ = startStore(t, "--data", dir, "--only", "etcd")
	apply[4] = urls["etcd"]
	expect(t, dir, apply, 0, "pool p: unchanged\n", "")
}

func TestStoreRefuses(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "file"), "")
	expect(t, dir, []string{"store", "--data", filepath.Join(file, "x")}, codeFailed, "",
		"limpet: --data: mkdir D/file: not a directory: choose a directory that this user may write\n")
	code, _, stderr := limpet(t, "store", "--only", "nats", "--listen", "192.0.2.1", "--nats-port", "0")
	if code != codeFailed || !strings.Contains(stderr, "this machine has no such address (--listen)") {
		t.Errorf("a foreign address: exit %d, %s", code, stderr)
	}
	if !strings.Contains(stderr, "whoever reaches this address can change the mesh") {
		t.Errorf("no warning of an open address: %s", stderr)
	}
}
