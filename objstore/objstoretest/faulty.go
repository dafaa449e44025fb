// SPDX-License-Identifier: Apache-2.0

package objstoretest

import (
	"context"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// Op is one of the operations of a store.
type Op string

// The operations of a store.
const (
	Put    Op = "put"
	Get    Op = "get"
	Stat   Op = "stat"
	List   Op = "list"
	Delete Op = "delete"
)

// Fault says when a store fails, and how. All fields but Err may be left zero.
type Fault struct {
	Op     Op     // the operation that fails; "" is every one
	Prefix string // of the keys (List: of the prefix) that it fails for
	After  int    // so many matching operations work before the first failure
	Times  int    // how often it fails; 0 is for ever
	Err    error  // what the operation reports

	// Lost: the operation is done, and then reported as failed.
	Lost bool
	// Cut: Get and List fail only after this many bytes or objects, if above 0.
	Cut int64
	// Hook is called before the failure, with the key.
	Hook func(key string)
}

// Faulty is a store with faults. It is safe for concurrent use.
type Faulty struct {
	store objstore.Store

	mu     sync.Mutex
	faults []*fault
	counts map[Op]int
}

type fault struct {
	Fault
	seen, hits int
}

// NewFaulty returns a store that fails as told. At the end of the test each of
// the faults must have been hit, or the test fails.
func NewFaulty(t testing.TB, s objstore.Store, faults ...Fault) *Faulty {
	t.Helper()
	f := &Faulty{store: s, counts: make(map[Op]int)}
	for _, spec := range faults {
		f.faults = append(f.faults, &fault{Fault: spec})
	}
	t.Cleanup(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for i, fault := range f.faults {
			if fault.hits == 0 {
				t.Errorf("fault %d (%s %q after %d) was never hit: %d operations matched", i, fault.Op, fault.Prefix, fault.After, fault.seen)
			}
		}
	})
	return f
}

// Count returns how often the operations were asked for, all of them if none
// is named.
func (f *Faulty) Count(ops ...Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for op, c := range f.counts {
		if len(ops) == 0 || slices.Contains(ops, op) {
			n += c
		}
	}
	return n
}

// hit counts an operation, and returns the fault that it meets, if any.
func (f *Faulty) hit(op Op, key string) *Fault {
	f.mu.Lock()
	f.counts[op]++
	var met *Fault
	for _, fault := range f.faults {
		if fault.Op != "" && fault.Op != op || !strings.HasPrefix(key, fault.Prefix) {
			continue
		}
		fault.seen++
		if fault.seen <= fault.After || fault.Times > 0 && fault.hits >= fault.Times || met != nil {
			continue
		}
		fault.hits++
		met = &fault.Fault
	}
	f.mu.Unlock()
	if met != nil && met.Hook != nil {
		met.Hook(key)
	}
	return met
}

// Put implements objstore.Store.
func (f *Faulty) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	fault := f.hit(Put, key)
	if fault == nil {
		return f.store.Put(ctx, key, body, o)
	}
	if fault.Lost {
		if err := f.store.Put(ctx, key, body, o); err != nil {
			return err
		}
	}
	return fault.Err
}

// Get implements objstore.Store.
func (f *Faulty) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	fault := f.hit(Get, key)
	if fault != nil && fault.Cut == 0 {
		return nil, fault.Err
	}
	r, err := f.store.Get(ctx, key, offset, length)
	if err != nil || fault == nil {
		return r, err
	}
	return &cutReader{ReadCloser: r, left: fault.Cut, err: fault.Err}, nil
}

type cutReader struct {
	io.ReadCloser
	left int64
	err  error
}

func (c *cutReader) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, c.err
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// Stat implements objstore.Store.
func (f *Faulty) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if fault := f.hit(Stat, key); fault != nil {
		return objstore.Info{}, fault.Err
	}
	return f.store.Stat(ctx, key)
}

// List implements objstore.Store.
func (f *Faulty) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		fault := f.hit(List, prefix)
		var n int64
		for info, err := range f.store.List(ctx, prefix) {
			if fault != nil && n >= fault.Cut {
				yield(objstore.Info{}, fault.Err)
				return
			}
			n++
			if !yield(info, err) {
				return
			}
		}
		if fault != nil {
			yield(objstore.Info{}, fault.Err)
		}
	}
}

// Delete implements objstore.Store.
func (f *Faulty) Delete(ctx context.Context, key string) error {
	fault := f.hit(Delete, key)
	if fault == nil {
		return f.store.Delete(ctx, key)
	}
	if fault.Lost {
		if err := f.store.Delete(ctx, key); err != nil {
			return err
		}
	}
	return fault.Err
}
