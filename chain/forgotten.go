// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// ForgottenFormat is the value of a forgotten list's field "format".
const ForgottenFormat = "imgbackup-forgotten"

// Forgotten is what a domain's forgotten checkpoints left behind for others: which
// bitmaps in its images are ours, how small its disks have been, and what was seen of
// the bitmaps of checkpoints that stay. Its key is domains/DOMAIN/forgotten.json.
//
// It is written before a manifest is removed, and it may name checkpoints that still
// stand. Without it every checkpoint restores; a backup knows less.
type Forgotten struct {
	Head
	RepositoryID string                `json:"repository_id"`
	Domain       string                `json:"domain"`
	Checkpoints  []ForgottenCheckpoint `json:"checkpoints"` // by sequence, then uuid
}

// ForgottenCheckpoint is a checkpoint that was forgotten.
type ForgottenCheckpoint struct {
	Checkpoint string          `json:"checkpoint"`
	UUID       string          `json:"uuid"`
	Sequence   int64           `json:"sequence"`
	Kind       string          `json:"kind"`
	Disks      []ForgottenDisk `json:"disks"`
}

// ForgottenDisk is a disk of a checkpoint that was forgotten.
type ForgottenDisk struct {
	Name        string `json:"target"`
	RenamedFrom string `json:"renamed_from,omitempty"`
	Bitmap      string `json:"bitmap,omitempty"` // the one that was added
	// LibvirtBitmap is as that of [Disk].
	LibvirtBitmap string         `json:"libvirt_bitmap,omitempty"`
	Size          int64          `json:"virtual_size"`
	Below         int            `json:"below,omitempty"` // images below the active one
	Witnesses     []BitmapRecord `json:"witnesses,omitempty"`
	RecordsLost   bool           `json:"records_lost,omitempty"` // as that of [Disk]
}

// maxForgotten bounds the checkpoints of a list.
const maxForgotten = 1 << 16

// DomainPrefix is what the keys of all that belongs to a domain begin with.
func DomainPrefix(domain string) string { return domainsPrefix + EncodeDomain(domain) + "/" }

func forgottenKey(domain string) string { return DomainPrefix(domain) + forgottenName }

// Forgotten reads what a domain's forgotten checkpoints left; nothing, if none was. The
// error is an archive.DamageError, a NewerError, or the store's.
func (r *Repository) Forgotten(ctx context.Context, domain string) (*Forgotten, error) {
	f, _, err := r.readForgotten(ctx, domain)
	return f, err
}

// readForgotten also returns the bytes that stand there; nil: none do.
func (r *Repository) readForgotten(ctx context.Context, domain string) (*Forgotten, []byte, error) {
	key := forgottenKey(domain)
	data, err := readSealed(ctx, r.Store, key)
	if errors.Is(err, objstore.ErrNotFound) {
		return &Forgotten{Head: Head{Format: ForgottenFormat, Version: 1}, RepositoryID: r.Config.ID, Domain: domain}, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("what forgotten checkpoints of domain %s left: %w", domain, err)
	}
	f, err := parseAs(r, data, key, ForgottenFormat, func(f *Forgotten, _ Author) error {
		if f.RepositoryID != r.Config.ID || f.Domain != domain {
			return fmt.Errorf("it is that of domain %s of repository %s", f.Domain, f.RepositoryID)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return f, data, nil
}

// Past is what a repository holds of a domain, and what its forgotten checkpoints left.
type Past struct {
	History
	Left    *Forgotten
	LeftErr error // why that can't be read: an archive.DamageError; Left is empty then
	Intents int   // how many runs have not ended, or have left something behind
}

// Past reads all of it, in one go: what a checkpoint knew that was forgotten meanwhile is in
// one of them.
func (r *Repository) Past(ctx context.Context, domain string) (p Past, err error) {
	p.Left = &Forgotten{Domain: domain}
	g, gctx := errgroup.WithContext(ctx)
	manifests := func(yield func(listed, error) bool) {
		for l, err := range r.eachListed(gctx, DomainPrefix(domain), KeyManifest, KeyForgotten, KeyIntent) {
			switch {
			case err == nil && l.Kind == KeyIntent:
				p.Intents++
			case err == nil && l.Kind == KeyForgotten:
				g.Go(func() error { return p.readLeft(gctx, r, domain) })
			case !yield(l, err):
				return
			}
		}
	}
	g.Go(func() (err error) {
		p.History, err = r.historyOf(gctx, manifests)
		return err
	})
	err = g.Wait()
	if err == nil && p.vanished {
		err = p.readLeft(ctx, r, domain)
	}
	return p, err
}

func (p *Past) readLeft(ctx context.Context, r *Repository, domain string) error {
	left, err := r.Forgotten(ctx, domain)
	p.Left, p.LeftErr = left, nil
	if archive.IsDamage(err) {
		p.Left, p.LeftErr, err = &Forgotten{Domain: domain}, err, nil
	}
	return err
}

// AllForgotten yields the lists of all domains. Who keeps what they name must have read
// the manifests before: what one names is in the list before it is removed. The error is
// that of one list, which is damaged or too new, or the store's, which is the last.
func (r *Repository) AllForgotten(ctx context.Context) iter.Seq2[*Forgotten, error] {
	return func(yield func(*Forgotten, error) bool) {
		keys, err := r.list(ctx, domainsPrefix, KeyForgotten)
		if err != nil {
			yield(nil, err)
			return
		}
		for part := range slices.Chunk(keys, forgottenAtOnce) {
			lists, errs := make([]*Forgotten, len(part)), make([]error, len(part))
			var reading sync.WaitGroup
			for i, k := range part {
				reading.Go(func() { lists[i], errs[i] = r.Forgotten(ctx, k.Domain) })
			}
			reading.Wait()
			for i := range part {
				if !yield(lists[i], errs[i]) || errs[i] != nil && !unusable(errs[i]) {
					return
				}
			}
		}
	}
}

// forgottenAtOnce is how many lists are read at once: a far store answers each as late as all.
const forgottenAtOnce = 32

// References yields the objects that the list names: what was seen of bitmaps.
func (f *Forgotten) References() iter.Seq[Reference] {
	return func(yield func(Reference) bool) {
		for _, m := range f.Manifests() {
			for ref := range m.References() {
				if !yield(ref) {
					return
				}
			}
		}
	}
}

// Key is where the list is stored.
func (f *Forgotten) Key() string { return forgottenKey(f.Domain) }

// Manifests are the forgotten checkpoints as far as they are known, the oldest first:
// what others may still have to ask of them, and none of their data.
func (f *Forgotten) Manifests() []*Manifest {
	var all []*Manifest
	for i := range f.Checkpoints {
		c := &f.Checkpoints[i]
		m := &Manifest{Kind: c.Kind, Domain: f.Domain, Checkpoint: c.Checkpoint, UUID: c.UUID, Sequence: c.Sequence}
		for _, d := range c.Disks {
			m.Disks = append(m.Disks, Disk{
				Name: d.Name, RenamedFrom: d.RenamedFrom, Bitmap: d.Bitmap, LibvirtBitmap: d.LibvirtBitmap, Size: d.Size,
				Backing: make([]Layer, d.Below), Witnesses: d.Witnesses, RecordsLost: d.RecordsLost,
			})
		}
		all = append(all, m)
	}
	return all
}

// Validate says what is wrong with a list, or nil.
func (f *Forgotten) Validate() error {
	var c checker
	c.nilErr("head", f.CheckHead(ForgottenFormat))
	c.nilErr("repository_id", validUUID(f.RepositoryID))
	c.nilErr("domain", CheckDomain(f.Domain))
	c.that(len(f.Checkpoints) <= maxForgotten, "%d checkpoints", len(f.Checkpoints))
	for i := range f.Checkpoints {
		c.in(fmt.Sprintf("checkpoint %d", i), func(c *checker) { f.Checkpoints[i].validate(c) })
		if i > 0 && c.err == nil {
			c.that(byAge(f.Checkpoints[i-1], f.Checkpoints[i]) < 0, "checkpoint %d is out of order", i)
		}
	}
	if c.err != nil {
		return fmt.Errorf("invalid list of forgotten checkpoints: %w", c.err)
	}
	return nil
}

func (p *ForgottenCheckpoint) validate(c *checker) {
	c.nilErr("checkpoint", CheckName(p.Checkpoint))
	c.nilErr("uuid", validUUID(p.UUID))
	c.that(p.Sequence >= 1 && p.Sequence < maxSequence, "sequence is %d", p.Sequence)
	c.oneOf("kind", p.Kind, KindArchive, KindCheckpoint)
	c.that(len(p.Disks) <= maxDisks, "%d disks", len(p.Disks))
	for i := range p.Disks {
		d := &p.Disks[i]
		c.nilErr("target", CheckName(d.Name))
		if d.RenamedFrom != "" {
			c.nilErr("renamed_from", CheckName(d.RenamedFrom))
		}
		c.that(len(d.Bitmap) <= 1023, "the bitmap's name has %d bytes", len(d.Bitmap))
		c.that(d.LibvirtBitmap == "" || d.LibvirtBitmap == p.Checkpoint, "libvirt's bitmap is named %.80q", d.LibvirtBitmap)
		c.atLeast("virtual_size", d.Size, 0)
		c.that(d.Below >= 0 && d.Below <= maxLayers, "%d images below", d.Below)
		c.that(len(d.Witnesses) <= maxWitnesses, "%d witnesses", len(d.Witnesses))
		for j := range d.Witnesses {
			d.Witnesses[j].validate(c, d.Below)
		}
	}
}

func (f *Forgotten) mapTexts(m func(string) (string, error)) (*Forgotten, error) {
	out := *f
	out.Checkpoints = slices.Clone(f.Checkpoints)
	var texts []*string
	for i := range out.Checkpoints {
		p := &out.Checkpoints[i]
		p.Disks = slices.Clone(p.Disks)
		for j := range p.Disks {
			d := &p.Disks[j]
			d.Witnesses = slices.Clone(d.Witnesses)
			for k := range d.Witnesses {
				texts = append(texts, &d.Witnesses[k].LayerPath)
			}
		}
	}
	return &out, mapAll(texts, m)
}
