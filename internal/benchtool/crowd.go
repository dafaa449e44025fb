// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore/local"
)

// extentSize and extentStep are the shape of a disk of many small chunks, each of the
// smallest length that is looked for. What lies nearer together is read as one.
const (
	extentSize = 16 << 10
	extentStep = 256 << 10
)

// extents makes a raw disk of n small chunks that do not compress, with holes between.
func extents(path, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	src := rand.NewChaCha8([32]byte{'e'})
	buf := make([]byte, extentSize)
	for i := range n {
		_, _ = src.Read(buf) // never fails
		if _, err := f.WriteAt(buf, int64(i)*extentStep); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Truncate(int64(n)*extentStep), f.Close())
}

// crowd adds to a repository in a folder what indexes of n newer chunks say: all that a
// backup that looks for an older chunk can see of them.
func crowd(dir, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	ctx := context.Background()
	store, err := local.Open(dir, local.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }() // all is durable that was stored
	w, err := archive.NewIndexWriter(store, time.Now().Unix()+1, "", archive.Indexing{})
	if err != nil {
		return err
	}
	defer w.Close()
	chunks := make([]archive.PackChunk, 4096)
	for i := 0; i < n; i += len(chunks) {
		for j := range chunks {
			sum := archive.Sum(binary.BigEndian.AppendUint64([]byte("crowd"), uint64(i+j)))
			chunks[j] = archive.PackChunk{FrameOffset: int64(j) * 100, FrameLength: 100, Length: extentSize, Chunk: sum}
		}
		pack := archive.Ref{Name: archive.Sum(fmt.Appendf(nil, "pack %d", i)), Length: 1 << 20}
		if err := w.Add(ctx, pack, chunks); err != nil {
			return err
		}
	}
	return w.Finish(ctx)
}
