// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
)

func makeDomain(ctx context.Context, repo *chain.Repository, name string, drills []record.Name, o Options) (*Domain, error) {
	ms, broken, err := repo.Manifests(ctx, name)
	if err != nil {
		return nil, err
	}
	d := &Domain{Domain: name, Hosts: []string{}, Verdict: Verdict{Reasons: []Reason{}}, Drills: []Drill{}, Checkpoints: []*Checkpoint{}}
	for _, err := range broken {
		d.Verdict.add(Bad, "damage", "%v", err)
	}
	d.addDrills(drills, ms)
	return d, d.fill(ms, o)
}

// fill says all of a domain that manifests tell.
func (d *Domain) fill(ms []*chain.Manifest, o Options) error {
	d.addCheckpoints(ms, o)
	d.Growth = growthOf(d.Checkpoints, o.Now)
	if err := d.retain(o); err != nil {
		return err
	}
	d.judge(o)
	return nil
}

func (d *Domain) addDrills(names []record.Name, ms []*chain.Manifest) {
	for _, n := range names {
		drill := Drill{UUID: n.UUID, Begun: n.Begun, Verdict: string(n.Verdict), Partial: n.Partial}
		for _, m := range ms {
			if n.Of(m.UUID) {
				drill.Checkpoint = m.Checkpoint
			}
		}
		d.Drills = append(d.Drills, drill)
	}
}

func (d *Domain) addCheckpoints(ms []*chain.Manifest, o Options) {
	drilled := make(map[string]string)
	for _, drill := range d.Drills {
		if drill.tells() {
			drilled[drill.Checkpoint] = drill.Verdict // the newest is the last
		}
	}
	for _, m := range ms {
		c := viewCheckpoint(m, o)
		c.Drilled = drilled[c.Checkpoint]
		d.Checkpoints = append(d.Checkpoints, c)
		d.StoredBytes += c.StoredBytes
		if m.DomainUUID != "" {
			d.UUID = m.DomainUUID
		}
		if !slices.Contains(d.Hosts, m.Host.Name) {
			d.Hosts = append(d.Hosts, m.Host.Name)
		}
	}
	d.branch(chain.BuildTree(ms))
	if c := d.newest(); c != nil {
		d.Newest = c.Checkpoint
		d.NewestAge = int64(o.Now.Sub(c.Created) / time.Second)
		for _, disk := range c.Disks {
			d.Size += disk.Size
		}
	}
	d.Interval = usualInterval(d.Checkpoints)
}

// newest is the newest checkpoint that holds data; nil: none does. Bitmaps alone restore
// nothing.
func (d *Domain) newest() *Checkpoint {
	var doubted *Checkpoint
	for _, c := range slices.Backward(d.Checkpoints) {
		switch {
		case c.Kind != chain.KindArchive:
		case c.Doubt == "":
			return c
		case doubted == nil:
			doubted = c
		}
	}
	return doubted // whose time is not believed, but there is none other
}

func viewCheckpoint(m *chain.Manifest, o Options) *Checkpoint {
	c := &Checkpoint{
		Checkpoint: m.Checkpoint, UUID: m.UUID, Created: m.Created, Kind: m.Kind, Tags: m.Tags,
		LostBytes: m.LostBytes(), Doubt: m.Doubt(), Disks: []Disk{},
	}
	for i := range m.Disks {
		s := &m.Disks[i]
		d := Disk{
			Disk: s.Name, Size: s.Size, Mode: s.Mode, Detection: s.Detection, DataBytes: s.DataBytes,
			NewBytes: s.Found(m.Created).New, ZeroBytes: s.ZeroBytes, StoredBytes: s.StoredBytes, Heat: s.Heat,
			Unusual: m.Unusual(s, o.Unusual),
		}
		c.DataBytes, c.NewBytes, c.ZeroBytes, c.StoredBytes = c.DataBytes+d.DataBytes, c.NewBytes+d.NewBytes, c.ZeroBytes+d.ZeroBytes, c.StoredBytes+d.StoredBytes
		if s.Mode == chain.ModeIncremental {
			c.ChangeBytes += d.DataBytes + d.ZeroBytes
		}
		c.Disks = append(c.Disks, d)
	}
	return c
}

// branch gives each checkpoint the one that it follows, and a lane: that of its parent to
// the parent's newest child, and a new one to the others.
func (d *Domain) branch(t *chain.Tree) {
	byUUID := make(map[string]*Checkpoint, len(d.Checkpoints))
	for _, c := range d.Checkpoints {
		byUUID[c.UUID] = c
	}
	lanes := 0
	place := func(roots []*chain.Node, lane int) []*chain.Node {
		for i, n := range roots {
			c := byUUID[n.Manifest.UUID]
			if c.Lane = lane; lane < 0 || i < len(roots)-1 {
				c.Lane = lanes
				lanes++
			}
			if n.Parent != nil {
				c.Parent = n.Parent.Manifest.Checkpoint
			}
		}
		return roots
	}
	for todo := place(t.Roots, -1); len(todo) > 0; {
		n := todo[0]
		todo = append(todo[1:], place(n.Children, byUUID[n.Manifest.UUID].Lane)...)
	}
}

// usualInterval is the median of the last intervals between checkpoints, seconds; 0: there
// are too few.
func usualInterval(all []*Checkpoint) int64 {
	const few, last = 4, 15
	all = slices.DeleteFunc(slices.Clone(all), func(c *Checkpoint) bool { return c.Kind != chain.KindArchive })
	if all = all[max(0, len(all)-last-1):]; len(all) <= few {
		return 0
	}
	var gaps []int64
	for i := 1; i < len(all); i++ {
		gaps = append(gaps, int64(all[i].Created.Sub(all[i-1].Created)/time.Second))
	}
	slices.Sort(gaps)
	return max(gaps[len(gaps)/2], 0)
}
