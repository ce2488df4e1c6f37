package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/limpet-mesh/limpet/edge/config"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/etcdstore"
)

// etcdFlags say how a verb that writes etcd itself reaches it.
type etcdFlags struct {
	endpoints     []string
	user          string
	passwordFile  string
	ca, cert, key string
	timeout       time.Duration
}

func (e *etcdFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&e.endpoints, "etcd", []string{"http://127.0.0.1:2379"}, "`URL`s of etcd, separated by commas")
	f.StringVar(&e.user, "etcd-user", "", "user `NAME`")
	f.StringVar(&e.passwordFile, "etcd-password-file", "", "`FILE` with the password")
	f.StringVar(&e.ca, "etcd-ca", "", "PEM `FILE` with etcd's authorities; the system's if not set")
	f.StringVar(&e.cert, "etcd-cert", "", "PEM `FILE` with the client certificate")
	f.StringVar(&e.key, "etcd-key", "", "PEM `FILE` with its private key")
	f.DurationVar(&e.timeout, "timeout", 5*time.Second, "give up after that")
}

// validate completes the URLs and finds flags that do not fit together.
func (e *etcdFlags) validate(cmd *cobra.Command) error {
	for i, s := range e.endpoints {
		u, err := config.EtcdURL(s)
		if err != nil {
			return usagef(cmd, "--etcd: %w", err)
		}
		e.endpoints[i] = u
		if (e.ca != "" || e.cert != "") && strings.HasPrefix(u, "http:") {
			return usagef(cmd, "--etcd: expected https, because TLS files are given, found %q", s)
		}
	}
	switch {
	case len(e.endpoints) == 0:
		return usagef(cmd, "--etcd: expected a URL such as http://127.0.0.1:2379")
	case (e.user == "") != (e.passwordFile == ""):
		return usagef(cmd, "expected --etcd-user and --etcd-password-file together")
	case (e.cert == "") != (e.key == ""):
		return usagef(cmd, "expected --etcd-cert and --etcd-key together")
	case e.timeout <= 0:
		return usagef(cmd, "--timeout: expected a positive duration such as 5s")
	}
	return nil
}

// open returns the store of a mesh. Nothing has been asked of etcd yet.
func (e *etcdFlags) open(mesh string) (registry.Store, error) {
	password := ""
	if e.passwordFile != "" {
		var err error
		if password, err = config.ReadSecret(e.passwordFile); err != nil {
			return nil, fmt.Errorf("--etcd-password-file: %w", err)
		}
	}
	return etcdstore.Open(etcdstore.Config{
		Endpoints: e.endpoints, Mesh: mesh, Username: e.user, Password: password,
		TLS: etcdstore.TLS{CA: e.ca, Cert: e.cert, Key: e.key}, Logger: zerolog.Nop(),
	})
}

// explain says what to do about a store that did not answer, for so long. Where it should be, and what became of the attempts
// to reach it, err says.
func (e *etcdFlags) explain(err error, after time.Duration) error {
	advice := "start it, or correct --etcd"
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		if after >= e.timeout {
			advice += ", or raise --timeout"
		}
		return fmt.Errorf("no answer from etcd after %s: %s (%w)", config.FormatDuration(after.Round(100*time.Millisecond)), advice, err)
	case errors.Is(err, registry.ErrUnavailable):
		return fmt.Errorf("etcd does not serve us: %s (%w)", advice, err)
	}
	return err
}
