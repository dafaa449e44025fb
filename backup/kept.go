// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"slices"
	"sync"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
)

// maxKept bounds the archived chunks that a session keeps, bytes.
const maxKept = 32 << 20

// keptChunks are chunks that a session has fetched and proven. Plans are made
// twice, with the same samples, and a store may be far away.
type keptChunks struct {
	mu     sync.Mutex
	chunks map[frame][]byte
	bytes  int64
}

// frame is the place of a chunk.
type frame struct {
	pack   archive.Ref
	offset int64
	chunk  archive.Digest
}

func frameOf(e *archive.Entry) frame { return frame{e.Pack, e.FrameOffset, e.Chunk} }

func (k *keptChunks) get(e *archive.Entry) ([]byte, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	chunk, ok := k.chunks[frameOf(e)]
	return chunk, ok
}

func (k *keptChunks) put(e *archive.Entry, chunk []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.bytes+int64(len(chunk)) > maxKept {
		return
	}
	if k.chunks == nil {
		k.chunks = make(map[frame][]byte)
	}
	if _, ok := k.chunks[frameOf(e)]; !ok {
		k.chunks[frameOf(e)] = slices.Clone(chunk)
		k.bytes += int64(len(chunk))
	}
}

// drop gives the memory back.
func (k *keptChunks) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.chunks, k.bytes = nil, 0
}

// room reports whether n more chunks can be kept, whatever their lengths.
func (k *keptChunks) room(n int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.bytes+int64(n)*archive.GridSize <= maxKept
}

// Prefetch fetches the chunks that lie in some runs, all at once, so that they are
// compared without waiting for each. What can't be had is asked for again when it
// is compared, and told of then.
func (a *archived) Prefetch(ctx context.Context, runs []bitmapstore.Run) error {
	var entries []archive.Entry
	for _, run := range runs {
		for e, err := range a.entries(ctx, run.Start, run.End) {
			if err != nil {
				return err
			}
			if _, have := a.kept.get(&e); !have && !e.Zero {
				entries = append(entries, e)
			}
			if !a.kept.room(len(entries)) {
				return nil
			}
		}
	}
	_ = a.fetch.Batch(ctx, entries, func(indexes []int, chunk []byte) error {
		a.kept.put(&entries[indexes[0]], chunk)
		return nil
	})
	return ctx.Err()
}

// chunk returns the whole chunk of an entry, in buf or kept; it must not be
// changed.
func (a *archived) chunk(ctx context.Context, e archive.Entry, buf []byte) ([]byte, error) {
	if chunk, ok := a.kept.get(&e); ok {
		return chunk, nil
	}
	chunk, err := a.fetch.Chunk(ctx, e, buf)
	if err == nil {
		a.kept.put(&e, chunk)
	}
	return chunk, err
}
