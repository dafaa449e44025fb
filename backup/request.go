// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/foreign"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Request is what one run is to do.
type Request struct {
	Domain     string
	DomainUUID string // from the domain's definition; empty if unknown
	Autostart  bool   // libvirt starts it with its host, as far as is known
	Adopt      bool   // take over a domain that another host began

	Disks   []DiskRequest
	LeftOut []chain.LeftOut // of the domain's disks; recorded in the manifest
	Files   []FileRequest   // archived beside the disks; at most one of each role, and of each name

	Mode   Mode
	Since  string // for disks that name none; empty: the newest that can be trusted
	Bitmap string // for disks that name none, and no checkpoint: see [DiskRequest]

	Checkpoint   string // empty: a new name from the time; of a push or pull: none
	Description  string
	Tags         []string // of the checkpoint, in any order
	NoCheckpoint bool     // add no bitmap: the images are not written to
	LibvirtNames bool     // add a second bitmap beside each, named as libvirt demands it
	Tool         string   // name and version of the program, for the manifest

	ReadUnchanged bool // read what nobody seems to have touched, too
	TrustTimes    bool // believe the times of files on any file system, and across a restart
	Audit         bool // read everything, and compare what changed with what the bitmaps say
	SkipUnchanged bool // make no checkpoint if nothing has changed since the newest

	Clone  Clone   // of an archive only; empty: never
	Cloner Cloner  // makes clones where the kernel makes none; nil: nobody does
	Import *Import // nil: the disks are a VM's images

	ImageOptions
	StoreOptions
}

// ImageOptions say how images are opened and read.
type ImageOptions struct {
	// Salvage stores zeros for what cannot be read of the images, and records it as
	// lost; else that fails. Only of an archive.
	Salvage   bool
	NoLock    bool          // do not take QEMU's image locks; recorded in the manifest
	AllowDirs []string      // folders, besides each image's own, for backing and data files
	LockWait  time.Duration // how long to wait for another holder of an image's locks
	MaxLock   time.Duration // the longest time the images may stay locked; 0: no limit
	RateLimit int64         // bytes of guest data read per second; 0: no limit
	// Limiter, if any, is what several runs share instead: see [NewLimiter].
	Limiter *rate.Limiter

	TrustRawData bool // only QEMU writes to raw data files: their images' bitmaps are examined
}

// NewLimiter limits how many bytes of guest data are read per second, by all runs that share it.
func NewLimiter(bytes int64) *rate.Limiter {
	// A burst of one cell, which is the largest read.
	return rate.NewLimiter(rate.Limit(bytes), archive.GridSize)
}

// StoreOptions say how objects are written.
type StoreOptions struct {
	Level    archive.Level
	NoVerify bool   // do not decode each frame again before it counts
	TempDir  string // for maps that are too large for memory; empty: [spool.TempDir]
	// Known, KnownLimit and IndexEvery are archive.WriterOptions'.
	Known      string
	KnownLimit int64
	IndexEvery int64
}

func (o StoreOptions) writer(repo *chain.Repository) (archive.WriterOptions, error) {
	own, err := repo.Indexing()
	return archive.WriterOptions{Level: o.Level, SkipVerify: o.NoVerify, TempDir: o.TempDir, Memory: repo.Memory, Indexing: own,
		Known: o.Known, KnownLimit: o.KnownLimit, IndexEvery: o.IndexEvery}, err
}

// DiskRequest names one disk of the domain and how it is to be backed up.
type DiskRequest struct {
	Disk   string       // name in the domain, as "vda"
	Path   string       // of the active image
	Format qcow2.Format // never probed
	// KeyFile holds the passphrase of an encrypted image, see [foreign.Options].
	KeyFile string
	Mode    Mode   // empty: the request's
	Since   string // checkpoint to be incremental from; empty: the request's
	// Bitmap is one in the image to be incremental from, be it a checkpoint's or not, in a
	// push or a pull; empty: the request's, if the disk says nothing else.
	Bitmap string

	TrustRawData *bool         // nil: as the request
	NoCheckpoint bool          // add no bitmap to this disk
	AllowDirs    []string      // folders, besides the request's, for its backing and data files
	Over         []qcow2.Named // what lies below the image, topmost first, whatever it says itself; none: what it says
	// Open opens an image of a format that no other package reads, for [qcow2.OpenOptions].
	Open    func(path string, format qcow2.Format) (qcow2.Foreign, error)
	Defined *DefinedChain // what the domain's definition says lies below the image; nil: nothing
	NoLink  bool          // others may write where it is: it is refused if it has become a link
}

// check refuses what makes no sense, whatever the disks are.
func (req *Request) check() error {
	if err := chain.CheckDomain(req.Domain); err != nil {
		return usage.Wrap(err)
	}
	if req.Checkpoint != "" {
		if err := chain.CheckName(req.Checkpoint); err != nil {
			return usage.Errorf("checkpoint: %w", err)
		}
	}
	if _, err := chain.Tags(req.Tags); err != nil {
		return usage.Wrap(err)
	}
	if err := req.checkClone(); err != nil {
		return err
	}
	if req.Import != nil && (!req.NoCheckpoint || req.SkipUnchanged || req.Audit || req.Since != "") {
		return usage.Errorf("what is imported gets no bitmap, and none of it is asked")
	}
	if len(req.Disks) == 0 {
		return usage.Errorf("no disk is named: give --disk TARGET=PATH,format=qcow2|raw")
	}
	if req.LibvirtNames && req.NoCheckpoint {
		return usage.Errorf("--libvirt-names says what bitmaps are called, and --no-checkpoint adds none")
	}
	if req.Bitmap != "" && (req.Mode == Full || req.Since != "") {
		return usage.Errorf("--bitmap excludes --incremental and a full backup")
	}
	if req.Mode == Full && req.Since != "" {
		return usage.Errorf("a full backup is not incremental since %s: --mode full and --incremental exclude each other", req.Since)
	}
	if req.Audit && req.Salvage {
		return usage.Errorf("what cannot be read cannot be compared with what a bitmap says: --audit and --salvage exclude each other")
	}
	if req.Audit && req.Mode == Full {
		return usage.Errorf("a full backup asks no bitmap, so that there is nothing to audit: --mode auto or incremental")
	}
	return nil
}

// complete takes from the request what the disk does not say itself.
func (r *DiskRequest) complete(req *Request) {
	if r.Mode == "" {
		r.Mode = req.Mode
	}
	if r.Mode != Full && r.Since == "" && r.Bitmap == "" {
		r.Since, r.Bitmap = req.Since, req.Bitmap
	}
	if r.Mode != Full && (r.Since != "" || r.Bitmap != "") {
		r.Mode = Incremental // to name a checkpoint is to ask for one
	}
}

func (r *DiskRequest) check() error {
	if r.Path == "" {
		return errors.New("no path")
	}
	if r.Format != qcow2.Raw && r.Format != qcow2.Qcow2 && !slices.Contains(foreign.Formats(), r.Format) && r.Open == nil {
		return errors.New("the format must be given as format=raw or format=qcow2; it is never guessed, since a guest can write any header into its disk")
	}
	if r.Mode == Full && r.Since != "" {
		return fmt.Errorf("a full backup is not incremental since %s", r.Since)
	}
	if r.Bitmap != "" && (r.Since != "" || r.Mode == Full) {
		return fmt.Errorf("bitmap %s, beside a full backup or a checkpoint to be incremental since", r.Bitmap)
	}
	if r.Since != "" {
		if err := chain.CheckName(r.Since); err != nil {
			return fmt.Errorf("incremental: %w", err)
		}
	}
	return nil
}
