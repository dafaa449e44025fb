// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/habit"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
	"github.com/imgbackup/imgbackup/objstore/open"
)

// history gives each of so many domains a checkpoint a day: manifests as backups write
// them, of which all else that they name is missing. So it is good for what reads
// manifests alone.
func history(place, domains, checkpoints string) error {
	n, nerr := strconv.Atoi(domains)
	days, derr := strconv.Atoi(checkpoints)
	if err := errors.Join(nerr, derr); err != nil {
		return err
	}
	store, err := openQuick(place)
	if err != nil {
		return err
	}
	ctx := context.Background()
	repo, err := chain.Open(ctx, store)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			h := past{repo: repo, domain: fmt.Sprintf("vm%03d", i), random: rand.New(rand.NewPCG(uint64(i), 0))}
			h.begin = time.Now().UTC().Truncate(time.Hour).AddDate(0, 0, -days)
			for day := range days {
				if err := h.live(ctx, day); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// openQuick opens a store that need not be durable.
func openQuick(place string) (objstore.Store, error) {
	if strings.Contains(place, "://") {
		return open.Open(place, open.Options{})
	}
	return local.Open(place, local.Options{Sync: func(*os.File) error { return nil }})
}

// past is the life of a domain with one disk.
type past struct {
	repo   *chain.Repository
	domain string
	random *rand.Rand
	begin  time.Time
	habit  habit.Habit
	last   *chain.Manifest
}

const pastSize = 100 << 30 // of the disk

// live adds the checkpoint of a day.
func (p *past) live(ctx context.Context, day int) error {
	m := &chain.Manifest{
		Head: chain.Head{Format: chain.ManifestFormat, Version: chain.ManifestVersion}, Kind: chain.KindArchive, RepositoryID: p.repo.Config.ID,
		Domain: p.domain, Host: chain.Host{Name: "bench", ID: strings.Repeat("5", 64)}, Checkpoint: fmt.Sprintf("day-%04d", day),
		UUID: chain.NewUUID(), Revision: 1, Sequence: int64(day + 1), Created: p.begin.AddDate(0, 0, day), Tool: "imgbackup",
		Locking: chain.LockingQEMU, Requested: chain.ModeAuto,
	}
	m.Follow(p.last)
	m.Disks = []chain.Disk{p.disk(m)}
	data, err := chain.Seal(m)
	if err != nil {
		return err
	}
	found := m.Disks[0].Found(m.Created)
	p.habit, p.last = p.habit.After(found), m
	return p.repo.Store.Put(ctx, chain.ManifestKey(m.Domain, m.Checkpoint), bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Create})
}

// disk is the disk as an incremental found it, or the first full.
func (p *past) disk(m *chain.Manifest) chain.Disk {
	habit := p.habit
	d := chain.Disk{
		Name: "vda", Size: pastSize, ClusterSize: 64 << 10, Granularity: 64 << 10, Bitmap: chain.BitmapName(m.Checkpoint, m.UUID),
		Source:    chain.Source{Path: "/var/lib/libvirt/images/" + p.domain + ".qcow2", Format: "qcow2", Inode: 4711, Size: pastSize, Mtime: m.Created.UnixNano(), Ctime: m.Created.UnixNano()},
		Requested: chain.ModeAuto, Mode: chain.ModeFull, Detection: chain.DetectionNone, Habit: &habit,
		DataBytes: 40 << 30, StoredBytes: 18 << 30,
	}
	d.ClusterMap = chain.NewClusterMap(pastSize, d.ClusterSize)
	for i := range d.ClusterMap.Parts {
		d.ClusterMap.Parts[i] = p.ref()
	}
	if p.last == nil {
		d.Habit = nil
		d.Maps = []archive.MapRef{p.mapRef()}
		return d
	}
	before := p.last.Disks[0]
	changed := 50<<20 + p.random.Int64N(500<<20)
	d.Mode, d.Detection, d.ReasonCode, d.Reason = chain.ModeIncremental, chain.DetectionBitmap, "bitmap", "the bitmap of the checkpoint before shows what changed"
	d.IncrementalFrom, d.DirtyBytes, d.DataBytes, d.StoredBytes, d.ZeroBytes = p.last.Ref(), changed, changed, changed/3, changed/50
	heat := make([]byte, archive.HeatParts)
	for i := range heat {
		heat[i] = "00000000124f8a0c"[p.random.IntN(16)]
	}
	d.Heat = string(heat)
	d.Maps = append(d.Maps, p.mapRef())
	if len(before.Maps) < chain.MaxMaps-1 { // else it is a synthetic full
		d.Maps = append(d.Maps, before.Maps...)
	}
	d.Witnesses = []chain.BitmapRecord{{
		Name: before.Bitmap, Granularity: before.Granularity, Size: before.Size, DirtyBytes: changed, Enabled: true, Sound: true, Object: p.ref(),
	}}
	return d
}

// ref is a name that nothing has.
func (p *past) ref() archive.Ref {
	return archive.Ref{Name: archive.Sum([]byte(chain.NewUUID())), Length: 1 + p.random.Int64N(100_000)}
}

func (p *past) mapRef() archive.MapRef {
	r := archive.MapRef{Ref: p.ref(), DirDigest: archive.Sum([]byte(chain.NewUUID()))}
	r.DirLength = min(r.Length, 300)
	return r
}
