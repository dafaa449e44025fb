// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// The part of a check that reads what the repository says about its data.

func (c *check) checkConfig(ctx context.Context) error {
	config, err := readConfig(ctx, c.Store)
	if err == nil && config.ID != c.Config.ID {
		err = damaged(ConfigKey, errors.New("it is no longer the one that was opened"))
	}
	if errors.Is(err, objstore.ErrNotFound) {
		err = damaged(ConfigKey, err)
	}
	return c.sound(FindingConfig, ConfigKey, 0, err)
}

// readManifests proves the manifests and notes what they refer to.
func (c *check) readManifests(ctx context.Context) error {
	domains := c.o.Domains
	if c.all() {
		var err error
		if domains, err = c.Domains(ctx); err != nil {
			return err
		}
	}
	for _, domain := range domains {
		names, err := c.Checkpoints(ctx, domain)
		if err != nil {
			return err
		}
		if len(names) == 0 && !c.all() {
			return fmt.Errorf("there is no domain %s in the repository: %w", domain, objstore.ErrNotFound)
		}
		err = each(ctx, c, "checkpoints of "+domain, names, one, func(ctx context.Context, name string) error {
			m, err := c.Manifest(ctx, domain, name)
			if errors.Is(err, ErrNoCheckpoint) {
				return nil // forgotten since it was listed
			}
			if err == nil {
				c.refer(m)
			}
			return c.sound(FindingManifest, ManifestKey(domain, name), 0, err)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// refer notes what a manifest refers to.
func (c *check) refer(m *Manifest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Checkpoints++
	for i := range m.Disks {
		d := &m.Disks[i]
		id := int32(len(c.disks))
		c.disks = append(c.disks, diskID{domain: m.Domain, checkpoint: m.Checkpoint, disk: d.Name, size: d.Size})
		for j, ref := range d.Maps {
			addUse(c.maps, ref, usedBy{disk: id, first: j == 0, last: j == len(d.Maps)-1})
		}
		for _, w := range d.Records() {
			addUse(c.bitmaps, bitmapUse{w.Object, w.Header()}, usedBy{disk: id})
		}
	}
	for _, f := range m.Files {
		// What a file is for stands where a disk's name stands.
		addUse(c.files, f.FileRef, usedBy{disk: int32(len(c.disks))})
		c.disks = append(c.disks, diskID{domain: m.Domain, checkpoint: m.Checkpoint, disk: f.Role})
	}
}

func addUse[K comparable](uses map[K]*use, key K, by usedBy) {
	u := uses[key]
	if u == nil {
		u = &use{}
		uses[key] = u
	}
	u.by = append(u.by, by)
}

// checkMaps proves all maps, and gathers the packs that they name.
func (c *check) checkMaps(ctx context.Context) error {
	refs := slices.Collect(maps.Keys(c.maps))
	return each(ctx, c, "maps", refs, one, func(ctx context.Context, ref archive.MapRef) error {
		err := archive.VerifyMap(ctx, c.Store, ref, true)
		if err == nil {
			err = c.gatherPacks(ctx, ref)
		}
		return c.sound(FindingMap, archive.MapKey(ref.Name), ref.Length, err)
	})
}

func (c *check) gatherPacks(ctx context.Context, ref archive.MapRef) error {
	m, err := archive.OpenMap(ctx, c.Store, ref)
	if err != nil {
		return err
	}
	key := archive.MapKey(ref.Name)
	for _, by := range c.maps[ref].by {
		d := c.disks[by.disk]
		if by.last != m.Full() {
			return damaged(key, fmt.Errorf("%s needs it as a full map: %v; it is one: %v", d, by.last, m.Full()))
		}
		if m.Disk() != d.disk {
			return damaged(key, fmt.Errorf("it is of disk %.80q, not of %s", m.Disk(), d))
		}
		if by.first && m.Size() != d.size {
			return damaged(key, fmt.Errorf("it is of a disk of %d bytes, %s has %d", m.Size(), d, d.size))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range m.Packs() {
		c.packs[p] = false
	}
	return nil
}

// checkBitmaps proves all bitmaps.
func (c *check) checkBitmaps(ctx context.Context) error {
	uses := slices.Collect(maps.Keys(c.bitmaps))
	return each(ctx, c, "bitmaps", uses, one, func(ctx context.Context, b bitmapUse) error {
		_, err := archive.OpenBitmap(ctx, c.Store, b.object, b.header)
		return c.sound(FindingBitmap, archive.BitmapKey(b.object.Name), b.object.Length, err)
	})
}

// checkFiles proves all files, and their content.
func (c *check) checkFiles(ctx context.Context) error {
	refs := slices.Collect(maps.Keys(c.files))
	return each(ctx, c, "files", refs, one, func(ctx context.Context, f archive.FileRef) error {
		return c.sound(FindingFile, archive.FileKey(f.Object.Name), f.Object.Length, archive.CopyFile(ctx, c.Store, f, io.Discard))
	})
}

func (c *check) checkIntents(ctx context.Context) error {
	var ids []parsedKey
	for info, err := range c.Store.List(ctx, domainsPrefix) {
		if err != nil {
			return err
		}
		if k := parseKey(info.Key); k.kind == keyIntent && (c.all() || slices.Contains(c.o.Domains, k.domain)) {
			ids = append(ids, k)
		}
	}
	return each(ctx, c, "intents", ids, one, func(ctx context.Context, k parsedKey) error {
		in, err := c.readIntent(ctx, k.domain, k.name)
		if errors.Is(err, objstore.ErrNotFound) {
			return nil // settled since it was listed
		}
		if err == nil {
			c.note("a backup of domain %s on host %s (checkpoint %s, begun %v) has not finished: it is running, or the next one settles it",
				in.Domain, in.Host.Name, in.Checkpoint, in.Created)
		}
		return c.sound(FindingIntent, intentKey(k.domain, k.name), 0, err)
	})
}

func (c *check) checkLeases(ctx context.Context) error {
	if !c.all() {
		return nil
	}
	ids, err := c.list(ctx, leasesPrefix, keyLease)
	if err != nil {
		return err
	}
	return each(ctx, c, "leases", ids, one, func(ctx context.Context, id string) error {
		l, err := c.readLease(ctx, id)
		if errors.Is(err, objstore.ErrNotFound) {
			return nil // its writer is done
		}
		if err == nil {
			c.note("host %s has held a lease since %v (%s)", l.Host.Name, l.Started, l.Purpose)
		}
		return c.sound(FindingLease, leaseKey(id), 0, err)
	})
}
