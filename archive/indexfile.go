// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/objstore"
)

// IndexWriter stores indexes of packs: each time that one is full, and the last one by
// Finish. It is for one goroutine.
type IndexWriter struct {
	store objstore.Store
	b     indexBuilder
	keys  []string

	indexing Indexing
}

// NewIndexWriter begins; at, in seconds since 1970, says how new what it lists is.
func NewIndexWriter(store objstore.Store, at int64, tempDir string, x Indexing) (*IndexWriter, error) {
	enc, err := newEncoder(LevelFastest, false)
	if err != nil {
		return nil, err
	}
	then := func() time.Time { return time.Unix(at, 0) } // so that none is due by its age
	return &IndexWriter{store: store, indexing: x, b: indexBuilder{keys: KeysOf(store), indexing: x, tempDir: tempDir, every: math.MaxInt64, enc: enc, now: then}}, nil
}

// Add lists a pack.
func (w *IndexWriter) Add(ctx context.Context, pack Ref, chunks []PackChunk) error {
	due, err := w.b.add(pack, chunks)
	for _, part := range due {
		if err == nil {
			err = w.put(ctx, part)
		}
		part.Close()
	}
	return err
}

// put stores an index.
func (w *IndexWriter) put(ctx context.Context, part *spool.Spool) error {
	name, err := hashBody(part)
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if _, err := putObject(ctx, w.store, IndexKey(w.indexing.folder(), name), name, part); err != nil {
		return fmt.Errorf("store the index: %w", err)
	}
	w.keys = append(w.keys, IndexKey(w.indexing.folder(), name))
	return nil
}

// Finish stores what was listed since the last index.
func (w *IndexWriter) Finish(ctx context.Context) error {
	part, err := w.b.rest()
	if err != nil || part == nil {
		return err
	}
	defer part.Close()
	return w.put(ctx, part)
}

// Stored returns the keys of the indexes that were stored.
func (w *IndexWriter) Stored() []string { return w.keys }

// Close gives back what is held.
func (w *IndexWriter) Close() { w.b.close() }

// ReadIndex reads an index, proves it by its name, and calls do for each pack that it
// lists, with the pack's chunks, which do must not keep; an error of do ends it. It
// returns how new the index is, in seconds since 1970. One that is longer than an index
// may be, missing, not valid or, by x, signed by nobody who may is a [DamageError]; one that is
// of older keys is [ErrOldIndex].
func ReadIndex(
	ctx context.Context, store objstore.Store, key string, x Indexing, do func(pack Ref, chunks []PackChunk) error,
) (at int64, err error) {
	prefix, name, _ := ParseKey(key)
	if _, ok := IsIndex(prefix); !ok {
		return 0, fmt.Errorf("%.300q is not the key of an index", key)
	}
	stored, err := objstore.ReadAll(ctx, store, key, maxIndexLength)
	if errors.Is(err, objstore.ErrTooLarge) {
		return 0, Damaged(key, err)
	}
	if err != nil {
		return 0, missing(key, err)
	}
	if err := checkName(key, name, Sum(stored)); err != nil {
		return 0, err
	}
	dec, err := newKeyedDecoder(KeysOf(store))
	if err != nil {
		return 0, err
	}
	defer dec.close()
	return eachIndexPack(stored, key, dec, x, do)
}

func eachIndexPack(stored []byte, key string, dec *decoder, x Indexing, do func(pack Ref, chunks []PackChunk) error) (int64, error) {
	stored, err := openIndex(stored, key, dec.keys, x)
	if err != nil {
		return 0, err
	}
	n, _, err := frameExtent(stored)
	if err != nil {
		return 0, Damaged(key, err)
	}
	head, err := dec.frame(stored[:n], nil, maxText)
	if err != nil {
		return 0, Damaged(key, err)
	}
	at, err := parseIndexHead(head)
	if err != nil {
		return 0, Damaged(key, err)
	}
	var pack Ref
	var chunks []PackChunk
	var failed error
	give := func() bool {
		if len(chunks) > 0 {
			failed = do(pack, chunks)
		}
		chunks = chunks[:0]
		return failed == nil
	}
	err = parseIndex(stored, dec, func(p Ref, c *PackChunk) bool {
		if p != pack && !give() {
			return false
		}
		pack, chunks = p, append(chunks, *c)
		return true
	})
	if err != nil {
		return 0, Damaged(key, err)
	}
	if failed == nil {
		give()
	}
	return at, failed
}
