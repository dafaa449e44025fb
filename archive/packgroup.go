// SPDX-License-Identifier: Apache-2.0

package archive

// openGroupLines is what waits for the end of the group that is open: how long it is as it is
// stored, and so where its frames are, is known then. All that comes after a frame in it
// waits, too, so that the lines of each map stay in order; a group is short.
type openGroupLines struct {
	waiting []waitingLine
	chunks  map[Digest]place // in the group, to be found once more
}

type waitingLine struct {
	m *MapWriter
	r result
}

// line writes the map's line for a result, or has it wait.
func (p *packer) line(m *MapWriter, r *result) error {
	if p.pack == nil || p.pack.group.empty() {
		return m.add(r, p.w.packs.count())
	}
	p.group.waiting = append(p.group.waiting, waitingLine{m: m, r: *r})
	return nil
}

// placeKeyed puts a frame into the open group, or a new one, unless that has an equal chunk.
func (p *packer) placeKeyed(r *result, frame []byte, dedup bool) error {
	if at, ok := p.group.chunks[r.chunk]; ok && dedup {
		r.known, r.grouped, r.at, r.start, r.end = true, true, at, 0, 0
		return nil
	}
	if p.pack != nil && p.pack.group.full(len(frame)) {
		if err := p.endGroup(); err != nil {
			return err
		}
	}
	if p.pack != nil && !p.pack.hasRoom(len(frame), 1, p.w.o.PackSize) {
		if err := p.flush(); err != nil {
			return err
		}
	}
	if p.pack == nil {
		if err := p.begin(); err != nil {
			return err
		}
	}
	off := p.pack.addKeyed(frame, int32(r.length), r.chunk, r.parts)
	r.grouped, r.at = true, place{pack: p.pack.number, frameOff: uint32(off)}
	if dedup {
		if p.group.chunks == nil {
			p.group.chunks = make(map[Digest]place)
		}
		p.group.chunks[r.chunk] = r.at
	}
	return nil
}

// endGroup encrypts the open group, and writes all that waits for it.
func (p *packer) endGroup() error {
	if p.pack == nil || p.pack.group.empty() {
		return nil
	}
	length, err := p.pack.endGroup()
	if err != nil {
		return err
	}
	for i := range p.group.waiting {
		w := &p.group.waiting[i]
		if w.r.grouped {
			w.r.at.frameLen = uint32(length) | provenBit
		}
		if err := w.m.add(&w.r, p.w.packs.count()); err != nil {
			return err
		}
	}
	clear(p.group.waiting)
	p.group.waiting = p.group.waiting[:0]
	for chunk, at := range p.group.chunks {
		at.frameLen = uint32(length) | provenBit
		p.w.table.learn(p.w.ctx, &chunk, at)
	}
	clear(p.group.chunks)
	return nil
}
