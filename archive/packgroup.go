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

// placeKeyed puts a frame into the open group, or a new one, unless that has an equal chunk. A
// large one comes as a group of its own.
func (p *packer) placeKeyed(r *result, frame []byte, dedup bool) error {
	if at, ok := p.group.chunks[r.chunk]; ok && dedup {
		r.known, r.grouped, r.at, r.start, r.end = true, true, at, 0, 0
		return nil
	}
	if p.pack != nil && (r.lone != nil || p.pack.group.full()) {
		if err := p.endGroup(); err != nil {
			return err
		}
	}
	if err := p.roomFor(r, len(frame)); err != nil {
		return err
	}
	if r.lone != nil {
		off := p.pack.addLone(frame, r.whole, r.chunk, r.lone)
		r.at = place{pack: p.pack.number, frameOff: uint32(off), frameLen: uint32(len(frame)) | provenBit}
		if dedup {
			p.w.table.learn(p.w.ctx, &r.chunk, r.at)
		}
		return nil
	}
	off := p.pack.addKeyed(frame, r.whole, r.chunk, r.parts)
	r.grouped, r.at = true, place{pack: p.pack.number, frameOff: uint32(off)}
	if dedup {
		if p.group.chunks == nil {
			p.group.chunks = make(map[Digest]place)
		}
		p.group.chunks[r.chunk] = r.at
	}
	return nil
}

// roomFor has a pack open that has room for n bytes, which are a frame or a group of one.
func (p *packer) roomFor(r *result, n int) error {
	if p.pack != nil {
		room := p.pack.hasRoomFor(n, p.target())
		if r.lone != nil {
			room = p.pack.hasRoom(n, 1, p.target())
		}
		if room {
			return nil
		}
		if err := p.flush(); err != nil {
			return err
		}
	}
	return p.begin()
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
