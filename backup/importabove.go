// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Before is a point that this process has imported, and what each disk was read from, where that
// tells for certain whether it has changed since.
type Before struct {
	uuid  string
	disks map[string]*qcow2.Stack
}

// chooseAbove leaves out what lies in files that the point before was read from by this very
// process, and that nobody has touched since: only what other files hold over them is compared.
func (s *archiver) chooseAbove(ctx context.Context, d *disk, p *DiskPlan) error {
	b := s.req.Import.Before
	if b == nil || b.disks[p.Disk] == nil || p.Detection != ByContent || p.base.Manifest.UUID != b.uuid || len(p.base.Disk.Lost) > 0 {
		return nil
	}
	above, ok := d.image.Above(ctx, b.disks[p.Disk])
	files, known := chainFiles(d.image)
	if !ok || !known || p.base.Disk.Size != p.VirtualSize {
		return nil
	}
	if tell, err := s.believesTimes(files, s.self.BootID, s.self.Host); !tell || err != nil {
		return err
	}
	above = above.Round(archive.GridSize, p.VirtualSize)
	switch same, err := s.restAgrees(ctx, d, p, above); {
	case archive.IsDamage(err):
		return nil // which is met again where all is compared
	case err != nil:
		return err
	case !same:
		s.noteLyingTimes(d, p.base)
		return nil
	}
	p.above = above
	p.Reason = fmt.Sprintf("it is imported; the change since %s is found by reading what lies over the files of that", p.Since.Name)
	return nil
}

// restAgrees compares a little of what is not to be read with the archive, all the same.
func (s *archiver) restAgrees(ctx context.Context, d *disk, p *DiskPlan, above bitmapstore.Runs) (bool, error) {
	st, err := s.states.open(ctx, p.base.Disk)
	if err != nil {
		return false, err
	}
	rest := bitmapstore.Subtract(bitmapstore.Union(st.Data(ctx, p.VirtualSize), d.image.Data(ctx)), above)
	total, err := rest.Bytes()
	if err != nil || total == 0 {
		return err == nil, err
	}
	random := rand.New(rand.NewPCG(s.states.seed, s.states.seed))
	places := make([]int64, 2*samplesOf)
	for i := range places {
		places[i] = random.Int64N(total)
	}
	slices.Sort(places)
	passed := int64(0)
	for run, err := range rest {
		if err != nil {
			return false, err
		}
		for len(places) > 0 && places[0] < passed+run.Len() {
			at := run.Start + places[0] - passed
			places = places[1:]
			all := func(bitmapstore.Run) (bool, error) { return true, nil }
			found, err := st.Compare(ctx, d.image, bitmapstore.Run{Start: at, End: min(run.End, at+sampleBytes)}, all)
			if !found.Same || err != nil {
				return false, err
			}
		}
		passed += run.Len()
	}
	return true, nil
}

// before is what a point was read from, once it stands.
func (s *session) before(m *chain.Manifest) *Before {
	b := &Before{uuid: m.UUID, disks: make(map[string]*qcow2.Stack)}
	for _, d := range s.disks {
		if d.settled == nil {
			continue // it was touched a moment before
		}
		if stack, ok := d.image.Stack(); ok {
			b.disks[d.req.Disk] = stack
		}
	}
	return b
}
