// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// FileTarget says where one of a checkpoint's files goes.
type FileTarget struct {
	File    *chain.File
	More    []*chain.File // the parts that follow File's content
	Path    string
	Folders []string // are made where they are missing, in this order
	// Adjust changes the content, which is at most [chain.MaxDomainXML] bytes, on
	// its way; nil: it stays as it is.
	Adjust func(content []byte) ([]byte, error)
}

// FileResult is one restored file.
type FileResult struct {
	Role     string `json:"role"`
	Name     string `json:"name,omitempty"` // of one that a person has named
	Path     string `json:"path"`
	Size     int64  `json:"size"` // bytes
	Adjusted bool   `json:"adjusted,omitempty"`
	Damage   string `json:"damage,omitempty"` // why it was left out
}

// Called is as that of [chain.File].
func (r *FileResult) Called() string { return (&chain.File{Role: r.Role, Name: r.Name}).Called() }

// FilesIn makes targets in a folder for all files of a checkpoint, as those of a domain
// of that name: DOMAIN.xml, the firmware's files under their own names, if these name
// nothing else there, the state of a TPM in DOMAIN.tpm, a saved memory as DOMAIN.save, and
// files that a person has named under these names, or behind DOMAIN.file. where these are
// taken. A manifest is not trusted to name files.
func FilesIn(m *chain.Manifest, domain, dir string, disks []Target) []FileTarget {
	taken := make(map[string]bool)
	for _, t := range disks {
		taken[filepath.Base(t.Path)] = true
	}
	for _, suffix := range []string{".xml", ".tpm", ".save", "." + chain.RoleNVRAM, "." + chain.RoleLoader, "." + chain.RoleLima, "." + chain.RolePVE} {
		taken[domain+suffix] = true
	}
	named := namesOf(m, domain, taken)
	var all []FileTarget
	saved := -1 // where in all the saved memory is
	for i := range m.Files {
		f := &m.Files[i]
		switch f.Role {
		case chain.RoleTPM:
			all = append(all, stateTarget(f, filepath.Join(dir, domain+".tpm")))
			continue
		case chain.RoleManagedSave:
			if saved >= 0 {
				all[saved].More = append(all[saved].More, f)
				continue
			}
			saved = len(all)
			all = append(all, FileTarget{File: f, Path: filepath.Join(dir, domain+".save")})
			continue
		}
		name := domain + ".xml"
		if f.Role == chain.RoleFile {
			name = named[f.Name]
		} else if f.Role != chain.RoleDomainXML {
			if name = filepath.Base(f.Path); chain.CheckName(name) != nil || taken[name] {
				name = domain + "." + f.Role
			}
		}
		taken[name] = true
		all = append(all, FileTarget{File: f, Path: filepath.Join(dir, name)})
	}
	return all
}

// namesOf finds a place for each file that a person has named, and takes it.
func namesOf(m *chain.Manifest, domain string, taken map[string]bool) map[string]string {
	at := make(map[string]string)
	for i := range m.Files {
		f := &m.Files[i]
		if f.Role != chain.RoleFile {
			continue
		}
		name := f.Name
		for taken[name] {
			name = domain + ".file." + name
		}
		at[f.Name], taken[name] = name, true
	}
	return at
}

// stateTarget places a file of a TPM's state into the folder that is that state.
func stateTarget(f *chain.File, folder string) FileTarget {
	t := FileTarget{File: f, Path: filepath.Join(folder, filepath.FromSlash(f.Name))}
	for at := filepath.Dir(t.Path); len(at) >= len(folder); at = filepath.Dir(at) {
		t.Folders = append(t.Folders, at)
	}
	slices.Reverse(t.Folders)
	return t
}

// parts are what the file's content is made of, one after the other.
func (t *FileTarget) parts() []*chain.File { return append([]*chain.File{t.File}, t.More...) }

// size is the content's, bytes.
func (t *FileTarget) size() (n int64) {
	for _, f := range t.parts() {
		n += f.Size
	}
	return n
}

// fileJob is one file on its way.
type fileJob struct {
	target  FileTarget
	place   *outfile.Place
	content []byte // nil: not changed on its way
	out     *outfile.Output
	damage  string // why it is left out; empty: it is not
}

// leaveOut gives up a file that is damaged in the repository.
func (j *fileJob) leaveOut(damage error) error {
	j.damage = damage.Error()
	if j.out == nil {
		return nil
	}
	out := j.out
	j.out = nil
	return out.Discard()
}

// claimFiles checks the files' targets.
func (r *restoring) claimFiles(places *outfile.Places) error {
	for _, t := range r.o.Files {
		what := "the " + t.File.Called()
		if t.File.Role == chain.RoleTPM {
			what += "'s " + t.File.Name
		}
		if err := r.checkState(t); err != nil {
			return err
		}
		at, err := places.Add(what, outfile.Wanted{Path: t.Path, Format: qcow2.Raw})
		if err == nil && at.Device {
			err = usage.Errorf("%s is a block device", at.Path)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", t.File.Called(), err)
		}
		r.files = append(r.files, &fileJob{target: t, place: at})
	}
	return nil
}

// checkState refuses to put a file into a folder that has others beside: a TPM's state
// is all that lies in its folder.
func (r *restoring) checkState(t FileTarget) error {
	if len(t.Folders) == 0 {
		return nil
	}
	return filepath.WalkDir(t.Folders[0], func(path string, e fs.DirEntry, err error) error {
		ours := func(other FileTarget) bool {
			return path == other.Path || slices.Contains(other.Folders, path) && e.IsDir()
		}
		if err != nil || slices.ContainsFunc(r.o.Files, ours) {
			return err
		}
		return usage.Errorf("%s: there is %s already, which is not of the state that is restored: remove %s first", t.File.Role, path, t.Folders[0])
	})
}

// do writes a file and makes it durable. What it opens is to be discarded, even
// after an error.
func (j *fileJob) do(ctx context.Context, kernel *outfile.System, repo *chain.Repository, o Options) error {
	f := j.target.File
	size := j.target.size()
	if j.target.Adjust != nil {
		var content bytes.Buffer
		if err := archive.CopyFile(ctx, repo.Store, f.FileRef, &content); err != nil {
			return err
		}
		var err error
		if j.content, err = j.target.Adjust(content.Bytes()); err != nil {
			return fmt.Errorf("%s: %w", f.Called(), err)
		}
		size = int64(len(j.content))
	}
	out, err := outfile.Open(ctx, kernel, j.place, outfile.Spec{Size: size, NoLock: o.NoLock})
	if err != nil {
		return fmt.Errorf("%s: %w", f.Called(), err)
	}
	j.out = out
	if j.content != nil {
		err = out.Write(j.content, 0)
	} else {
		err = j.copy(ctx, repo)
	}
	if err == nil {
		err = out.Finish()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Called(), err)
	}
	if !o.Verify && !o.Sums {
		return nil
	}
	return j.verify()
}

// copy writes the content as it is.
func (j *fileJob) copy(ctx context.Context, repo *chain.Repository) error {
	to := &outputWriter{out: j.out}
	for _, f := range j.target.parts() {
		if err := archive.CopyFile(ctx, repo.Store, f.FileRef, to); err != nil {
			return err
		}
	}
	return nil
}

// verify reads what was written and compares.
func (j *fileJob) verify() error {
	if j.content != nil {
		return j.verifyRange(0, int64(len(j.content)), archive.Sum(j.content))
	}
	var at int64
	for _, f := range j.target.parts() {
		if err := j.verifyRange(at, f.Size, f.SHA256); err != nil {
			return err
		}
		at += f.Size
	}
	return nil
}

func (j *fileJob) verifyRange(start, size int64, want archive.Digest) error {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(j.out.File(), start, size)); err != nil {
		return fmt.Errorf("%s: read it back: %w", j.target.File.Called(), err)
	}
	if archive.Digest(h.Sum(nil)) != want {
		return &VerifyError{Disk: j.target.File.Called(), Path: j.place.Path, Start: start, End: start + size, What: "it has another SHA-256"}
	}
	return nil
}

// outputWriter writes one piece after the other.
type outputWriter struct {
	out *outfile.Output
	at  int64
}

func (w *outputWriter) Write(p []byte) (int, error) {
	if err := w.out.Write(p, w.at); err != nil {
		return 0, err
	}
	w.at += int64(len(p))
	return len(p), nil
}

func (j *fileJob) result() FileResult {
	r := FileResult{Role: j.target.File.Role, Path: j.place.Path, Size: j.target.size(), Damage: j.damage}
	if j.target.File.Role == chain.RoleFile {
		r.Name = j.target.File.Name
	}
	if j.content != nil {
		r.Size, r.Adjusted = int64(len(j.content)), true
	}
	return r
}
