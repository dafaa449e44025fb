// SPDX-License-Identifier: Apache-2.0

package virtnbd

import (
	"context"
	"errors"
	"fmt"
	"hash/adler32"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/imgbackup/imgbackup/qcow2"
)

// noChecksum is what some versions write in place of one.
const noChecksum = "{checksum}"

// checksum reads what the program has written beside a stream: the Adler-32 of the file, in decimal
// digits. false: there is none.
func checksum(path string) (sum uint32, ok bool, err error) {
	path += ".chksum"
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return 0, false, errors.Join(err, fmt.Errorf("%s is no regular file", path))
	}
	text, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return 0, false, err
	}
	word := strings.TrimSpace(string(text))
	if word == noChecksum {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(word, 10, 32)
	if err != nil {
		return 0, false, fmt.Errorf("%s holds no checksum: %.40q (without that file nothing is compared)", path, word)
	}
	return uint32(n), true, nil
}

// HasChecksums reports whether there is a checksum of one of the disk's files.
func (d *Disk) HasChecksums() bool {
	for _, path := range d.Files {
		if s := d.folder.streams[path]; s != nil && s.summed {
			return true
		}
	}
	return false
}

// Verify compares the disk's files with the checksums beside them, where there are some; each file
// of the folder once. wait is called before so many bytes are read.
func (d *Disk) Verify(ctx context.Context, wait func(ctx context.Context, n int) error) error {
	for _, path := range d.Files {
		s := d.folder.streams[path]
		if s == nil || !s.summed {
			continue
		}
		if !s.verified {
			err := s.verify(ctx, wait)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			s.verified, s.verdict = true, err
		}
		if s.verdict != nil {
			return fmt.Errorf("%s: %w", s.path, s.verdict)
		}
	}
	return nil
}

func (s *seenFile) verify(ctx context.Context, wait func(ctx context.Context, n int) error) (err error) {
	f, err := qcow2.OpenFile(s.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := adler32.New()
	buf := make([]byte, 1<<20)
	for at := int64(0); at < s.id.Size; {
		part := buf[:min(int64(len(buf)), s.id.Size-at)]
		if err := wait(ctx, len(part)); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.ReadAt(part, at); err != nil {
			return unexpected(err)
		}
		_, _ = sum.Write(part) // which never fails
		at += int64(len(part))
	}
	now, err := f.Stat()
	switch {
	case err != nil:
		return err
	case now != s.id:
		return errors.New("it has changed since it was looked at")
	case sum.Sum32() != s.sum:
		return fmt.Errorf("it is damaged: its checksum is %d, and the one beside it, in .chksum, is %d", sum.Sum32(), s.sum)
	}
	return nil
}
