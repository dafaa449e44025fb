// SPDX-License-Identifier: Apache-2.0

// Package clustermap tells where the guest's data lies in an image's file: as a fingerprint
// that is small enough to be kept with each archive, and the comparison of two of them.
//
// The disk is looked at in units of 64 KiB or of a cluster, whichever is larger. Of each the
// fingerprint says that it is unallocated, zero, or data at an offset; or, where it is made
// of several parts, or of compressed ones, a checksum of what the tables say. So a unit that
// was written anew, in another place of the file, is seen in a few bytes of metadata.
//
// Nothing here holds more than a run in memory, and all sequences are read once, in ascending
// order.
package clustermap

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

// MinUnit is the smallest unit, bytes.
const MinUnit = 64 << 10

// MaxUnit is the largest unit, bytes: the largest cluster of a qcow2 image.
const MaxUnit = 2 << 20

// Kind says where a part of a disk lies.
type Kind byte

// The kinds, as they are written.
const (
	Hole  Kind = 'h' // not allocated
	Zero  Kind = 'z' // allocated, and known to read as zeros
	Data  Kind = 'd' // at an offset of the file
	Mixed Kind = 'm' // of several parts, or compressed; only of a [Run]

	// Compressed is of a [Place] only: its unit is Mixed.
	Compressed Kind = 'c'
)

// Place is where a range of a disk lies, by an image's tables.
type Place struct {
	Offset, Length int64 // guest bytes
	Kind           Kind
	Host           int64 // of Data and Compressed: offset in the file
	Stored         int64 // of Compressed: bytes there, at most
}

// Run is a run of units that lie alike. Data lies one unit after the other.
type Run struct {
	Kind  Kind
	Count int64 // of units; 1 of Mixed
	Host  int64 // of Data: where the first lies
	Sum   uint32
}

// Unit is the unit for an image with clusters of that size, bytes.
func Unit(cluster int64) int64 { return max(MinUnit, cluster) }

// Units turns the places of [start, end), which come in order and without gaps, into runs.
// start is a multiple of unit; the last unit may end early.
func Units(places iter.Seq2[Place, error], unit, start, end int64) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		u := units{unit: unit, end: end, at: start, yield: yield}
		for p, err := range places {
			if err != nil {
				yield(Run{}, err)
				return
			}
			if p.Offset != u.at+u.pending.Length {
				yield(Run{}, fmt.Errorf("the places of the disk have a gap at %d", u.at+u.pending.Length))
				return
			}
			if !u.add(p) {
				return
			}
		}
		if u.split() && u.flush() && u.at != end {
			yield(Run{}, fmt.Errorf("the places of the disk end at %d, and not at %d", u.at, end))
		}
	}
}

// units gathers places into units.
type units struct {
	unit, end int64
	at        int64 // where pending begins
	yield     func(Run, error) bool
	pending   Place  // places that are one
	filled    int64  // bytes of a mixed unit that came before pending
	sum       uint32 // of them
	run       Run    // runs that are one
}

// add takes the next place; false: the consumer has enough.
func (u *units) add(p Place) bool {
	if q := &u.pending; q.Length > 0 && q.Kind == p.Kind && p.Kind != Compressed &&
		(p.Kind != Data || q.Host+q.Length == p.Host) {
		q.Length += p.Length
		return true
	}
	if !u.split() {
		return false
	}
	u.pending = p
	return true
}

// split hands out what is pending, unit by unit.
func (u *units) split() bool {
	p := &u.pending
	for p.Length > 0 {
		if whole := u.whole(); whole > 0 {
			if !u.emit(Run{Kind: p.Kind, Count: whole, Host: p.Host}) {
				return false
			}
			u.advance(min(whole*u.unit, p.Length))
			continue
		}
		n := min(p.Length, u.unit-u.filled)
		var b [33]byte
		b[0] = byte(p.Kind)
		for i, v := range [...]int64{u.filled, n, p.Host, p.Stored} {
			binary.BigEndian.PutUint64(b[1+8*i:], uint64(v))
		}
		u.sum = crc32.Update(u.sum, crc32.MakeTable(crc32.Castagnoli), b[:])
		u.filled += n
		u.advance(n)
		if u.filled == u.unit || u.at == u.end {
			sum := u.sum
			u.filled, u.sum = 0, 0
			if !u.emit(Run{Kind: Mixed, Count: 1, Sum: sum}) {
				return false
			}
		}
	}
	return true
}

// whole is how many units what is pending fills by itself.
func (u *units) whole() int64 {
	p := &u.pending
	if u.filled > 0 || p.Kind == Compressed {
		return 0
	}
	n := p.Length / u.unit
	if n == 0 && u.at+p.Length == u.end {
		return 1
	}
	return n
}

func (u *units) advance(n int64) {
	p := &u.pending
	p.Length -= n
	u.at += n
	if p.Kind == Data {
		p.Host += n
	}
}

// emit takes the next run, which may join the one before it.
func (u *units) emit(r Run) bool {
	if r.Kind != Data {
		r.Host = 0
	}
	q := &u.run
	if q.Count > 0 && q.Kind == r.Kind && r.Kind != Mixed && (r.Kind != Data || q.Host+q.Count*u.unit == r.Host) {
		q.Count += r.Count
		return true
	}
	if !u.flush() {
		return false
	}
	u.run = r
	return true
}

func (u *units) flush() bool {
	r := u.run
	u.run = Run{}
	return r.Count == 0 || u.yield(r, nil)
}

// Moved is where the units of [start, end) do not lie now as they did then.
func Moved(then, now iter.Seq2[Run, error], unit, start, end int64) bitmapstore.Runs {
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		next, stop := iter.Pull2(then)
		defer stop()
		was := Run{}
		at := start
		for is, err := range now {
			for is.Count > 0 && err == nil {
				if was.Count == 0 {
					var ok bool
					if was, err, ok = next(); !ok {
						err = fmt.Errorf("a fingerprint ends at %d, and not at %d", at, end)
					}
					continue
				}
				n := min(was.Count, is.Count)
				stop := min(at+n*unit, end)
				if !alike(was, is) && !yield(bitmapstore.Run{Start: at, End: stop}, nil) {
					return
				}
				was.skip(n, unit)
				is.skip(n, unit)
				at = stop
			}
			if err != nil {
				yield(bitmapstore.Run{}, err)
				return
			}
		}
	})
}

func alike(a, b Run) bool { return a.Kind == b.Kind && a.Host == b.Host && a.Sum == b.Sum }

func (r *Run) skip(n, unit int64) {
	r.Count -= n
	if r.Kind == Data {
		r.Host += n * unit
	}
}
