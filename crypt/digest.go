// SPDX-License-Identifier: Apache-2.0

package crypt

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"hash"
	"sync"
)

// PartSize is the size of the parts of a chunk that have a digest of their own, bytes;
// the last one may be shorter.
const PartSize = 64 << 10

// Part is the digest of a part of a chunk.
type Part [8]byte

// Digests makes keyed digests: HMAC-SHA-256, each kind under a key of its own, which is
// the HMAC of its label under the secret. It is safe for concurrent use.
type Digests struct {
	digestKeys
	parts, chunks hashes // of the kinds that there are many of
}

type digestKeys struct {
	part, chunk, content, name [sha256.Size]byte
}

// hashes are those of one key which are not in use: what the key does to a hash is done once.
type hashes struct{ sync.Pool }

type keyedHash struct {
	hash.Hash
	sum [sha256.Size]byte
}

func (h *hashes) of(key *[sha256.Size]byte) {
	h.New = func() any { return &keyedHash{Hash: hmac.New(sha256.New, key[:])} }
}

func (h *hashes) mac(data []byte) [sha256.Size]byte {
	k := h.Get().(*keyedHash)
	defer h.Put(k)
	k.Reset()
	_, _ = k.Write(data) // a hash never fails
	k.Sum(k.sum[:0])
	return k.sum
}

func newSecret() (s [SecretLength]byte) {
	_, _ = rand.Read(s[:]) // which never fails
	return s
}

func newDigests(secret [SecretLength]byte) *Digests {
	derive := func(label string) [sha256.Size]byte { return mac(secret[:], []byte(label)) }
	d := &Digests{digestKeys: digestKeys{
		part: derive("imgbackup part 1"), chunk: derive("imgbackup chunk 1"),
		content: derive("imgbackup content 1"), name: derive("imgbackup name 1"),
	}}
	d.parts.of(&d.part)
	d.chunks.of(&d.chunk)
	return d
}

func mac(key, data []byte) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write(data) // a hash never fails
	h.Sum(sum[:0])
	return sum
}

// Digests of what is stored now.
func (k *Keys) Digests() *Digests { return k.digests[0] }

// DigestsOf are those of a generation; a generation that is not there is a [KeyError].
func (k *Keys) DigestsOf(generation int) (*Digests, error) {
	for i := range k.generations {
		if k.generations[i].Number == generation {
			return k.digests[i], nil
		}
	}
	return nil, &KeyError{Half: Metadata, Generation: generation, What: "is needed to prove this, and these keys do not have it"}
}

// Part is the digest of a part of a chunk: the first 8 bytes of its HMAC.
func (d *Digests) Part(data []byte) Part {
	sum := d.parts.mac(data)
	return Part(sum[:8])
}

// Parts appends the digests of the parts of a chunk.
func (d *Digests) Parts(dst []Part, chunk []byte) []Part {
	for len(chunk) > 0 {
		n := min(len(chunk), PartSize)
		dst = append(dst, d.Part(chunk[:n]))
		chunk = chunk[n:]
	}
	return dst
}

// Chunk is the digest of a chunk of length bytes, whose parts have these digests: the HMAC of
// its length, 4 bytes, big endian, and of them.
func (d *Digests) Chunk(length int, parts []Part) [sha256.Size]byte {
	b := make([]byte, 0, 4+16*len(Part{}))
	b = append(b, byte(length>>24), byte(length>>16), byte(length>>8), byte(length))
	for i := range parts {
		b = append(b, parts[i][:]...)
	}
	return d.chunks.mac(b)
}

// Content is the digest of content that is no chunk.
func (d *Digests) Content() hash.Hash { return hmac.New(sha256.New, d.content[:]) }

// Name is the digest that stands for a name.
func (d *Digests) Name(name string) [sha256.Size]byte { return mac(d.name[:], []byte(name)) }

// First are those of the first generation: what they stand for keeps its digest for ever.
func (k *Keys) First() *Digests { return k.digests[len(k.digests)-1] }

// String hides the keys from whoever prints them.
func (d *Digests) String() string { return "keyed digests" }

// Format hides the keys from whoever prints them.
func (k *Keys) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "keys of generation %d", k.Generation())
}

// Proves reports whether a chunk has a digest, under the secret of any generation.
func (k *Keys) Proves(chunk []byte, want [sha256.Size]byte) bool {
	var room [16]Part
	for _, d := range k.digests {
		if d.Chunk(len(chunk), d.Parts(room[:0], chunk)) == want {
			return true
		}
	}
	return false
}
