// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// inventory is what the store lists: every object once. It holds 41 bytes for each.
type inventory struct {
	kinds     map[string]*kind // by prefix
	manifests []string         // keys
	lists     []objstore.Info  // of marks
	probes    []objstore.Info  // what an init that was killed left
}

// kind are the objects with one prefix, sorted by name.
type kind struct {
	prefix  string
	objects []object
	needed  []bool // by their numbers
}

type object struct {
	name archive.Digest
	size int64
}

func (k *kind) ref(i int) archive.Ref {
	return archive.Ref{Name: k.objects[i].name, Length: k.objects[i].size}
}

// find returns the number of an object, or -1.
func (k *kind) find(name archive.Digest) int {
	i, ok := slices.BinarySearchFunc(k.objects, name, func(o object, name archive.Digest) int {
		return bytes.Compare(o.name[:], name[:])
	})
	if !ok {
		return -1
	}
	return i
}

// of returns a kind, which may have no objects.
func (v *inventory) of(prefix string) *kind {
	if k := v.kinds[prefix]; k != nil {
		return k
	}
	return &kind{prefix: prefix}
}

// indexes are those of all folders, none read yet.
func (v *inventory) indexes() []index {
	var all []index
	for _, prefix := range slices.Sorted(maps.Keys(v.kinds)) {
		if _, is := archive.IsIndex(prefix); !is {
			continue
		}
		for i := range v.kinds[prefix].objects {
			all = append(all, index{kind: v.kinds[prefix], number: i})
		}
	}
	return all
}

// takeInventory lists the store. A listing without the configuration, which is there, is
// a *chain.ListingError.
func takeInventory(ctx context.Context, repo *chain.Repository, progress func(done int64)) (*inventory, error) {
	v := &inventory{kinds: make(map[string]*kind)}
	whole, n := false, int64(0)
	for info, err := range repo.Store.List(ctx, "") {
		if err != nil {
			return nil, fmt.Errorf("list the repository: %w", err)
		}
		if n++; n%1024 == 0 {
			progress(n)
		}
		if prefix, name, ok := archive.ParseKey(info.Key); ok {
			k := v.kinds[prefix]
			if k == nil {
				k = &kind{prefix: prefix}
				v.kinds[prefix] = k
			}
			k.objects = append(k.objects, object{name: name, size: info.Size})
			continue
		}
		switch k := chain.ParseKey(info.Key); {
		case k.Kind == chain.KeyConfig:
			whole = true
		case k.Kind == chain.KeyManifest:
			v.manifests = append(v.manifests, info.Key)
		case k.Kind == chain.KeyMarkList:
			v.lists = append(v.lists, info)
		case strings.HasPrefix(info.Key, objstore.ProbePrefix):
			v.probes = append(v.probes, info)
		}
	}
	if !whole {
		return nil, &chain.ListingError{Object: chain.ConfigKey}
	}
	for _, k := range v.kinds {
		if !slices.IsSortedFunc(k.objects, func(a, b object) int { return bytes.Compare(a.name[:], b.name[:]) }) {
			return nil, fmt.Errorf("the store does not sort its listing of %s", k.prefix)
		}
		k.needed = make([]bool, len(k.objects))
	}
	return v, nil
}

// unneeded counts what no checkpoint needs, by kind.
func (v *inventory) unneeded() Amounts {
	var a Amounts
	for prefix, k := range v.kinds {
		for i := range k.objects {
			if !k.needed[i] {
				a.add(kindName(prefix), 1, k.objects[i].size)
			}
		}
	}
	return a
}

// needed counts what is needed, by kind.
func (v *inventory) neededAmounts() Amounts {
	var a Amounts
	for prefix, k := range v.kinds {
		for i := range k.objects {
			if k.needed[i] {
				a.add(kindName(prefix), 1, k.objects[i].size)
			}
		}
	}
	return a
}

// look returns the kind and the size of an object that was listed, other than a list of a
// mark, which no report counts.
func (v *inventory) look(key string) (kind string, size int64, ok bool) {
	if prefix, name, is := archive.ParseKey(key); is {
		k := v.of(prefix)
		i := k.find(name)
		if i < 0 {
			return "", 0, false
		}
		return kindName(prefix), k.objects[i].size, true
	}
	return "", 0, false
}

// kindName names what lies under a prefix, for people and programs.
func kindName(prefix string) string {
	if _, is := archive.IsIndex(prefix); is {
		return "indexes"
	}
	return strings.TrimSuffix(prefix, "/")
}
