package cli

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by releases: -ldflags "-X github.com/limpet-mesh/limpet/cmd/limpet/internal/cli.version=v1.2.3".
var version string

// buildVersion is what `limpet version` tells.
type buildVersion struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // commit, with "+" if the tree was changed
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

// currentVersion describes the running binary.
func currentVersion() buildVersion {
	v := buildVersion{Version: version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if ok {
		set := map[string]string{}
		for _, s := range info.Settings {
			set[s.Key] = s.Value
		}
		v.Revision = set["vcs.revision"]
		if set["vcs.modified"] == "true" {
			v.Revision += "+"
		}
		if v.Version == "" {
			v.Version = info.Main.Version
		}
	}
	if v.Version == "" || v.Version == "(devel)" {
		v.Version = "devel"
	}
	return v
}

func (v buildVersion) String() string {
	revision := ""
	if v.Revision != "" {
		revision = " (" + v.Revision + ")"
	}
	return fmt.Sprintf("limpet %s%s %s %s/%s", v.Version, revision, v.Go, v.OS, v.Arch)
}

func versionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of limpet",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch output {
			case "json":
				return json.NewEncoder(cmd.OutOrStdout()).Encode(currentVersion())
			case "text":
				_, err := fmt.Fprintln(cmd.OutOrStdout(), currentVersion())
				return err
			}
			return usagef(cmd, "-o: expected one of text, json, found %q", output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "`FORMAT`: text or json")
	return cmd
}
