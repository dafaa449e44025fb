// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"context"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// caseless is a folder in a file system that knows no difference between large letters and small ones.
type caseless struct{ fs.LoopbackNode }

// WrapChild makes folders in it alike.
func (c *caseless) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	if n, ok := ops.(*fs.LoopbackNode); ok {
		return &caseless{fs.LoopbackNode{RootData: n.RootData}}
	}
	return ops
}

func (c *caseless) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return c.LoopbackNode.Lookup(ctx, strings.ToLower(name), out)
}

func (c *caseless) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if strings.Contains(name, ":") {
		return nil, syscall.EINVAL
	}
	return c.LoopbackNode.Mkdir(ctx, strings.ToLower(name), mode, out)
}

func (c *caseless) Rmdir(ctx context.Context, name string) syscall.Errno {
	return c.LoopbackNode.Rmdir(ctx, strings.ToLower(name))
}

// TestTryNames: domains whose names a file system can't tell apart, or does not take, are in the way; and the trial leaves
// nothing.
func TestTryNames(t *testing.T) {
	t.Parallel()
	plain, folding := t.TempDir(), t.TempDir()
	root := &fs.LoopbackRoot{Path: t.TempDir()}
	root.RootNode = &caseless{fs.LoopbackNode{RootData: root}}
	server, err := fs.Mount(folding, root.RootNode, &fs.Options{MountOptions: fuse.MountOptions{DirectMount: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Unmount() })
	for at, want := range map[string][]string{plain: nil, folding: {"a:b", "web"}} {
		dir, err := os.Open(at)
		if err != nil {
			t.Fatal(err)
		}
		h := &Host{dir: dir, req: Request{Dir: at}}
		for _, name := range []string{"Web", "a:b", "mail", "web"} {
			h.Domains = append(h.Domains, &Domain{Name: name, State: Waits})
		}
		h.Domains = append(h.Domains, &Domain{Name: "MAIL", State: Failed})
		if err := h.tryNames(t.Context()); err != nil {
			t.Error(err)
		}
		var got []string
		for _, d := range h.Domains {
			if len(d.InTheWay) > 0 {
				got = append(got, d.Name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q are in the way, want %q", at, got, want)
		}
		if left, err := dir.Readdirnames(-1); err != nil || len(left) > 0 {
			t.Errorf("%q is left: %v", left, err)
		}
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	}
}
