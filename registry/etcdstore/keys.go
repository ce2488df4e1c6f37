package etcdstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

// The keys of a mesh, all of them:
//
//	/limpet/<mesh>/schema                   who may write here
//	              /leader                   the edge that leads, on its session's lease
//	              /edges/<edge>             who is there, on the edge's session lease
//	              /health/<edge>            what it thinks of the brokers, likewise
//	              /pools/<pool>             configuration
//	              /pruned                   written where no other pools shall be
//	              /brokers/<pool>/<broker>  what the operator wants of it
//	              /verdicts/<pool>/<broker> what the leader found about it
//	              /affinity/<pool>/<key>    where a key belongs, on bucket leases
//	              /pins/<pool>/<key>        where the operator tied a key to
//	              /secrets/…, jobs/…, dns/… of others: not read here
//
// Names of meshes, pools, brokers and edges are [a-z0-9-]{1,63}. A <key> is any bytes that a stranger chose: those
// outside [A-Za-z0-9._-] are written %XX, and what is then longer than 128 bytes is written as ~ and its SHA-256 in hex;
// its value holds the key itself. So no key leaves its prefix, no two keys meet, and every key can be read back.
const (
	root          = "/limpet/"
	schemaKey     = "schema"
	leaderKey     = "leader"
	edgeDir       = "edges/"
	healthDir     = "health/"
	poolDir       = "pools/"
	pruneKey      = "pruned"
	adminDir      = "brokers/"
	verdictDir    = "verdicts/"
	affinityDir   = "affinity/"
	pinDir        = "pins/"
	maxEscapedLen = 128
	hashMark      = '~'
)

// others are the directories whose keys are known to be none of this package's business.
var others = []string{"secrets/", "jobs/", "dns/"}

// keyspace is the prefix of all keys of a mesh.
type keyspace string

func newKeyspace(mesh string) keyspace { return keyspace(root + mesh + "/") }

func (k keyspace) schema() string              { return string(k) + schemaKey }
func (k keyspace) leader() string              { return string(k) + leaderKey }
func (k keyspace) edge(id string) string       { return string(k) + edgeDir + id }
func (k keyspace) health(edge string) string   { return string(k) + healthDir + edge }
func (k keyspace) pool(name string) string     { return string(k) + poolDir + name }
func (k keyspace) prune() string               { return string(k) + pruneKey }
func (k keyspace) pin(pool, key string) string { return string(k) + pinDir + pool + "/" + escape(key) }

func (k keyspace) admin(ref registry.BrokerRef) string {
	return string(k) + adminDir + ref.Pool + "/" + ref.Broker
}

func (k keyspace) verdict(ref registry.BrokerRef) string {
	return string(k) + verdictDir + ref.Pool + "/" + ref.Broker
}

func (k keyspace) affinity(pool, key string) string {
	return string(k) + affinityDir + pool + "/" + escape(key)
}

// fact returns the key whose mod revision a fact is about.
func (k keyspace) fact(f registry.Fact) string {
	ref := registry.BrokerRef{Pool: f.Pool, Broker: f.Name}
	switch f.Kind {
	case registry.KindAdmin:
		return k.admin(ref)
	case registry.KindVerdict:
		return k.verdict(ref)
	default:
		return k.pool(f.Pool)
	}
}

const upperHex = "0123456789ABCDEF"

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
}

// escape spells a key as one path element.
func escape(key string) string {
	n := len(key)
	for i := 0; i < len(key) && n <= maxEscapedLen; i++ {
		if !plain(key[i]) {
			n += 2
		}
	}
	switch {
	case n == len(key) && n <= maxEscapedLen:
		return key
	case n > maxEscapedLen:
		sum := sha256.Sum256([]byte(key))
		return string(hashMark) + hex.EncodeToString(sum[:])
	}
	b := make([]byte, 0, n)
	for i := 0; i < len(key); i++ {
		if c := key[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return string(b)
}

// hidden returns what a value must hold: the key, if escape hashes it, else "".
func hidden(key string) string {
	if e := escape(key); len(e) > 0 && e[0] == hashMark {
		return key
	}
	return ""
}

// unescape reads what escape wrote, and nothing else. Of a hashed key it returns what escape wrote.
func unescape(e []byte) (key, hash string, ok bool) {
	if len(e) > 0 && e[0] == hashMark {
		return "", string(e), isHash(e[1:])
	}
	if len(e) > maxEscapedLen {
		return "", "", false
	}
	if bytes.IndexByte(e, '%') < 0 {
		for _, c := range e {
			if !plain(c) {
				return "", "", false
			}
		}
		return string(e), "", true
	}
	b := make([]byte, 0, len(e))
	for i := 0; i < len(e); i++ {
		c := e[i]
		if c != '%' {
			if !plain(c) {
				return "", "", false
			}
			b = append(b, c)
			continue
		}
		if i+2 >= len(e) {
			return "", "", false
		}
		hi, lo := strings.IndexByte(upperHex, e[i+1]), strings.IndexByte(upperHex, e[i+2])
		if c = byte(hi<<4 | lo); hi < 0 || lo < 0 || plain(c) {
			return "", "", false
		}
		b = append(b, c)
		i += 2
	}
	return string(b), "", true
}

// isHash reports whether b is a SHA-256 in lower-case hex.
func isHash(b []byte) bool {
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(b) == hex.EncodedLen(sha256.Size)
}

// place is what a key says by itself.
type place struct {
	kind   registry.Kind // 0: none of a reader's business
	schema bool
	pool   string // of affinities, pins, admin states and verdicts
	name   string // pool, broker, edge or key
	hash   string // of a key that only the value tells, as escape writes it; else ""
}

// parse reads a key of the mesh. It is not ok if no limpet wrote it. names shares the names that many keys have.
func (k keyspace) parse(key []byte, names *wire.Decoder) (p place, ok bool) {
	if len(key) < len(k) || string(key[:len(k)]) != string(k) {
		return p, false
	}
	rest := key[len(k):]
	switch string(rest) {
	case schemaKey:
		return place{schema: true}, true
	case leaderKey:
		return place{kind: registry.KindLeader}, true
	case pruneKey:
		return place{kind: registry.KindPrune}, true
	}
	slash := bytes.IndexByte(rest, '/') + 1
	dir, rest := rest[:slash], rest[slash:]
	one := func(kind registry.Kind) (place, bool) {
		p := place{kind: kind, name: names.Name(rest)}
		return p, registry.ValidName(p.name)
	}
	two := func(kind registry.Kind) (p place, second []byte, ok bool) {
		pool, second, ok := bytes.Cut(rest, []byte("/"))
		p = place{kind: kind, pool: names.Name(pool)}
		return p, second, ok && registry.ValidName(p.pool)
	}
	switch string(dir) {
	case affinityDir, pinDir:
		kind := registry.KindAffinity
		if string(dir) == pinDir {
			kind = registry.KindPin
		}
		p, e, ok := two(kind)
		if ok {
			p.name, p.hash, ok = unescape(e)
		}
		return p, ok
	case adminDir, verdictDir:
		kind := registry.KindAdmin
		if string(dir) == verdictDir {
			kind = registry.KindVerdict
		}
		p, id, ok := two(kind)
		p.name = names.Name(id)
		return p, ok && registry.ValidName(p.name)
	case poolDir:
		return one(registry.KindPool)
	case edgeDir:
		return one(registry.KindEdge)
	case healthDir:
		return one(registry.KindHealth)
	}
	return p, slices.Contains(others, string(dir))
}
