// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// connected is a store that is worth so many requests at once. Packs are not stored before
// all of these are on their way, or until it is released.
type connected struct {
	objstore.Store
	connections int
	together    int  // how many packs wait for one another
	never       bool // and then for the end

	mu   sync.Mutex
	now  int
	most int
	full chan struct{} // closed when as many as together were there
}

func newConnected(s objstore.Store, connections, together int) *connected {
	return &connected{Store: s, connections: connections, together: together, full: make(chan struct{})}
}

func (c *connected) Connections() int { return c.connections }

func (c *connected) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if !strings.HasPrefix(key, PackPrefix) {
		return c.Store.Put(ctx, key, body, o)
	}
	c.mu.Lock()
	c.now++
	if c.now > c.most {
		if c.most = c.now; c.most == c.together {
			close(c.full)
		}
	}
	c.mu.Unlock()
	select {
	case <-c.full:
	case <-ctx.Done():
	}
	if c.never {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err := c.Store.Put(ctx, key, body, o)
	c.mu.Lock()
	c.now--
	c.mu.Unlock()
	return err
}

// TestPacksOnTheirWay: as many packs are on their way as the store is worth, most of them
// not in memory, and the same packs are stored as in a store that is near. Nothing stays
// in the folder of temporary files, also when it is given up.
func TestPacksOnTheirWay(t *testing.T) {
	t.Parallel()
	const packs, connections = 24, 16
	disk := random(1, packs*GridSize)
	o := WriterOptions{PackSize: GridSize + GridSize/2, TempDir: t.TempDir(), Workers: 2}
	whole := span{0, int64(len(disk))}
	plain := objstore.NewMem()
	back := func(store objstore.Store, o WriterOptions) (MapRef, Stats) {
		t.Helper()
		ref, stats, err := tryBackup(t.Context(), store, o, disk, true, whole)
		if err != nil {
			t.Fatal(err)
		}
		return ref, stats
	}
	want, _ := back(plain, o)

	far := newConnected(objstore.NewMem(), connections, connections)
	ref, _ := back(far, o)
	if ref != want {
		t.Errorf("another map: %v, want %v", ref, want)
	}
	if far.most != connections {
		t.Errorf("%d packs were on their way at once, want %d", far.most, connections)
	}
	empty(t, o.TempDir)

	t.Run("given up", func(t *testing.T) {
		t.Parallel()
		o := o
		o.TempDir = t.TempDir()
		ctx, cancel := context.WithCancelCause(t.Context())
		far := newConnected(objstore.NewMem(), connections, connections)
		far.never = true
		stopped := errors.New("stopped")
		go func() {
			<-far.full
			cancel(stopped)
		}()
		if _, _, err := tryBackup(ctx, far, o, disk, true, whole); !errors.Is(err, stopped) {
			t.Errorf("given up: %v", err)
		}
		empty(t, o.TempDir)
	})
	t.Run("no room", func(t *testing.T) {
		t.Parallel()
		o := o
		o.TempDir = filepath.Join(t.TempDir(), "not", "there")
		far := newConnected(objstore.NewMem(), connections, packBuffers) // the last of which a file was wanted for
		ref, stats := back(far, o)
		if ref != want || len(stats.Notes) != 1 || !strings.Contains(stats.Notes[0], "TMPDIR") || far.most > packBuffers {
			t.Errorf("without temporary files: %v, notes %q, %d at once", ref, stats.Notes, far.most)
		}
	})
}

// empty wants nothing to be in a folder.
func empty(t *testing.T, dir string) {
	t.Helper()
	if found := must2(os.ReadDir(dir))(t); len(found) > 0 {
		t.Errorf("%s holds %v", dir, found)
	}
}
