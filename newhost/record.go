// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/recovery"
	"github.com/imgbackup/imgbackup/restore"
)

const (
	// recordName is no name that a file of a checkpoint can have.
	recordName    = ".imgbackup-restored.json"
	recordFormat  = "imgbackup-restored"
	recordVersion = 1
	maxRecord     = 64 << 20 // bytes that are read
)

// Record is what a domain's folder holds, as the run wrote it down that made it.
type Record struct {
	Format       string    `json:"format"`
	Version      int       `json:"version"`
	Tool         string    `json:"tool,omitempty"`
	RepositoryID string    `json:"repository_id"`
	Domain       string    `json:"domain"`
	Checkpoint   string    `json:"checkpoint"`
	UUID         string    `json:"uuid"`
	Autostart    bool      `json:"autostart,omitempty"`
	Defined      bool      `json:"defined,omitempty"` // it was handed over to libvirt
	Created      time.Time `json:"created"`           // the checkpoint
	Restored     time.Time `json:"restored"`          // by this host's clock
	// Result has the files' paths.
	Result restore.Result `json:"result"`
	Files  []Stamp        `json:"files"`
}

// Stamp is a file as it was when it was written.
type Stamp struct {
	Name     string `json:"name"` // relative to the folder
	Size     int64  `json:"size"` // bytes
	Modified int64  `json:"modified_ns"`
	Inode    uint64 `json:"inode"`
}

// stamp looks at a file.
func stamp(folder, name string) (s Stamp, err error) {
	fi, err := os.Lstat(filepath.Join(folder, name))
	if err != nil {
		return s, err
	}
	if !fi.Mode().IsRegular() {
		return s, fmt.Errorf("%s is no file", filepath.Join(folder, name))
	}
	s = Stamp{Name: name, Size: fi.Size(), Modified: fi.ModTime().UnixNano()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		s.Inode = st.Ino
	}
	return s, nil
}

// record writes down what was restored, which lies in dir now.
func (d *Domain) record(h *Host, dir string, res *restore.Result) error {
	m := d.Manifest
	r := &Record{
		Format: recordFormat, Version: recordVersion, Tool: h.req.Tool, RepositoryID: h.repo.Config.ID,
		Domain: d.Name, Checkpoint: m.Checkpoint, UUID: m.UUID, Autostart: m.Autostart, Created: m.Created, Restored: time.Now().UTC(),
	}
	take := func(path *string) error {
		s, err := stamp(dir, strings.TrimPrefix(*path, dir+"/"))
		r.Files = append(r.Files, s)
		*path = d.finally(dir, *path)
		return err
	}
	for i := range res.Disks {
		if err := take(&res.Disks[i].Path); err != nil {
			return err
		}
	}
	for i := range res.Files {
		if res.Files[i].Damage != "" {
			res.Files[i].Path = d.finally(dir, res.Files[i].Path)
			continue
		}
		if err := take(&res.Files[i].Path); err != nil {
			return err
		}
	}
	r.Result = *res
	d.Record = r
	return r.write(dir)
}

// write writes the record into a folder.
func (r *Record) write(dir string) error {
	return sys.WriteWhole(filepath.Join(dir, recordName), recordName+"-", 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", " ")
		return e.Encode(r)
	})
}

// readRecord reads the record in a folder. The error is fs.ErrNotExist if it has none.
func readRecord(folder string) (*Record, error) {
	var r Record
	if err := (recovery.Kind{Format: recordFormat, Version: recordVersion, Most: maxRecord, Of: "a restored domain"}).Read(filepath.Join(folder, recordName), &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// remove is what a person may do about what is in the way.
const remove = "move it away, or choose another --dir"

// look finds out what stands under the domain's name. known are the uuids of its checkpoints.
func (h *Host) look(ctx context.Context, d *Domain, known map[string]bool) {
	fi, err := os.Lstat(d.Folder)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		d.inTheWay("%v", err)
		return
	case !fi.IsDir():
		d.inTheWay("%s is there already, and is no folder: %s", d.Folder, remove)
		return
	}
	r, err := readRecord(d.Folder)
	if h.req.Recover && errors.Is(err, fs.ErrNotExist) {
		h.lookRecovery(ctx, d)
		return
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.inTheWay("%s is there already, and was not restored by this command: %s", d.Folder, remove)
	case err != nil:
		d.inTheWay("%s is there already: %v: %s", d.Folder, err, remove)
	case r.Domain != d.Name:
		d.inTheWay("%s is there already, and holds %s: %s", d.Folder, r.Domain, remove)
	case r.RepositoryID != h.repo.Config.ID && !known[r.UUID]:
		d.inTheWay("%s is there already, and was restored from another repository: %s", d.Folder, remove)
	case h.ofAnother(d, r.Checkpoint, r.UUID):
	default:
		h.stands(d, r)
	}
}

// ofAnother reports whether what stands is of another checkpoint than that of the instant that is asked for; then it is in
// the way.
func (h *Host) ofAnother(d *Domain, checkpoint, uuid string) bool {
	switch {
	case h.req.Before.IsZero():
		return false
	case d.Manifest != nil && d.Manifest.UUID != uuid:
		d.inTheWay("%s is there already, at checkpoint %s, and %s is asked for: %s", d.Folder, checkpoint, d.Manifest.Checkpoint, remove)
	case d.Manifest == nil && d.State == Skipped:
		d.inTheWay("%s is there already, at checkpoint %s, and %v: %s", d.Folder, checkpoint, errNotYet, remove)
	default:
		return false // or nobody knows
	}
	return true
}

// stands takes a domain for restored whose record says so, as far as its files are there.
func (h *Host) stands(d *Domain, r *Record) {
	for _, was := range r.Files {
		if !filepath.IsLocal(was.Name) {
			d.inTheWay("the record in %s names %q, which is not in it", d.Folder, was.Name)
			return
		}
		is, err := stamp(d.Folder, was.Name)
		switch {
		case err != nil:
			d.inTheWay("%s was restored, and is not whole any more: %v: move it away, so that it is restored again", d.Folder, err)
			return
		case is != was:
			d.Changed = append(d.Changed, was.Name)
		}
	}
	d.State, d.Err, d.Why, d.Record = Stands, nil, "", r
}
