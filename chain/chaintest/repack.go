// SPDX-License-Identifier: Apache-2.0

package chaintest

import (
	"context"
	"io"
	"strings"
	"sync"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// Repack stores what checkpoint i holds in other objects, as its next revision, and
// removes those that it was made of: what a prune does, to who reads meanwhile. The
// history's own manifest stays as it was read before.
func (h *History) Repack(i int) {
	h.t.Helper()
	ctx := context.Background()
	h.remove(ctx, archive.IndexPrefix) // so that nothing is found in the old packs
	w, err := archive.NewWriter(ctx, h.Repo.Store, archive.WriterOptions{Level: archive.LevelNone})
	if err != nil {
		h.t.Fatal(err)
	}
	defer w.Abort()
	content := h.Want[i]
	m := w.NewMap("vda", int64(len(content)), true)
	for off := 0; off < len(content); off += archive.GridSize {
		part := content[off:min(len(content), off+archive.GridSize)]
		err := m.Add(ctx, int64(off), int64(len(part)), func(context.Context, []byte) ([]archive.Piece, error) {
			return []archive.Piece{{Offset: int64(off), Length: int64(len(part)), Data: part}}, nil
		})
		if err != nil {
			h.t.Fatal(err)
		}
	}
	maps, _, err := w.Finish(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	next := *h.Checkpoints[i]
	next.Disks = append([]chain.Disk(nil), next.Disks...)
	next.Disks[0].Maps = maps
	if err := h.Repo.Revise(ctx, &next); err != nil {
		h.t.Fatal(err)
	}
	h.Prune()
}

// Forget forgets checkpoint i.
func (h *History) Forget(i int) {
	h.t.Helper()
	ctx := context.Background()
	m, err := h.Repo.Manifest(ctx, "web", h.Checkpoints[i].Checkpoint)
	if err == nil {
		err = Forget(ctx, h.Repo, m)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// Forget forgets a checkpoint under a lease, and notes nothing of it.
func Forget(ctx context.Context, r *chain.Repository, m *chain.Manifest) error {
	return r.Under(ctx, "forget", func(hold *chain.Hold) error { return hold.Forget(ctx, m) })
}

// Meddling is a store in which something is done before the first object is read whose key
// begins with Prefix.
type Meddling struct {
	objstore.Store
	Prefix string
	Do     func()
	once   sync.Once
}

// Get implements [objstore.Store].
func (m *Meddling) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if strings.HasPrefix(key, m.Prefix) {
		m.once.Do(m.Do)
	}
	return m.Store.Get(ctx, key, offset, length)
}

// Prune removes what no checkpoint needs, beside nobody.
func (h *History) Prune() {
	h.t.Helper()
	ctx := context.Background()
	ms, _, err := h.Repo.Manifests(ctx, "web")
	if err != nil {
		h.t.Fatal(err)
	}
	needed := make(map[string]bool)
	for _, m := range ms {
		objects, err := h.Repo.Needs(ctx, m, nil)
		if err != nil {
			h.t.Fatal(err)
		}
		for _, o := range objects {
			needed[o.Key] = true
		}
	}
	h.remove(ctx, "", func(key string) bool { return needed[key] })
	mark, err := h.Repo.CreateMark(ctx, &chain.MarkList{}) // as every prune does, before that
	if err == nil {
		_, err = h.Repo.EndMark(ctx, mark)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// remove removes the objects under a prefix, but for those that stay.
func (h *History) remove(ctx context.Context, prefix string, stay ...func(key string) bool) {
	for info, err := range h.Store.List(ctx, prefix) {
		if err == nil && (len(stay) == 0 || !stay[0](info.Key)) && strings.HasSuffix(info.Key, ".zst") {
			err = h.Store.Delete(ctx, info.Key)
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
}
