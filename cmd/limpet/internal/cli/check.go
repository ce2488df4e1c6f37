package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/limpet-mesh/limpet/edge/config"
)

func checkCommand() *cobra.Command {
	var c checker
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "Check configuration files of edges and meshes",
		Long: `Check reads configuration files of edges (with listeners) and of meshes (with
pools) and prints every mistake as FILE:LINE:COLUMN: FIELD: MESSAGE. The files
that an edge names must be here too: certificates, keys, passwords. An edge is
also held against the mesh of its name, if that is among the files.`,
		Example: "  limpet check edge.yaml mesh.yaml",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("expected configuration files, as in %q", example(cmd))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			bad := 0
			for _, r := range c.check(args) {
				for _, err := range r.errs {
					fmt.Fprintln(cmd.OutOrStdout(), err)
				}
				if len(r.errs) > 0 {
					bad++
				} else {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: ok (%s)\n", r.file, r.summary)
				}
			}
			if bad > 0 {
				return fmt.Errorf("%d of %s with mistakes", bad, plural(len(args), "file"))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&c.noFiles, "no-files", false, "do not look at the files that an edge names")
	return cmd
}

type checker struct{ noFiles bool }

// checked is the judgement of one file.
type checked struct {
	file    string
	summary string
	edge    *config.Edge // or
	mesh    *config.Mesh // or neither, with errs
	errs    []error
}

// check judges each file, then the edges against the meshes.
func (c checker) check(files []string) []checked {
	out := make([]checked, len(files))
	meshes := map[string]*config.Mesh{}
	for i, file := range files {
		out[i] = c.read(file)
		if m := out[i].mesh; m != nil {
			meshes[m.Name] = m
		}
	}
	for i := range out {
		r := &out[i]
		if r.edge == nil || r.edge.Store.None { // whose mesh file CheckFiles reads
			continue
		}
		if m := meshes[r.edge.Mesh]; m != nil {
			r.errs = append(r.errs, r.edge.CheckMesh(m)...)
		}
	}
	return out
}

func (c checker) read(file string) checked {
	r := checked{file: file}
	data, err := config.ReadFile(file)
	if err != nil {
		r.errs = []error{err}
		return r
	}
	kind := config.Kind(data)
	if kind == config.MeshFile {
		if r.mesh, err = config.ParseMesh(file, data); err == nil {
			brokers := 0
			for _, p := range r.mesh.Pools {
				brokers += len(p.Brokers)
			}
			r.summary = fmt.Sprintf("mesh %s: %s, %s", r.mesh.Name, plural(len(r.mesh.Pools), "pool"), plural(brokers, "broker"))
		}
	} else {
		if r.edge, err = config.ParseEdge(file, data); err == nil {
			r.summary = fmt.Sprintf("edge %s of mesh %s: %s", r.edge.ID, r.edge.Mesh, plural(len(r.edge.Listeners), "listener"))
			if !c.noFiles {
				r.errs = r.edge.CheckFiles()
			}
		}
	}
	es, ok := errors.AsType[config.Errors](err)
	switch {
	case ok && kind == config.UnknownFile && es[0].Field != "": // YAML, but what for?
		r.errs = []error{fmt.Errorf("%s:1:1: expected the configuration of an edge (with listeners) or of a mesh (with pools)", file)}
	case ok:
		r.errs = es.Unwrap()
	case err != nil:
		r.errs = []error{err}
	}
	return r
}
