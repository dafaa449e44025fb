// SPDX-License-Identifier: Apache-2.0

// Package hidden keeps names out of the keys of a store's objects: where a key has the name of
// a domain, a checkpoint or a host, what is stored has a keyed digest of it. Whoever uses the
// store goes on with the keys that have names; a listing's names come from the objects
// themselves, which say where they belong.
//
// A digest that nobody knows the name of stays what it is, in the place of the name.
package hidden

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
)

// Names turns the names in keys into digests, and back those that it has met. It is safe for
// concurrent use.
type Names struct {
	mac func(text string) [sha256.Size]byte

	mu  sync.Mutex
	met map[string]string // what has a digest, by that, with the mark
}

// New returns the names of a repository, whose digests mac makes.
func New(mac func(text string) [sha256.Size]byte) *Names {
	return &Names{mac: mac, met: make(map[string]string)}
}

// mark begins what stands for a name: no name has it where a key has one.
const mark = "~"

// Is reports whether a part of a key is a digest in the place of a name.
func Is(part string) bool {
	digits, ok := strings.CutPrefix(part, mark)
	return ok && len(digits) == 2*sha256.Size && strings.Trim(digits, "0123456789abcdef") == ""
}

// The folders whose keys have names, and what of them is one: the second part, that of a
// domain or a host; and of a checkpoint's key the fourth.
const (
	domains     = "domains"
	drills      = "drills"
	leases      = "leases"
	indexes     = "index"
	checkpoints = "checkpoints"
	suffix      = ".json"
)

// folder is the first part of a key, if keys in it have names; else "".
func folder(key string) string {
	first, _, ok := strings.Cut(key, "/")
	switch {
	case !ok:
	case first == domains, first == drills, first == leases, first == indexes:
		return first
	}
	return ""
}

// isCheckpoint reports whether these are the parts of the key of a checkpoint.
func isCheckpoint(parts []string) bool {
	return len(parts) == 4 && parts[0] == domains && parts[2] == checkpoints && len(parts[3]) > len(suffix) && strings.HasSuffix(parts[3], suffix)
}

// Stored returns the key under which is stored what has a key.
func (n *Names) Stored(key string) string {
	if folder(key) == "" {
		return key
	}
	parts := strings.Split(key, "/")
	owner := parts[1]
	if parts[0] == domains || parts[0] == drills {
		parts[1] = n.Domain(owner)
	} else {
		parts[1] = n.Host(owner)
	}
	if isCheckpoint(parts) {
		parts[3] = n.digest(checkpointOf(owner), strings.TrimSuffix(parts[3], suffix)) + suffix
	}
	return strings.Join(parts, "/")
}

// What digests are of begins with one of these.
const (
	ofDomain = "domain\n"
	ofHost   = "host\n"
)

func checkpointOf(domain string) string { return "checkpoint\n" + domain + "\n" }

// Domain is what stands for a domain, whose part of a key is given, and Host for a host.
func (n *Names) Domain(part string) string { return n.digest(ofDomain, part) }

// Host is what stands for a host.
func (n *Names) Host(part string) string { return n.digest(ofHost, part) }

func (n *Names) digest(kind, name string) string {
	if name == "" || Is(name) {
		return name
	}
	sum := n.mac(kind + name)
	d := mark + hex.EncodeToString(sum[:])
	n.mu.Lock()
	defer n.mu.Unlock()
	n.met[d] = kind + name
	return d
}

// plain puts names in the place of their digests, where an object with that name stands there. known reports
// whether all were met.
func (n *Names) plain(stored string) (key string, known bool) {
	parts := strings.Split(stored, "/")
	kind := ofDomain
	if parts[0] == leases || parts[0] == indexes {
		kind = ofHost
	}
	known = n.name(kind, &parts[1])
	if isCheckpoint(parts) {
		name := strings.TrimSuffix(parts[3], suffix)
		known = n.name(checkpointOf(parts[1]), &name) && known
		parts[3] = name + suffix
	}
	return strings.Join(parts, "/"), known
}

// within is the key of what a listing of a prefix shows: with names, but for those of which the prefix has the
// digest. They may have been met since that was listed in the place of a name.
func (n *Names) within(prefix, stored string) string {
	key, _ := n.plain(stored)
	if strings.HasPrefix(key, prefix) {
		return key
	}
	if strings.HasPrefix(stored, prefix) {
		return stored
	}
	parts := strings.Split(key, "/")
	if isCheckpoint(parts) {
		parts[3] = stored[strings.LastIndexByte(stored, '/')+1:]
	}
	return strings.Join(parts, "/")
}

func (n *Names) name(kind string, part *string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, met := strings.CutPrefix(n.met[*part], kind)
	if met {
		*part = name
	}
	return met
}

// isStored reports whether a key is one that [Names.Stored] returns: there may be others in a
// store, which nobody here has stored.
func isStored(key string) bool {
	parts := strings.Split(key, "/")
	return Is(parts[1]) && (!isCheckpoint(parts) || Is(strings.TrimSuffix(parts[3], suffix)))
}

// storedPrefix is the beginning of the stored keys of all whose keys begin with prefix, which
// must not end within a name.
func (n *Names) storedPrefix(prefix string) (string, error) {
	if folder(prefix) == "" {
		return prefix, nil
	}
	parts := strings.Split(prefix, "/")
	if len(parts) == 2 && parts[1] != "" || len(parts) == 4 && parts[0] == domains && parts[2] == checkpoints && parts[3] != "" && !isCheckpoint(parts) {
		return "", fmt.Errorf("names are hidden here, so nothing can be listed by the beginning of one: %s", prefix)
	}
	return n.Stored(prefix), nil
}
