package limpet_test

import (
	"go/ast"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/limpet-mesh/limpet/edge/config"
)

func page(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var yamlBlock = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")

// TestReadmeConfigurations reads README's samples as `limpet check` would.
func TestReadmeConfigurations(t *testing.T) {
	var edges []*config.Edge
	var meshes []*config.Mesh
	for _, found := range yamlBlock.FindAllStringSubmatch(page(t, "README.md"), -1) {
		text := []byte(found[1])
		switch kind := config.Kind(text); kind {
		case config.EdgeFile:
			e, err := config.ParseEdge("README.md", text)
			if err != nil {
				t.Errorf("%v\nin:\n%s", err, text)
				continue
			}
			edges = append(edges, e)
		case config.MeshFile:
			m, err := config.ParseMesh("README.md", text)
			if err != nil {
				t.Errorf("%v\nin:\n%s", err, text)
				continue
			}
			meshes = append(meshes, m)
		default:
			t.Errorf("neither an edge's nor a mesh's configuration:\n%s", text)
		}
	}
	if len(edges) == 0 || len(meshes) == 0 {
		t.Fatalf("%d configurations of edges and %d of meshes: expected at least one of each", len(edges), len(meshes))
	}
	for _, e := range edges {
		for _, m := range meshes {
			for _, err := range e.CheckMesh(m) {
				t.Errorf("edge %s against mesh %s: %v", e.ID, m.Name, err)
			}
		}
	}
}

// A verb is a cobra command as its source shows it.
type verb struct {
	name   string
	hidden bool
}

// commandLine reads the verbs of package cli, and the flags of those that are not hidden, out of its source: to build the command
// can take minutes.
func commandLine(t *testing.T) (verbs []verb, flags map[string]bool) {
	t.Helper()
	flags = map[string]bool{}
	for _, s := range sources(t) {
		if s.test || s.folder != "cmd/limpet/internal/cli" {
			continue
		}
		for _, d := range s.ast.Decls { // a function makes one verb
			hidden := false
			here := map[string]bool{}
			ast.Inspect(d, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CompositeLit:
					if sel, ok := n.Type.(*ast.SelectorExpr); ok && sel.Sel.Name == "Command" {
						v := verbOf(n)
						hidden = hidden || v.hidden
						verbs = append(verbs, v)
					}
				case *ast.CallExpr:
					if name, shown := flagOf(n); name != "" {
						here[name] = shown
					}
				}
				return true
			})
			for name, shown := range here {
				if shown && !hidden {
					flags[name] = true
				}
			}
		}
	}
	return verbs, flags
}

func verbOf(command *ast.CompositeLit) (v verb) {
	for _, element := range command.Elts {
		kv, ok := element.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		key, _ := kv.Key.(*ast.Ident)
		switch {
		case key == nil:
		case key.Name == "Use":
			v.name, _, _ = strings.Cut(literal(kv.Value), " ")
		case key.Name == "Hidden":
			value, _ := kv.Value.(*ast.Ident)
			v.hidden = value != nil && value.Name == "true"
		}
	}
	return v
}

var flagMethod = regexp.MustCompile(`^((String|Bool|Int|Uint|Float|Duration|Count)\w*)?VarP?$`)

// flagOf is the name of the flag that a call like f.StringVar(&v, "name", …) makes, or one like f.MarkHidden("name") hides, or "".
func flagOf(call *ast.CallExpr) (name string, shown bool) {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	switch {
	case ok && flagMethod.MatchString(sel.Sel.Name) && len(call.Args) >= 3:
		return literal(call.Args[1]), true
	case ok && sel.Sel.Name == "MarkHidden" && len(call.Args) == 1:
		return literal(call.Args[0]), false
	}
	return "", false
}

func literal(e ast.Expr) string {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	s, _ := strconv.Unquote(lit.Value)
	return s
}

var (
	verbRow   = regexp.MustCompile("(?m)^\\| `limpet (?:loadtest )?([a-z-]+)[` ].*$")
	tableRow  = regexp.MustCompile(`(?m)^\| .*$`)
	flagNamed = regexp.MustCompile(`--([a-z][a-z-]+)`)
)

// TestReadmeVerbs holds README's tables of verbs and flags against the commands that there are.
func TestReadmeVerbs(t *testing.T) {
	verbs, flags := commandLine(t)
	if len(verbs) < 5 || len(flags) < 10 {
		t.Fatalf("%d verbs and %d flags found in cmd/limpet/internal/cli: is this the right folder?", len(verbs), len(flags))
	}
	inTable, flagsInTable := map[string]bool{}, map[string]bool{}
	for _, row := range verbRow.FindAllStringSubmatch(page(t, "README.md"), -1) {
		inTable[row[1]] = true
	}
	for _, row := range tableRow.FindAllString(page(t, "README.md"), -1) { // some rows are about flags that several verbs share
		for _, f := range flagNamed.FindAllStringSubmatch(row, -1) {
			flagsInTable[f[1]] = true
		}
	}
	exist := map[string]bool{}
	for _, v := range verbs {
		if v.name != "limpet" && !v.hidden {
			exist[v.name] = true
		}
	}
	compare(t, "verb", exist, inTable)
	compare(t, "flag", flags, flagsInTable)
}

func compare(t *testing.T, what string, exist, told map[string]bool) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(exist)) {
		if !told[name] {
			t.Errorf("%s %s is not in README's tables", what, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(told)) {
		if !exist[name] {
			t.Errorf("README's tables have the %s %s, which does not exist", what, name)
		}
	}
}

// TestReadmeTestCommand: who follows README runs what CI runs.
func TestReadmeTestCommand(t *testing.T) {
	const command = "make test"
	for _, name := range []string{"README.md", ".ci/run", "CONTRIBUTING.md"} {
		if !strings.Contains(page(t, name), command) {
			t.Errorf("%s does not call %q", name, command)
		}
	}
}

var pages = []string{"README.md", "ARCHITECTURE.md", "BENCHMARKS.md", "CONTRIBUTING.md"}

var testNamed = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9]*\b`)

// TestPagesNameTestsThatExist: a promise is worth the test behind it.
func TestPagesNameTestsThatExist(t *testing.T) {
	exist := map[string]bool{}
	for _, s := range sources(t) {
		for _, d := range s.ast.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				exist[f.Name.Name] = true
			}
		}
	}
	for _, name := range pages {
		for _, named := range testNamed.FindAllString(page(t, name), -1) {
			if !exist[named] {
				t.Errorf("%s names %s, which does not exist", name, named)
			}
		}
	}
}

// pathNamed matches what a page says in backticks and looks like a file or a folder of ours.
var pathNamed = regexp.MustCompile("`((?:cmd|edge|registry|router|failover|loadtest|deployments|\\.ci)/[A-Za-z0-9_./*-]*)`")

// TestPagesNameFilesThatExist: a map that is wrong is worse than none.
func TestPagesNameFilesThatExist(t *testing.T) {
	for _, name := range pages {
		for _, named := range pathNamed.FindAllStringSubmatch(page(t, name), -1) {
			found, err := filepath.Glob(strings.TrimSuffix(named[1], "/"))
			if err != nil || len(found) == 0 {
				t.Errorf("%s names %s, which does not exist", name, named[1])
			}
		}
	}
}
