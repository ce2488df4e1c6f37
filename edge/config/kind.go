package config

import (
	"maps"
	"slices"

	"github.com/goccy/go-yaml/ast"
)

// FileKind tells the two files apart.
type FileKind int

const (
	UnknownFile FileKind = iota
	EdgeFile             // has listeners
	MeshFile             // has pools
)

// Kind tells what a configuration file is for, by the names of its fields, misspelt ones included.
// A file that is not YAML is unknown.
func Kind(data []byte) FileKind {
	r := &report{index: index{pos: map[string]Pos{}}}
	return kindOf(r.parseYAML(data))
}

func kindOf(root ast.Node) FileKind {
	top, ok := root.(ast.MapNode)
	if !ok {
		return UnknownFile
	}
	edge := slices.Sorted(maps.Keys((&Edge{}).fields()))
	mesh := slices.Sorted(maps.Keys((&Mesh{}).fields()))
	score := 0
	for it := top.MapRange(); it.Next(); {
		switch name := it.Key().GetToken().Value; name {
		case "listeners":
			return EdgeFile
		case "pools":
			return MeshFile
		default:
			if nearest(name, edge) != "" {
				score++
			}
			if nearest(name, mesh) != "" {
				score--
			}
		}
	}
	switch {
	case score > 0:
		return EdgeFile
	case score < 0:
		return MeshFile
	}
	return UnknownFile
}
