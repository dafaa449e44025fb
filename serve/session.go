// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// session keeps, at the end of FILE.map, which blocks are in FILE by now, flushed or not. It
// is believed only by a server for which FILE is the same incarnation ([sys.Incarnation]): then
// the kernel has every byte that was written, and a guest that has outlived the server that it wrote
// to finds what it wrote. After a power cut only what a flush has recorded counts.
//
// It begins with one page that names the incarnation, closed sessions have none; a bitmap as that of
// FILE.map itself follows. Of that nothing is synced but the page, when the session begins.
type session struct {
	file *cowFile
	head int64 // where its page is in FILE.map
	lost bool  // there was one before it that can't be believed
	mute bool  // the kernel tells no incarnations: nothing is kept

	mu sync.Mutex // held while bits are written, so that later ones come later
}

// unknownIncarnation is of a session where the kernel tells none.
const unknownIncarnation = "unknown"

// beginSession returns the bits of the session before, if they count.
func beginSession(f *cowFile, blocks int64) (_ *session, left []byte, err error) {
	s := &session{file: f, head: headerSize + bitmapSpace(blocks)}
	page := make([]byte, headerSize)
	if _, err := f.bits.ReadAt(page, s.head); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	was := string(bytes.TrimRight(page, "\x00"))
	now := sys.Incarnation(f.data)
	switch {
	case was == "":
	case now != "" && was == now:
		left = make([]byte, (blocks+7)/8)
		if _, err := f.bits.ReadAt(left, s.head+headerSize); err != nil {
			return nil, nil, err
		}
		return s, left, nil
	default:
		s.lost = true
	}
	if now == "" {
		now, s.mute = unknownIncarnation, true
	}
	// Bits of the one before must not be there under the name of this one. What is read of the
	// page is what the kernel has: no order on the medium matters to who is of the same boot.
	if err := s.clear(blocks, s.lost); err != nil {
		return nil, nil, err
	}
	if err := s.name(now); err != nil {
		return nil, nil, err
	}
	// Before a guest writes: after a power cut the next server has to see that there was one.
	return s, nil, f.sync(f.bits)
}

// name writes the page.
func (s *session) name(incarnation string) error {
	page := make([]byte, headerSize)
	copy(page, incarnation)
	_, err := s.file.bits.WriteAt(page, s.head)
	return err
}

// clear makes a new session of no bits. Who is killed meanwhile leaves one that tells, too, whether
// there was one that was lost.
func (s *session) clear(blocks int64, lost bool) error {
	before := ""
	if lost {
		before = unknownIncarnation
	}
	if err := s.name(before); err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for at, end := s.head+headerSize, mapSize(blocks); at < end; at += int64(len(zeros)) {
		if _, err := s.file.bits.WriteAt(zeros[:min(int64(len(zeros)), end-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// keep writes the bits of blocks, in the bytes that now tells, and then has them marked, which is
// before anybody else writes bits.
func (s *session) keep(first, last int64, now func(first, last int64) []byte, mark func()) error {
	if first >= last {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mute {
		if _, err := s.file.bits.WriteAt(now(first, last), s.head+headerSize+first/8); err != nil {
			return err
		}
	}
	mark()
	return nil
}

// doubt is of a session of which the kernel may have lost something: it tells that of pages that it
// could not write only once, so that the next server would not be told.
func (s *session) doubt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.name(unknownIncarnation) // then the medium of the map fails as well
}

// end is of a session whose blocks are all durable, and recorded as such.
func (s *session) end() error { return s.name("") }

// room is what an unprivileged user may still write beside the scratch file, bytes.
func (f *cowFile) room() (int64, error) { return sys.FreeSpace(f.data) }

// writeback has the kernel begin to write a part of FILE, so that a flush has less to wait for.
func (f *cowFile) writeback(start, end int64) {
	_ = sys.Control(f.data, func(fd int) error { // it is no promise, and may not be possible
		return unix.SyncFileRange(fd, start, end-start, unix.SYNC_FILE_RANGE_WRITE)
	})
}
