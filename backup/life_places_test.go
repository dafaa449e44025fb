// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// placeEvents: writes that allocate, past a bitmap; times that somebody sets.
func placeEvents() []*event {
	return []*event{
		{name: "bitmap cleared after a write that allocates", weight: 3, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			return l.allocates(d, func(name string, write func() bool) bool {
				return write() && l.bitmap(d, "--clear", name)
			})
		}},
		{name: "bitmap made anew after a write that allocates", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			return l.allocates(d, func(name string, write func() bool) bool {
				return write() && l.bitmap(d, "--remove", name) && l.bitmap(d, "--add", name)
			})
		}},
		{name: "nothing", weight: 6, keeps: true, do: func(*life, *lifeDisk) bool { return true }},
		{name: "written to, and its time set back", weight: 5, keeps: true, do: func(l *life, d *lifeDisk) bool {
			info, err := os.Stat(d.path)
			if err != nil {
				l.t.Fatal(err)
			}
			done := l.writeSome(d.path, d.format, 1, false)
			l.note("touch -d %v %s", info.ModTime(), d.path)
			if err := os.Chtimes(d.path, time.Time{}, info.ModTime()); err != nil {
				l.t.Fatal(err)
			}
			return done
		}},
		{name: "touched", weight: 2, keeps: true, do: func(l *life, d *lifeDisk) bool {
			l.note("touch %s", d.path)
			return os.Chtimes(d.path, time.Time{}, time.Now()) == nil
		}},
		{name: "written anew with its bitmaps", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			to := l.newFile("qcow2")
			if l.try("qemu-img", "convert", "--bitmaps", "-f", "qcow2", "-O", "qcow2", d.path, to) != nil {
				return false
			}
			d.path, d.cluster = to, 64<<10
			return true
		}},
	}
}

// allocates makes the disk a place without data, archives that, and lets lie deal with a write
// there.
func (l *life) allocates(d *lifeDisk, lie func(bitmap string, write func() bool) bool) bool {
	at := l.rng.Int64N(max(1, l.size(d)/d.cluster)) * d.cluster
	n := min(d.cluster, l.size(d)-at) >> 9 << 9
	if n == 0 || !l.qemuIO(d.path, d.format, fmt.Sprintf("write -z -u %d %d", at, n)) {
		return false
	}
	l.backup()
	return l.onNewest(d, func(name string) bool {
		d.tampered[name] = true
		return lie(name, func() bool {
			return l.qemuIO(d.path, d.format, fmt.Sprintf("write -P %d %d %d", 1+l.rng.IntN(255), at, n))
		})
	})
}

// place is where a part of a disk lies, as qemu-img map tells it.
type place struct {
	Start  int64  `json:"start"`
	Length int64  `json:"length"`
	Depth  int    `json:"depth"`
	Zero   bool   `json:"zero"`
	Data   bool   `json:"data"`
	Offset *int64 `json:"offset"`
}

// placesOf asks where a disk lies; nil: nobody can tell.
func (l *life) placesOf(d *lifeDisk) []place {
	if d.format != "qcow2" {
		return nil
	}
	out, err := exec.Command("qemu-img", "map", "-f", "qcow2", "--output=json", d.path).Output()
	var all []place
	if err != nil || json.Unmarshal(out, &all) != nil {
		return nil
	}
	return all
}

// lies is what a place says of a byte: an offset in the active image's file, or a kind.
func lies(all []place, at int64) (what string, allocated bool) {
	i, ok := slices.BinarySearchFunc(all, at, func(p place, at int64) int {
		switch {
		case p.Start+p.Length <= at:
			return -1
		case p.Start > at:
			return 1
		}
		return 0
	})
	if !ok || all[i].Depth > 0 {
		return "nowhere", false
	}
	switch p := all[i]; {
	case p.Offset != nil:
		return fmt.Sprint("at ", *p.Offset+at-p.Start), true
	case p.Data:
		return "compressed", false
	}
	return "zero", false
}

// moved returns a byte of the ranges that a write has put elsewhere in the image since a
// checkpoint, so that any bitmap that misses it should have been convicted; -1: there is none, or
// the image is another since, by a restore or a snapshot.
func (a *attempt) moved(d *lifeDisk, base *chain.Manifest, then *chain.Disk, c *qcow2.Image, diff []bitmapstore.Run) int64 {
	l := a.l
	i := slices.IndexFunc(l.points, func(p *point) bool { return p.manifest.UUID == base.UUID })
	if i < 0 || len(c.Layers) != 1+len(then.Backing) || c.Layers[len(c.Layers)-1].Header == nil ||
		c.Layers[len(c.Layers)-1].Header.Origin() == then.Bitmap || then.ClusterMap == nil {
		return -1
	}
	was, is := l.points[i].places[d.target], a.places[d.target]
	if was == nil || is == nil {
		return -1
	}
	for _, run := range diff {
		for at := run.Start; at < min(run.End, then.Size, c.Size()); at += 512 {
			now, allocated := lies(is, at)
			if before, _ := lies(was, at); allocated && before != now {
				return at
			}
		}
	}
	return -1
}
