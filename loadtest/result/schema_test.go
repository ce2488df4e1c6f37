package result

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestSchemaNamesEveryField: SCHEMA.md is the contract, so nothing is written that it does not name.
func TestSchemaNamesEveryField(t *testing.T) {
	text, err := os.ReadFile("../SCHEMA.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(of reflect.Type) {
		switch of.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
			walk(of.Elem())
		case reflect.Struct:
			if seen[of] || of.PkgPath() != reflect.TypeFor[Result]().PkgPath() {
				return
			}
			seen[of] = true
			for f := range of.NumField() {
				field := of.Field(f)
				name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
				if name != "" {
					names = append(names, name)
				} else if field.IsExported() && !reflect.PointerTo(of).Implements(reflect.TypeFor[json.Marshaler]()) {
					t.Errorf("%v.%s has no name in JSON", of, field.Name)
				}
				walk(field.Type)
			}
		}
	}
	walk(reflect.TypeFor[Result]())
	walk(reflect.TypeFor[histogramJSON]())
	walk(reflect.TypeFor[spreadJSON]())
	names = append(names, counterNames[:]...)
	names = append(names, latencyNames[:]...)
	names = append(names, reasons...)
	names = append(names, messageNames...)
	if len(names) < 150 {
		t.Fatalf("only %d names found", len(names))
	}
	for _, name := range names {
		if !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("SCHEMA.md does not name %q", name)
		}
	}
	if !strings.Contains(string(text), "version 1,") || Schema != 1 {
		t.Error("SCHEMA.md is of another version")
	}
}
