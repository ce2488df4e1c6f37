package config

import (
	"maps"
	"slices"
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

func kindOf(root *node) FileKind {
	if root == nil {
		return UnknownFile
	}
	edge := slices.Sorted(maps.Keys((&Edge{}).fields()))
	mesh := slices.Sorted(maps.Keys((&Mesh{}).fields()))
	for _, f := range root.fields {
		switch f.name {
		case "listeners":
			return EdgeFile
		case "pools":
			return MeshFile
		}
	}
	score := 0
	for _, f := range root.fields[:min(len(root.fields), 100)] {
		if nearest(f.name, edge) != "" {
			score++
		}
		if nearest(f.name, mesh) != "" {
			score--
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
