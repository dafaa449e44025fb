// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore/local"
)

// The shape of a repository that has lived: so many checkpoints in each domain, and every
// so many of its packs are of none.
const (
	lifeChain   = 100
	lifeGarbage = 10
)

// life fills an empty repository in a folder with many packs, which are small and hold
// nothing, and many checkpoints; or reads all that says what these need, once.
func life(what, dir string, args []string) error {
	ctx := context.Background()
	store, err := local.Open(dir, local.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }() // all is durable that was stored
	repo, err := chain.Open(ctx, store)
	if err != nil {
		return err
	}
	switch {
	case what == "read" && len(args) == 0:
		return readLife(ctx, repo)
	case what == "write" && len(args) == 2:
		packs, perr := strconv.Atoi(args[0])
		checkpoints, cerr := strconv.Atoi(args[1])
		if err := errors.Join(perr, cerr); err != nil {
			return err
		}
		return writeLife(ctx, repo, dir, packs/checkpoints, checkpoints)
	}
	return fmt.Errorf("life: write DIR PACKS CHECKPOINTS, or read DIR")
}

func writeLife(ctx context.Context, repo *chain.Repository, dir string, each, checkpoints int) error {
	var base *chain.Manifest
	for n := range checkpoints {
		if n%lifeChain == 0 {
			base = nil
		}
		m, err := lifeCheckpoint(ctx, repo, dir, n, each, base)
		if err != nil {
			return err
		}
		base = m
	}
	return nil
}

// lifeCheckpoint makes a checkpoint with packs of its own, since base.
func lifeCheckpoint(
	ctx context.Context, repo *chain.Repository, dir string, n, each int, base *chain.Manifest,
) (*chain.Manifest, error) {
	const size = 1 << 40
	var entries []archive.Entry
	index, err := archive.NewIndexWriter(repo.Store, time.Now().Unix(), "", archive.Indexing{})
	if err != nil {
		return nil, err
	}
	defer index.Close()
	for i := range each {
		data := fmt.Appendf(nil, "%d %d %0200d", n, i, 0)
		ref := archive.Ref{Name: archive.Sum(data), Length: int64(len(data))}
		path := filepath.Join(dir, archive.PackKey(ref.Name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
			return nil, err
		}
		c := archive.PackChunk{FrameLength: 100, Length: 4096, Chunk: archive.Sum(data)}
		if err := index.Add(ctx, ref, []archive.PackChunk{c}); err != nil {
			return nil, err
		}
		if i%lifeGarbage > 0 {
			entries = append(entries, archive.Entry{
				Offset: int64(i*lifeChain+n%lifeChain) * archive.GridSize, Length: 4096, Pack: ref, FrameLength: 100, Chunk: c.Chunk,
			})
		}
	}
	if err := index.Finish(ctx); err != nil {
		return nil, err
	}
	o := archive.MapOptions{Disk: "vda", Size: size, Full: base == nil, Seen: func(archive.Ref) bool { return true }}
	ref, err := archive.WriteMap(ctx, repo.Store, o, func(yield func(archive.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		return nil, err
	}
	d := chain.Disk{
		Name: "vda", Size: size, Source: chain.Source{Path: "/vm/a.raw", Format: "raw"}, Requested: chain.ModeAuto,
		Mode: chain.ModeFull, Detection: chain.DetectionNone, NoBitmapReason: "raw", Maps: []archive.MapRef{ref},
	}
	m := &chain.Manifest{
		Kind: chain.KindArchive, Domain: fmt.Sprintf("vm%d", n/lifeChain), Host: chain.Host{Name: "bench"},
		Checkpoint: fmt.Sprintf("c%d", n%lifeChain), UUID: chain.NewUUID(), Sequence: int64(n%lifeChain + 1),
		Created: time.Now().UTC(), Locking: chain.LockingQEMU, Requested: chain.ModeAuto,
	}
	if base != nil {
		d.Mode, d.Detection, d.IncrementalFrom = chain.ModeIncremental, chain.DetectionContent, base.Ref()
		if maps := base.Disks[0].Maps; len(maps) < 64 {
			d.Maps = append(d.Maps, maps...)
		} else {
			d.Maps = append(d.Maps, maps[len(maps)-63:]...)
		}
		m.Parent = base.Ref()
	}
	m.Disks = []chain.Disk{d}
	return m, repo.Commit(ctx, m)
}

// readLife lists the repository, and reads every manifest, map and index once.
func readLife(ctx context.Context, repo *chain.Repository) error {
	maps := make(map[archive.Digest]archive.MapRef)
	objects := 0
	for info, err := range repo.Store.List(ctx, "") {
		if err != nil {
			return err
		}
		objects++
		prefix, _, _ := archive.ParseKey(info.Key)
		if _, is := archive.IsIndex(prefix); is {
			_, err := archive.ReadIndex(ctx, repo.Store, info.Key, archive.Indexing{}, func(archive.Ref, []archive.PackChunk) error { return nil })
			if err != nil {
				return err
			}
		}
		if k := chain.ParseKey(info.Key); k.Kind == chain.KeyManifest {
			m, err := repo.Manifest(ctx, k.Domain, k.Name)
			if err != nil {
				return err
			}
			for ref := range m.References() {
				if ref.Map != nil {
					maps[ref.Map.Name] = *ref.Map
				}
			}
		}
	}
	runs := 0
	for _, ref := range maps {
		m, err := archive.OpenMap(ctx, repo.Store, ref, 0)
		if err != nil {
			return err
		}
		err = m.Frames(ctx, func(*archive.Frame) error { runs++; return nil })
		if err != nil {
			return err
		}
	}
	fmt.Println(objects, "objects,", len(maps), "maps,", runs, "runs")
	return nil
}
