package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/edge/config"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/etcdstore"
	"github.com/limpet-mesh/limpet/registry/natsbus"
)

// openStore opens the mesh's store; it need not be in reach yet. Without one the pools of the mesh file are all that there is,
// and every edge that has the same file places keys alike.
func openStore(c *config.Edge, log zerolog.Logger) (registry.Store, error) {
	if c.Store.None {
		m, err := config.LoadMesh(c.MeshFile)
		if err != nil {
			return nil, err
		}
		if errs := c.CheckMesh(m); len(errs) > 0 {
			return nil, errors.Join(errs...)
		}
		mem := registry.NewMemory()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		for i := range m.Pools {
			if err := mem.PutPool(ctx, &m.Pools[i], 0); err != nil {
				return nil, fmt.Errorf("node: pool %s: %w", m.Pools[i].Name, err)
			}
		}
		return mem, nil
	}
	pass, err := password(c.Store.Etcd.PasswordFile)
	if err != nil {
		return nil, err
	}
	e := c.Store.Etcd
	return etcdstore.Open(etcdstore.Config{
		Endpoints: e.Endpoints, Mesh: c.Mesh, Username: e.Username, Password: pass, Logger: log, TLS: clientTLS(e.TLS),
	})
}

// openBus connects to the mesh's NATS, if it has one; it need not be in reach yet.
func openBus(c *config.Edge, log zerolog.Logger) (registry.Bus, error) {
	b := c.Store.NATS
	if b == nil {
		return nil, nil
	}
	pass, err := password(b.PasswordFile)
	if err != nil {
		return nil, err
	}
	bus, err := natsbus.Open(natsbus.Config{
		URLs: b.URLs, Mesh: c.Mesh, Edge: c.ID, Username: b.Username, Password: pass, Creds: b.Credentials, Logger: log, TLS: clientTLS(b.TLS),
	})
	if err != nil {
		return nil, err
	}
	return bus, nil
}

func clientTLS(t *config.ClientTLS) etcdstore.TLS {
	if t == nil {
		return etcdstore.TLS{}
	}
	return etcdstore.TLS{CA: t.CA, Cert: t.Cert, Key: t.Key}
}
