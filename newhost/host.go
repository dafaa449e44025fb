// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
	"github.com/imgbackup/imgbackup/restore"
)

// Request says which domains are restored, where to, and how.
type Request struct {
	// Dir is where the domains' folders go: absolute, without links, in a folder that exists.
	Dir string
	// Before is the instant that all are taken back to; zero: each has its newest checkpoint.
	Before time.Time
	// Format is that of all disks; empty: each has its own, if that is raw or qcow2, and else
	// qcow2.
	Format qcow2.Format
	Except []string // domains that are left out
	// Options are those of each domain; Files and MakeDir are set here. Continue is of those
	// disks that can.
	Options     restore.Options
	Tool        string // what the records say that wrote them
	AtOnce      int    // how many domains are looked at, at once; at least 1
	IgnoreSpace bool   // go on where there seems to be no room for all
	// Libvirt, if any, is where [Host.Define] will define domains: what is there is looked at first.
	Libvirt Libvirt
	Connect string // where Libvirt is, in words for it
	TPMs    string // where Libvirt has the state of TPMs; empty: nobody knows
	// Recover: the domains will be recovered ([recovery.Open]) instead of being restored, and go on where they were begun.
	Recover bool
	// Step is told the steps of a domain's restore; may be nil.
	Step func(name string)
	// Note is told what a person should know of a domain, or of all; may be nil.
	Note func(domain, text string)
}

// What is not whole yet is in folders that are called so, and some letters more.
const partPrefix = ".imgbackup-restoring-"

// Host is a host on which domains are being restored.
type Host struct {
	// Domains are those of the repository but those that are left out, by name, from
	// [Host.Plan] on.
	Domains []*Domain

	repo    *chain.Repository
	req     Request
	dir     *os.File // open, and locked where there are locks
	made    bool     // it was missing
	folders sys.FolderSyncer
}

// Open takes the folder for this run, and removes what killed ones have left in it. The error is
// a [qemu.InUseError] if another run is at work there.
func Open(repo *chain.Repository, req Request) (h *Host, err error) {
	if err := objstore.CheckOutside(repo.Store, req.Dir); err != nil {
		return nil, err
	}
	h = &Host{repo: repo, req: req, folders: sys.FolderSyncer{Note: func(msg string) { req.note("", msg) }}}
	switch err := os.Mkdir(req.Dir, 0o777); {
	case err == nil:
		h.made = true
		err = h.folders.SyncPath(filepath.Dir(req.Dir))
		if err != nil {
			return nil, errors.Join(err, os.Remove(req.Dir))
		}
	case !errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("make the folder for the domains: %w", err)
	}
	if h.dir, err = os.OpenFile(req.Dir, os.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	err = sys.TryLock(h.dir)
	switch {
	case errors.Is(err, sys.ErrLocked):
		err = &qemu.InUseError{Path: req.Dir, Why: "another run restores domains there"}
	case errors.Is(err, sys.ErrNoLocks):
		err = nil
	}
	if err != nil {
		return nil, errors.Join(err, h.dir.Close())
	}
	sys.SweepWholeFolders(h.dir, partPrefix)
	return h, nil
}

// Close lets go of the folder, which is removed if it was made and nothing is in it.
func (h *Host) Close() error {
	if h.made {
		_ = os.Remove(h.req.Dir) // it may hold domains
	}
	return h.dir.Close()
}

func (r *Request) note(domain, text string) {
	if r.Note != nil {
		r.Note(domain, text)
	}
}

func (h *Host) step(name string) {
	if h.req.Step != nil {
		h.req.Step(name)
	}
}

// tryNames finds out which of the domains' names this file system takes for one another's, or not
// at all: some know no difference between large letters and small ones.
func (h *Host) tryNames(ctx context.Context) (err error) {
	p, err := sys.NewWholeFolder(h.dir, partPrefix, &h.folders)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Remove()) }()
	for _, d := range h.Domains {
		if err := ctx.Err(); err != nil {
			return err
		}
		if d.State != Waits {
			continue
		}
		switch err := sys.MkdirAt(p.File(), d.Name, 0o700); {
		case errors.Is(err, fs.ErrExist):
			d.inTheWay("the file system of %s takes its name for that of another domain: restore one of them to another --dir", h.req.Dir)
		case err != nil:
			d.inTheWay("no folder in %s can have its name: %v", h.req.Dir, err)
		}
	}
	return nil
}
