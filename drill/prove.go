// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

const (
	// batchEntries are fetched together, sorted by pack.
	batchEntries = 32 << 10
	// fewEntries are fetched together where damage was met.
	fewEntries = 64
	// maxProven bounds the chunks that are remembered to be proven: some 80 MiB. What is
	// beyond is proven again where another checkpoint has it, too.
	maxProven = 2 << 20
	// maxDamage bounds the ranges that are told one by one.
	maxDamage  = 100
	mapsAtOnce = 32
)

// prover proves the chunks of disks, each once however many disks have it: a checkpoint
// whose list of maps ends with one that was proven adds what the maps before that have.
// It is used by one goroutine.
type prover struct {
	repo    *chain.Repository
	fetcher *archive.Fetcher

	lists map[archive.Digest]bool // lists of maps that are proven; see listNames

	mu     sync.Mutex
	proven map[frame]int32  // how much of each chunk is known to be there, bytes
	bad    map[frame]string // what is wrong with it
}

// frame stands for a chunk where it lies: a part of the SHA-256 of place and digest.
type frame [16]byte

// proof is what proving one disk has found.
type proof struct {
	Bytes  int64 // of the guest that this disk adds to what was proven before
	Stored int64 // what was fetched for them, bytes
	Chunks int64 // that were fetched

	Damage []damaged // in the order of the disk; at most maxDamage
	More   int64     // ranges beyond these
	Lost   int64     // bytes of the guest that are damaged

	Missing error // the first object that is not there
}

// damaged is a range of a disk that cannot be had.
type damaged struct {
	Offset, Length int64
	What           string
}

func newProver(repo *chain.Repository) *prover {
	return &prover{
		repo: repo, fetcher: archive.NewFetcher(repo.Store, archive.FetcherOptions{Memory: repo.Memory}),
		lists: make(map[archive.Digest]bool), proven: make(map[frame]int32), bad: make(map[frame]string),
	}
}

func (p *prover) frame(e *archive.Entry) (f frame) {
	var place [len(e.Pack.Name) + 20 + len(e.Chunk)]byte
	at := copy(place[:], e.Pack.Name[:])
	binary.BigEndian.PutUint64(place[at:], uint64(e.Pack.Length))
	binary.BigEndian.PutUint64(place[at+8:], uint64(e.FrameOffset))
	binary.BigEndian.PutUint32(place[at+16:], uint32(e.FrameLength))
	copy(place[at+20:], e.Chunk[:])
	sum := archive.Sum(place[:])
	return frame(sum[:len(f)])
}

// listNames names the ends of a disk's list of maps: the i-th is that of the maps from
// the i-th on.
func listNames(d *chain.Disk) []archive.Digest {
	names := make([]archive.Digest, len(d.Maps)+1)
	names[len(d.Maps)] = archive.Sum([]byte(d.Name))
	for i := len(d.Maps) - 1; i >= 0; i-- {
		both := append([]byte(nil), d.Maps[i].Name[:]...)
		names[i] = archive.Sum(append(both, names[i+1][:]...))
	}
	return names[:len(d.Maps)]
}

// open opens the first n maps of a disk and proves that they are what it needs there.
func (p *prover) open(ctx context.Context, d *chain.Disk, n int) ([]*archive.Map, error) {
	maps := make([]*archive.Map, n)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(mapsAtOnce)
	for i, ref := range d.Maps[:n] {
		g.Go(func() (err error) {
			if maps[i], err = archive.OpenMap(gctx, p.repo.Store, ref, 0); err != nil {
				return err
			}
			if err := d.Place(i).Check(maps[i]); err != nil {
				return archive.Damaged(archive.MapKey(ref.Name), err)
			}
			return nil
		})
	}
	return maps, g.Wait()
}

// prove proves all chunks of a disk. What is damaged is in the proof, unless it is a map:
// that, and what is wrong with the store, is an error. tell is told of bytes of the guest.
func (p *prover) prove(ctx context.Context, d *chain.Disk, tell func(n int64)) (pr proof, err error) {
	names := listNames(d)
	known := 0
	for known < len(names) && !p.lists[names[known]] {
		known++
	}
	maps, err := p.open(ctx, d, known)
	if err != nil {
		return pr, err
	}
	if known > 0 {
		entries := archive.Merge(ctx, maps)
		if known == len(names) {
			entries = archive.Replay(ctx, maps, 0, d.Size)
		}
		if err := p.proveAll(ctx, entries, &pr, tell); err != nil {
			return pr, err
		}
	}
	p.lists[names[0]] = true
	if len(p.bad) > 0 {
		return pr, p.affected(ctx, d, &pr)
	}
	return pr, nil
}

// took learns that all chunks of a disk were fetched and proven by somebody else.
func (p *prover) took(ctx context.Context, d *chain.Disk) (pr proof, err error) {
	maps, err := p.open(ctx, d, len(d.Maps))
	if err != nil {
		return pr, err
	}
	for e, err := range archive.Replay(ctx, maps, 0, d.Size) {
		if err != nil {
			return pr, err
		}
		if !e.Zero {
			p.remember(&e, int(e.ChunkOffset)+int(e.Length)) // at least
			pr.Bytes += e.Length
		}
	}
	p.lists[listNames(d)[0]] = true
	return pr, nil
}

// remember notes that so many bytes of an entry's chunk are there and proven.
func (p *prover) remember(e *archive.Entry, n int) {
	f := p.frame(e)
	if had, ok := p.proven[f]; ok || len(p.proven) < maxProven {
		p.proven[f] = max(had, int32(n))
	}
}

// skips reports whether an entry needs no fetching: it was, whole or in vain.
func (p *prover) skips(e *archive.Entry) bool {
	f := p.frame(e)
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, bad := p.bad[f]; bad {
		return true
	}
	length, ok := p.proven[f]
	return ok && int64(e.ChunkOffset)+e.Length <= int64(length)
}

func (p *prover) proveAll(ctx context.Context, entries iter.Seq2[archive.Entry, error], pr *proof, tell func(n int64)) error {
	var batch []archive.Entry
	for e, err := range entries {
		if err != nil {
			return err
		}
		if e.Zero {
			continue
		}
		pr.Bytes += e.Length
		if p.skips(&e) {
			tell(e.Length)
			continue
		}
		if batch = append(batch, e); len(batch) < batchEntries {
			continue
		}
		if err := p.fetch(ctx, batch, pr, tell); err != nil {
			return err
		}
		batch = batch[:0]
	}
	return p.fetch(ctx, batch, pr, tell)
}

// fetch fetches and proves the chunks of entries, and goes on where some are damaged.
func (p *prover) fetch(ctx context.Context, entries []archive.Entry, pr *proof, tell func(n int64)) error {
	done := make([]bool, len(entries))
	for size := len(entries); ; size = fewEntries {
		left := undone(done, size)
		if len(left) == 0 {
			return ctx.Err()
		}
		part := make([]archive.Entry, len(left))
		for k, i := range left {
			part[k] = entries[i]
		}
		err := p.fetcher.Batch(ctx, part, func(indexes []int, chunk []byte) error {
			var length int64
			p.mu.Lock()
			pr.Chunks++
			pr.Stored += int64(part[indexes[0]].FrameLength)
			p.remember(&part[indexes[0]], len(chunk))
			for _, k := range indexes {
				done[left[k]] = true
				length += part[k].Length
			}
			p.mu.Unlock()
			tell(length) // who may save what was proven so far
			return nil
		})
		var in *archive.EntryError
		if err != nil && (!errors.As(err, &in) || !archive.IsDamage(err)) {
			return err
		}
		if err == nil {
			continue
		}
		if pr.Missing == nil && errors.Is(err, objstore.ErrNotFound) {
			pr.Missing = err
		}
		for _, k := range in.Indexes {
			p.bad[p.frame(&part[k])] = err.Error()
			done[left[k]] = true
			tell(part[k].Length)
		}
	}
}

// undone are the first of those that are not done.
func undone(done []bool, most int) (left []int) {
	for i := range done {
		if !done[i] && len(left) < most {
			left = append(left, i)
		}
	}
	return left
}

// affected finds where a disk needs what is damaged.
func (p *prover) affected(ctx context.Context, d *chain.Disk, pr *proof) error {
	maps, err := p.open(ctx, d, len(d.Maps))
	if err != nil {
		return err
	}
	for e, err := range archive.Replay(ctx, maps, 0, d.Size) {
		if err != nil {
			return err
		}
		if e.Zero {
			continue
		}
		what, bad := p.bad[p.frame(&e)]
		if !bad {
			continue
		}
		pr.Lost += e.Length
		if len(pr.Damage) < maxDamage {
			pr.Damage = append(pr.Damage, damaged{Offset: e.Offset, Length: e.Length, What: what})
		} else {
			pr.More++
		}
	}
	return nil
}

// text tells what is damaged, in one sentence.
func (pr *proof) text(disk string) string {
	first := pr.Damage[0]
	text := fmt.Sprintf("disk %s: bytes %d to %d cannot be had: %s", disk, first.Offset, first.Offset+first.Length-1, first.What)
	if n := int64(len(pr.Damage)) + pr.More; n > 1 {
		text += fmt.Sprintf(", and more (in all %d ranges)", n)
	}
	return text
}
