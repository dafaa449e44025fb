// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"
	"sync"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// Options are the settings of a [Reader]; the zero value is good.
type Options struct {
	// Cache is how many bytes of decoded chunks are in memory, those in use included; 0: 64
	// MiB, of a store that is far away 96, and less where the repository's Memory is.
	Cache   int64
	NoAhead bool // nothing is fetched before it is asked for
	// Near, if it is set, is asked for the bytes of an entry of a disk before the repository
	// is: it fills p with all of them and reports whether they are proven.
	Near func(ctx context.Context, disk string, e *archive.Entry, p []byte) bool
	// Lose, if it is set, puts zeros in the place of what is damaged or lost: see
	// [OpenTolerant].
	Lose func(chain.Lost)
}

// How much is kept of a store, and how much is asked of it at once.
const (
	usualCache   = 64 << 20
	farCache     = 144 << 20 // what is on its way takes room, too
	leastCache   = 12 << 20
	nearRequests = 8
	mostRequests = 18 // each of which may have 4 MiB on its way
)

// Reader opens disks that share one cache. It is safe for concurrent use, and must be
// closed.
type Reader struct {
	repo   *chain.Repository
	ctx    context.Context // of all that is fetched for several who wait
	cancel context.CancelFunc
	chunks *chunks
	ahead  *ahead // nil: nothing is read ahead
	lose   func(chain.Lost)
	near   func(ctx context.Context, disk string, e *archive.Entry, p []byte) bool
	busy   sync.RWMutex // held for reading by all who read maps for others
}

// NewReader returns a reader that works for as long as ctx lasts, or until Close.
func NewReader(ctx context.Context, repo *chain.Repository, o Options) *Reader {
	far := objstore.Connections(repo.Store)
	if o.Cache <= 0 {
		o.Cache = usualCache
		if far > 0 {
			o.Cache = farCache
		}
		o.Cache = repo.Memory.Part(o.Cache, leastCache)
	}
	parallel := repo.Memory.Count(min(max(nearRequests, far+2), mostRequests), 2)
	ctx, cancel := context.WithCancel(ctx)
	r := &Reader{repo: repo, ctx: ctx, cancel: cancel, chunks: newChunks(ctx, repo.Store, o.Cache, parallel), lose: o.Lose, near: o.Near}
	if !o.NoAhead {
		r.ahead = newAhead(r.chunks, parallel)
	}
	return r
}

// Open opens a disk: see [OpenLayout].
func (r *Reader) Open(ctx context.Context, d *chain.Disk) (*Disk, error) {
	l, err := r.layout(ctx, d)
	if err != nil {
		return nil, err
	}
	v := &Disk{Layout: l, windows: windows{layout: l, limits: usualLimits(), ctx: r.ctx, busy: &r.busy}, chunks: r.chunks, ahead: r.ahead, near: r.near}
	if r.lose == nil {
		v.lost = d
	}
	return v, nil
}

func (r *Reader) layout(ctx context.Context, d *chain.Disk) (*Layout, error) {
	if r.lose != nil {
		return OpenTolerant(ctx, r.repo, d, r.lose)
	}
	return OpenLayout(ctx, r.repo, d)
}

// Drop gives back the memory of the chunks that are kept and not in use.
func (r *Reader) Drop() { r.chunks.dropAll() }

// Close ends all that is at work. No disk of the reader may be read any more.
func (r *Reader) Close() {
	r.cancel()
	r.chunks.work.Wait() // what reads ahead asks for maps
	r.busy.Lock()
	defer r.busy.Unlock()
}
