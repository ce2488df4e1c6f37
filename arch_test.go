// Package limpet_test keeps the repository in shape: who may import whom, and that what its pages say is so.
package limpet_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/limpet-mesh/limpet"

// A source is one Go file of the repository.
type source struct {
	path    string // slashes, from the root
	folder  string // of path; "." for the root
	test    bool
	lines   int
	ast     *ast.File
	imports []string
}

// sources returns every Go file, also those of other systems: build tags do not count here.
func sources(t *testing.T) []source {
	t.Helper()
	all, err := parsed()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 100 {
		t.Fatalf("only %d Go files found: is this the root?", len(all))
	}
	return all
}

var parsed = sync.OnceValues(parse)

func parse() ([]source, error) {
	var all []source
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		s := source{path: filepath.ToSlash(name), test: strings.HasSuffix(name, "_test.go"), ast: f, lines: strings.Count(string(text), "\n")}
		s.folder = path.Dir(s.path)
		for _, spec := range f.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, p)
		}
		all = append(all, s)
		return nil
	})
	return all, err
}

// under reports whether p is tree, or lies in it.
func under(p, tree string) bool { return p == tree || strings.HasPrefix(p, tree+"/") }

func underAny(p string, trees []string) bool {
	return slices.ContainsFunc(trees, func(tree string) bool { return under(p, tree) })
}

// A border says which packages of ours a tree may import besides itself.
type border struct {
	tree string
	may  []string
	why  string
}

// borders are read from the top: the first tree that holds a file counts.
var borders = []border{
	{"edge/mqtt", nil, "the wire format is the bottom: it is fuzzed, and read, by itself"},
	{"edge/ws", nil, "a wire format too: whose bytes it carries is nobody's business there"},
	{"edge/relay", []string{"edge/mqtt"}, "the data path knows packets, not pools or keys: whoever owns a session says where it goes"},
	{"edge", []string{"router", "registry"}, "an edge moves bytes; it meets failover in registry and in what cmd/limpet wires, so that either can be judged alone"},
	{"failover", []string{"router", "registry"}, "failover judges; it meets the edge in registry and in what cmd/limpet wires, so that either can be judged alone"},
	{"router", []string{"registry"}, "who serves a key is a pure function of what the registry holds"},
	{"registry", nil, "what the mesh knows depends on nobody who uses it"},
	{"loadtest/mqtt", nil, "a codec of its own: the bottom"},
	{"loadtest/wire", nil, "transports carry bytes, whoever's they are"},
	{"loadtest/near", nil, "what was probably meant is a question of letters"},
	{"loadtest/pace", nil, "when things are due is nobody's business but the clock's"},
	{"loadtest/ledger", nil, "what became of messages and homes is judged apart from how it was seen"},
	{"loadtest/result", []string{"loadtest/near"}, "results are read, merged and judged without anything that made them"},
	{"loadtest/report", []string{"loadtest/result"}, "all that is shown stands in a result, so that it can be shown again later"},
	{"loadtest/fault", []string{"loadtest/near", "loadtest/pace"}, "what is done to the servers does not depend on who suffers from it"},
	{"loadtest/client", []string{"loadtest/mqtt", "loadtest/pace", "loadtest/wire"}, "a client speaks MQTT; what it is for, its handler says"},
	{"loadtest/liar", []string{"loadtest/mqtt"}, "who lies must not share the books with who finds the lies"},
	{"loadtest", nil, "a proof from outside shares no code with what it proves: a shared parser hides shared bugs"},
	{"cmd", []string{"edge", "failover", "router", "registry", "loadtest"}, "nobody imports a command; the command wires all the others"},
}

func TestWhoImportsWhom(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.folder == "." {
			continue
		}
		i := slices.IndexFunc(borders, func(b border) bool { return under(s.folder, b.tree) })
		if i < 0 {
			t.Errorf("%s: a new top folder: give it a line in this test's table and in ARCHITECTURE.md", s.path)
			continue
		}
		for _, imported := range s.imports {
			p, isOurs := strings.CutPrefix(imported, module+"/")
			if isOurs && !under(p, borders[i].tree) && !underAny(p, borders[i].may) {
				t.Errorf("%s imports %s: %s", s.path, p, borders[i].why)
			}
		}
	}
}

// theirs says where a dependency may be used.
var theirs = []struct {
	imports []string
	in      []string // nowhere but in tests, if empty
	why     string
}{
	{
		[]string{"go.etcd.io/etcd/client", "go.etcd.io/etcd/api"},
		[]string{"registry/etcdstore"},
		"all keys, guards and retries of etcd are in one place",
	},
	{[]string{"github.com/nats-io/nats.go"}, []string{"registry/natsbus"}, "all subjects and reconnects of NATS are in one place"},
	{
		[]string{"go.etcd.io/etcd/server", "go.etcd.io/bbolt", "github.com/nats-io/nats-server"},
		[]string{"registry/embedded"},
		"an edge carries no server unless it is asked for",
	},
	{[]string{"github.com/mochi-mqtt"}, []string{"cmd/limpet/internal/demo", "loadtest/internal/mochitest"}, "the brokers and clients of the demo are no part of the mesh"},
	{
		[]string{"github.com/quic-go"},
		[]string{"edge/listen", "edge/upstream", "loadtest/wire", "cmd/limpet/internal/demo"},
		"QUIC is a transport: above it there are streams",
	},
	{[]string{"github.com/goccy/go-yaml"}, []string{"edge/config", "loadtest"}, "one place reads what people write; the load tester, which shares nothing, has its own"},
	{[]string{"github.com/HdrHistogram"}, []string{"loadtest/result"}, "one place records and merges latencies"},
	{[]string{module + "/loadtest/liar", module + "/loadtest/internal/mochitest"}, nil, "a proxy that lies, and a broker for tests, are test gear"},
	{[]string{"github.com/spf13/cobra"}, []string{"cmd/limpet"}, "only a command has flags"},
	{[]string{"github.com/eclipse"}, nil, "the clients of the tests are not shipped (EPL-2.0)"},
	{[]string{"pgregory.net/rapid", "go.uber.org/goleak", "testing"}, []string{"registry/registrytest", "loadtest/internal/mochitest"}, "no test gear in what is shipped"},
}

func TestWhereDependenciesAreUsed(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, imported := range s.imports {
			for _, r := range theirs {
				if underAny(imported, r.imports) && !underAny(s.folder, r.in) {
					t.Errorf("%s imports %s: %s", s.path, imported, r.why)
				}
			}
		}
	}
}

// pure lists packages that decide without looking at the world.
var pure = []struct {
	folder string
	never  []string
	why    string
}{
	{"router", []string{"net", "os", "time", "sync", "context", "math/rand"}, "equal Views give equal answers: no sockets, no clocks, no locks, no dice"},
	{"edge/mqtt", []string{"net", "os", "time", "sync", "context", "io"}, "bytes in, facts out"},
	{"edge/ws", []string{"net", "os", "time", "context"}, "bytes in, bytes out; edge/ws/stream has the connection"},
	{"loadtest/mqtt", []string{"net", "os", "time", "context", "io"}, "bytes in, packets out"},
	{"loadtest/ledger", []string{"net", "os", "context", "io", "math/rand"}, "what is told comes with its time: books look at nothing themselves"},
}

func TestPureDecisions(t *testing.T) {
	for _, s := range sources(t) {
		for _, r := range pure {
			for _, imported := range s.imports {
				if !s.test && s.folder == r.folder && underAny(imported, r.never) {
					t.Errorf("%s imports %s: %s", s.path, imported, r.why)
				}
			}
		}
	}
}

func TestEveryPackageHasAComment(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		want := "Package " + s.ast.Name.Name + " "
		if s.ast.Name.Name == "main" {
			want = "Command " + path.Base(s.folder) + " "
		}
		has := s.ast.Doc != nil && strings.HasPrefix(s.ast.Doc.Text(), want)
		if s.ast.Doc != nil && !has {
			t.Errorf("%s: expected the package comment to begin with %q", s.path, want)
		}
		documented[s.folder] = documented[s.folder] || has
	}
	for _, folder := range slices.Sorted(maps.Keys(documented)) {
		if !documented[folder] {
			t.Errorf("%s: no file has a package comment", folder)
		}
	}
}

// maxLines is where a file has long become two; 500 is the aim.
const maxLines = 600

func TestNoFileIsTooLong(t *testing.T) {
	for _, s := range sources(t) {
		if s.lines > maxLines {
			t.Errorf("%s has %d lines, more than %d: it is about more than one thing", s.path, s.lines, maxLines)
		}
	}
}

// namesRegistry matches where a lock file says that a package comes from.
var namesRegistry = regexp.MustCompile(`"resolved":\s*"https?:`)

// TestLockFilesNameNoRegistry: who builds here chooses the registry (npm's omit-lockfile-registry-resolved).
func TestLockFilesNameNoRegistry(t *testing.T) {
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git") {
			return filepath.SkipDir
		}
		if d.Name() != "package-lock.json" {
			return nil
		}
		text, err := os.ReadFile(name)
		if err == nil && namesRegistry.Match(text) {
			t.Errorf("%s names a registry: write it anew with omit-lockfile-registry-resolved=true in .npmrc", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
