// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"

	"github.com/imgbackup/imgbackup/objstore"
)

// blob is what an object holds. Blobs of the same bytes are one.
type blob struct {
	data []byte
	sum  uint64
}

// pool has all blobs of a world. It is safe for concurrent use.
type pool struct {
	mu  sync.Mutex
	all map[string]*blob
}

func newPool() *pool { return &pool{all: make(map[string]*blob)} }

func (p *pool) of(data []byte) *blob {
	if data == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if b, ok := p.all[string(data)]; ok {
		return b
	}
	b := &blob{data: bytes.Clone(data)}
	b.sum = maphash.Bytes(seed, b.data)
	p.all[string(b.data)] = b
	return b
}

var seed = maphash.MakeSeed()

// objects are what stands in a store, sorted by key. A value is never changed.
type objects []object

type object struct {
	key string
	*blob
}

func (s objects) find(key string) (int, bool) {
	return slices.BinarySearchFunc(s, key, func(o object, key string) int { return strings.Compare(o.key, key) })
}

// get returns what stands under a key; nil: nothing.
func (s objects) get(key string) *blob {
	if i, ok := s.find(key); ok {
		return s[i].blob
	}
	return nil
}

// set returns what stands then; nil: nothing shall.
func (s objects) set(key string, b *blob) objects {
	i, ok := s.find(key)
	if ok && s[i].blob == b || !ok && b == nil {
		return s
	}
	next := make(objects, 0, len(s)+1)
	next = append(next, s[:i]...)
	if b != nil {
		next = append(next, object{key, b})
	}
	if ok {
		i++
	}
	return append(next, s[i:]...)
}

// under are those whose keys begin with a prefix.
func (s objects) under(prefix string) objects {
	from, _ := s.find(prefix)
	to := from
	for to < len(s) && strings.HasPrefix(s[to].key, prefix) {
		to++
	}
	return s[from:to]
}

func (s objects) hash(h *maphash.Hash) {
	for _, o := range s {
		_, _ = h.WriteString(o.key)
		maphash.WriteComparable(h, o.sum)
	}
}

// same reports whether the same stands in both.
func (s objects) same(o objects) bool { return slices.Equal(s, o) }

// call is what a process asks of a store, or, in the words "ended?" and "pause", of the
// scheduler. It is never changed.
type call struct {
	kind, key      string
	offset, length int64 // of a get
	old, data      *blob // of a put
	name           string
}

// write kinds, and what they demand.
const (
	create = "create" // that nothing stands there
	swap   = "swap"   // that old does
	put    = "put"
	remove = "delete"
)

func (c *call) writes() bool { return c.kind != "get" && c.kind != "list" && c.kind != "stat" }

// stores reports whether it may change the store.
func (c *call) stores() bool {
	return c.kind == create || c.kind == swap || c.kind == put || c.kind == remove
}

// class is what kind of object it is about.
func (c *call) class() string {
	class, _, _ := strings.Cut(c.key, "/")
	return class
}

func (c *call) compare(d *call) int {
	return cmp.Or(
		strings.Compare(c.kind, d.kind), strings.Compare(c.key, d.key), cmp.Compare(c.offset, d.offset), cmp.Compare(c.length, d.length),
		bytes.Compare(c.old.bytes(), d.old.bytes()), bytes.Compare(c.data.bytes(), d.data.bytes()),
	)
}

func (b *blob) bytes() []byte {
	if b == nil {
		return nil
	}
	return b.data
}

// answer is what a process is told.
type answer struct {
	err   error   // one of a few
	blob  *blob   // that is there
	list  objects // that are
	yes   bool    // to a question
	twice bool    // what it stored was sent twice, and one of the two may still arrive
}

func (a answer) hash() uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	fmt.Fprint(&h, a.err, a.yes, a.twice)
	if a.blob != nil {
		maphash.WriteComparable(&h, a.blob.sum)
	}
	a.list.hash(&h)
	return h.Sum64()
}

// do carries a call out, as a store does.
func (s objects) do(c *call) (objects, answer) {
	stands := s.get(c.key)
	switch {
	case c.kind == "list":
		return s, answer{list: s.under(c.key)}
	case c.kind == remove:
		return s.set(c.key, nil), answer{}
	case c.kind == create && stands != nil:
		return s, answer{err: objstore.ErrExists}
	case c.kind == swap && stands != c.old:
		return s, answer{err: objstore.ErrChanged}
	case c.stores():
		return s.set(c.key, c.data), answer{}
	case stands == nil:
		return s, answer{err: objstore.ErrNotFound}
	}
	return s, answer{blob: stands}
}
