// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/foreign"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// disk is one disk of a running backup.
type disk struct {
	req   DiskRequest
	image *qcow2.Image     // opened anew for each look at the image
	fresh bool             // it was opened before its turn, which comes next
	guard *qemu.ImageFlock // from the plan to the end

	before []qcow2.BitmapState // the image's bitmaps before ours was added

	clusters clusterMaps // of the open image

	states chain.States // recorded of it, newest first
	gone   chain.States // what stays known of those that were forgotten
	former trust.Former // what it is called in them, if it has been renamed since

	active      string // where the new bitmap goes
	asked       bool   // qemu-img was asked to put it there
	granularity int64  // of the new bitmap, bytes

	likened  bool // it was looked at whether it resembles another format than raw
	lateData bool // its raw data file was seen to be written to past QEMU

	vouched string // it was noted that this speaks for the bitmap of another program

	read   amount
	audit  *audit                              // nil: there is none
	damage atomic.Pointer[archive.DamageError] // in the archived state that it is compared with
	lost   *chain.LossSet                      // what of it could not be read

	settled []chain.FileState // every file of the chain, if none had been touched for a while then
	changed bool              // something was found that the state that it is compared with has not
	id      []qcow2.FileID    // of every file of the chain, when reading began
	backing []chain.Layer     // as the manifest records it

	seen   *trust.Image // the original as it was when it was cloned; nil: it was not
	retire []string     // bitmaps in it that the next run is to remove
}

// amount is how much of the guest's data is to be read and has been, bytes.
type amount struct {
	total int64 // set before reading begins
	done  atomic.Int64
}

// point is the checkpoint that a session makes.
type point struct {
	name    string
	uuid    string
	created time.Time
}

// bitmap is the name of its bitmaps.
func (p point) bitmap() string { return chain.BitmapName(p.name, p.uuid) }

// session is the state of one run.
type session struct {
	repo    *chain.Repository
	req     Request
	hooks   Hooks
	to      destination
	records bool // a checkpoint is made; else nothing is written to images and repository
	// onlyBitmaps: the checkpoint holds no data, and is nothing without its bitmaps.
	onlyBitmaps bool
	// toldOthers: it was told whether other domains seem to be the same machine.
	toldOthers bool
	// replaces: the checkpoint may be on record, and is described anew then.
	replaces bool
	// mayNotRemove: it was noted that nothing may be removed from the repository.
	mayNotRemove bool

	self  chain.Process // who this is
	point point
	lease *chain.Hold // while it is written

	lastLook  *chain.Seen // when the domain was last found unchanged; nil: never
	lookKnown bool        // that was asked for

	past    *chain.Past       // of the domain, as it has just been read; nil: it was not
	history []*chain.Manifest // of the domain, oldest first
	gone    []*chain.Manifest // what stays known of forgotten ones, oldest first
	unknown error             // why that is not known
	listed  map[string]bool   // names of the domain's checkpoints, also of what cannot be read
	behind  int64             // the highest sequence of those that were made since; 0: none was
	states  *archives
	disks   []*disk
	early   *early // images that are looked at before their turn; nil: none
	files   []*file
	limiter *rate.Limiter
	read    amount

	clones    bool                // the images are to be cloned
	commanded []chain.IntentClone // those of them that req.Cloner makes; the intent has their names
	notCloned string              // why they are not, though it was asked for
	released  bool                // they were, and a VM may have the images: nothing is written to them

	lockedSince time.Time     // zero: no image is
	locked      time.Duration // for how long they were
}

// newSession checks a request; to sets the destination.
func newSession(repo *chain.Repository, req Request, hooks Hooks, to func(*session)) (*session, error) {
	self, err := repo.Self()
	if err != nil {
		return nil, err
	}
	if note := hooks.Note; note != nil {
		var mu sync.Mutex // some steps go on beside one another
		hooks.Note = func(msg string) {
			mu.Lock()
			defer mu.Unlock()
			note(msg)
		}
	}
	s := &session{
		repo: repo, req: req, hooks: hooks, self: self,
		point:  point{uuid: chain.NewUUID(), created: time.Now().UTC().Truncate(time.Second)},
		states: newArchives(repo),
	}
	if req.Import != nil {
		s.point.created = req.Import.Made.UTC().Truncate(time.Second)
	}
	if s.limiter = req.Limiter; s.limiter == nil && req.RateLimit > 0 {
		s.limiter = NewLimiter(req.RateLimit)
	}
	if s.req.Mode == "" {
		s.req.Mode = Auto
	}
	if err := s.takeRequest(); err != nil {
		return nil, err
	}
	to(s)
	return s, nil
}

// takeRequest refuses what makes no sense before anything is opened.
func (s *session) takeRequest() error {
	if err := s.req.check(); err != nil {
		return err
	}
	for _, r := range s.req.Disks {
		if err := chain.CheckName(r.Disk); err != nil {
			return usage.Errorf("disk: %w", err)
		}
		if slices.ContainsFunc(s.disks, func(d *disk) bool { return d.req.Disk == r.Disk }) {
			return usage.Errorf("disk %s is named twice", r.Disk)
		}
		r.complete(&s.req)
		if err := r.check(); err != nil {
			return usage.Wrap(&chain.DiskError{Disk: r.Disk, Err: err})
		}
		s.disks = append(s.disks, &disk{req: r, clusters: clusterMaps{states: s.states, tempDir: s.req.TempDir}})
	}
	return s.checkFiles()
}

// loadHistory reads the domain's manifests and checks who the domain belongs
// to and whether the checkpoint's name is free.
func (s *session) loadHistory(ctx context.Context) error {
	s.states.renew()
	h := s.past
	if s.past = nil; h == nil {
		read, err := s.repo.Past(ctx, s.req.Domain)
		if err != nil {
			return err
		}
		h = &read
	}
	for _, err := range h.Unusable {
		s.hooks.note("a checkpoint cannot serve as a base: %v", err)
	}
	s.history = h.Manifests
	s.gone, s.unknown = goneOf(h.Left.Manifests(), s.history), h.LeftErr
	if err := s.checkOwner(); err != nil {
		return err
	}
	s.listed = make(map[string]bool, len(h.Names))
	for _, n := range h.Names {
		s.listed[n] = true
	}
	if s.req.Checkpoint != "" {
		if s.listed[s.req.Checkpoint] && (!s.replaces || s.onRecord(s.req.Checkpoint) == nil) {
			return &chain.TakenError{Domain: s.req.Domain, Checkpoint: s.req.Checkpoint}
		}
		s.point.name = s.req.Checkpoint
		return nil
	}
	stamp := s.point.created.Format("20060102T150405Z")
	s.point.name = stamp
	for i := 2; s.listed[s.point.name]; i++ {
		s.point.name = fmt.Sprintf("%s-%d", stamp, i)
	}
	return nil
}

// checkOwner refuses to go on with a chain that another VM or host began: two
// hosts with a VM of one name must not weave one chain.
func (s *session) checkOwner() error {
	last := chain.Newest(s.history)
	if last == nil || s.req.Adopt {
		return nil
	}
	switch {
	case s.req.DomainUUID != "" && last.DomainUUID != "":
		if s.req.DomainUUID != last.DomainUUID {
			return &OwnedError{s.req.Domain, "the VM with UUID " + last.DomainUUID}
		}
	case !s.self.Host.Same(last.Host):
		return &OwnedError{s.req.Domain, "host " + last.Host.Name}
	}
	return nil
}

// open opens every image, under QEMU's locks.
func (s *session) open(ctx context.Context) error {
	type fileKey struct{ dev, inode uint64 }
	seen := make(map[fileKey]string)
	s.takeEarly()
	if s.lockedSince.IsZero() {
		s.lockedSince = time.Now()
	}
	for _, d := range s.disks {
		if err := s.openDisk(ctx, d); err != nil {
			return &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
		c := d.image
		if err := s.noteLikeness(ctx, d); err != nil {
			return &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
		d.clusters.look(c)
		if err := d.req.Defined.check(c); err != nil {
			return usage.Wrap(&chain.DiskError{Disk: d.req.Disk, Err: err})
		}
		id, err := c.Layers[0].Stat()
		if err != nil {
			return &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
		key := fileKey{id.Dev, id.Inode}
		if other, ok := seen[key]; ok {
			return usage.Errorf("disks %s and %s are the same image %s", other, d.req.Disk, d.req.Path)
		}
		seen[key] = d.req.Disk
	}
	if err := s.openFiles(ctx); err != nil || s.hooks.Opened == nil {
		return err
	}
	var images []*qcow2.Image
	for _, d := range s.disks {
		images = append(images, d.image)
	}
	return s.hooks.Opened(images)
}

// openDisk opens a disk's image anew.
func (s *session) openDisk(ctx context.Context, d *disk) error {
	if d.fresh {
		d.fresh = false
		return nil
	}
	if d.image != nil {
		if err := d.image.Close(); err != nil {
			return err
		}
		d.image = nil
	}
	c, err := s.openImage(ctx, d)
	if err == nil {
		d.image = c
	}
	return err
}

// noteLikeness tells of a raw image that begins like one of another format. It is taken as
// it was declared: the guest may have written that.
func (s *session) noteLikeness(ctx context.Context, d *disk) error {
	if d.req.Format != qcow2.Raw || d.likened {
		return nil
	}
	like, err := qcow2.Resemble(readerAt{ctx, d.image})
	if d.likened = err == nil; err != nil || like.Format == "" {
		return err
	}
	s.hooks.note("disk %s: %s is taken as raw, byte by byte, and begins like a %s image: if it is one, say format=%s",
		d.req.Disk, d.req.Path, like.Format, like.Format)
	return nil
}

// readerAt reads an image as long as its context lasts.
type readerAt struct {
	ctx context.Context
	c   *qcow2.Image
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	n := max(0, min(int64(len(p)), r.c.Size()-off))
	if err := r.c.ReadAt(r.ctx, p[:n], off); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// openImage opens a disk's image.
func (s *session) openImage(ctx context.Context, d *disk) (*qcow2.Image, error) {
	o := s.req.ImageOptions
	o.Limiter = s.limiter
	return o.Open(ctx, d.req)
}

// Open opens a disk's image, under QEMU's locks unless that is not wanted. It must be closed, and what
// other programs read of it cannot be read any more when ctx has ended.
func (o *ImageOptions) Open(ctx context.Context, r DiskRequest) (*qcow2.Image, error) {
	if r.KeyFile != "" && r.Format == qcow2.Raw {
		return nil, usage.Errorf("%s: a raw image has no passphrase: leave keyfile= out, or name the format luks", r.Path)
	}
	c, err := o.open(ctx, r)
	if err != nil || !r.NoLink {
		return c, err
	}
	if err := checkNoLink(r.Path, c.Layers[0].Files()[0]); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (o *ImageOptions) open(ctx context.Context, r DiskRequest) (*qcow2.Image, error) {
	options := o.openOptions(ctx, r)
	if o.NoLock {
		return qcow2.Open(r.Path, r.Format, options)
	}
	return lockedImage(ctx, r.Path, r.Format, options, o.LockWait)
}

// checkNoLink refuses a file that was opened through a symbolic link in its place: what stands there now is
// looked at by itself, and has to be what was opened.
func checkNoLink(path string, f *qcow2.File) error {
	var st unix.Stat_t
	if err := sys.Restart(func() error { return unix.Lstat(path, &st) }); err != nil {
		return &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	opened := f.Opened()
	if f.Device() || st.Mode&unix.S_IFMT != unix.S_IFREG || uint64(st.Dev) != opened.Dev || st.Ino != opened.Inode {
		return fmt.Errorf("%s is not the file that it was when it was looked at: links are not followed there", path)
	}
	return nil
}

func (o *ImageOptions) openOptions(ctx context.Context, r DiskRequest) qcow2.OpenOptions {
	open := r.Open
	if open == nil {
		open = foreign.Opener(ctx, foreign.Options{KeyFile: r.KeyFile})
	}
	return qcow2.OpenOptions{
		AllowDirs: slices.Concat(o.AllowDirs, r.AllowDirs), ReadLimit: o.Limiter, Salvage: o.Salvage,
		Foreign: open, Over: r.Over,
	}
}

// lockedImage opens an image under QEMU's locks, which it waits for.
func lockedImage(ctx context.Context, path string, format qcow2.Format, options qcow2.OpenOptions, wait time.Duration) (*qcow2.Image, error) {
	// The image is locked before anything is read out of it: a VM that ends
	// in between would leave us with its old tables.
	hold, err := qemu.HoldImage(ctx, path, wait)
	if err != nil {
		return nil, err
	}
	c, err := qcow2.Open(path, format, options)
	if err == nil {
		if err = c.Lock(ctx, wait); err != nil {
			err = errors.Join(err, c.Close())
		}
	}
	if cerr := hold.Close(); cerr != nil && err == nil {
		err = errors.Join(cerr, c.Close())
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// unlock gives up QEMU's locks and closes the images; the flocks stay.
func (s *session) unlock() error {
	var errs []error
	for _, d := range s.disks {
		if d.image != nil {
			errs = append(errs, d.image.Close())
			d.image = nil
		}
	}
	for _, f := range s.files {
		errs = append(errs, f.close())
	}
	return errors.Join(errs...)
}

// close gives up everything.
func (s *session) close() {
	s.early.drop()
	s.states.close()
	// Descriptors that only read: closing them can lose nothing.
	_ = s.unlock()
	for _, d := range s.disks {
		if d.guard != nil {
			_ = d.guard.Close()
			d.guard = nil
		}
		d.clusters.close()
	}
}

// guard excludes other runs of this program from the images, which are open,
// until the end.
func (s *session) guard(ctx context.Context) error {
	for _, d := range s.disks {
		if err := d.takeGuard(ctx, s.req.NoLock); err != nil {
			return &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
	}
	return nil
}

// takeGuard takes the flock of the disk's image, unless it is held already. An earlier
// attempt may hold that of a file that has been replaced since. noLock does without
// where the file system has none.
func (d *disk) takeGuard(ctx context.Context, noLock bool) error {
	if d.guard != nil {
		same, err := d.guard.Holds(d.image.Layers[0])
		if same || err != nil {
			return err
		}
		_ = d.guard.Close() // opened for reading only
		d.guard = nil
	}
	g, err := qemu.FlockImage(ctx, d.req.Path, FlockWait)
	var none *qemu.NoLockError
	if noLock && errors.As(err, &none) {
		g, err = qemu.Unlocked(d.req.Path)
	}
	if err != nil {
		return err
	}
	d.guard = g
	same, err := g.Holds(d.image.Layers[0])
	if err == nil && !same {
		err = imageChanged(d.req.Path, "another file is there")
	}
	return err
}

// count tells that n more guest bytes of a disk were read; 0: that it begins.
func (s *session) count(d *disk, n int64) {
	done, mine := s.read.done.Add(n), d.read.done.Add(n)
	if s.hooks.Disk != nil {
		s.hooks.Disk(d.req.Disk, mine, d.read.total)
	}
	if s.hooks.Progress != nil && n > 0 {
		s.hooks.Progress(done, s.read.total)
	}
}
