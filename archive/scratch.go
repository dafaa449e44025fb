// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"errors"
	"io"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/spool"
)

// scratch is a spool for what is not encrypted yet though it will be: in its file it is, under a
// key of its own. Of a plain repository it is a spool.
type scratch struct {
	spool.Spool
	secret bool
	key    *crypt.Scratch
	w      io.WriteCloser // nil: nothing was written
	ended  bool           // w is closed
	size   int64
}

func newScratch(dir string, secret bool) scratch {
	return scratch{Spool: spool.Spool{Dir: dir}, secret: secret}
}

// Write takes p.
func (s *scratch) Write(p []byte) (n int, err error) {
	if !s.secret {
		return s.Spool.Write(p)
	}
	if s.w == nil {
		if s.key, err = crypt.NewScratch(); err != nil {
			return 0, err
		}
		if s.w, err = s.key.Writer(&s.Spool); err != nil {
			return 0, err
		}
	}
	n, err = s.w.Write(p)
	s.size += int64(n)
	return n, err
}

// Size is the number of bytes written.
func (s *scratch) Size() int64 {
	if !s.secret {
		return s.Spool.Size()
	}
	return s.size
}

// reader reads what was written, from its beginning. Nothing may be written after that.
func (s *scratch) reader() (io.Reader, error) {
	r := io.NewSectionReader(&s.Spool, 0, s.Spool.Size())
	if !s.secret || s.w == nil {
		return r, nil
	}
	if !s.ended {
		if err := s.w.Close(); err != nil {
			return nil, err
		}
		s.ended = true
		r = io.NewSectionReader(&s.Spool, 0, s.Spool.Size())
	}
	return s.key.Reader(r)
}

// copyTo writes what was written to w. Nothing may be written after that.
func (s *scratch) copyTo(w io.Writer) error {
	r, err := s.reader()
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(onlyWriter{w}, struct{ io.Reader }{r}, make([]byte, 128<<10))
	if err == nil && n != s.Size() {
		err = errors.New("a temporary file is cut short")
	}
	return err
}

// encryptedTo is a spool with what write writes, encrypted if there are keys.
func encryptedTo(dir string, keys *crypt.Keys, half crypt.Half, write func(io.Writer) error) (*spool.Spool, error) {
	s := &spool.Spool{Dir: dir}
	err := func() error {
		if keys == nil {
			return write(s)
		}
		w, err := keys.Writer(half, s)
		if err == nil {
			err = write(w)
		}
		if err == nil {
			err = w.Close()
		}
		return err
	}()
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}
