// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"fmt"
	"io"
	"os"
)

// spoolMemory is what a spool keeps in memory before it goes to a file, bytes.
const spoolMemory = 2 << 20

// spool takes bytes one after the other and is then an [objstore.Body]: in memory
// while it is small, else in a temporary file that has no name.
type spool struct {
	dir  string
	mem  []byte
	file *os.File // holds the first done bytes; mem the rest
	done int64
}

func (s *spool) Write(p []byte) (int, error) {
	s.mem = append(s.mem, p...)
	if len(s.mem) < spoolMemory {
		return len(p), nil
	}
	if s.file == nil {
		f, err := os.CreateTemp(s.dir, "imgbackup-*.tmp")
		if err != nil {
			return 0, fmt.Errorf("temporary file for metadata: %w", err)
		}
		s.file = f
		if err := os.Remove(f.Name()); err != nil {
			return 0, fmt.Errorf("temporary file for metadata: %w", err)
		}
	}
	if _, err := s.file.WriteAt(s.mem, s.done); err != nil {
		return 0, fmt.Errorf("temporary file for metadata (TMPDIR says where it goes): %w", err)
	}
	s.done += int64(len(s.mem))
	s.mem = s.mem[:0]
	return len(p), nil
}

// Size is the number of bytes written.
func (s *spool) Size() int64 { return s.done + int64(len(s.mem)) }

// ReadAt reads what was written.
func (s *spool) ReadAt(p []byte, off int64) (int, error) {
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

// close gives back memory and file; it may be called again.
func (s *spool) close() {
	s.mem = nil
	if s.file != nil {
		_ = s.file.Close() // its content is not wanted any more
		s.file = nil
	}
}
