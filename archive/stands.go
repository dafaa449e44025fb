// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
)

// A session without the data key reads back no chunk. What its own host has signed to be in a pack
// counts once it is seen to be there still, byte by byte as it is stored.

// stands reports whether the group that has a chunk, as an index of this host says, is still what
// it was when it was stored: its bytes have the digest in the pack's table; or, of a pack that the
// store vouches for, those of another group had. If not, there is a note, and the chunk is stored again.
func (k *worker) stands(ctx context.Context, pack Ref, at place, chunk Digest, length int) (bool, error) {
	defer k.w.tables.sampling(pack, func() bool { return k.w.packs.toSample(at.pack) })()
	line, err := k.w.tables.line(ctx, pack, at, chunk, length)
	if err == nil && (line == nil || line.Keyed == nil) {
		err = damagef(PackKey(pack.Name), int64(at.frameOff), int64(at.length()), "its table does not have what an index says")
	}
	if err == nil && k.last != at && !k.w.packs.sampled(at.pack) {
		err = k.proveGroup(ctx, pack, line)
	}
	if err != nil {
		if ctx.Err() == nil {
			k.w.note("a chunk is stored again, since the one that is there can't be used: %v", err)
		}
		return false, ctx.Err()
	}
	k.last = at
	k.w.packs.sample(at.pack)
	return true, nil
}

// proveGroup reads the stored bytes of a group.
func (k *worker) proveGroup(ctx context.Context, pack Ref, line *PackChunk) error {
	key := PackKey(pack.Name)
	k.wide = sized(k.wide, int(line.FrameLength))
	if err := readRange(ctx, k.w.store, key, line.FrameOffset, k.wide, pack.Length); err != nil {
		return err
	}
	if Sum(k.wide) != line.Keyed.Group {
		return &DamageError{Object: key, Offset: line.FrameOffset, Length: int64(line.FrameLength), Err: errors.New("a group does not have the SHA-256 that the pack's table states")}
	}
	return nil
}
