// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// What one repository stores, stored anew in another one that has other keys, or none: decrypted
// and encrypted, proven on the way. Chunks stay what they are, so that what is equal there
// is equal here, and maps name the same parts of them; their names and places are others.

// recodeEntries and recodeBytes bound what is fetched together of a map.
const (
	recodeEntries = 64
	recodeBytes   = 16 << 20
)

// Recode begins a map with the content of another repository's map, whose chunks from fetches. The
// map's object is what Finish returns, in the order of NewMap and Recode. fetched is told the bytes
// of frames that were fetched since.
func (w *Writer) Recode(ctx context.Context, from *Fetcher, m *Map, fetched func(int64)) error {
	r := recoder{from: from, to: w.NewMap(m.Disk(), m.Size(), m.Full()), full: m.Full(), fetched: fetched}
	for e, err := range m.Entries(ctx, 0, m.Size()) {
		if err != nil {
			return err
		}
		if err := r.add(ctx, &e); err != nil {
			return err
		}
	}
	if err := r.flush(ctx); err != nil {
		return err
	}
	_, err := r.to.Close(ctx)
	return err
}

type recoder struct {
	from    *Fetcher
	to      *MapWriter
	full    bool
	fetched func(int64)

	batch []Entry // that wait, none of which is zeros
	bytes int64
}

// add takes a run of the map.
func (r *recoder) add(ctx context.Context, e *Entry) error {
	if e.Zero {
		if err := r.flush(ctx); err != nil || r.full {
			return err
		}
		return r.to.Zero(e.Offset, e.Length)
	}
	for start := e.Offset; start < e.End(); { // a run lies in one cell, unless somebody else wrote it
		part := *e
		part.Clip(start, start-start%GridSize+GridSize)
		if len(r.batch) >= recodeEntries || r.bytes >= recodeBytes {
			if err := r.flush(ctx); err != nil {
				return err
			}
		}
		if n := len(r.batch); n == 0 || r.batch[n-1].FrameOffset != part.FrameOffset || r.batch[n-1].Pack != part.Pack {
			r.fetched(int64(part.FrameLength))
		}
		r.batch, r.bytes = append(r.batch, part), r.bytes+int64(part.ChunkOffset)+part.Length
		start = part.End()
	}
	return nil
}

// flush fetches what waits, and hands it on cell by cell.
func (r *recoder) flush(ctx context.Context) error {
	chunks := make([][]byte, len(r.batch))
	err := r.from.Batch(ctx, r.batch, func(indexes []int, chunk []byte) error {
		kept := bytes.Clone(chunk)
		for _, i := range indexes {
			chunks[i] = kept
		}
		return nil
	})
	if err != nil {
		return err
	}
	for batch := r.batch; len(batch) > 0; {
		n := sameCell(batch)
		pieces := make([]Piece, n)
		for i := range pieces {
			e := &batch[i]
			if _, err := e.In(chunks[i]); err != nil {
				return err
			}
			pieces[i] = Piece{Offset: e.Offset, Length: e.Length, Data: chunks[i], Part: &e.ChunkOffset}
		}
		first, last := &batch[0], &batch[n-1]
		produce := func(context.Context, []byte) ([]Piece, error) { return pieces, nil }
		if err := r.to.Add(ctx, first.Offset, last.End()-first.Offset, produce); err != nil {
			return err
		}
		batch, chunks = batch[n:], chunks[n:]
	}
	r.batch, r.bytes = make([]Entry, 0, recodeEntries), 0 // the pieces refer to the old one
	return nil
}

// sameCell is how many of the first runs lie in one cell.
func sameCell(runs []Entry) int {
	n := 1
	for n < len(runs) && runs[n].Offset/GridSize == runs[0].Offset/GridSize {
		n++
	}
	return n
}

// RecodeObject stores what an immutable object of another repository holds, proven by its
// name there. It is for what is neither map nor pack, whose content names other objects.
func (w *Writer) RecodeObject(ctx context.Context, from objstore.Store, key string, ref Ref) (Ref, error) {
	if err := w.err(); err != nil {
		return Ref{}, err
	}
	prefix, _, ok := ParseKey(key)
	if !ok || prefix == MapPrefix || prefix == PackPrefix {
		return Ref{}, fmt.Errorf("archive: %s can't be stored anew by itself", key)
	}
	half := crypt.Metadata
	if prefix == FilePrefix {
		half = crypt.Data
	}
	s, err := encryptedTo(w.o.TempDir, w.keys, half, func(to io.Writer) error {
		return readPlain(ctx, from, key, ref, half, to)
	})
	if err != nil {
		return Ref{}, err
	}
	defer s.Close()
	made := Ref{Length: s.Size()}
	if made.Name, err = hashBody(s); err != nil {
		return Ref{}, err
	}
	return made, w.put(ctx, objectKey(prefix, made.Name), made.Name, s)
}

// readPlain writes what an object holds, decrypted, which counts only when the error is nil.
func readPlain(ctx context.Context, store objstore.Store, key string, ref Ref, half crypt.Half, to io.Writer) error {
	if _, err := statObject(ctx, store, key, ref.Length); err != nil {
		return err
	}
	r, err := getObject(ctx, store, key, 0, ref.Length)
	if err != nil {
		return err
	}
	read := &tailReader{r: io.LimitReader(r, ref.Length), h: sha256.New()}
	out := &keepError{w: to}
	plain, err := decrypting(store, key, half, read)
	if err == nil {
		_, err = io.CopyBuffer(onlyWriter{out}, struct{ io.Reader }{plain}, make([]byte, copyBuffer(ref.Length)))
	}
	cerr := r.Close()
	switch {
	case read.err != nil:
		return shortRead(ctx, store, key, ref.Length, ref.Length, read.err)
	case read.ended && read.n < ref.Length:
		return shortRead(ctx, store, key, ref.Length, ref.Length, io.ErrUnexpectedEOF)
	case out.err != nil, err != nil && (IsDamage(err) || isKeyError(err)):
		return err
	case err != nil:
		return Damaged(key, err)
	case cerr != nil:
		return fmt.Errorf("read %s: %w", key, cerr)
	}
	return checkName(key, ref.Name, Digest(read.h.Sum(nil)))
}
