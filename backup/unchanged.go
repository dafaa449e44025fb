// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/qcow2"
)

// An image that nobody touched is not read again. What is asked is whether each file of its
// chain is, by device, inode, size and times, the one that the last backup noted. Times are
// coarse, and those of moments before a crash may get lost; so they must have been old when
// they were noted, and the host must not have been started since.

// settleTime is how old a file's times must be before they say that nothing was written since.
const settleTime = 2 * time.Second

// chainFiles describes every file of an open chain, as it was when it was opened; false: one of
// them has no times, or no place in a manifest.
func chainFiles(image *qcow2.Image) ([]chain.FileState, bool) {
	var files []chain.FileState
	for i, layer := range image.Layers {
		for j, f := range layer.Files() {
			if f.Device() || i > 0 && j > 0 {
				return nil, false
			}
			id := f.Opened()
			files = append(files, chain.FileState{
				Path: f.Path(), Device: id.Dev, Inode: id.Inode, Size: id.Size, Mtime: id.MtimeNs, Ctime: id.CtimeNs,
			})
		}
	}
	return files, true
}

// settledSince reports whether the files had not been touched for a while at some time.
func settledSince(files []chain.FileState, at time.Time) bool {
	before := at.Add(-settleTime).UnixNano()
	return !slices.ContainsFunc(files, func(f chain.FileState) bool { return f.Mtime > before || f.Ctime > before })
}

// cleaned writes back what programs wrote to a chain's files and the kernel still holds, and
// reports whether that went well. Who has mapped a file changes a page that was not written
// back without any trace in the file's times; a clean one changes them again.
func cleaned(image *qcow2.Image) bool {
	for _, layer := range image.Layers {
		for _, f := range layer.Files() {
			if f.Sync() != nil {
				return false // its times are not noted, so that it is read the next time
			}
		}
	}
	return true
}

// noteFiles describes the disk's image in a manifest. The image is the one whose identity was
// noted, and is compared before the commit.
func (s *session) noteFiles(d *disk, src *chain.Source) {
	if id := d.id[0]; id.Inode != 0 {
		src.Size, src.Mtime, src.Ctime = id.Size, id.MtimeNs, id.CtimeNs
	}
	if len(d.settled) == 0 {
		return
	}
	src.BootID = s.self.BootID
	if d.image.Layers[0].DataFile != "" {
		src.DataFile = &d.settled[1]
	}
}

// untouched reports whether no file of the disk's image was touched since a state was archived.
func (s *session) untouched(ctx context.Context, d *disk, st chain.DiskState) (bool, error) {
	m := st.Manifest
	if s.req.ReadUnchanged || s.req.Audit || len(st.Disk.Lost) > 0 || st.Disk.Size != d.image.Size() ||
		st.Disk.Source.Format != string(d.req.Format) {
		return false, nil
	}
	now, ok := chainFiles(d.image)
	if !ok {
		return false, nil
	}
	then, ok := st.Disk.Files()
	boot, host := st.Disk.Source.BootID, m.Host
	if !ok || !slices.Equal(then, now) {
		if !s.req.SkipUnchanged {
			return false, nil
		}
		seen, err := s.lastSeen(ctx)
		if seen == nil || err != nil || seen.Checkpoint.UUID != m.UUID {
			return false, err
		}
		i := slices.IndexFunc(seen.Disks, func(k chain.SeenDisk) bool { return k.Name == d.req.Disk })
		if i < 0 || !slices.Equal(seen.Disks[i].Files, now) {
			return false, nil
		}
		boot, host = seen.BootID, seen.Host
	}
	return s.believesTimes(now, boot, host)
}

// believesTimes reports whether times that a host noted on a boot say that the files are the
// same.
func (s *session) believesTimes(files []chain.FileState, boot string, host chain.Host) (bool, error) {
	if !s.self.Host.Same(host) {
		return false, nil
	}
	if s.req.TrustTimes {
		return true, nil
	}
	if boot == "" || boot != s.self.BootID {
		return false, nil
	}
	for _, f := range files {
		kind, err := sys.SystemKind(f.Path)
		if err != nil || !keepsTimes(kind) {
			return false, err
		}
	}
	return true, nil
}

// keepsTimes reports whether a file system, by the number of its kind, sets the times of files
// by this kernel's clock, at each write, and takes no others' word for them. Those that are not
// known (FUSE, network file systems, and whatever comes) are not believed.
func keepsTimes(kind uint32) bool {
	switch kind {
	case unix.EXT4_SUPER_MAGIC, // and ext2, ext3
		unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC,
		unix.OVERLAYFS_SUPER_MAGIC,
		0xca451a4e, // bcachefs
		0x2fc12fc1: // ZFS
		return true
	}
	return false
}

// lastSeen is what was seen of the domain when no checkpoint was made.
func (s *session) lastSeen(ctx context.Context) (*chain.Seen, error) {
	if s.lookKnown {
		return s.lastLook, nil
	}
	seen, err := s.repo.Seen(ctx, s.req.Domain)
	var newer *chain.NewerError
	switch {
	case archive.IsDamage(err), errors.As(err, &newer):
		s.hooks.note("what was seen of the domain when it was unchanged is not known, so it is read: %v", err)
	case err != nil:
		return nil, err
	}
	s.lastLook, s.lookKnown = seen, true
	return seen, nil
}

// samplesOf is how often the data of an untouched disk is compared, and how many bytes at once,
// in the archive's data and in the image's.
const (
	samplesOf   = 2
	sampleBytes = 64 << 10
)

// samplesAgree compares a little of an untouched disk with a state of it, all the same. Places
// are drawn and not ranges, so that the maps of a large disk are not read for it.
func (s *session) samplesAgree(ctx context.Context, d *disk, st *archived) (bool, error) {
	size := d.image.Size()
	if size == 0 {
		return true, nil
	}
	random := rand.New(rand.NewPCG(s.states.seed, s.states.seed))
	for range samplesOf {
		for _, from := range []func(at int64) bitmapstore.Runs{
			func(at int64) bitmapstore.Runs { return st.Disk.Data(ctx, at, size) },
			func(at int64) bitmapstore.Runs { return dataFrom(d.image, at) },
		} {
			run, err := firstFrom(from, random.Int64N(size))
			if err != nil {
				return false, err
			}
			if run.Len() == 0 {
				continue // there is no data
			}
			run.End = min(run.End, run.Start+sampleBytes)
			all := func(bitmapstore.Run) (bool, error) { return true, nil }
			if found, err := st.Compare(ctx, d.image, run, all); !found.Same || err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// dataFrom is where an image holds data from a place on.
func dataFrom(image *qcow2.Image, at int64) bitmapstore.Runs {
	return func(yield func(bitmapstore.Run, error) bool) {
		for e, err := range image.Extents(at, image.Size()) {
			if err == nil && e.Kind != qcow2.Data && e.Kind != qcow2.Compressed {
				continue
			}
			if !yield(bitmapstore.Run{Start: e.Offset, End: e.Offset + e.Length}, err) {
				return
			}
		}
	}
}

// firstFrom is the first run from a place on, or the first of all.
func firstFrom(from func(at int64) bitmapstore.Runs, at int64) (bitmapstore.Run, error) {
	for _, start := range []int64{at, 0} {
		for run, err := range from(start) {
			return run, err
		}
	}
	return bitmapstore.Run{}, nil
}

// chooseUnchanged makes p an increment in which nothing changed, if no file of the image was
// touched since its newest state. An image that gets a bitmap is not asked: adding it touches
// the image, and what is there tells as much.
func (s *archiver) chooseUnchanged(ctx context.Context, d *disk, p *DiskPlan, judge *trust.Judge, newest chain.DiskState) (bool, error) {
	if d.req.Since != "" && d.req.Since != newest.Manifest.Checkpoint || s.req.Audit || s.getsBitmap(d) {
		return false, nil
	}
	if same, err := s.untouched(ctx, d, newest); !same || err != nil {
		return false, err
	}
	st, err := s.states.open(ctx, newest.Disk)
	same := false
	if err == nil {
		same, err = s.samplesAgree(ctx, d, st)
	}
	switch {
	case archive.IsDamage(err), s.req.Salvage && unreadable(err):
		return false, nil // whoever chooses otherwise meets it again
	case err != nil:
		return false, err
	case !same:
		s.noteLyingTimes(d, newest)
		return false, nil
	}
	p.Mode, p.Detection, p.Code = Incremental, ByTimes, trust.ReasonUnchanged
	p.Reason = "no file of the image was touched since " + newest.Manifest.Checkpoint
	p.base, p.Since = newest, newest.Manifest.Ref()
	p.sound, err = judge.Sound(ctx, true)
	return true, err
}

func (s *session) noteLyingTimes(d *disk, st chain.DiskState) {
	s.hooks.note("disk %s: the image differs from the archive of %s, though no file of it seems to have been touched since: its times lie, and it is read",
		d.req.Disk, st.Manifest.Checkpoint)
}

// getsBitmap reports whether a bitmap is likely to be added to the disk's image.
func (s *session) getsBitmap(d *disk) bool {
	active := d.image.Layers[0]
	return s.records && !s.req.NoCheckpoint && !d.req.NoCheckpoint && active.Header != nil &&
		active.CheckAddBitmap() == nil && active.CheckWritable() == nil
}
