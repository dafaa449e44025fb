// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// UnfitError says that what is to be read is no file of its own, or too long.
type UnfitError struct{ Path, Why string }

func (e *UnfitError) Error() string { return e.Path + " " + e.Why }

// ReadBounded reads a file of at most some bytes that somebody else may have put there: no link is
// followed, and nothing is waited for. The error is an [UnfitError] if it can't be read so.
func ReadBounded(path string, most int64) (data []byte, err error) {
	// Without O_NONBLOCK a pipe would be waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, &UnfitError{path, "is a symbolic link, which is not followed"}
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &UnfitError{path, "is no regular file"}
	}
	if data, err = io.ReadAll(io.LimitReader(f, most+1)); err == nil && int64(len(data)) > most {
		err = &UnfitError{path, fmt.Sprintf("has more than %d bytes", most)}
	}
	return data, err
}
