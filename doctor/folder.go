// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/qemu"
)

// Folder is one on this host, and what it is for.
type Folder struct {
	Path string
	// Images: qcow2 images lie there. QEMU's locks, and copies by reference, are of use.
	Images bool
	// Files are images in it: that they can be read is looked at.
	Files []string
	// Made: it is made when it is needed, so that there may be none yet.
	Made bool
}

// What is little room, bytes.
const (
	littleRoom   = 1 << 30
	scarcelyRoom = 64 << 20
)

// Check looks at the folder under a name, as "images".
func (f Folder) Check(name string) Check { return Check{name, f.look} }

func (f Folder) look(ctx context.Context) (all []Finding) {
	dir, err := os.Open(f.Path)
	if errors.Is(err, fs.ErrNotExist) && f.Made {
		return []Finding{ok("%s: it is made when it is needed", f.Path)}
	}
	if err != nil {
		return []Finding{failed("see that it is there and mounted, and who may read it", "%v", err)}
	}
	defer func() { _ = dir.Close() }() // only read
	var good []string
	add := func(text string, wrong *Finding) {
		if wrong != nil {
			all = append(all, *wrong)
		} else if text != "" {
			good = append(good, text)
		}
	}
	add(room(dir))
	file, err := nameless(f.Path)
	switch {
	case err == nil:
		defer func() { _ = file.Close() }()
		add(flocks(file))
		if f.Images {
			add(imageLocks(ctx, file))
			add(clones(f.Path, file))
		}
	case errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission):
		w := failed("see who may write there, and how it is mounted", "%s can't be written to: %v", f.Path, err)
		if f.Images { // they can be read, and be backed up by content
			w.Level, w.Text = Warning, w.Text+": no bitmaps are added there"
		}
		add("", &w)
	case sys.Unsupported(err) || errors.Is(err, unix.EISDIR):
		good = append(good, "its file system has no files without names, so that locks and copies were not tried")
	default:
		w := failed("see what is wrong with the file system", "%s: a file can't be made: %v", f.Path, err)
		add("", &w)
	}
	for _, path := range f.Files {
		all = append(all, readable(path)...)
	}
	if len(all) == 0 || len(good) > 0 {
		all = append([]Finding{ok("%s: %s", f.Path, strings.Join(good, ", "))}, all...)
	}
	return all
}

// nameless makes a file that goes when it is closed.
func nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "make a file in", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

func room(dir *os.File) (string, *Finding) {
	n, err := sys.FreeSpace(dir)
	if err != nil {
		w := warning("see what is wrong with the file system", "%v", err)
		return "", &w
	}
	text := humanize.IBytes(uint64(n)) + " free"
	switch {
	case n < scarcelyRoom:
		w := failed("make room", "%s: %s", dir.Name(), text)
		return "", &w
	case n < littleRoom:
		w := warning("make room", "%s: %s", dir.Name(), text)
		return "", &w
	}
	return text, nil
}

func flocks(f *os.File) (string, *Finding) {
	err := sys.TryLock(f)
	if err == nil {
		return "flock", nil
	}
	w := warning("use a file system that has them (NFS from version 4 on), or see that nothing else works there at the same time",
		"%s: runs can't be kept apart by locks: %v", f.Name(), err)
	return "", &w
}

// imageLocks tries those that QEMU takes.
func imageLocks(ctx context.Context, f *os.File) (string, *Finding) {
	err := qemu.LockShared(ctx, []*os.File{f}, 0)
	if err == nil {
		err = qemu.UnlockShared([]*os.File{f})
	}
	var none *qemu.NoLockError
	switch {
	case err == nil:
		return "QEMU's locks", nil
	case errors.As(err, &none):
		w := failed("use a file system that has them (NFS from version 4 on); backup --no-lock goes on without, where nothing else can start the VMs",
			"%s: the file system has no locks, so that a running VM can't be told: %v", f.Name(), none.Err)
		return "", &w
	}
	w := failed("see what is wrong with the file system, or with its lock server", "%s: QEMU's locks: %v", f.Name(), err)
	return "", &w
}

// clones tries whether a file can be copied by reference. Nothing needs that.
func clones(dir string, from *os.File) (string, *Finding) {
	if _, err := from.Write(make([]byte, 1<<16)); err != nil {
		w := failed("make room", "%s: %v", dir, err)
		return "", &w
	}
	if err := sys.TryClone(from, dir); err != nil {
		return "no reflinks (cp copies all of an image)", nil
	}
	return "reflinks (cp --reflink copies an image at once)", nil
}

// readable looks whether an image can be read, and whether a VM has it.
func readable(path string) []Finding {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return []Finding{failed("see where the image is, and who may read it", "%v", err)}
	}
	defer func() { _ = f.Close() }() // only read
	var used *qemu.InUseError
	if errors.As(qemu.ProbeWriter(path), &used) {
		return []Finding{ok("%v", used)}
	}
	return nil
}

// Age is how far apart two clocks may be.
const (
	skewWarning = 30 * time.Second
	skewFailed  = 10 * time.Minute // a server of S3 refuses from 15 on
)

func skew(theirs, ours time.Time) Finding {
	d := ours.Sub(theirs).Round(time.Second)
	text := "the store's clock and this machine's are the same"
	if d.Abs() > 2*time.Second {
		how := "behind"
		if d > 0 {
			how = "ahead of"
		}
		text = fmt.Sprintf("this machine's clock is %s %s the store's", d.Abs(), how)
	}
	const advice = "set the right time, by NTP, on whichever is wrong: a store refuses what is signed 15 minutes ago, and retention goes by the clock"
	switch {
	case d.Abs() > skewFailed:
		return failed(advice, "%s", text)
	case d.Abs() > skewWarning:
		return warning(advice, "%s", text)
	}
	return ok("%s", text)
}
