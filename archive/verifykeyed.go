// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// verifyKeyedPack is VerifyPack of an encrypted pack. Without the data key it proves that each
// group has the bytes that the table says, and with it all chunks as well. It reads the table
// first, and then the pack once.
func verifyKeyedPack(ctx context.Context, store objstore.Store, keys *crypt.Keys, pack Ref) error {
	chunks, err := readKeyedTable(ctx, store, keys, pack)
	if err != nil {
		return err
	}
	key := PackKey(pack.Name)
	dec, err := newKeyedDecoder(keys)
	if err != nil {
		return err
	}
	defer dec.close()
	r, err := getObject(ctx, store, key, 0, pack.Length)
	if err != nil {
		return err
	}
	h := sha256.New()
	v := &keyedVerifier{key: key, dec: dec, in: io.TeeReader(io.LimitReader(r, pack.Length), h)}
	err = v.groups(chunks)
	if err == nil {
		_, err = io.CopyBuffer(io.Discard, struct{ io.Reader }{v.in}, make([]byte, 128<<10)) // the table
	}
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	switch {
	case IsDamage(err), isKeyError(err):
		return err
	case err != nil:
		return shortRead(ctx, store, key, pack.Length, pack.Length, err)
	}
	return checkName(key, pack.Name, Digest(h.Sum(nil)))
}

type keyedVerifier struct {
	key            string
	dec            *decoder
	in             io.Reader
	stored, opened []byte
	chunk          []byte
}

func (v *keyedVerifier) groups(chunks []PackChunk) error {
	for len(chunks) > 0 {
		n := groupOf(chunks)
		first := &chunks[0]
		v.stored = sized(v.stored, int(first.FrameLength))
		if _, err := io.ReadFull(v.in, v.stored); err != nil {
			return err
		}
		err := v.group(chunks[:n])
		if err != nil && !isKeyError(err) {
			return &DamageError{Object: v.key, Offset: first.FrameOffset, Length: int64(first.FrameLength), Err: err}
		}
		if err != nil {
			return err
		}
		chunks = chunks[n:]
	}
	return nil
}

// groupOf is how many of the first chunks are of one group.
func groupOf(chunks []PackChunk) int {
	n := 1
	for n < len(chunks) && chunks[n].FrameOffset == chunks[0].FrameOffset {
		n++
	}
	return n
}

func (v *keyedVerifier) group(chunks []PackChunk) (err error) {
	if Sum(v.stored) != chunks[0].Keyed.Group {
		return errors.New("the group does not have the SHA-256 that the pack's table states")
	}
	if !v.dec.keys.Opens(crypt.Data) {
		return nil
	}
	if v.opened, err = v.dec.keys.Open(v.opened, crypt.Data, v.stored); err != nil {
		return err
	}
	g, err := openGroup(v.opened)
	if err != nil {
		return err
	}
	if len(g.all) != len(chunks)*groupLineLen {
		return fmt.Errorf("the group has %d frames, the pack's table %d", len(g.all)/groupLineLen, len(chunks))
	}
	for i := range chunks {
		if err := v.one(&g, &chunks[i]); err != nil {
			return err
		}
	}
	return nil
}

func (v *keyedVerifier) one(g *group, c *PackChunk) error {
	frame, err := g.frame(&c.Chunk)
	if err == nil {
		v.chunk, err = v.dec.chunk(frame, v.chunk, c.Chunk)
	}
	if err != nil {
		return err
	}
	if len(v.chunk) != int(c.Length) || len(frame) != int(c.Keyed.Frame) {
		return fmt.Errorf("chunk %s has another length than the pack's table says", c.Chunk)
	}
	digests, err := v.dec.keys.DigestsOf(c.Keyed.Generation)
	if err != nil {
		return err
	}
	if digests.Chunk(len(v.chunk), c.Keyed.Parts) != c.Chunk {
		return fmt.Errorf("chunk %s has not the parts that the pack's table says", c.Chunk)
	}
	return nil
}
