// SPDX-License-Identifier: Apache-2.0

package archive

import "context"

// Frame is a chunk's place in a pack that a map names.
type Frame struct {
	Pack   int // its number in [Map.Packs]
	Offset int64
	Length int32 // bytes
	Chunk  Digest
}

// Frames calls do with the frame of each run of data, proven as [Map.Entries] does. A
// frame that several runs use comes as often, but not twice in a row. do's frame is
// the caller's again when it returns; its error ends the walk.
func (m *Map) Frames(ctx context.Context, do func(f *Frame) error) error {
	c, err := newCursor(ctx, m, m.head.size, 1)
	if err != nil {
		return err
	}
	defer c.close()
	last := Frame{Pack: -1}
	for {
		ok, err := c.next(0)
		if err != nil || !ok {
			return err
		}
		r := &c.run
		if r.zero || last.Pack == int(r.pack) && last.Offset == r.frameOff {
			continue
		}
		last = Frame{Pack: int(r.pack), Offset: r.frameOff, Length: r.frameLen, Chunk: r.chunk}
		e := m.entry(r)
		if err := checkFrame(&e, m.frameLimit); err != nil {
			return damagef(m.key, 0, 0, "at guest offset %d: %w", r.off, err)
		}
		if err := do(&last); err != nil {
			return err
		}
	}
}
