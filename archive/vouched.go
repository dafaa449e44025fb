// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/imgbackup/imgbackup/objstore"
)

// Of a pack whose SHA-256 the store has checked when it took it, and has kept, the
// table says what is in it as surely as its frames would: both are the bytes that its
// writer has named. So a chunk there counts by its line in the table, once a frame of
// the pack has been read back to see whether the store still gives what it vouches for.

// packTables are the tables of the packs that were asked for last. It is safe for
// concurrent use.
type packTables struct {
	store objstore.Store

	mu   sync.Mutex
	kept []*packTable // the newest last
}

// keptTables bounds the tables in memory; each has at most 16,384 lines of 56 bytes.
const keptTables = 8

// packTable is one table, sorted by digests, or why it can't be had.
type packTable struct {
	pack  Ref
	taken sync.Mutex // held by who reads a sample of the pack
	once  sync.Once
	lines []PackChunk
	err   error
}

// sampling waits for who reads a sample of the pack. While none was right, as needed
// reports, the caller is the next, until it calls done.
func (t *packTables) sampling(pack Ref, needed func() bool) (done func()) {
	table := t.of(pack)
	table.taken.Lock()
	if needed() {
		return table.taken.Unlock
	}
	table.taken.Unlock()
	return func() {}
}

// has reports whether the pack's own table has a chunk of length bytes at that place.
func (t *packTables) has(ctx context.Context, pack Ref, at place, chunk Digest, length int) (bool, error) {
	line, err := t.line(ctx, pack, at, chunk, length)
	return line != nil, err
}

// line is what the pack's own table says of it; nil: it does not have it.
func (t *packTables) line(ctx context.Context, pack Ref, at place, chunk Digest, length int) (*PackChunk, error) {
	table := t.of(pack)
	table.load(ctx, t.store)
	i, found := table.search(chunk)
	for ; found && i < len(table.lines) && table.lines[i].Chunk == chunk; i++ {
		c := &table.lines[i]
		if c.FrameOffset == int64(at.frameOff) && c.FrameLength == at.length() && int(c.Length) == length {
			return c, nil
		}
	}
	return nil, table.err
}

func (t *packTable) load(ctx context.Context, store objstore.Store) {
	t.once.Do(func() {
		t.lines, t.err = ReadPackTable(ctx, store, t.pack)
		slices.SortFunc(t.lines, func(a, b PackChunk) int { return bytes.Compare(a.Chunk[:], b.Chunk[:]) })
	})
}

// search finds the first line of a chunk.
func (t *packTable) search(chunk Digest) (int, bool) {
	return slices.BinarySearchFunc(t.lines, chunk, func(c PackChunk, d Digest) int { return bytes.Compare(c.Chunk[:], d[:]) })
}

func (t *packTables) of(pack Ref) *packTable {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.kept, func(p *packTable) bool { return p.pack == pack })
	table := &packTable{pack: pack}
	if i >= 0 {
		table = t.kept[i]
		t.kept = slices.Delete(t.kept, i, i+1)
	} else if len(t.kept) == keptTables {
		t.kept = slices.Delete(t.kept, 0, 1)
	}
	t.kept = append(t.kept, table)
	return table
}
