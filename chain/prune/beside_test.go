// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/objstore"
)

// TestBeside: writers that use each other's chunks, who forgets, and several prunes, all
// at once: each checkpoint that is there in the end reads as it was written.
func TestBeside(t *testing.T) {
	t.Parallel()
	repo, err := chain.Init(t.Context(), objstore.NewMem(), chain.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const writers, each, cells = 3, 12, 4
	blocks := make([][]byte, 10) // of which all disks are made
	for i := range blocks {
		blocks[i] = make([]byte, 64<<10)
		r := rand.NewChaCha8([32]byte{byte(i)})
		_, _ = r.Read(blocks[i]) // never fails
	}
	var mu sync.Mutex
	want := make(map[string][]int)
	var work, prunes sync.WaitGroup
	var over atomic.Bool // the writers have ended, and so the prunes do
	deleted := make(chan struct{}, 1)
	for n := range writers {
		work.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 7))
			domain := fmt.Sprintf("vm%d", n)
			for i := range each {
				var disk []int
				for range cells {
					disk = append(disk, r.IntN(len(blocks)))
				}
				name := fmt.Sprintf("c%d", i)
				if err := write(t.Context(), repo, domain, name, int64(i+1), blocks, disk); err != nil {
					t.Errorf("%s %s: %v", domain, name, err)
					return
				}
				mu.Lock()
				want[domain+"/"+name] = disk
				mu.Unlock()
				if i < 2 {
					continue
				}
				if n == 0 && i == each/2 {
					<-deleted // while the others go on
				}
				old := fmt.Sprintf("c%d", i-2)
				for {
					m, err := repo.Manifest(t.Context(), domain, old)
					if err == nil {
						err = chaintest.Forget(t.Context(), repo, m)
					}
					if errors.As(err, new(*chain.RevisedError)) || errors.As(err, new(*chain.AtWorkError)) {
						continue // it is being repacked, or was
					}
					if err != nil {
						t.Error(err)
					}
					break
				}
				mu.Lock()
				delete(want, domain+"/"+old)
				mu.Unlock()
			}
		})
	}
	for range 2 {
		prunes.Go(func() {
			for !over.Load() {
				r, err := Run(t.Context(), repo, Options{packSize: 64 << 10}) // who waits leaves it to the next
				var stands *chain.MarkStandsError
				var taken *chain.TakenError
				if err != nil && !errors.As(err, &stands) && !errors.As(err, &taken) && !errors.Is(err, ErrLostMark) {
					t.Error(err)
				}
				if r.Removed.Total().Objects+r.Resumed.Total().Objects > 0 {
					select {
					case deleted <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	work.Wait()
	over.Store(true)
	prunes.Wait()
	if _, err := Run(t.Context(), repo, Options{packSize: 64 << 10}); err != nil {
		m, _ := repo.Mark(t.Context())
		t.Fatalf("%v: %+v", err, m)
	}
	for key, disk := range want {
		var domain, name string
		if _, err := fmt.Sscanf(key, "vm%1s/%s", &domain, &name); err != nil {
			t.Fatal(err)
		}
		m, err := repo.Manifest(t.Context(), "vm"+domain, name)
		if err != nil {
			t.Fatal(err)
		}
		got := content(t, repo, &m.Disks[0])
		for i, b := range disk {
			if !bytes.Equal(got[i*archive.GridSize:][:64<<10], blocks[b]) {
				t.Errorf("%s reads otherwise at %d", key, i)
			}
		}
	}
}

// write makes a checkpoint as a backup does, of a disk that begins each cell with a block.
func write(ctx context.Context, repo *chain.Repository, domain, name string, sequence int64, blocks [][]byte, disk []int) error {
	hold, err := repo.HoldFor(ctx, "backup of "+domain, domain, name)
	if err != nil {
		return err
	}
	err = writeHeld(hold.Context(), repo, hold, domain, name, sequence, blocks, disk)
	return errors.Join(err, hold.Release(ctx))
}

func writeHeld(
	ctx context.Context, repo *chain.Repository, hold *chain.Hold, domain, name string, sequence int64, blocks [][]byte, disk []int,
) error {
	w, err := archive.NewWriter(ctx, hold.Store(), archive.WriterOptions{Workers: 1})
	if err != nil {
		return err
	}
	defer w.Abort()
	size := int64(len(disk)) * archive.GridSize
	m := w.NewMap("vda", size, true)
	for i, b := range disk {
		at := int64(i) * archive.GridSize
		err := m.Add(ctx, at, int64(len(blocks[b])), func(context.Context, []byte) ([]archive.Piece, error) {
			return []archive.Piece{{Offset: at, Length: int64(len(blocks[b])), Data: blocks[b]}}, nil
		})
		if err != nil {
			return err
		}
	}
	maps, _, err := w.Finish(ctx)
	if err != nil {
		return err
	}
	man := &chain.Manifest{
		Kind: chain.KindArchive, Domain: domain, Host: chain.Host{Name: "h"}, Checkpoint: name, UUID: chain.NewUUID(),
		Sequence: sequence, Created: time.Unix(1e9, 0).UTC(), Locking: chain.LockingQEMU, Requested: chain.ModeAuto,
		Disks: []chain.Disk{{
			Name: "vda", Size: size, Source: chain.Source{Path: "/vm/a.raw", Format: "raw"}, Requested: chain.ModeAuto,
			Mode: chain.ModeFull, Detection: chain.DetectionNone, NoBitmapReason: "raw", Maps: maps,
		}},
	}
	return hold.Commit(ctx, man)
}
