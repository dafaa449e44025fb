// SPDX-License-Identifier: Apache-2.0

// Package crypt is what the keys of a repository do once they are open: age files,
// whole or in ranges, and keyed digests. Where keys are kept, and who may have them, is
// not its concern.
//
// A repository has two keys, each a [Half], and a secret that keys its digests. All
// three together are a [Generation]: one that is rotated away is still needed to read
// what was stored under it. Who has no identity of a half can store under it and
// not read; to try is a [KeyError], which is never damage: identities are proven against
// their public halves in [New], so that from then on what does not open is damaged.
//
// All that is encrypted is an age file (https://c2sp.org/age) to one recipient, with a
// file key of its own.
package crypt

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"filippo.io/age"
)

// Half is one of the two keys of a repository.
type Half int

// The halves.
const (
	Data     Half = iota + 1 // packs, what belongs to a domain beside its disks, records of drills
	Metadata                 // all else
)

func (h Half) String() string {
	if h == Data {
		return "data key"
	}
	return "metadata key"
}

// Pair is one key: what encrypts to it, and what opens that.
type Pair struct {
	Recipient age.Recipient
	Identity  age.Identity // nil: what is stored can't be read
}

// SecretLength is the length of the secret that keys digests, bytes.
const SecretLength = 32

// Generation is the keys that a repository has at a time.
type Generation struct {
	Number         int // from 1 on
	Data, Metadata Pair
	Secret         [SecretLength]byte // keys the digests
}

func (g *Generation) half(h Half) *Pair {
	if h == Data {
		return &g.Data
	}
	return &g.Metadata
}

// Keys are the open keys of a repository. They are safe for concurrent use.
type Keys struct {
	generations []Generation // the newest first
	digests     []*Digests   // of each
	unpadded    bool
}

// KeyError says that what is asked for takes a key that is not there, or that an
// identity does not open what its public half encrypts. It is no damage.
type KeyError struct {
	Half       Half
	Generation int    // 0: any
	What       string // for people: what it was to open, or what is wrong
}

func (e *KeyError) Error() string {
	text := "the " + e.Half.String()
	if e.Generation > 0 {
		text += fmt.Sprintf(" of generation %d", e.Generation)
	}
	return text + " " + e.What
}

// New puts keys together, of one generation or more, whose newest is what is stored
// under. Each identity is proven against its recipient; one that does not open what that
// encrypts is a [KeyError].
func New(generations ...Generation) (*Keys, error) {
	k := &Keys{generations: slices.Clone(generations)}
	if len(generations) == 0 {
		return nil, errors.New("crypt: no keys")
	}
	slices.SortFunc(k.generations, func(a, b Generation) int { return cmp.Compare(b.Number, a.Number) })
	for i := range k.generations {
		g := &k.generations[i]
		if g.Number < 1 || i > 0 && g.Number == k.generations[i-1].Number {
			return nil, fmt.Errorf("crypt: the generations of the keys are not in order: %d", g.Number)
		}
		for _, h := range []Half{Data, Metadata} {
			if err := g.half(h).prove(); err != nil {
				return nil, &KeyError{Half: h, Generation: g.Number, What: err.Error()}
			}
		}
		k.digests = append(k.digests, newDigests(g.Secret))
	}
	return k, nil
}

// prove sees whether the identity opens what the recipient encrypts.
func (p *Pair) prove() error {
	if p.Recipient == nil {
		return errors.New("has no public half")
	}
	if p.Identity == nil {
		return nil
	}
	var file bytes.Buffer
	w, err := age.Encrypt(&file, p.Recipient)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return fmt.Errorf("can't be used: %w", err)
	}
	if r, err := age.Decrypt(&file, p.Identity); err == nil {
		_, err = io.Copy(io.Discard, r)
		if err == nil {
			return nil
		}
	}
	return errors.New("is not the private half of the repository's public one")
}

// Generate makes new keys; postQuantum: hybrid ones, which older programs than age 1.3
// do not know.
func Generate(number int, postQuantum bool) (Generation, error) {
	g := Generation{Number: number, Secret: newSecret()}
	for _, h := range []Half{Data, Metadata} {
		p, err := generatePair(postQuantum)
		if err != nil {
			return Generation{}, err
		}
		*g.half(h) = p
	}
	return g, nil
}

func generatePair(postQuantum bool) (Pair, error) {
	if postQuantum {
		id, err := age.GenerateHybridIdentity()
		if err != nil {
			return Pair{}, err
		}
		return Pair{Recipient: id.Recipient(), Identity: id}, nil
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return Pair{}, err
	}
	return Pair{Recipient: id.Recipient(), Identity: id}, nil
}

// Generation is the number of the one that is stored under.
func (k *Keys) Generation() int { return k.generations[0].Number }

// Unpadded returns the same keys for a repository that does not hide lengths.
func (k *Keys) Unpadded() *Keys {
	u := *k
	u.unpadded = true
	return &u
}

// Pads reports whether lengths of what is stored of guests' data are hidden ([Padded]).
func (k *Keys) Pads() bool { return !k.unpadded }

// Opens reports whether what is stored under a half now can be read.
func (k *Keys) Opens(h Half) bool { return k.generations[0].half(h).Identity != nil }

// identities of all generations, the newest first.
func (k *Keys) identities(h Half) ([]age.Identity, error) {
	var ids []age.Identity
	for i := range k.generations {
		if id := k.generations[i].half(h).Identity; id != nil {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, &KeyError{Half: h, What: "is needed to read this, and these keys have only its public half"}
	}
	return ids, nil
}

func (k *Keys) recipient(h Half) age.Recipient { return k.generations[0].half(h).Recipient }

// Same reports whether two repositories have the same keys; nil: one has none.
func (k *Keys) Same(other *Keys) bool {
	if k == nil || other == nil {
		return k == other
	}
	return k.generations[0].Number == other.generations[0].Number && k.digests[0].digestKeys == other.digests[0].digestKeys
}
