// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// FileRequest is a file of the domain that is archived beside its disks. What
// comes from a path is read under the rules of raw images: under QEMU's locks, at
// the same instant as the disks, and unchanged until the commit.
type FileRequest struct {
	Role string // as chain.RoleNVRAM
	Name string // of a chain.RoleFile; else empty
	Path string // where it is, of chain.RoleTPM perhaps a folder; beside Data: where that came from, may be empty
	Data []byte // the content, if it is known; nil: to be read
	// NoLink: others may write where it is, so that it is refused if it has become a link.
	NoLink bool
}

// file is what was requested of a running backup.
type file struct {
	req    FileRequest
	opened []*openedFile // none: Data, or it does not exist
	folder *stateFolder  // of a TPM; nil: the path is a file's
	absent bool          // and that has been told
}

// called is what the file is called where it is told of.
func (r *FileRequest) called() string { return (&chain.File{Role: r.Role, Name: r.Name}).Called() }

// maxNamed bounds how many files a person may name: all are open at once.
const maxNamed = 256

// openedFile is a file that is being read.
type openedFile struct {
	name  string // within a folder, or what a person has called it
	image *qcow2.Image
	id    qcow2.FileID // when reading began
}

func (s *session) checkFiles() error {
	seen := make(map[string]bool)
	named := 0
	for _, r := range s.req.Files {
		what := r.called()
		if seen[what] {
			return usage.Errorf("two files are the %s", what)
		}
		seen[what] = true
		if r.Data == nil && r.Path == "" {
			return usage.Errorf("%s: no path", what)
		}
		if r.Role == chain.RoleFile {
			if err := chain.CheckName(r.Name); err != nil {
				return usage.Errorf("file: %w", err)
			}
			named++
		}
		s.files = append(s.files, &file{req: r})
	}
	if named > maxNamed {
		return usage.Errorf("%d files are named, and at most %d are archived beside the disks", named, maxNamed)
	}
	return nil
}

// leaveFilesUnread drops the files that would have to be read: only an archive has
// their data. What is at hand, as the definition, describes a checkpoint without data, too.
func (s *session) leaveFilesUnread() {
	s.files = slices.DeleteFunc(s.files, func(f *file) bool { return f.req.Data == nil })
}

// openFiles opens every file that has to be read, under QEMU's locks. One that
// does not exist is no error: libvirt makes the variables of a domain's firmware, and
// the state of its TPM, when it starts it for the first time. Who names a file means one that
// is there.
func (s *session) openFiles(ctx context.Context) error {
	for _, f := range s.files {
		if err := f.close(); err != nil {
			return err
		}
		if f.req.Data != nil {
			continue
		}
		if err := s.openFile(ctx, f); err != nil {
			return fmt.Errorf("%s: %w", f.req.called(), err)
		}
	}
	return nil
}

func (s *session) openFile(ctx context.Context, f *file) error {
	info, err := os.Stat(f.req.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && f.req.Role != chain.RoleFile:
		if !f.absent {
			s.hooks.note("the %s %s does not exist (yet), and is not archived", f.req.Role, f.req.Path)
		}
		f.absent = true
		return nil
	case err != nil:
		return err
	case info.IsDir() && f.req.Role == chain.RoleTPM:
		return s.openFolder(ctx, f)
	case !info.Mode().IsRegular():
		return usage.Errorf("%s: %s is no regular file", f.req.Role, f.req.Path)
	}
	name := f.req.Name
	if f.req.Role == chain.RoleTPM {
		name = info.Name()
	}
	return s.openOne(ctx, f, name, f.req.Path)
}

// openOne opens one of the files that a request stands for.
func (s *session) openOne(ctx context.Context, f *file, name, path string) error {
	image, err := s.openImage(ctx, &disk{req: DiskRequest{Path: path, Format: qcow2.Raw, NoLink: f.req.NoLink}})
	if err != nil {
		return err
	}
	o := &openedFile{name: name, image: image}
	f.opened = append(f.opened, o)
	if size := o.source().Opened().Size; f.req.Role != chain.RoleManagedSave && size > archive.MaxFile {
		return usage.Errorf("%s has %d bytes, more than %d MiB", path, size, archive.MaxFile>>20)
	}
	return o.checkSize()
}

// checkSize refuses a file whose size says nothing about its content, as those of /proc.
func (o *openedFile) checkSize() error {
	if o.source().Opened().Size > 0 {
		return nil
	}
	n, err := o.source().ReadAt(make([]byte, 1), 0)
	switch {
	case n > 0:
		return usage.Errorf("%s has content and no size, as files of the kernel's have: copy it, and name the copy", o.source().Path())
	case err != nil && !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

func (f *file) close() error {
	var errs []error
	for _, o := range f.opened {
		errs = append(errs, o.image.Close())
	}
	f.opened, f.folder = nil, nil
	return errors.Join(errs...)
}

// source is the opened file.
func (o *openedFile) source() *qcow2.File { return o.image.Layers[0].Files()[0] }

// storeFiles stores all files and returns what the manifest says of them.
func (s *session) storeFiles(ctx context.Context, w *archive.Writer) ([]chain.File, error) {
	var all []chain.File
	for _, f := range s.files {
		if f.req.Data != nil {
			ref, err := w.PutFile(ctx, bytes.NewReader(f.req.Data))
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", f.req.called(), f.req.Path, err)
			}
			all = append(all, chain.File{Role: f.req.Role, Name: f.req.Name, Path: f.req.Path, FileRef: ref})
			continue
		}
		for _, o := range f.opened {
			parts, err := o.store(ctx, w, f.req.Role)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", f.req.called(), o.source().Path(), err)
			}
			all = append(all, parts...)
		}
	}
	return all, nil
}

// store stores a file, in as many parts as it takes.
func (o *openedFile) store(ctx context.Context, w *archive.Writer, role string) ([]chain.File, error) {
	var parts []chain.File
	for offset := int64(0); offset < o.id.Size || len(parts) == 0; offset += archive.MaxFile {
		want := min(o.id.Size-offset, archive.MaxFile)
		ref, err := w.PutFile(ctx, io.NewSectionReader(o.source(), offset, want))
		if err != nil {
			return nil, err
		}
		if ref.Size != want {
			return nil, imageChanged(o.source().Path(), "it had %d bytes, and %d were read", o.id.Size, offset+ref.Size)
		}
		parts = append(parts, chain.File{Role: role, Path: o.source().Path(), Name: o.name, Offset: offset, FileRef: ref})
	}
	return parts, nil
}

// compare fails when what the request stands for is no longer what it was when reading
// began.
func (f *file) compare() error {
	for _, o := range f.opened {
		if err := o.compare(); err != nil {
			return err
		}
	}
	if f.folder == nil {
		return nil
	}
	return f.folder.compare()
}

func (o *openedFile) compare() error {
	open, err := o.source().Stat()
	if err != nil {
		return err
	}
	path, err := o.source().PathStat()
	if err != nil {
		return err
	}
	if open != o.id || path != o.id {
		return &qemu.InUseError{Path: o.source().Path(), Why: "it was written to or exchanged while it was read" + nothingCommitted}
	}
	return nil
}
