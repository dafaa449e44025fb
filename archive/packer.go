// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"crypto/sha256"
	"fmt"
	"sync"

	"github.com/imgbackup/imgbackup/objstore"
)

// packBuffers is how many packs are in memory: one is filled while two are stored. Where
// memory is short there is but one. More may be in temporary files.
const packBuffers = 3

// packer takes the cells in order, fills packs and writes the lines of the maps.
type packer struct {
	w     *Writer
	enc   *encoder // for the maps
	spool *packSpool
	free  chan *openPack
	out   chan *openPack
	pack  *openPack // nil: none is begun
	group openGroupLines
	far   bool
	// Of the guest's bytes that are expected, those that came, and what was stored for them.
	seen, stored int64
}

// openPack is a pack from its first frame until it is stored.
type openPack struct {
	packBuilder
	number uint32
}

func (p *packer) init(w *Writer, enc *encoder) {
	p.w, p.enc = w, enc
	p.far = objstore.Connections(w.store) > 1
	buffers := w.o.Memory.Count(packBuffers, 1)
	p.spool = newPackSpool(w.store, w.o.TempDir, buffers, w.note)
	p.free = make(chan *openPack, buffers)
	p.out = make(chan *openPack)
	for range buffers {
		p.free <- &openPack{packBuilder: packBuilder{keys: w.keys}}
	}
}

func (p *packer) run() {
	for range p.spool.uploads() {
		p.w.wg.Go(func() {
			for pack := range p.out {
				if err := p.store(pack); err != nil {
					p.w.fail(err)
				}
			}
		})
	}
	for c := range p.w.order {
		<-c.done
		if p.w.err() == nil {
			if err := p.cell(c); err != nil {
				p.w.fail(err)
			}
		}
		c.m, c.ctx, c.produce = nil, nil, nil
		p.w.free <- c
	}
	if p.w.err() == nil {
		if err := p.flush(); err != nil {
			p.w.fail(err)
		}
	}
	close(p.out)
}

func (p *packer) cell(c *cell) error {
	if c.flush {
		return p.flush()
	}
	m := c.m
	for i := range c.results {
		r := &c.results[i]
		if !r.zero && !r.known {
			if err := p.place(c, r); err != nil {
				return err
			}
		}
		if c.produce != nil { // declared zeros are not expected
			p.seen += r.length
		}
		p.stored += int64(r.end - r.start)
		if m.stats.count(r); !m.full {
			m.stats.Heat.add(r.off, r.length, m.size)
		}
		if err := p.line(m, r); err != nil {
			return err
		}
	}
	if c.last {
		if err := p.endGroup(); err != nil {
			return err
		}
		if m.full {
			m.stats.Zero = m.size - m.stats.Data
		}
		if err := m.build.endRuns(); err != nil {
			return err
		}
		m.local = nil
		close(m.closed)
	}
	return nil
}

func (s *DiskStats) count(r *result) {
	if r.zero {
		s.Zero += r.length
		return
	}
	s.Data += r.length
	if r.reused {
		s.Reused += r.length
	}
	if r.start < r.end {
		s.Chunks++
		if r.lone != nil {
			s.Stored += int64(r.lone.Frame)
		} else {
			s.Stored += int64(r.end - r.start)
		}
	}
}

// place puts a new frame into the pack, unless this session has an equal chunk.
func (p *packer) place(c *cell, r *result) error {
	dedup := r.whole >= minDedup
	if dedup {
		if at, ok := p.w.table.recent(&r.chunk); ok && at.proven() {
			r.known, r.at, r.start, r.end = true, at, 0, 0
			r.reused = p.w.packs.foreign(at.pack)
			return nil
		}
	}
	frame := c.out[r.start:r.end]
	if p.w.keys != nil {
		return p.placeKeyed(r, frame, dedup)
	}
	if p.pack != nil && !p.pack.hasRoom(len(frame), 1, p.target()) {
		if err := p.flush(); err != nil {
			return err
		}
	}
	if p.pack == nil {
		if err := p.begin(); err != nil {
			return err
		}
	}
	off := p.pack.add(frame, r.whole, r.chunk)
	r.at = place{pack: p.pack.number, frameOff: uint32(off), frameLen: uint32(len(frame)) | provenBit}
	if dedup {
		p.w.table.learn(p.w.ctx, &r.chunk, r.at)
	}
	return nil
}

// Packs become smaller when so many of the usual size are left, and so many times at most: one
// that is filled then has been stored when all is read, where a connection is not slower than so
// many together fill packs.
const endPacks, endShrinks = 8, 8

// target is how large a pack becomes. A far store takes as long for a large one as several
// that were read meanwhile, and at the end nothing is read any more: so the last ones become
// smaller and smaller.
func (p *packer) target() int64 {
	size, left := p.w.o.PackSize, p.w.expected.Load()-p.seen
	if !p.far || left <= 0 || p.seen == 0 {
		return size
	}
	rest := int64(float64(p.stored) / float64(p.seen) * float64(left))
	if p.stored+rest <= size/2 {
		return size // one is enough
	}
	return max(min(rest/endPacks, size), size/endShrinks)
}

func (p *packer) begin() error {
	select {
	case p.pack = <-p.free:
	case <-p.w.ctx.Done():
		return p.w.err()
	}
	if cap(p.pack.buf) == 0 {
		p.pack.buf = make([]byte, 0, p.w.o.PackSize)
	}
	p.pack.number = p.w.packs.begin()
	return nil
}

// flush hands the pack over to be stored.
func (p *packer) flush() error {
	if p.pack == nil {
		return nil
	}
	if err := p.endGroup(); err != nil {
		return err
	}
	select {
	case p.out <- p.pack:
	case <-p.w.ctx.Done():
	}
	p.pack = nil
	return nil
}

// store seals and stores a pack, and lists it in an index. The pack's memory is free once
// it is stored, or apart.
func (p *packer) store(pack *openPack) error {
	chunks, free := pack.chunks, sync.OnceFunc(func() { p.free <- &openPack{packBuilder: packBuilder{buf: pack.buf[:0], keys: p.w.keys}} })
	defer free()
	ref, err := pack.name()
	p.w.packs.name(pack.number, ref)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	body, err := p.spool.body(p.w.ctx, pack.buf)
	if err != nil {
		return err
	}
	defer body.end()
	if body.apart {
		free()
	}
	if err := p.w.put(p.w.ctx, PackKey(ref.Name), ref.Name, body); err != nil {
		return fmt.Errorf("store pack: %w", err)
	}
	p.w.mu.Lock()
	p.w.stats.Packs++
	p.w.stats.PackBytes += ref.Length
	p.w.mu.Unlock()
	p.w.list(ref, chunks)
	return nil
}

func (p *openPack) name() (Ref, error) {
	err := p.seal()
	return Ref{Name: sha256.Sum256(p.buf), Length: int64(len(p.buf))}, err
}

// add writes the map's line for a result. packs is the number of packs in the
// session.
func (m *MapWriter) add(r *result, packs int) error {
	line := run{off: r.off, len: r.length, zero: r.zero}
	if !r.zero {
		n := r.at.pack
		if int(n) >= len(m.local) {
			m.local = append(m.local, make([]uint32, packs-len(m.local))...)
		}
		if m.local[n] == 0 {
			m.packs = append(m.packs, n)
			m.local[n] = uint32(len(m.packs))
		}
		line.pack = m.local[n] - 1
		line.frameOff, line.frameLen = int64(r.at.frameOff), r.at.length()
		line.chunkOff, line.chunk = r.chunkOff, r.chunk
	}
	return m.build.add(&line, len(m.packs))
}
