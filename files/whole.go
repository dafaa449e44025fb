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
	err := removeOthers(to.Name(), name, func(below string) (string, error) {
		return l.guest.Checksum(ctx, trimSlash(folder)+"/"+below)
	}, func(below string, why error) {
		got.Files--
		got.leaveOut(below, why.Error())
		if got.LeftOut <= maxLeftOut {
			l.o.Note(fmt.Sprintf("left out: %q: %v", below, why))
		}
	})
	return errors.Join(failed, err)
}

var errOther = errors.New("it could not be read whole")

// removeOthers removes plain files, at name in a folder and below (all of the folder, if that is empty),
// whose SHA-256 is another than the one that sum gives for their path below that, or none. Each is told of.
func removeOthers(dir, name string, sum func(below string) (string, error), removed func(below string, why error)) error {
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

func removeOthersIn(root *os.Root, sum func(below string) (string, error), removed func(below string, why error)) error {
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
		}
		if err := root.Remove(at); err != nil {
			return fmt.Errorf("it is not whole, and cannot be removed: %w", err)
		}
		removed(at, why)
		return nil
	})
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
