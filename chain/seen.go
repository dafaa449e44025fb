// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
)

// SeenFormat is the value of the field "format" of what was seen of a domain.
const SeenFormat = "imgbackup-seen"

// FileState is a file of an image's chain, as it was. Times are ns since 1970.
type FileState struct {
	Path   string `json:"path"`
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Size   int64  `json:"size"` // bytes
	Mtime  int64  `json:"mtime_ns"`
	Ctime  int64  `json:"ctime_ns"`
}

func (f *FileState) validate(c *checker, field string) {
	c.path(field+".path", f.Path)
	c.atLeast(field+".size", f.Size, 0)
}

// Seen says when a domain was last found to be as its newest checkpoint has it, so that no
// other was made. Its key is domains/DOMAIN/seen.json; it is replaced each time. Nothing
// needs it: without it, a domain is only read once more.
type Seen struct {
	Head
	RepositoryID string        `json:"repository_id"`
	Domain       string        `json:"domain"`
	Host         Host          `json:"host"`
	BootID       string        `json:"boot_id,omitempty"`
	Time         time.Time     `json:"seen"` // UTC
	Checkpoint   CheckpointRef `json:"checkpoint"`
	Disks        []SeenDisk    `json:"disks"`
}

// SeenDisk is a disk as it was seen.
type SeenDisk struct {
	Name string `json:"target"`
	// Files are those of the image's chain; none unless their times can show later that
	// they are the same.
	Files []FileState `json:"files,omitempty"`
}

func seenKey(domain string) string { return domainsPrefix + EncodeDomain(domain) + "/" + seenName }

const seenName = "seen.json"

// Validate says what is wrong with it, or nil.
func (s *Seen) Validate() error {
	var c checker
	c.nilErr("head", s.CheckHead(SeenFormat))
	c.nilErr("repository_id", validUUID(s.RepositoryID))
	c.nilErr("domain", CheckDomain(s.Domain))
	s.Host.validate(&c)
	c.text("boot_id", s.BootID, maxShort)
	c.time("seen", s.Time)
	s.Checkpoint.validate(&c, "checkpoint", "")
	c.that(len(s.Disks) <= maxDisks, "%d disks", len(s.Disks))
	for i := range s.Disks {
		d := &s.Disks[i]
		c.nilErr("disk", CheckName(d.Name))
		c.that(len(d.Files) <= 2*(maxLayers+1), "%d files of disk %s", len(d.Files), d.Name)
		for j := range d.Files {
			d.Files[j].validate(&c, "file")
		}
	}
	if c.err != nil {
		return fmt.Errorf("invalid: %w", c.err)
	}
	return nil
}

func (s *Seen) mapTexts(f func(string) (string, error)) (*Seen, error) {
	out := *s
	out.Disks = slices.Clone(s.Disks)
	var texts []*string
	for i := range out.Disks {
		d := &out.Disks[i]
		d.Files = slices.Clone(d.Files)
		for j := range d.Files {
			texts = append(texts, &d.Files[j].Path)
		}
	}
	return &out, mapAll(texts, f)
}

// PutSeen stores what was seen of a domain. It fills in Format, Version and RepositoryID.
func (r *Repository) PutSeen(ctx context.Context, s *Seen) error {
	s.Format, s.Version, s.RepositoryID = SeenFormat, 1, r.Config.ID
	if err := s.Validate(); err != nil {
		return err
	}
	stored, err := s.mapTexts(escapeText)
	if err != nil {
		return err
	}
	return r.replace(ctx, seenKey(s.Domain), stored)
}

// Seen reads what was seen of a domain; nil: nothing. The error is an archive.DamageError, a
// NewerError, or the store's.
func (r *Repository) Seen(ctx context.Context, domain string) (*Seen, error) {
	key := seenKey(domain)
	data, err := readSealed(ctx, r.Store, key)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("what was seen of domain %s: %w", domain, err)
	}
	return parseAs(r, data, key, SeenFormat, func(s *Seen, _ Author) error {
		if s.RepositoryID != r.Config.ID || s.Domain != domain {
			return fmt.Errorf("it is that of domain %s of repository %s", s.Domain, s.RepositoryID)
		}
		return nil
	})
}

// Files are the files of the disk's chain as they were, if their times can show later that they
// are the same.
func (d *Disk) Files() ([]FileState, bool) {
	s := &d.Source
	if s.BootID == "" {
		return nil, false
	}
	files := []FileState{{Path: s.Path, Device: s.Device, Inode: s.Inode, Size: s.Size, Mtime: s.Mtime, Ctime: s.Ctime}}
	if s.DataFile != nil {
		files = append(files, *s.DataFile)
	}
	for _, l := range d.Backing {
		files = append(files, FileState{
			Path: l.Path, Device: l.Device, Inode: l.Inode, Size: l.FileSize, Mtime: l.Mtime, Ctime: l.Ctime,
		})
	}
	return files, true
}
