// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// ProofsFormat is the value of the field "format" of what was proven when.
const ProofsFormat = "imgbackup-proofs"

// proofsKey is the key of what was proven when.
const proofsKey = "proofs/objects.json"

// Bounds of it.
const (
	maxProofRuns = 1000    // older ones are joined
	maxProven    = 2 << 20 // objects: what one sealed object holds
)

// storedProofs says which objects were read and proven when. Nothing believes it but who
// chooses what to read next, and who shows it: without it, more is read than is due.
type storedProofs struct {
	Head
	RepositoryID string     `json:"repository_id"`
	Runs         []proofRun `json:"runs"` // oldest first
}

// proofRun is what was proven at one time, and not since.
type proofRun struct {
	At      time.Time `json:"at"`      // UTC; when the reading began
	Objects []string  `json:"objects"` // the first 16 digits of their names, sorted
}

// proven is a digest's first 16 digits: enough to choose by.
type proven [8]byte

func provenOf(d archive.Digest) proven { return proven(d[:8]) }

// Proofs is what was proven when.
type Proofs struct {
	at  map[proven]int64 // seconds since 1970
	old []byte           // as it stands in the store; nil: it does not
}

// When is when an object of that name was last proven; false: nobody knows of any time.
func (p *Proofs) When(name archive.Digest) (time.Time, bool) {
	at, ok := p.at[provenOf(name)]
	return time.Unix(at, 0).UTC(), ok
}

// Proofs reads what was proven when. What is missing, damaged or of a newer version is
// nothing that was proven; damage is the second result, and other errors are the store's.
func (r *Repository) Proofs(ctx context.Context) (p *Proofs, damage, err error) {
	p = &Proofs{at: make(map[proven]int64)}
	data, err := readSealed(ctx, r.Store, proofsKey)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return p, nil, nil
	case archive.IsDamage(err):
		return p, err, nil
	case err != nil:
		return nil, nil, err
	}
	p.old = data
	var s storedProofs
	if err := r.openAs(data, proofsKey, ProofsFormat, &s); err != nil {
		return p, err, nil
	}
	if err := s.validate(r.Config.ID); err != nil {
		return p, archive.Damaged(proofsKey, err), nil
	}
	for _, run := range s.Runs {
		for _, o := range run.Objects {
			var k proven
			_, _ = hex.Decode(k[:], []byte(o)) // it is valid
			p.at[k] = max(p.at[k], run.At.Unix())
		}
	}
	return p, nil, nil
}

func (s *storedProofs) validate(id string) error {
	var c checker
	c.nilErr("head", s.CheckHead(ProofsFormat))
	c.that(s.RepositoryID == id, "it belongs to repository %.80q", s.RepositoryID)
	c.that(len(s.Runs) <= maxProofRuns, "%d runs", len(s.Runs))
	for _, run := range s.Runs {
		c.time("at", run.At)
		for _, o := range run.Objects {
			if _, err := hex.DecodeString(o); err != nil || len(o) != 2*len(proven{}) {
				c.that(false, "%.80q is not the beginning of a digest", o)
			}
		}
	}
	return c.err
}

// News is what a check has found out.
type News struct {
	At     time.Time        // when its reading began
	Proven []archive.Digest // what was read then, and is sound
	Bad    []archive.Digest // what is damaged or missing
	// Names are all objects that are there; nil: not known. What is not there is forgotten.
	Names []archive.Digest
}

// proofTries is how often others may be faster.
const proofTries = 8

// RememberProven adds what a check has found out to what was proven when: others that do so
// at the same time lose nothing.
func (r *Repository) RememberProven(ctx context.Context, n News) error {
	if err := r.CheckWritable(); err != nil {
		return err
	}
	for try := 0; ; try++ {
		p, damage, err := r.Proofs(ctx)
		if err != nil {
			return err
		}
		var newer *NewerError
		if errors.As(damage, &newer) {
			return damage
		}
		p.add(n)
		data, err := r.seal(proofsKey, p.stored(r.Config.ID))
		if err != nil {
			return err
		}
		if p.old == nil && damage == nil {
			err = r.create(ctx, proofsKey, data, nil)
		} else if p.old != nil {
			err = r.swap(ctx, proofsKey, p.old, data, nil)
		} else {
			return damage // too large to be one
		}
		if errors.As(err, new(*standsError)) && try < proofTries {
			continue
		}
		if err != nil {
			return fmt.Errorf("remember what was proven: %w", err)
		}
		return nil
	}
}

func (p *Proofs) add(n News) {
	if n.Names != nil {
		stand := make(map[proven]bool, len(n.Names))
		for _, d := range n.Names {
			stand[provenOf(d)] = true
		}
		for k := range p.at {
			if !stand[k] {
				delete(p.at, k)
			}
		}
	}
	for _, d := range n.Proven {
		p.at[provenOf(d)] = n.At.Unix()
	}
	for _, d := range n.Bad {
		delete(p.at, provenOf(d))
	}
}

// stored is what is stored of it: of too much, what was proven last.
func (p *Proofs) stored(id string) storedProofs {
	s := storedProofs{Head: Head{Format: ProofsFormat, Version: 1}, RepositoryID: id, Runs: []proofRun{}}
	byTime := make(map[int64][]string)
	for k, at := range p.at {
		byTime[at] = append(byTime[at], hex.EncodeToString(k[:]))
	}
	n := 0
	for at, objects := range byTime {
		slices.Sort(objects)
		s.Runs = append(s.Runs, proofRun{At: time.Unix(at, 0).UTC(), Objects: objects})
		n += len(objects)
	}
	slices.SortFunc(s.Runs, func(a, b proofRun) int { return cmp.Compare(a.At.Unix(), b.At.Unix()) })
	for n > maxProven && len(s.Runs) > 1 {
		n -= len(s.Runs[0].Objects)
		s.Runs = s.Runs[1:]
	}
	if more := len(s.Runs) - maxProofRuns; more > 0 { // they count as proven when the oldest was
		for _, run := range s.Runs[1 : more+1] {
			s.Runs[0].Objects = append(s.Runs[0].Objects, run.Objects...)
		}
		slices.Sort(s.Runs[0].Objects)
		s.Runs = slices.Delete(s.Runs, 1, more+1)
	}
	return s
}
