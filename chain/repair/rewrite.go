// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"context"
	"fmt"
	"iter"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/view"
)

// newMap is a map that is written: in the place of another, or for a disk whose maps cannot
// all be had.
type newMap struct {
	old     archive.MapRef
	of      diskOf // if the old one is none
	disk    string
	size    int64
	full    bool
	entries iter.Seq2[archive.Entry, error]
}

// writeMaps writes maps that do without the packs which cannot be had whole; the chunks of
// them that are found go into new packs.
func (e *execution) writeMaps(ctx context.Context) error {
	e.fresh, e.whole = make(map[archive.MapRef]archive.MapRef), make(map[diskOf]archive.MapRef)
	todo, err := e.newMaps(ctx)
	if err != nil || len(todo) == 0 {
		return err
	}
	own, err := e.repo.Indexing()
	if err != nil {
		return err
	}
	store := archive.Encrypted(objstore.Without(e.repo.Store, e.hidden()), archive.KeysOf(e.repo.Store))
	w, err := archive.NewWriter(ctx, store, archive.WriterOptions{TempDir: e.o.TempDir, Memory: e.repo.Memory, Indexing: own})
	if err != nil {
		return err
	}
	defer w.Abort() // does nothing after Finish
	for i := range todo {
		e.progress("rewriting maps", i, len(todo))
		if err := e.writeMap(ctx, w, &todo[i]); err != nil {
			return fmt.Errorf("write a map of disk %s anew: %w", todo[i].disk, err)
		}
	}
	refs, stats, err := w.Finish(ctx)
	if err != nil {
		return err
	}
	for i, ref := range refs {
		if n := &todo[i]; n.of == (diskOf{}) {
			e.fresh[n.old] = ref
		} else {
			e.whole[n.of] = ref
		}
	}
	e.result.Maps, e.result.Packs = len(refs), stats.Packs
	return nil
}

// hidden are the keys of the packs that are done without: nothing may be found in them that
// is not to be named again.
func (e *execution) hidden() map[string]bool {
	keys := make(map[string]bool)
	for pack := range e.wants.bad {
		keys[archive.PackKey(pack.Name)] = true
	}
	return keys
}

func (e *execution) newMaps(ctx context.Context) ([]newMap, error) {
	var todo []newMap
	for ref := range e.maps {
		m, err := archive.OpenMap(ctx, e.repo.Store, ref, 0)
		if err != nil {
			return nil, err
		}
		todo = append(todo, newMap{old: ref, disk: m.Disk(), size: m.Size(), full: m.Full(), entries: m.Entries(ctx, 0, m.Size())})
	}
	for _, id := range e.flat {
		m, err := e.repo.Manifest(ctx, id.domain, id.checkpoint)
		if err != nil {
			return nil, err
		}
		d, ok := m.Disk(id.disk)
		if !ok {
			continue
		}
		layout, err := view.OpenTolerant(ctx, e.repo, d, func(chain.Lost) {})
		if err != nil {
			return nil, err
		}
		todo = append(todo, newMap{of: id, disk: d.Name, size: d.Size, full: true, entries: layout.Entries(ctx, 0, d.Size)})
	}
	return todo, nil
}

func (e *execution) writeMap(ctx context.Context, w *archive.Writer, n *newMap) error {
	m := w.NewMap(n.disk, n.size, n.full)
	for entry, err := range n.entries {
		if err != nil {
			return err
		}
		if err := e.writeEntry(ctx, m, n, entry); err != nil {
			return err
		}
	}
	_, err := m.Close(ctx)
	return err
}

func (e *execution) writeEntry(ctx context.Context, m *archive.MapWriter, n *newMap, entry archive.Entry) error {
	c := e.wants.of(&entry)
	if entry.Zero || c != nil && c.found == nil {
		if n.full {
			return nil // what is left out is zeros
		}
		return m.Zero(entry.Offset, entry.Length)
	}
	for start := entry.Offset; start < entry.End(); { // a run lies in one cell, unless somebody else wrote it
		end := min(entry.End(), start-start%archive.GridSize+archive.GridSize)
		part := entry
		part.Clip(start, end)
		if err := m.Add(ctx, start, end-start, produce(part, c)); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// produce is a part of a chunk, where it lies, or where it is found.
func produce(part archive.Entry, c *want) archive.Producer {
	return func(ctx context.Context, _ []byte) ([]archive.Piece, error) {
		piece := archive.Piece{Offset: part.Offset, Length: part.Length}
		if c == nil {
			piece.Reuse = &part
			return []archive.Piece{piece}, nil
		}
		chunk, err := c.found.read(ctx, part.Chunk)
		if err != nil {
			return nil, err
		}
		piece.Data, err = part.In(chunk)
		return []archive.Piece{piece}, err
	}
}
