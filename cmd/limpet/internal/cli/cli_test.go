package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// limpet runs the command line in this process.
func limpet(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// expect runs the command line and compares all it does. "D" stands for dir in what it prints.
func expect(t *testing.T, dir string, args []string, code int, stdout, stderr string) {
	t.Helper()
	gotCode, gotOut, gotErr := limpet(t, args...)
	if dir != "" {
		gotOut, gotErr = strings.ReplaceAll(gotOut, dir, "D"), strings.ReplaceAll(gotErr, dir, "D")
	}
	if gotCode != code || gotOut != stdout || gotErr != stderr {
		t.Errorf("limpet %s: exit %d, stdout:\n%s\nstderr:\n%s\nwant exit %d, stdout:\n%s\nstderr:\n%s",
			strings.Join(args, " "), gotCode, gotOut, gotErr, code, stdout, stderr)
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// lockedBuffer is read while a verb writes it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestUsage(t *testing.T) {
	mesh := write(t, filepath.Join(t.TempDir(), "mesh.yaml"), "mesh: m\npools: [{name: p, brokers: [{id: b, address: 'h:1'}]}]")
	for _, c := range []struct {
		args   string
		stderr string
	}{
		{"chek", `limpet: unknown verb "chek": did you mean "check"? (see "limpet --help")`},
		{"xyzzy", `limpet: unknown verb "xyzzy" (see "limpet --help")`},
		{"--version xyzzy", `limpet: unknown verb "xyzzy" (see "limpet --help")`},
		{"help chek", `limpet: unknown verb "chek": did you mean "check"? (see "limpet --help")`},
		{"help check x", `limpet: unknown verb "x" (see "limpet --help")`},
		{"version now", `limpet: expected no argument, found "now" (see "limpet version --help")`},
		{"edge edge.yaml", `limpet: expected no argument, as in "limpet edge -c edge.yaml", found "edge.yaml" (see "limpet edge --help")`},
		{"version -o yaml", `limpet: -o: expected one of text, json, found "yaml" (see "limpet version --help")`},
		{"check", `limpet: expected configuration files, as in "limpet check edge.yaml mesh.yaml" (see "limpet check --help")`},
		{"check --nofiles x", `limpet: unknown flag: --nofiles (see "limpet check --help")`},
		{"apply", `limpet: -f: expected a mesh file (see "limpet apply --help")`},
		{"apply -f M --mesh A_B", `limpet: --mesh: expected a name of letters a-z, digits and '-', found "A_B" (see "limpet apply --help")`},
		{"apply -f M --etcd h:1", `limpet: --etcd: expected a URL such as http://127.0.0.1:2379, found "h:1": did you mean "http://h:1"? (see "limpet apply --help")`},
		{"apply -f M --etcd http://h --etcd-ca ca.pem", `limpet: --etcd: expected https, because TLS files are given, found "http://h" (see "limpet apply --help")`},
		{"apply -f M --etcd-user u", `limpet: expected --etcd-user and --etcd-password-file together (see "limpet apply --help")`},
		{"apply -f M --etcd-key k", `limpet: expected --etcd-cert and --etcd-key together (see "limpet apply --help")`},
		{"apply -f M --timeout -1s", `limpet: --timeout: expected a positive duration such as 5s (see "limpet apply --help")`},
		{"store", `limpet: --data: expected a directory for etcd's data (see "limpet store --help")`},
		{"store --only redis", `limpet: --only: expected one of etcd, nats, found "redis" (see "limpet store --help")`},
		{"store --data d --log-level loud", `limpet: --log-level: expected one of trace, debug, info, warn, error, found "loud" (see "limpet store --help")`},
		{"store --data d --etcd-port 70000", `limpet: invalid argument "70000" for "--etcd-port" flag: strconv.ParseUint: parsing "70000": value out of range (see "limpet store --help")`},
	} {
		args := strings.Fields(c.args)
		for i := range args {
			if args[i] == "M" {
				args[i] = mesh
			}
		}
		expect(t, "", args, codeUsage, "", c.stderr+"\n")
	}

	code, stdout, stderr := limpet(t)
	if code != codeUsage || stdout != "" || !strings.Contains(stderr, "apply ") || !strings.HasSuffix(stderr, "\nlimpet: expected a verb\n") {
		t.Errorf("without a verb: exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	code, stdout, stderr = limpet(t, "--help")
	if code != 0 || stderr != "" || !strings.Contains(stdout, "store ") || strings.Contains(stdout, "demo-broker") {
		t.Errorf("--help: exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// The pages of help speak of verbs, all of them in the same words.
func TestHelp(t *testing.T) {
	pages := [][]string{{"--help"}, {"help"}}
	for _, cmd := range root().Commands() {
		pages = append(pages, []string{cmd.Name(), "--help"}, []string{"help", cmd.Name()})
	}
	for _, args := range pages {
		code, page, stderr := limpet(t, args...)
		if code != 0 || stderr != "" || !strings.Contains(page, "\nUsage:\n  limpet") {
			t.Errorf("%q: exit %d, stdout %q, stderr %q", args, code, page, stderr)
		}
		if strings.Contains(strings.ToLower(page), "command") || strings.Contains(page, "\n\n\n") {
			t.Errorf("%q:\n%s", args, page)
		}
	}
	for _, cmd := range root().Commands() {
		_, flag, _ := limpet(t, cmd.Name(), "--help")
		if _, verb, _ := limpet(t, "help", cmd.Name()); verb != flag {
			t.Errorf("help %s:\n%s\n%s --help:\n%s", cmd.Name(), verb, cmd.Name(), flag)
		}
	}
}

// Every verb says what it is for, refuses arguments that it does not take, and leaves errors to run.
func TestVerbs(t *testing.T) {
	for _, cmd := range root().Commands() {
		if cmd.Short == "" || cmd.RunE == nil || cmd.Args == nil {
			t.Errorf("%s: Short %q, RunE set %v, Args set %v", cmd.Name(), cmd.Short, cmd.RunE != nil, cmd.Args != nil)
		}
	}
}

func TestVersion(t *testing.T) {
	code, stdout, stderr := limpet(t, "version")
	if want := runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH + "\n"; code != 0 || stderr != "" ||
		!strings.HasPrefix(stdout, "limpet ") || !strings.HasSuffix(stdout, want) {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	expect(t, "", []string{"--version"}, 0, stdout, "")
	code, stdout, stderr = limpet(t, "version", "-o", "json")
	var got buildVersion
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != 0 || stderr != "" {
		t.Fatalf("exit %d, stdout %q, stderr %q, %v", code, stdout, stderr, err)
	}
	if got != currentVersion() || got.Version == "" || got.Go != runtime.Version() || got.OS != runtime.GOOS || got.Arch != runtime.GOARCH {
		t.Errorf("got %+v", got)
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	in := func(name, text string) string { return write(t, filepath.Join(dir, name), text) }
	const stored = "store: {etcd: {endpoints: ['http://h']}}\n"
	mesh := in("mesh.yaml", "mesh: demo\npools:\n- {name: default, brokers: [{id: b1, address: 'h:1'}, {id: b2, address: 'h:2'}]}\n- {name: p, brokers: [{id: b, address: 'h:1'}]}\n")
	edge := in("edge.yaml", "mesh: demo\nid: e1\n"+stored+"listeners: [{type: tcp}, {type: ws, pool: p}]\n")
	small := in("small.yaml", "mesh: demo\nid: e2\nstore: none\nmesh_file: mesh.yaml\nlisteners: [{type: tcp}]\n")
	pool := in("pool.yaml", "mesh: demo\nid: e3\n"+stored+"listeners: [{type: tcp, pool: defualt}]\n")
	bad := in("bad.yaml", "mesh: demo\nid: e4\n"+stored+"listner: []\nlog: {level: loud}\n")
	files := in("files.yaml", "mesh: demo\nid: e5\n"+stored+"listeners: [{type: tls, tls: {certificates: [{cert: x, key: y}]}}]\n")
	broken := in("broken.yaml", "a: [")
	other := in("other.yaml", "apiVersion: v1\n")

	for _, c := range []struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{[]string{edge, mesh, small}, 0, "D/edge.yaml: ok (edge e1 of mesh demo: 2 listeners)\nD/mesh.yaml: ok (mesh demo: 2 pools, 3 brokers)\nD/small.yaml: ok (edge e2 of mesh demo: 1 listener)\n", ""},
		{
			[]string{bad},
			1,
			"D/bad.yaml:1:1: listeners: required field is missing\n" +
				"D/bad.yaml:4:1: listner: unknown field: did you mean \"listeners\"?\n" +
				"D/bad.yaml:5:14: log.level: expected one of trace, debug, info, warn, error, found \"loud\"\n",
			"limpet: 1 of 1 file with mistakes\n",
		},
		{[]string{pool}, 0, "D/pool.yaml: ok (edge e3 of mesh demo: 1 listener)\n", ""},
		{
			[]string{pool, mesh},
			1,
			"D/pool.yaml:4:31: listeners[0].pool: expected a pool of D/mesh.yaml (default, p), found \"defualt\": did you mean \"default\"?\nD/mesh.yaml: ok (mesh demo: 2 pools, 3 brokers)\n",
			"limpet: 1 of 2 files with mistakes\n",
		},
		{
			[]string{files},
			1,
			"D/files.yaml:4:53: listeners[0].tls.certificates[0].cert: cannot read D/x: no such file or directory: correct the path, or put the file there\n" +
				"D/files.yaml:4:61: listeners[0].tls.certificates[0].key: cannot read D/y: no such file or directory: correct the path, or put the file there\n",
			"limpet: 1 of 1 file with mistakes\n",
		},
		{[]string{"--no-files", files}, 0, "D/files.yaml: ok (edge e5 of mesh demo: 1 listener)\n", ""},
		{
			[]string{broken, other, filepath.Join(dir, "none.yaml")},
			1,
			"D/broken.yaml:1:4: not valid YAML: expected ']' to what begins here, found the end of the file\n" +
				"D/other.yaml:1:1: expected the configuration of an edge (with listeners) or of a mesh (with pools)\n" +
				"open D/none.yaml: no such file or directory\n",
			"limpet: 3 of 3 files with mistakes\n",
		},
	} {
		expect(t, dir, append([]string{"check"}, c.args...), c.code, c.stdout, c.stderr)
	}
}
