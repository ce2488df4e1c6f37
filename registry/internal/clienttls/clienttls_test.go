package clienttls

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRefusals(t *testing.T) {
	junk := filepath.Join(t.TempDir(), "junk.pem")
	if err := os.WriteFile(junk, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		files Files
		want  string
	}{
		{Files{CA: "absent.pem"}, "absent.pem"},
		{Files{CA: junk}, "no PEM certificate"},
		{Files{Cert: "a.pem"}, "both"},
		{Files{Key: "a.key"}, "both"},
		{Files{Cert: junk, Key: junk}, "client certificate"},
	} {
		if cfg, err := c.files.Config(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, %v; want an error about %q", c.files, cfg, err, c.want)
		}
	}
}

func TestNoFilesMeanNoTLS(t *testing.T) {
	if cfg, err := (Files{}).Config(); cfg != nil || err != nil {
		t.Errorf("got %v, %v", cfg, err)
	}
	cfg, err := Files{ServerName: "etcd.example"}.Config()
	if err != nil || cfg == nil || cfg.ServerName != "etcd.example" || cfg.RootCAs != nil {
		t.Errorf("got %+v, %v; want the system's authorities and the name", cfg, err)
	}
}
