// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// imageEvents: snapshots, backing files, and what else people do to images.
func imageEvents() []*event {
	return []*event{
		{name: "internal snapshot", weight: 3, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			return l.snapshot(d) != ""
		}},
		{name: "internal snapshot deleted", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			name := l.aSnapshot(d)
			if name == "" {
				return false
			}
			l.writeSome(d.path, d.format, 2, false)
			return l.try("qemu-img", "snapshot", "-d", name, d.path) == nil
		}},
		{name: "reverted to an internal snapshot", weight: 2, qcow2: true, do: revert},
		{name: "external snapshot", weight: 6, keeps: true, do: func(l *life, d *lifeDisk) bool {
			l.overlay(d, l.size(d))
			return true
		}},
		{name: "external snapshot of another size", weight: 2, do: func(l *life, d *lifeDisk) bool {
			l.overlay(d, l.someSize(max(512, l.size(d)/2), l.size(d)*3/2+512))
			return true
		}},
		{name: "external snapshot with a bitmap made too late", weight: 3, qcow2: true, keeps: true, do: func(l *life, d *lifeDisk) bool {
			names := l.oursIn(d)
			l.overlay(d, l.size(d))
			l.writeSome(d.path, d.format, 2, false)
			if len(names) == 0 {
				return false
			}
			// The overlay now looks like the image that was backed up, on
			// another backing file.
			d.sound = d.sound && !d.flattened
			l.must("qemu-img", "bitmap", "--add", d.path, names[l.rng.IntN(len(names))])
			l.writeSome(d.path, d.format, 1, false)
			return true
		}},
		{name: "commit", weight: 3, do: func(l *life, d *lifeDisk) bool { return commit(l, d, true) }},
		{name: "commit -d", weight: 3, do: func(l *life, d *lifeDisk) bool { return commit(l, d, true, "-d") }},
		{name: "commit, and on with the overlay", weight: 2, do: func(l *life, d *lifeDisk) bool { return commit(l, d, false) }},
		{name: "rebase to another backing file", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			backing := l.makeBacking(l.size(d))
			return l.try("qemu-img", "rebase", "-f", "qcow2", "-b", backing[1], "-F", backing[3], d.path) == nil
		}},
		{name: "rebase to no backing file", weight: 3, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			l.aBacking(d)
			return l.try("qemu-img", "rebase", "-f", "qcow2", "-b", "", d.path) == nil
		}},
		{name: "rebase -u to another backing file", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			l.aBacking(d)
			backing := l.makeBacking(l.size(d))
			return l.try("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", backing[1], "-F", backing[3], d.path) == nil
		}},
		{name: "rebase -u to no backing file", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			l.aBacking(d)
			return l.try("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", d.path) == nil
		}},
		{name: "backing file written to", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			path, format := l.aBacking(d)
			return l.writeSome(path, format, 2, false)
		}},
		{name: "backing file exchanged", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			path, format := l.aBacking(d)
			other := l.newFile(format)
			l.must("qemu-img", "create", "-q", "-f", format, other, strconv.FormatInt(l.virtualSize(path, format), 10))
			l.writeSome(other, format, 4, true)
			l.note("mv %s %s", other, path)
			return os.Rename(other, path) == nil
		}},
		{name: "backing file copied in place", weight: 1, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			path, _ := l.aBacking(d)
			other := l.newFile("copy")
			l.copyFile(path, other)
			l.note("mv %s %s", other, path)
			return os.Rename(other, path) == nil
		}},
		{name: "check -r leaks", weight: 2, qcow2: true, keeps: true, do: func(l *life, d *lifeDisk) bool {
			d.sound = d.sound && !l.hasSnapshots(d) // see check -r all
			return l.try("qemu-img", "check", "-q", "-r", "leaks", "-f", "qcow2", d.path) == nil
		}},
		{name: "check -r all", weight: 2, qcow2: true, keeps: true, do: func(l *life, d *lifeDisk) bool {
			// QEMU 7.2 may drop internal snapshots on the way.
			d.sound = d.sound && !l.hasSnapshots(d)
			return l.try("qemu-img", "check", "-q", "-r", "all", "-f", "qcow2", d.path) == nil
		}},
		{name: "amend lazy_refcounts", weight: 2, qcow2: true, keeps: true, do: func(l *life, d *lifeDisk) bool {
			return l.try("qemu-img", "amend", "-f", "qcow2", "-o", "lazy_refcounts="+[]string{"on", "off"}[l.rng.IntN(2)], d.path) == nil
		}},
		{name: "amend compat", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			l.try("qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", d.path)
			d.sound = false
			if l.rng.IntN(2) == 0 {
				l.backup()
			}
			return l.try("qemu-img", "amend", "-f", "qcow2", "-o", "compat=1.1", d.path) == nil
		}},
		{name: "version 2 for good", weight: 1, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			return l.try("qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", d.path) == nil
		}},
		{name: "image moved", weight: 2, keeps: true, do: func(l *life, d *lifeDisk) bool {
			to := l.newFile(d.format)
			l.note("mv %s %s", d.path, to)
			if err := os.Rename(d.path, to); err != nil {
				l.t.Fatal(err)
			}
			d.path = to
			return true
		}},
		{name: "image copied", weight: 1, keeps: true, do: func(l *life, d *lifeDisk) bool {
			to := l.newFile(d.format)
			l.copyFile(d.path, to)
			d.path = to
			return true
		}},
		{name: "convert", weight: 2, do: func(l *life, d *lifeDisk) bool { return convert(l, d) }},
		{name: "convert --bitmaps", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool { return convert(l, d, "--bitmaps") }},
		{name: "convert -l --bitmaps", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			name := l.aSnapshot(d)
			if name == "" {
				return false
			}
			if l.rng.IntN(2) == 0 {
				l.backup()
			}
			l.writeSome(d.path, d.format, 2, false)
			return convert(l, d, "--bitmaps", "-l", name)
		}},
		{name: "raw data file written past the bitmaps", weight: 2, qcow2: true, do: rawDataFile},
		{name: "becomes raw", weight: 1, do: func(l *life, d *lifeDisk) bool {
			to := l.newFile("raw")
			l.must("qemu-img", "convert", "-f", d.format, "-O", "raw", d.path, to)
			d.path, d.format = to, "raw"
			return true
		}},
	}
}

// backingOf returns the file right below the active image, if there is one.
func (l *life) backingOf(d *lifeDisk) (path, format string) {
	l.t.Helper()
	if d.format != "qcow2" {
		return "", ""
	}
	c := l.open(d)
	defer c.Close()
	if len(c.Layers) > 1 {
		path, format = c.Layers[1].Path, string(c.Layers[1].Format)
	}
	return path, format
}

// canBeSound reports whether an incremental of the disk may rest on bitmaps at
// all: data files can be written past them.
func (l *life) canBeSound(d *lifeDisk) bool {
	l.t.Helper()
	c := l.open(d)
	defer c.Close()
	for i, layer := range c.Layers {
		if layer.DataFile != "" && (i > 0 || layer.Header.Autoclear&qcow2.AutoclearDataRaw != 0) {
			return false
		}
	}
	return true
}

// aBacking returns the disk's backing file; there is one afterwards.
func (l *life) aBacking(d *lifeDisk) (path, format string) {
	l.t.Helper()
	path, format = l.backingOf(d)
	if path == "" {
		l.overlay(d, l.size(d))
		l.backup()
		path, format = l.backingOf(d)
	}
	return path, format
}

// overlay puts a new image on top.
func (l *life) overlay(d *lifeDisk, size int64) {
	l.t.Helper()
	if c := clusterSizes[l.rng.IntN(len(clusterSizes))]; l.rng.IntN(2) == 0 && c.cluster >= 4<<10 {
		d.cluster = c.cluster
	}
	if d.cluster == 0 {
		d.cluster = 64 << 10
	}
	l.createQcow2(d, max(512, (size+511)>>9<<9), []string{"-b", d.path, "-F", d.format})
	d.sound = d.sound && l.canBeSound(d)
}

// commit writes the overlay into its backing file.
func commit(l *life, d *lifeDisk, onward bool, options ...string) bool {
	path, format := l.backingOf(d)
	if path == "" {
		l.overlay(d, l.size(d))
		l.writeSome(d.path, d.format, 2, false)
		if l.rng.IntN(2) == 0 {
			l.backup()
		}
		path, format = l.backingOf(d)
	}
	args := append([]string{"commit", "-q", "-f", "qcow2"}, options...)
	if l.try("qemu-img", append(args, d.path)...) != nil {
		return false
	}
	if onward {
		d.path, d.format = path, format
	}
	return true
}

func (l *life) snapshot(d *lifeDisk) string {
	l.files++
	d.sound = false
	name := fmt.Sprintf("snap%d", l.files)
	if l.try("qemu-img", "snapshot", "-c", name, d.path) != nil {
		return ""
	}
	return name
}

func (l *life) hasSnapshots(d *lifeDisk) bool {
	l.t.Helper()
	c := l.open(d)
	defer c.Close()
	return len(c.Layers[0].Snapshots) > 0
}

// aSnapshot returns the name of an internal snapshot of the disk.
func (l *life) aSnapshot(d *lifeDisk) string {
	l.t.Helper()
	c := l.open(d)
	defer c.Close()
	if have := c.Layers[0].Snapshots; len(have) > 0 {
		return have[l.rng.IntN(len(have))].Name
	}
	return l.snapshot(d)
}

// revert goes back to an internal snapshot, which QEMU allows only when the
// image has no bitmaps.
func revert(l *life, d *lifeDisk) bool {
	name := l.aSnapshot(d)
	if name == "" {
		return false
	}
	l.writeSome(d.path, d.format, 2, false)
	if l.try("qemu-img", "snapshot", "-a", name, d.path) == nil {
		return true
	}
	for _, b := range l.bitmapsIn(d) {
		l.try("qemu-img", "bitmap", "--remove", d.path, b)
	}
	return l.try("qemu-img", "snapshot", "-a", name, d.path) == nil
}

// convert copies the disk's content, and what else the options say, to a new
// image.
func convert(l *life, d *lifeDisk, options ...string) bool {
	to := l.newFile("qcow2")
	if d.cluster == 0 {
		d.cluster = 64 << 10
	}
	args := append([]string{"convert", "-f", d.format, "-O", "qcow2", "-o", fmt.Sprintf("cluster_size=%d", d.cluster)}, options...)
	if l.rng.IntN(3) == 0 {
		args = append(args, "-c")
	}
	if l.try("qemu-img", append(args, d.path, to)...) != nil {
		return false
	}
	d.path, d.format, d.sound = to, "qcow2", false
	return true
}

// rawDataFile moves the disk to an image with a raw data file, backs it up, and
// writes into that file with no mark in any bitmap.
func rawDataFile(l *life, d *lifeDisk) bool {
	to, data := l.newFile("qcow2"), l.newFile("data")
	if d.cluster == 0 {
		d.cluster = 64 << 10
	}
	options := fmt.Sprintf("cluster_size=%d,data_file=%s,data_file_raw=on", max(d.cluster, 4096), data)
	if l.try("qemu-img", "convert", "-f", d.format, "-O", "qcow2", "-o", options, d.path, to) != nil {
		return false
	}
	d.path, d.cluster, d.sound = to, max(d.cluster, 4096), false
	l.backup()
	return l.qemuIO(data, "raw", l.guestWrites(l.virtualSize(data, "raw"), 2, true)...)
}

// bitmapsIn names all bitmaps of the active image.
func (l *life) bitmapsIn(d *lifeDisk) []string {
	l.t.Helper()
	var names []string
	err := qcow2.WithTopLayer(d.path, func(layer *qcow2.Layer) error {
		for _, b := range layer.Bitmaps {
			names = append(names, b.Name)
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return names
}

// oursIn names those that a checkpoint added.
func (l *life) oursIn(d *lifeDisk) []string {
	l.t.Helper()
	if d.format != "qcow2" {
		return nil
	}
	named := l.namedBitmaps()
	var ours []string
	for _, name := range l.bitmapsIn(d) {
		if named[name] {
			ours = append(ours, name)
		}
	}
	return ours
}

// forget forgets a checkpoint; now and then as a person with rm does, so that nothing
// stays known of it.
func (l *life) forget(name string) {
	l.t.Helper()
	ctx := context.Background()
	if l.rng.IntN(4) == 0 && !l.locked { // there it would not be gone
		l.note("rm %s", name)
		if err := l.store.Delete(ctx, "domains/dom/checkpoints/"+name+".json"); err != nil {
			l.t.Fatal(err)
		}
	} else {
		l.note("forget %s", name)
		all, damaged, err := l.repo.Manifests(ctx, "dom")
		if err == nil && len(damaged) == 0 {
			gone := slices.DeleteFunc(slices.Clone(all), func(m *chain.Manifest) bool { return m.Checkpoint != name })
			err = chain.Forget(ctx, l.repo, all, gone, func(*chain.Manifest) { l.count.add("forgotten") })
		}
		if err != nil || len(damaged) > 0 {
			l.t.Fatal(err, damaged)
		}
	}
	for i, p := range l.points {
		if p.name == name {
			l.points = append(l.points[:i:i], l.points[i+1:]...)
			return
		}
	}
}

// kill starts a program that opens the image for writing, and kills it when it
// is at work.
func (l *life) kill(cmd *exec.Cmd) {
	l.t.Helper()
	l.note("kill -9 %v", cmd.Args)
	if err := cmd.Process.Kill(); err != nil {
		l.t.Fatal(err)
	}
	cmd.Wait() // it was killed
}
