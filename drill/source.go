// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
)

// source is the step that compares the newest checkpoint with the images themselves,
// which it only reads. It applies where they are there, and untouched since.
type source struct {
	newest *chain.Manifest
	self   chain.Process
	allow  []string
}

// Source is that step. newest is the domain's newest archive; backing files may lie in
// allow, too.
func (d *Drill) Source(newest *chain.Manifest, allow []string) Step {
	return &source{newest: newest, self: d.self, allow: allow}
}

func (*source) Name() string { return record.StepSource }

// notHere says of the images that there is nothing to compare with.
func notHere(format string, args ...any) Result {
	res := Skip(fmt.Sprintf(format, args...), "nothing: the step compares what is still there")
	res.NotApplicable = true
	return res
}

func (c *source) Run(ctx context.Context, s *Subject) (Result, error) {
	switch {
	case c.newest == nil || c.newest.UUID != s.Manifest.UUID:
		return notHere("it is not the newest checkpoint"), nil
	case s.Manifest.Imported != nil:
		return notHere("it was imported from what others had left, and not made of a VM's images"), nil
	case !c.self.Host.Same(s.Manifest.Host):
		return notHere("its images are on another host, %s", s.Manifest.Host.Name), nil
	}
	res := Pass("the images hold what the checkpoint has")
	for _, d := range s.Disks {
		one, err := c.disk(ctx, s, d)
		if err != nil || one.Status != record.Passed {
			return one, err
		}
		res.Bytes += one.Bytes
	}
	return res, nil
}

// disk compares one disk.
func (c *source) disk(ctx context.Context, s *Subject, d *chain.Disk) (res Result, err error) {
	img, err := qcow2.Open(d.Source.Path, qcow2.Format(d.Source.Format), qcow2.OpenOptions{AllowDirs: c.allow})
	if err != nil {
		return notHere("disk %s: its image cannot be read here: %v", d.Name, err), nil
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	if why := c.touched(img, d); why != "" {
		return notHere("disk %s: %s", d.Name, why), nil
	}
	err = restore.Compare(ctx, s.Repo, d, img, d.Source.Path, nil, func(n int64) { s.Told(record.StepSource, n) })
	var different *restore.VerifyError
	switch {
	case errors.As(err, &different):
		if why := c.touchedNow(d); why != "" {
			return notHere("disk %s: %s", d.Name, why), nil
		}
		return Fail(fmt.Sprintf("disk %s: the image %s, which nothing is known to have written to since, differs in bytes %d to %d: %s",
			d.Name, different.Path, different.Start, different.End-1, different.What), todoSource), nil
	case archive.IsDamage(err):
		return s.Damage(ctx, err)
	case err != nil:
		return Result{}, err
	}
	res = Pass("")
	res.Bytes = d.Size
	return res, nil
}

const todoSource = "the disk under the image may be failing, or something wrote past QEMU and its times: back up with --audit, and look at the host's log"

// touched says what speaks against an image's being as it was backed up; empty: nothing.
// For it speak its times, on the boot that saw it, or its checkpoint's bitmap, if it is
// empty.
func (c *source) touched(img *qcow2.Image, d *chain.Disk) string {
	if d.Source.BootID != "" && d.Source.BootID == c.self.BootID && filesTouched(d) == "" {
		return ""
	}
	for _, b := range img.Layers[0].Bitmaps {
		if d.Bitmap == "" || b.Name != d.Bitmap || !b.Enabled || b.InUse || b.Problem != nil {
			continue
		}
		if n, err := b.DirtyBytes(); err == nil && n == 0 && len(img.Layers) == 1+len(d.Backing) {
			return ""
		}
	}
	if why := filesTouched(d); why != "" {
		return why
	}
	return "its times count on the boot only that saw it, and it has no bitmap that says that nothing was written"
}

// touchedNow opens an image once more to look whether it was written to meanwhile.
func (c *source) touchedNow(d *chain.Disk) string {
	img, err := qcow2.Open(d.Source.Path, qcow2.Format(d.Source.Format), qcow2.OpenOptions{AllowDirs: c.allow})
	if err != nil {
		return "its image can no longer be read: " + err.Error()
	}
	defer func() { _ = img.Close() }() // only read
	return c.touched(img, d)
}

// filesTouched says what of a disk's files is not as it was; empty: nothing is.
func filesTouched(d *chain.Disk) string {
	src := &d.Source
	files := []chain.FileState{{Path: src.Path, Device: src.Device, Inode: src.Inode, Size: src.Size, Mtime: src.Mtime, Ctime: src.Ctime}}
	if src.DataFile != nil {
		files = append(files, *src.DataFile)
	}
	for _, l := range d.Backing {
		files = append(files, chain.FileState{Path: l.Path, Device: l.Device, Inode: l.Inode, Size: l.FileSize, Mtime: l.Mtime, Ctime: l.Ctime})
	}
	for _, was := range files {
		var st unix.Stat_t
		if err := unix.Stat(was.Path, &st); err != nil {
			return fmt.Sprintf("%s is not there: %v", was.Path, err)
		}
		now := chain.FileState{Path: was.Path, Device: uint64(st.Dev), Inode: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()}
		if now != was {
			return was.Path + " was touched since the backup"
		}
	}
	return ""
}
