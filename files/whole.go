// SPDX-License-Identifier: Apache-2.0

package files

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/imgbackup/imgbackup/guestfs"
)

// tar goes on where it can't read a file: it fills it up with zeros, and says at its end that
// something was wrong. So when it fails what was made of its archive is compared with the guest.

// keepWhole removes, of what an archive of a folder of the guest became that failed, plain files
// that are not the guest's.
func (l *Look) keepWhole(ctx context.Context, to *os.File, name, folder string, got *Got, failed error) error {
	if !errors.As(failed, new(*guestfs.CallError)) || ctx.Err() != nil {
		if l.server.Fault() != nil {
			l.o.Note(fmt.Sprintf("what could not be read of files in %s is zeros: nobody has looked which of them are whole", to.Name()))
		}
		return failed
	}
	gone := int64(0)
	err := removeOthers(to.Name(), name, func(below string) (string, error) {
		return l.guest.Checksum(ctx, trimSlash(folder)+"/"+below)
	}, func(below string, size int64, why error) {
		gone++
		got.Files, got.Bytes = got.Files-1, got.Bytes-size
		got.leaveOut(below, why.Error())
		if got.LeftOut <= maxLeftOut {
			l.o.Note(fmt.Sprintf("left out: %q: %v", trimSlash(folder)+"/"+below, why))
		}
	})
	if gone > 0 {
		failed = fmt.Errorf("left out, since they could not be read whole: %d (%w)", gone, failed)
	}
	return errors.Join(failed, err)
}

var errOther = errors.New("it could not be read whole")

// removeOthers removes plain files, at name in a folder and below (all of the folder, if that is empty),
// whose SHA-256 is another than the one that sum gives for their path below that, or none. Each is told of, with the
// bytes that are gone.
func removeOthers(dir, name string, sum func(below string) (string, error), removed func(below string, size int64, why error)) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // only looked into
	if name != "" {
		below, err := root.OpenRoot(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // nothing was made
		}
		if err != nil {
			return err
		}
		defer func() { _ = below.Close() }() // likewise
		return removeOthersIn(below, sum, removed)
	}
	return removeOthersIn(root, sum, removed)
}

func removeOthersIn(root *os.Root, sum func(below string) (string, error), removed func(below string, size int64, why error)) error {
	return fs.WalkDir(root.FS(), ".", func(at string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		want, why := sum(at)
		if errors.Is(why, guestfs.ErrEnded) {
			return why
		}
		if why == nil {
			is, err := sumOf(root, at)
			if err != nil {
				return err
			}
			if is == want {
				return nil
			}
			why = errOther
		} else if errors.As(why, new(*guestfs.CallError)) {
			why = errOther // the guest's words for it say no more
		}
		st, err := root.Lstat(at)
		if err == nil {
			err = root.Remove(at)
		}
		if err != nil {
			return fmt.Errorf("it is not whole, and cannot be removed: %w", err)
		}
		removed(at, freed(st), why)
		return nil
	})
}

// freed is what goes with a name, bytes: of a file with several names with the last one.
func freed(st fs.FileInfo) int64 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok && s.Nlink > 1 {
		return 0
	}
	return st.Size()
}

// sumOf is the SHA-256 of a file.
func sumOf(root *os.Root, at string) (string, error) {
	f, err := root.Open(at)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}
