// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// ChunkDigest is what a map calls a chunk with this content: its SHA-256, or in an encrypted
// repository its keyed digest.
func ChunkDigest(keys *crypt.Keys, chunk []byte) Digest {
	if keys == nil {
		return Sum(chunk)
	}
	d := keys.Digests()
	return d.Chunk(len(chunk), d.Parts(nil, chunk))
}

// Parts compares data with chunks of an encrypted repository that can't be read for want of
// the data key, by digests of 64 KiB. It is safe for concurrent use.
type Parts struct {
	keys   *crypt.Keys
	tables packTables
}

// NewParts returns nil where chunks can be read.
func NewParts(store objstore.Store) *Parts {
	if OpensChunks(store) {
		return nil
	}
	return &Parts{keys: KeysOf(store), tables: packTables{store: store}}
}

// OpensChunks reports whether chunks can be read: the store is plain, or its data key is there.
func OpensChunks(store objstore.Store) bool {
	keys := KeysOf(store)
	return keys == nil || keys.Opens(crypt.Data)
}

// ChunkParts are the digests of the parts of one chunk.
type ChunkParts struct {
	Length  int64 // of the chunk, bytes
	parts   []crypt.Part
	digests *crypt.Digests
}

// Of finds the parts of an entry's chunk in its pack's table, proven by the chunk's digest.
func (p *Parts) Of(ctx context.Context, e *Entry) (*ChunkParts, error) {
	c, err := p.tables.find(ctx, e.Pack, e.Chunk)
	if err != nil {
		return nil, err
	}
	key := PackKey(e.Pack.Name)
	if c == nil || c.Keyed == nil {
		return nil, damagef(key, e.FrameOffset, int64(e.FrameLength), "a map names chunk %s there, and the pack's table does not have it", e.Chunk)
	}
	digests, err := p.keys.DigestsOf(c.Keyed.Generation)
	if err != nil {
		return nil, err
	}
	if digests.Chunk(int(c.Length), c.Keyed.Parts) != e.Chunk || int64(e.ChunkOffset)+e.Length > int64(c.Length) {
		return nil, damagef(key, e.FrameOffset, int64(e.FrameLength), "the pack's table has other parts of chunk %s than its digest says", e.Chunk)
	}
	return &ChunkParts{Length: int64(c.Length), parts: c.Keyed.Parts, digests: digests}, nil
}

// Part returns the part that has a byte of the chunk: from where to where it goes in the chunk.
func (c *ChunkParts) Part(at int64) (from, to int64) {
	from = at / crypt.PartSize * crypt.PartSize
	return from, min(from+crypt.PartSize, c.Length)
}

// Is reports whether the part from there on holds data.
func (c *ChunkParts) Is(from int64, data []byte) bool {
	return c.digests.Part(data) == c.parts[from/crypt.PartSize]
}

// find returns a pack's chunk, by its table; nil: it has none such.
func (t *packTables) find(ctx context.Context, pack Ref, chunk Digest) (*PackChunk, error) {
	table := t.of(pack)
	table.load(ctx, t.store)
	i, found := table.search(chunk)
	if !found {
		return nil, table.err
	}
	return &table.lines[i], nil
}
