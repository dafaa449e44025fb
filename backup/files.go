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
	Path string // where it is; beside Data: where that came from, may be empty
	Data []byte // the content, if it is known; nil: to be read
}

// file is one file of a running backup.
type file struct {
	req    FileRequest
	image  *qcow2.Image // nil: Data, or it does not exist
	id     qcow2.FileID // when reading began
	absent bool         // and that has been told
}

func (s *session) checkFiles() error {
	seen := make(map[string]bool)
	for _, r := range s.req.Files {
		if seen[r.Role] {
			return usage.Errorf("two files are the %s", r.Role)
		}
		seen[r.Role] = true
		if r.Data == nil && r.Path == "" {
			return usage.Errorf("%s: no path", r.Role)
		}
		s.files = append(s.files, &file{req: r})
	}
	return nil
}

// leaveFilesUnread drops the files that would have to be read: only an archive has
// their data. What is at hand, as the definition, describes a checkpoint without data, too.
func (s *session) leaveFilesUnread() {
	s.files = slices.DeleteFunc(s.files, func(f *file) bool { return f.req.Data == nil })
}

// openFiles opens every file that has to be read, under QEMU's locks. One that
// does not exist is no error: libvirt makes the variables of a domain's firmware
// when it starts it for the first time.
func (s *session) openFiles(ctx context.Context) error {
	for _, f := range s.files {
		if err := f.close(); err != nil {
			return err
		}
		if f.req.Data != nil {
			continue
		}
		if err := s.openFile(ctx, f); err != nil {
			return fmt.Errorf("%s: %w", f.req.Role, err)
		}
	}
	return nil
}

func (s *session) openFile(ctx context.Context, f *file) error {
	info, err := os.Stat(f.req.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if !f.absent {
			s.hooks.note("the %s %s does not exist (yet), and is not archived", f.req.Role, f.req.Path)
		}
		f.absent = true
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return usage.Errorf("%s: %s is no regular file", f.req.Role, f.req.Path)
	case info.Size() > archive.MaxFile:
		return usage.Errorf("%s: %s has %d bytes, more than %d MiB", f.req.Role, f.req.Path, info.Size(), archive.MaxFile>>20)
	}
	f.image, err = s.openImage(ctx, f.req.Path, qcow2.Raw, nil, "")
	return err
}

func (f *file) close() error {
	if f.image == nil {
		return nil
	}
	err := f.image.Close()
	f.image = nil
	return err
}

// source is the opened file.
func (f *file) source() *qcow2.File { return f.image.Layers[0].Files()[0] }

// storeFiles stores all files and returns what the manifest says of them.
func (s *session) storeFiles(ctx context.Context, w *archive.Writer) ([]chain.File, error) {
	var all []chain.File
	for _, f := range s.files {
		var content io.Reader = bytes.NewReader(f.req.Data)
		path := f.req.Path
		if f.req.Data == nil {
			if f.image == nil {
				continue
			}
			content = io.NewSectionReader(f.source(), 0, f.id.Size)
			path = f.source().Path()
		}
		ref, err := w.PutFile(ctx, content)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", f.req.Role, path, err)
		}
		if f.image != nil && ref.Size != f.id.Size {
			return nil, fmt.Errorf("%s: %w", f.req.Role, imageChanged(path, "it had %d bytes, and %d were read", f.id.Size, ref.Size))
		}
		all = append(all, chain.File{Role: f.req.Role, Path: path, FileRef: ref})
	}
	return all, nil
}

// compareFile fails when the file is no longer what it was when reading began.
func (f *file) compareFile() error {
	if f.image == nil {
		return nil
	}
	open, err := f.source().Stat()
	if err != nil {
		return err
	}
	path, err := f.source().PathStat()
	if err != nil {
		return err
	}
	if open != f.id || path != f.id {
		return &qemu.InUseError{Path: f.req.Path, Why: "it was written to or exchanged while it was read" + nothingCommitted}
	}
	return nil
}
