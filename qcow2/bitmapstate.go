// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// BitmapState is what must not change of a bitmap while another one is added or removed.
type BitmapState struct {
	Name        string
	Granularity int64 // bytes
	Enabled     bool
	InUse       bool
	Readable    bool     // it has no Problem
	Digest      [32]byte // of its runs; zeros when it is not readable
}

// BitmapStates describes all bitmaps of the layer, in the order of the directory. Bitmaps that are
// dead ([ErrBitmapsDead]) are none; other errors of the bitmap metadata are returned.
func (l *Layer) BitmapStates() ([]BitmapState, error) {
	if l.BitmapsErr != nil && !errors.Is(l.BitmapsErr, ErrBitmapsDead) {
		return nil, l.BitmapsErr
	}
	states := make([]BitmapState, 0, len(l.Bitmaps))
	for _, b := range l.Bitmaps {
		s := BitmapState{Name: b.Name, Granularity: b.Granularity, Enabled: b.Enabled, InUse: b.InUse, Readable: b.Problem == nil}
		if s.Readable {
			var err error
			if s.Digest, err = digestRuns(b.Runs()); err != nil {
				return nil, err
			}
		}
		states = append(states, s)
	}
	return states, nil
}

// digestRuns is the SHA-256 of all starts and ends.
func digestRuns(runs bitmapstore.Runs) (sum [32]byte, err error) {
	d := sha256.New()
	buf := make([]byte, 0, 4096)
	for r, err := range runs {
		if err != nil {
			return sum, err
		}
		buf = binary.BigEndian.AppendUint64(buf, uint64(r.Start))
		buf = binary.BigEndian.AppendUint64(buf, uint64(r.End))
		if len(buf) == cap(buf) {
			d.Write(buf)
			buf = buf[:0]
		}
	}
	d.Write(buf)
	return [32]byte(d.Sum(nil)), nil
}

// BitmapChangedError says that the bitmaps of an image are not what they should be after one was
// added or removed: a VM ran in between, or whoever changed the image failed.
type BitmapChangedError struct {
	Path string
	Name string // of the bitmap
	What string
}

func (e *BitmapChangedError) Error() string {
	return fmt.Sprintf("%s: bitmap %s %s", e.Path, quote(e.Name), e.What)
}

// VerifyBitmapAdded proves that the layer has the new bitmaps (enabled, not in use, empty, of that
// granularity) and otherwise exactly the bitmaps that it had before. The difference is a
// [*BitmapChangedError].
func (l *Layer) VerifyBitmapAdded(before []BitmapState, granularity int64, names ...string) error {
	empty, err := digestRuns(bitmapstore.Of())
	if err != nil {
		return err
	}
	want := append([]BitmapState(nil), before...)
	for _, name := range names {
		want = append(want, BitmapState{Name: name, Granularity: granularity, Enabled: true, Readable: true, Digest: empty})
	}
	return l.verifyBitmaps(want)
}

// VerifyBitmapRemoved proves that the layer has no such bitmap any more and otherwise exactly the
// bitmaps that it had before. The difference is a [*BitmapChangedError].
func (l *Layer) VerifyBitmapRemoved(before []BitmapState, name string) error {
	var want []BitmapState
	for _, s := range before {
		if s.Name != name {
			want = append(want, s)
		}
	}
	return l.verifyBitmaps(want)
}

// VerifyBitmapRemoved is [Layer.VerifyBitmapRemoved] for the image as it is in the file now,
// likewise.
func VerifyBitmapRemoved(path string, before []BitmapState, name string) error {
	return WithTopLayer(path, func(l *Layer) error { return l.VerifyBitmapRemoved(before, name) })
}

func (l *Layer) verifyBitmaps(want []BitmapState) error {
	changed := func(name, what string) error { return &BitmapChangedError{Path: l.Path, Name: name, What: what} }
	if l.BitmapsErr != nil && (len(want) > 0 || !errors.Is(l.BitmapsErr, ErrBitmapsDead)) {
		return fmt.Errorf("the bitmaps have become unusable: %w", l.BitmapsErr)
	}
	got, err := l.BitmapStates()
	if err != nil {
		return err
	}
	left := make(map[string]BitmapState, len(got))
	for _, s := range got {
		left[s.Name] = s
	}
	for _, w := range want {
		s, ok := left[w.Name]
		delete(left, w.Name)
		switch {
		case !ok:
			return changed(w.Name, "is not there")
		case s.InUse && !w.InUse:
			return changed(w.Name, "is marked in use")
		case s.Readable != w.Readable:
			return changed(w.Name, "has become unreadable, or readable")
		case s.Granularity != w.Granularity:
			return changed(w.Name, fmt.Sprintf("has a granularity of %d bytes, not of %d", s.Granularity, w.Granularity))
		case s.Enabled != w.Enabled:
			return changed(w.Name, "has been enabled or disabled")
		case s.Digest != w.Digest:
			return changed(w.Name, "has other dirty bits than it should")
		case s != w:
			return changed(w.Name, "has changed")
		}
	}
	for name := range left {
		return changed(name, "has appeared")
	}
	return nil
}

// WithTopLayer opens a qcow2 image without its backing files, and without claiming a
// block device, for do to look at its header and bitmaps. Guest data cannot be read.
func WithTopLayer(path string, do func(*Layer) error) (err error) {
	resolved, err := sys.Abs(path)
	if err == nil {
		resolved, err = filepath.EvalSymlinks(resolved)
	}
	if err != nil {
		return err
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return err
	}
	if err := checkFileType(resolved, info); err != nil {
		return err
	}
	f, err := openRead(resolved, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	file := &File{path: resolved, f: f, device: !info.Mode().IsRegular()}
	if err := file.describe(info); err != nil {
		return err
	}
	h, err := parseHeader(file, file.size, resolved)
	if err != nil {
		return err
	}
	l := &Layer{Path: resolved, Format: Qcow2, Header: h, Size: h.RawSize &^ (sectorSize - 1), file: file, data: file}
	l.loadBitmaps()
	return do(l)
}

// BackingOf is what the header of a qcow2 image names as its backing file, as it names it; of the zero
// value: nothing. It opens no other file.
func BackingOf(path string) (named Named, err error) {
	err = WithTopLayer(path, func(l *Layer) error {
		named = Named{Path: l.Header.BackingFile, Format: Format(l.Header.BackingFormat)}
		return nil
	})
	return named, err
}
