package node

import (
	"errors"
	"strings"

	"github.com/limpet-mesh/limpet/edge/config"
)

// locate says where in the configuration the cause of err is, which a part returned that was made out of field: at the files that field
// names if there is a mistake in them, else at field itself.
func (n *Node) locate(field string, err error) error {
	if _, ok := errors.AsType[*config.Error](err); ok {
		return err // it has its place: a mistake in the mesh file
	}
	if found := n.mistakes(field); len(found) > 0 {
		return errors.Join(found...)
	}
	message := err.Error()
	for _, of := range []string{"admin: ", "config: ", "etcdstore: ", "listen: ", "natsbus: "} {
		message = strings.TrimPrefix(message, of) // which package says it matters to nobody who reads the file
	}
	return n.conf.Errorf(field, "%s", message)
}

// mistakes are those in the files that field names.
func (n *Node) mistakes(field string) (found []error) {
	for _, e := range n.conf.CheckFiles() {
		if one, ok := errors.AsType[*config.Error](e); ok && (one.Field == field || strings.HasPrefix(one.Field, field+".")) {
			found = append(found, e)
		}
	}
	return found
}

// storeField is the field that the store is made out of.
func storeField(c *config.Edge) string {
	if c.Store.None {
		return "mesh_file"
	}
	return "store.etcd"
}

// warnOfFiles logs the mistakes in the edge's files that do not keep it from starting, such as a certificate that has expired: those
// clients that do not look are served, and the other listeners.
func (n *Node) warnOfFiles() { n.warnOf(n.conf.CheckFiles()) }

func (n *Node) warnOf(mistakes []error) {
	for _, err := range mistakes {
		n.log.Warn().Err(err).Msg("serving all the same, but a file needs attention")
	}
}
