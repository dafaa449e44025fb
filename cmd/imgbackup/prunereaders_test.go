// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// meanwhile is a store on which something happens once, before a pack is read.
type meanwhile struct {
	objstore.Store
	once *sync.Once
	do   func()
}

func (m *meanwhile) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if strings.HasPrefix(key, "packs/") {
		m.once.Do(m.do)
	}
	return m.Store.Get(ctx, key, offset, length)
}

// What a prune removes while somebody reads is not damage: who restores, copies or checks
// goes on with what stands in its place, and a checkpoint that is forgotten is said to be.
func TestReadersBesidePrune(t *testing.T) {
	t.Parallel()
	first := newWorld(t, 1)
	first.guest("vda", "write -P 8 2M 300k")
	first.commit("c1")
	first.guest("vda", "write -P 9 0 1M")
	first.look("vda")
	first.commit("c2")
	first.must("forget", domain, "c1")
	delete(first.want, "c1")
	during := func(w *world, do func(), args ...string) outcome {
		once := &sync.Once{}
		o := w.runWith(program{wrap: func(s objstore.Store) objstore.Store { return &meanwhile{s, once, do} }}, args...)
		once.Do(func() { w.Errorf("%v has read no pack", args) })
		return o
	}
	repack := func(w *world) func() {
		return func() {
			if out := w.must(pruneAll...); !strings.Contains(out, "repacked") || !strings.Contains(out, "packs deleted") {
				w.Errorf("nothing was repacked: %s", out)
			}
		}
	}
	forget := func(w *world) func() {
		return func() { w.must("forget", domain, "c2", "--prune") }
	}
	t.Run("restore", func(t *testing.T) {
		t.Parallel()
		w := first.copy(t)
		to := filepath.Join(w.dir, "out.raw")
		o := during(w, repack(w), "restore", domain, "c2", "--to", "vda="+to)
		if o.code != exitDone || !strings.Contains(o.err, "begins anew") || w.sum(to) != w.want["c2"]["vda"] {
			t.Errorf("exit status %d: %s", o.code, o.err)
		}
		o = during(w, forget(w), "restore", domain, "c2", "--to", "vda="+to+"2")
		if o.code != exitFailed || !strings.Contains(o.err, "was forgotten meanwhile") {
			t.Errorf("forgotten: exit status %d: %s", o.code, o.err)
		}
	})
	t.Run("copy", func(t *testing.T) {
		t.Parallel()
		w := first.copy(t)
		other := filepath.Join(w.dir, "other")
		if code, _, stderr := runHere("init", "-r", other); code != exitDone {
			t.Fatal(stderr)
		}
		if o := during(w, repack(w), "copy", "--to", other); o.code != exitDone {
			t.Errorf("exit status %d: %s", o.code, o.err)
		}
		if code, out, stderr := runHere("check", "-r", other, "--read-data"); code != exitDone || !strings.Contains(out, "checked 1 checkpoint") {
			t.Errorf("%s%s", out, stderr)
		}
	})
	t.Run("check", func(t *testing.T) {
		t.Parallel()
		w := first.copy(t)
		if o := during(w, repack(w), "check", "--read-data"); o.code != exitDone {
			t.Errorf("exit status %d: %s%s", o.code, o.out, o.err)
		}
	})
}
