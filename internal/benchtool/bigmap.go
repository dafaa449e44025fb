// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
)

// The synthetic disk: every grid cell holds a chunk.
const (
	bigSize     = 16 << 40
	bigCells    = bigSize / archive.GridSize
	bigDeltas   = 64
	bigPerDelta = 20000
	bigPerPack  = 64
)

// bigMap writes the map of a fully allocated disk of 16 TiB and 64 deltas, or
// replays them.
func bigMap(what, dir string) error {
	debug.SetMemoryLimit(200 << 20) // as the program itself
	ctx := context.Background()
	list := filepath.Join(dir, "maps.json")
	switch what {
	case "write":
		store, err := local.Create(dir, local.Options{})
		if err != nil {
			return err
		}
		full, err := writeBig(ctx, store, 0, 1)
		if err != nil {
			return err
		}
		maps := []archive.MapRef{full}
		for i := 1; i <= bigDeltas; i++ {
			ref, err := writeBig(ctx, store, int64(i), bigCells/bigPerDelta)
			if err != nil {
				return err
			}
			maps = append([]archive.MapRef{ref}, maps...)
		}
		data, err := json.Marshal(maps)
		if err != nil {
			return err
		}
		return os.WriteFile(list, data, 0o600)
	case "replay":
		store, err := local.Open(dir, local.Options{})
		if err != nil {
			return err
		}
		data, err := os.ReadFile(list)
		if err != nil {
			return err
		}
		var refs []archive.MapRef
		if err := json.Unmarshal(data, &refs); err != nil {
			return err
		}
		var maps []*archive.Map
		for _, ref := range refs {
			m, err := archive.OpenMap(ctx, store, ref, 0)
			if err != nil {
				return err
			}
			maps = append(maps, m)
		}
		var entries, bytes int64
		for e, err := range archive.Replay(ctx, maps, 0, bigSize) {
			if err != nil {
				return err
			}
			entries++
			bytes += e.Length
		}
		if bytes != bigSize || entries < bigCells {
			return fmt.Errorf("replayed %d entries, %d bytes", entries, bytes)
		}
		fmt.Println(entries, "entries")
		return nil
	}
	return fmt.Errorf("bigmap: write or replay, not %q", what)
}

// writeBig writes a map of every step-th cell. Its packs are not there: nothing
// reads them.
func writeBig(ctx context.Context, store objstore.Store, generation, step int64) (archive.MapRef, error) {
	entries := func(yield func(archive.Entry, error) bool) {
		for cell := generation % step; cell < bigCells; cell += step {
			at := cell / step
			var seed [16]byte
			binary.LittleEndian.PutUint64(seed[:], uint64(generation))
			binary.LittleEndian.PutUint64(seed[8:], uint64(at/bigPerPack))
			e := archive.Entry{
				Offset: cell * archive.GridSize, Length: archive.GridSize,
				Pack:        archive.Ref{Name: sha256.Sum256(seed[:]), Length: bigPerPack << 20},
				FrameOffset: at % bigPerPack << 19, FrameLength: 1 << 19,
			}
			binary.LittleEndian.PutUint64(seed[8:], uint64(at)|1<<63)
			e.Chunk = sha256.Sum256(seed[:])
			if !yield(e, nil) {
				return
			}
		}
	}
	return archive.WriteMap(ctx, claimsPacks{store}, archive.MapOptions{Disk: "vda", Size: bigSize, Full: step == 1}, iter.Seq2[archive.Entry, error](entries))
}

// claimsPacks says that every pack is there.
type claimsPacks struct{ objstore.Store }

func (c claimsPacks) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if prefix, _, ok := archive.ParseKey(key); ok && prefix == archive.PackPrefix {
		return objstore.Info{Key: key, Size: bigPerPack << 20}, nil
	}
	return c.Store.Stat(ctx, key)
}
