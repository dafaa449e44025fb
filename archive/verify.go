// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/imgbackup/imgbackup/objstore"
)

// VerifyObject checks one immutable object, by its key ([ParseKey]): that it is
// there with its length (length < 0: any); deep: that its bytes hash to its name,
// and of a pack all that [VerifyPack] says.
func VerifyObject(ctx context.Context, store objstore.Store, key string, length int64, deep bool) error {
	store = objstore.Direct(store)
	prefix, name, ok := ParseKey(key)
	if !ok {
		return fmt.Errorf("%s is not the key of a pack, map, bitmap, cluster map, file or index", key)
	}
	switch {
	case !deep:
		_, err := statObject(ctx, store, key, length)
		return err
	case prefix == PackPrefix:
		return VerifyPack(ctx, store, Ref{Name: name, Length: length}, true)
	}
	return hashObject(ctx, store, key, name, length)
}

// VerifyName checks that an immutable object is there with its length (length < 0: any)
// and that its bytes hash to its name. What they mean is not looked at.
func VerifyName(ctx context.Context, store objstore.Store, key string, length int64) error {
	_, name, ok := ParseKey(key)
	if !ok {
		return fmt.Errorf("%s is not the key of an object that is named by its bytes", key)
	}
	return hashObject(ctx, objstore.Direct(store), key, name, length)
}

// VerifyMap opens a map, which proves its directory and its header, and checks
// its length; deep: that its bytes hash to its name, that every line is valid and
// that the counts in the last line are right.
func VerifyMap(ctx context.Context, store objstore.Store, ref MapRef, deep bool) error {
	store = objstore.Direct(store)
	if _, err := statObject(ctx, store, MapKey(ref.Name), ref.Length); err != nil {
		return err
	}
	m, err := OpenMap(ctx, store, ref, 0)
	if err != nil || !deep {
		return err
	}
	if err := hashBytes(ctx, store, m.key, ref.Name, ref.Length); err != nil {
		return err
	}
	var counts mapCounts
	for e, err := range m.Entries(ctx, 0, m.head.size) {
		if err != nil {
			return err
		}
		counts.add(&run{len: e.Length, zero: e.Zero})
		if m.head.full && e.Zero {
			return damagef(m.key, 0, 0, "a full map has a run of zeros, at guest offset %d", e.Offset)
		}
		if !e.Zero {
			if err := checkFrame(&e, m.frameLimit); err != nil {
				return damagef(m.key, 0, 0, "at guest offset %d: %w", e.Offset, err)
			}
		}
	}
	stated, err := m.counts(ctx)
	if err != nil {
		return err
	}
	if stated != counts {
		return damagef(m.key, m.end.offset, int64(m.end.length), "the counts in the last line are wrong")
	}
	return nil
}

// counts reads the last line.
func (m *Map) counts(ctx context.Context) (mapCounts, error) {
	var c mapCounts
	dec, err := newDecoder()
	if err != nil {
		return c, err
	}
	defer dec.close()
	stored := make([]byte, min(m.end.length, maxText))
	if err := readRange(ctx, m.store, m.key, m.end.offset, stored, m.ref.Length); err != nil {
		return c, err
	}
	text, err := m.proven(&m.end, dec, stored, nil)
	if err != nil {
		return c, err
	}
	if !c.parse(text) {
		return c, damagef(m.key, m.end.offset, int64(m.end.length), "the last line is not valid")
	}
	return c, nil
}

// VerifyPack checks that a pack is there with its length (Length < 0: any); deep:
// that all its bytes hash to its name, that its table is valid, and that every
// frame decodes to the length and the digest in the table. It reads the pack once
// and holds one frame and the table in memory.
func VerifyPack(ctx context.Context, store objstore.Store, pack Ref, deep bool) error {
	store = objstore.Direct(store)
	key := PackKey(pack.Name)
	info, err := statObject(ctx, store, key, pack.Length)
	if err != nil || !deep {
		return err
	}
	length := info.Size
	if length > maxPackLength {
		return damagef(key, 0, 0, "a pack can't be %d bytes long", length)
	}
	if keys := KeysOf(store); keys != nil {
		return verifyKeyedPack(ctx, store, keys, Ref{Name: pack.Name, Length: length})
	}
	r, err := getObject(ctx, store, key, 0, length)
	if err != nil {
		return err
	}
	v := packVerifier{key: key, length: length}
	h := sha256.New()
	v.in = bufio.NewReaderSize(io.TeeReader(io.LimitReader(r, length), h), int(min(length, verifyBuffer)))
	err = v.run()
	// A bad frame is told, and where it is; that the name is wrong then, too, adds nothing.
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		if IsDamage(err) {
			return err
		}
		return shortRead(ctx, store, key, length, length, err)
	}
	return checkName(key, pack.Name, Digest(h.Sum(nil)))
}

// verifyBuffer is how much of a pack is in memory, bytes: more than a table, and so much that
// the beginning of a frame is seldom moved.
const verifyBuffer = 4 << 20

type packVerifier struct {
	key    string
	length int64
	in     *bufio.Reader
	pos    int64
	chunks []PackChunk
}

func (v *packVerifier) run() error {
	dec, err := newDecoder()
	if err != nil {
		return err
	}
	defer dec.close()
	var buf []byte
	for {
		b, err := v.peek(maxFrame)
		if err != nil {
			return err
		}
		if len(b) >= 4 && binary.LittleEndian.Uint32(b) == skippableMagic {
			return v.table()
		}
		n, _, err := frameExtent(b)
		if err == nil && (n > maxFrame || len(v.chunks) == maxPackChunks) {
			err = fmt.Errorf("%w: too long", errFrame)
		}
		if err == nil {
			buf, err = dec.frame(b[:n], buf, GridSize)
		}
		if err != nil {
			return &DamageError{Object: v.key, Offset: v.pos, Length: int64(n), Err: err}
		}
		v.chunks = append(v.chunks, PackChunk{FrameOffset: v.pos, FrameLength: int32(n), Length: int32(len(buf)), Chunk: Sum(buf)})
		if _, err := v.in.Discard(n); err != nil {
			return err
		}
		v.pos += int64(n)
	}
}

// peek returns the next n bytes, or as many as the pack has left.
func (v *packVerifier) peek(n int) ([]byte, error) {
	n = int(min(int64(n), v.length-v.pos))
	return v.in.Peek(n)
}

func (v *packVerifier) table() error {
	if v.length-v.pos > int64(packTableLen(maxPackChunks)) {
		return damagef(v.key, v.pos, v.length-v.pos, "the table is too long")
	}
	tail, err := v.peek(packTableLen(maxPackChunks))
	if err != nil {
		return err
	}
	chunks, err := parsePackTable(tail, v.length)
	if err == nil && len(chunks) != len(v.chunks) {
		err = fmt.Errorf("the pack has %d frames, its table %d", len(v.chunks), len(chunks))
	}
	if err != nil {
		return &DamageError{Object: v.key, Offset: v.pos, Length: int64(len(tail)), Err: err}
	}
	for i, c := range chunks {
		if c != v.chunks[i] {
			return damagef(v.key, c.FrameOffset, int64(c.FrameLength), "frame %d is not what the pack's table says", i)
		}
	}
	_, err = v.in.Discard(len(tail))
	if err == nil && v.in.Buffered() > 0 {
		err = errors.New("more bytes than asked for")
	}
	return err
}
