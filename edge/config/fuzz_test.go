package config

import (
	"errors"
	"testing"
)

// A file may be anything; it is either read, or refused with positions, and no mistake is both.
func FuzzParseEdge(f *testing.F) {
	f.Add([]byte(fullEdge))
	for _, m := range mistakes {
		f.Add([]byte(m.file))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEdge("f", data)
		judge(t, e == nil, err)
		Kind(data)
	})
}

func FuzzParseMesh(f *testing.F) {
	f.Add([]byte(fullMesh))
	for _, m := range meshMistakes {
		f.Add([]byte(m.file))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseMesh("f", data)
		judge(t, m == nil, err)
		if err == nil {
			for i := range m.Pools {
				if len(PoolFields(&m.Pools[i])) == 0 {
					t.Error("a pool without fields")
				}
			}
		}
	})
}

func judge(t *testing.T, none bool, err error) {
	t.Helper()
	if none != (err != nil) {
		t.Fatalf("result absent: %v, error: %v", none, err)
	}
	if err == nil {
		return
	}
	var es Errors
	if !errors.As(err, &es) || len(es) == 0 || len(es) > MaxErrors+1 {
		t.Fatalf("not Errors: %v", err)
	}
	var last Pos
	for _, e := range es[:min(len(es), MaxErrors)] {
		if e.File != "f" || e.Message == "" || len(e.Message) > 1000 {
			t.Errorf("error without file or message, or too long: %.2000v", e)
		}
		if e.Pos.Line < last.Line || e.Pos.Line == last.Line && e.Pos.Column < last.Column {
			t.Errorf("not in order: %v", err)
		}
		last = e.Pos
	}
}
