// SPDX-License-Identifier: Apache-2.0

package recovery

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
	"github.com/imgbackup/imgbackup/restore"
	"github.com/imgbackup/imgbackup/virsh"
)

// Request says how a domain is recovered.
type Request struct {
	Dir         string // where its files go: absolute, without links, in a folder that exists
	Name        string // empty: as it was
	NewIdentity bool   // another UUID, other MAC addresses, and what goes with them
	// Libvirt is where it is defined; nil: nowhere, and whoever likes runs QEMU with what is served.
	Libvirt *virsh.Connection
	TPMs    string // where Libvirt has the state of TPMs; empty: nobody knows
	NoStart bool   // it is not started
	// IgnoreSpace goes on where there seems to be no room for all of the disks.
	IgnoreSpace bool
	Limit       *rate.Limiter // of what is copied, bytes of data; nil: none
	Cache       int64         // of what is read for the guest, bytes; 0: as view likes
	Server      nbd.ServerOptions

	Note     func(msg string)                     // what a person should know; not nil
	Tell     func(Event)                          // what has come about; not nil
	Progress func(disk string, done, total int64) // of the copy, bytes; not nil
	Step     func(name string)                    // for tests; may be nil
}

// The events of a recovery.
const (
	EventServing   = "serving"   // a disk, at Path (a socket)
	EventDefined   = "defined"   // libvirt has the domain, with disks that are served
	EventRunning   = "running"   // the domain runs
	EventFilled    = "filled"    // a disk: all of it is in Path
	EventComplete  = "complete"  // all of them; the definition names them, for the next start
	EventRecovered = "recovered" // the end: nothing is served any more
)

// Event is something that has come about.
type Event struct {
	Kind string
	Disk string // of some; else empty
	Path string
}

// Recovery is a domain on its way.
type Recovery struct {
	repo    *chain.Repository
	m       *chain.Manifest
	req     Request
	dir     *os.File // locked where there are locks
	record  Record
	targets []restore.Target
	made    bool   // the folder was missing
	noted   string // last, of what may pass
}

// Open looks at all that a recovery needs: see the package documentation. The error is a
// [qemu.InUseError] if another run is at work in the folder.
func Open(ctx context.Context, repo *chain.Repository, m *chain.Manifest, req Request) (_ *Recovery, err error) {
	r := &Recovery{repo: repo, m: m, req: req}
	if err := objstore.CheckOutside(repo.Store, req.Dir); err != nil {
		return nil, err
	}
	// QEMU has no detour for long paths, as our server has.
	if socket := r.socket(); len(socket) >= len(unix.RawSockaddrUnix{}.Path) {
		return nil, usage.Errorf("--dir %s: QEMU cannot connect to a socket in it, whose path would have more than %d bytes: choose a shorter one",
			req.Dir, len(unix.RawSockaddrUnix{}.Path)-1)
	}
	if _, ok := m.File(chain.RoleDomainXML); !ok && req.Libvirt != nil {
		return nil, fmt.Errorf("checkpoint %s holds no definition of the domain, as it was made without --domain-xml: "+
			"it can only be served and copied, for a QEMU that you start (--no-define)", m.Checkpoint)
	}
	if r.targets, err = restore.TargetsIn(m, nil, req.Dir, qcow2.Raw); err != nil {
		return nil, err
	}
	if err := r.openDir(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = r.Close() // only locked
		}
	}()
	was, err := ReadRecord(req.Dir)
	switch {
	case err == nil:
		return r, r.resume(was)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return r, r.checkNew(ctx)
}

// Close lets go of the folder, which is removed if it was made and nothing is in it.
func (r *Recovery) Close() error {
	if r.made {
		_ = os.Remove(r.req.Dir) // it may not be empty
	}
	return r.dir.Close()
}

// openDir opens the folder, and makes it if it is missing.
func (r *Recovery) openDir() (err error) {
	// QEMU, which may run as another user, needs to get to what is in it by name.
	switch err := os.Mkdir(r.req.Dir, 0o711); {
	case err == nil:
		r.made = true
		if err := r.folders().SyncPath(filepath.Dir(r.req.Dir)); err != nil {
			return errors.Join(err, os.Remove(r.req.Dir))
		}
	case !errors.Is(err, fs.ErrExist):
		return fmt.Errorf("make the folder: %w", err)
	}
	if r.dir, err = os.OpenFile(r.req.Dir, os.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	err = sys.TryLock(r.dir)
	switch {
	case errors.Is(err, sys.ErrLocked):
		err = &qemu.InUseError{Path: r.req.Dir, Why: "another run recovers a domain there"}
	case errors.Is(err, sys.ErrNoLocks):
		err = nil
	}
	if err != nil {
		return errors.Join(err, r.Close())
	}
	return nil
}

// resume takes a recovery up that an earlier run has begun.
func (r *Recovery) resume(was *Record) error {
	switch {
	case was.RepositoryID != r.repo.Config.ID || was.Domain != r.m.Domain || was.UUID != r.m.UUID:
		return fmt.Errorf("%s holds the recovery of %s at checkpoint %s (%s), and not that of %s at %s: choose another folder",
			r.req.Dir, was.Domain, was.Checkpoint, was.UUID, r.m.Domain, r.m.Checkpoint)
	case r.req.Name != "" && was.Name != r.req.Name || was.NewIdentity != r.req.NewIdentity:
		return usage.Errorf("%s holds a recovery that was begun with another name or identity: give the same --name and --new-identity as then", r.req.Dir)
	case was.NoDefine && r.req.Libvirt != nil:
		// It never looked whether libvirt has the domain, which would be replaced.
		return usage.Errorf("%s holds a recovery that was begun with --no-define, and libvirt was not looked at: give --no-define again, and define the domain by %s when it is complete",
			r.req.Dir, filepath.Join(r.req.Dir, was.Name+".xml"))
	case !was.NoDefine && r.req.Libvirt == nil:
		return usage.Errorf("%s holds a recovery whose domain libvirt has, or may have: it goes on without --no-define", r.req.Dir)
	}
	if r.req.Libvirt != nil && was.Connect != "" && was.Connect != r.req.Libvirt.At() {
		return usage.Errorf("%s holds a recovery whose domain is in the libvirt at %s: give --connect %s, as then", r.req.Dir, was.Connect, was.Connect)
	}
	if r.req.Name == "" && was.Name != r.m.Domain {
		r.req.Name = was.Name // it was begun so
	}
	r.record = *was
	if r.req.Libvirt != nil {
		r.record.Connect = r.req.Libvirt.At()
	}
	return nil
}

// checkNew sees that nothing is in the way of a recovery that begins.
func (r *Recovery) checkNew(ctx context.Context) error {
	r.record = Record{Format: recordFormat, Version: recordVersion, RepositoryID: r.repo.Config.ID, Domain: r.m.Domain,
		Checkpoint: r.m.Checkpoint, UUID: r.m.UUID, Name: cmp.Or(r.req.Name, r.m.Domain), NewIdentity: r.req.NewIdentity, NoDefine: r.req.Libvirt == nil}
	if r.req.Libvirt != nil {
		r.record.Connect = r.req.Libvirt.At()
	}
	taken := make(map[string]bool)
	for _, path := range r.paths() {
		if taken[path] {
			return fmt.Errorf("the checkpoint has a file that would be %s, which a recovery makes and removes: restore it instead", path)
		}
		taken[path] = true
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there already, and is not of a recovery by this command: choose another folder", path)
		}
	}
	amounts, err := restore.Prove(ctx, r.repo, r.m, r.targets, restore.Options{})
	if err != nil {
		return err
	}
	if free, err := sys.FreeSpace(r.dir); err == nil && free < amounts.Data {
		why := fmt.Sprintf("%s has %d bytes free, and up to %d are needed", r.req.Dir, free, amounts.Data)
		if !r.req.IgnoreSpace {
			return fmt.Errorf("%s (--ignore-space begins all the same)", why)
		}
		r.req.Note(why)
	}
	if r.req.Libvirt == nil {
		return nil
	}
	f, _ := r.m.File(chain.RoleDomainXML)
	var text bytes.Buffer
	if err := archive.CopyFile(ctx, r.repo.Store, f.FileRef, &text); err != nil {
		return fmt.Errorf("its definition: %w", err)
	}
	a, err := dom.Adjust(text.Bytes(), dom.Moved{Name: r.req.Name, NewIdentity: r.req.NewIdentity})
	if err != nil {
		return err
	}
	if a.UUID == "" {
		return errors.New("its definition has no UUID by which libvirt would know the domain again: recover it by --no-define, or restore it")
	}
	d, err := dom.Parse(a.XML)
	if err != nil {
		return err
	}
	t := TPMOf(d, r.m, r.req.TPMs)
	if t.UUID == "" && len(stateNames(r.m)) > 0 && !d.OwnTPM() && !r.req.NoStart {
		return errors.New("the checkpoint has the state of a TPM, which this run cannot put where libvirt looks for it: run it as root with --connect qemu:///system," +
			" or give --no-start (with --all: --start none), put the state there, and start the domain")
	}
	if err := t.Check(r.m); err != nil {
		return err
	}
	return r.checkFree(ctx, a.Name, a.UUID)
}

// checkFree sees that libvirt has no domain of that name or UUID.
func (r *Recovery) checkFree(ctx context.Context, name, uuid string) error {
	all, err := r.req.Libvirt.Domains(ctx)
	if err != nil {
		return err
	}
	for _, d := range all {
		if d.Name == name || d.UUID == uuid {
			does := "has"
			if d.Active {
				does = "runs"
			}
			return fmt.Errorf("libvirt %s a domain %s (UUID %s), which is not touched: --name and --new-identity bring it back beside that one", does, d.Name, d.UUID)
		}
	}
	return nil
}

// The files of a recovery beside the disks.
func (r *Recovery) socketDir() string  { return filepath.Join(r.req.Dir, "nbd") }
func (r *Recovery) socket() string     { return filepath.Join(r.socketDir(), "sock") }
func (r *Recovery) definition() string { return filepath.Join(r.req.Dir, r.record.Name+".xml") }
func (r *Recovery) served() string     { return filepath.Join(r.req.Dir, r.record.Name+".nbd.xml") }
func (r *Recovery) changed() string    { return filepath.Join(r.req.Dir, r.record.Name+".changed.xml") }

// paths are all that is made in the folder.
func (r *Recovery) paths() []string {
	all := []string{r.socketDir(), r.served(), r.changed()}
	for _, t := range r.targets {
		all = append(all, t.Path, t.Path+".map")
	}
	for _, f := range r.files() {
		all = append(all, f.Path)
	}
	return all
}

// files are the checkpoint's own beside the disks, but a saved memory, which is of other devices.
func (r *Recovery) files() (all []restore.FileTarget) {
	for _, f := range restore.FilesIn(r.m, r.record.Name, r.req.Dir, r.targets) {
		if f.File.Role != chain.RoleManagedSave {
			all = append(all, f)
		}
	}
	return all
}

func (r *Recovery) folders() *sys.FolderSyncer { return &sys.FolderSyncer{Note: r.req.Note} }

func (r *Recovery) step(name string) {
	if r.req.Step != nil {
		r.req.Step(name)
	}
}
