// SPDX-License-Identifier: Apache-2.0

// Package spool keeps bytes that may be too many for memory while they are needed.
package spool

import (
	"fmt"
	"io"
	"os"
	"slices"
)

// Memory is what a [Spool] keeps in memory before it goes to a file, bytes.
const Memory = 2 << 20

// Spool takes bytes one after the other and gives them back from any place: out of
// memory while they are few, else out of a temporary file that has no name. It may
// be read from several goroutines at once, but not while it is written to. It must
// be closed.
type Spool struct {
	Dir string // of the file; empty: [TempDir]

	mem  []byte
	file *os.File // holds the first done bytes; mem the rest
	done int64
}

// Hold makes data, and nothing else, what the spool holds, in a file: one that it has is written
// over, which costs less than half of a new one, since the kernel has memory for it already. What
// says for messages what that is. After an error it holds nothing.
func (s *Spool) Hold(what string, data []byte) error {
	s.mem, s.done = data, 0
	err := s.spill()
	s.mem = nil // which is the caller's
	if err != nil {
		s.Close()
		return fileError(what, err)
	}
	return nil
}

func fileError(what string, err error) error {
	return fmt.Errorf("temporary file for %s (TMPDIR says where it goes): %w", what, err)
}

// Write takes p, all of it or, with an error, nothing.
func (s *Spool) Write(p []byte) (int, error) {
	s.mem = append(s.mem, p...)
	if len(s.mem) < Memory {
		return len(p), nil
	}
	if err := s.spill(); err != nil {
		s.mem = s.mem[:len(s.mem)-len(p)]
		return 0, fileError("metadata", err)
	}
	return len(p), nil
}

// spill moves what is in memory to the file.
func (s *Spool) spill() error {
	if s.file == nil {
		f, err := os.CreateTemp(s.dir(), "imgbackup-*.tmp")
		if err != nil {
			return err
		}
		if err := os.Remove(f.Name()); err != nil {
			_ = f.Close() // it is empty
			return err
		}
		s.file = f
	}
	if _, err := s.file.WriteAt(s.mem, s.done); err != nil {
		return err
	}
	s.done += int64(len(s.mem))
	s.mem = s.mem[:0]
	return nil
}

// dir is where the file goes.
func (s *Spool) dir() string {
	if s.Dir == "" {
		return TempDir()
	}
	return s.Dir
}

// few is what a spool that rests may keep in memory, bytes.
const few = 128 << 10

// Rest gives back the memory of a spool to which all has been written, as far as there is
// room for a file: for one that waits beside many others.
func (s *Spool) Rest() {
	if s.file == nil && len(s.mem) <= few {
		s.mem = slices.Clone(s.mem)
		return
	}
	if s.spill() == nil { // else it stays in memory
		s.mem = nil
	}
}

// Size is the number of bytes written.
func (s *Spool) Size() int64 { return s.done + int64(len(s.mem)) }

// ReadAt reads what was written.
func (s *Spool) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.Size() {
		return 0, io.EOF
	}
	n := 0
	if off < s.done {
		want := min(int64(len(p)), s.done-off)
		got, err := s.file.ReadAt(p[:want], off)
		n = got
		if int64(got) < want {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	if n < len(p) {
		n += copy(p[n:], s.mem[off+int64(n)-s.done:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close gives back memory and file; it may be called again.
func (s *Spool) Close() {
	s.mem = nil
	if s.file != nil {
		_ = s.file.Close() // its content is not wanted any more
		s.file = nil
	}
}
