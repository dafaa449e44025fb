// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// Prover proves single chunks: by reading them or, for who can't read the data, by what the tables of
// packs say of the groups that hold them. It is for one goroutine.
type Prover struct {
	store   objstore.Store
	fetcher *Fetcher
	buf     []byte
	blind   bool
	groups  map[Ref]map[int64]Digest // by offset in the pack; none: its table can't be read
}

// NewProver returns one for a store.
func NewProver(store objstore.Store) *Prover {
	keys := KeysOf(store)
	return &Prover{
		store: store, fetcher: NewFetcher(store, FetcherOptions{Parallel: 1}), buf: make([]byte, 0, GridSize),
		blind: keys != nil && !keys.Opens(crypt.Data), groups: make(map[Ref]map[int64]Digest),
	}
}

// Prove returns a [DamageError] if the chunk of e, which is data, can't be had.
func (p *Prover) Prove(ctx context.Context, e Entry) error {
	if !p.blind {
		_, err := p.fetcher.Chunk(ctx, e, p.buf)
		return err
	}
	if err := checkFrame(&e, maxGroup); err != nil {
		return err
	}
	want, err := p.digest(ctx, &e)
	if err != nil {
		return err
	}
	key, stored := PackKey(e.Pack.Name), make([]byte, e.FrameLength)
	if err := readRange(ctx, p.store, key, e.FrameOffset, stored, e.Pack.Length); err != nil {
		return err
	}
	if Sum(stored) != want {
		return damagef(key, e.FrameOffset, int64(e.FrameLength), "the group does not have the SHA-256 that the pack's table states")
	}
	return nil
}

// digest is that of the group of e, as it is stored.
func (p *Prover) digest(ctx context.Context, e *Entry) (Digest, error) {
	groups, ok := p.groups[e.Pack]
	if !ok {
		chunks, err := ReadPackTable(ctx, p.store, e.Pack)
		if err != nil && !IsDamage(err) {
			return Digest{}, err
		}
		groups = make(map[int64]Digest)
		for i := range chunks {
			groups[chunks[i].FrameOffset] = chunks[i].Keyed.Group
		}
		p.groups[e.Pack] = groups
	}
	want, ok := groups[e.FrameOffset]
	if !ok {
		return Digest{}, damagef(PackKey(e.Pack.Name), e.FrameOffset, int64(e.FrameLength), "the pack's table tells of no group there, so that nothing proves it without the data key")
	}
	return want, nil
}
