// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
)

// accidentEvents: killed programs, broken flags, older copies.
func accidentEvents() []*event {
	return []*event{
		{name: "qemu-io killed", weight: 4, do: killQemuIO},
		{name: "qemu-nbd killed", weight: 2, do: killQemuNBD},
		{name: "qemu-io killed with lazy refcounts", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			l.try("qemu-img", "amend", "-f", "qcow2", "-o", "lazy_refcounts=on", d.path)
			return killQemuIO(l, d)
		}},
		{name: "autoclear bit cleared", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			return l.headerBit(d, 95, 1, false)
		}},
		{name: "image marked corrupt", weight: 1, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			ok := l.headerBit(d, 79, 2, true)
			d.sound = false
			if ok {
				l.backup()
				l.headerBit(d, 79, 2, false)
			}
			return ok
		}},
		{name: "image cut short", weight: 2, qcow2: true, do: cutShort},
		{name: "copy taken", weight: 4, keeps: true, do: func(l *life, d *lifeDisk) bool {
			l.takeCopy(d)
			return true
		}},
		{name: "older copy put back", weight: 5, do: func(l *life, d *lifeDisk) bool {
			if len(d.copies) == 0 {
				l.takeCopy(d)
				l.writeSome(d.path, d.format, 2, false)
				l.backup()
			}
			l.putBack(d)
			return true
		}},
		{name: "copy of a checkpoint put back after another", weight: 3, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			l.backup()
			l.takeCopy(d)
			for range 1 + l.rng.IntN(3) {
				l.writeSome(d.path, d.format, 2, false)
				l.backup()
			}
			d.copies = d.copies[len(d.copies)-1:]
			l.putBack(d)
			return true
		}},
		{name: "image of another disk put in its place", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			for _, other := range l.disks {
				if other != d && other.format == "qcow2" && d.format == "qcow2" {
					if l.rng.IntN(2) == 0 {
						l.backup()
					}
					l.copyFile(other.path, d.path)
					d.cluster = other.cluster
					d.mixed, other.mixed = true, true
					for name := range other.tampered {
						d.tampered[name] = true
					}
					return true
				}
			}
			return false
		}},
		{name: "disks exchanged", weight: 1, do: func(l *life, d *lifeDisk) bool {
			if len(l.disks) < 2 {
				return false
			}
			a, b := l.disks[0], l.disks[1]
			// Whoever calls the backup mixes up the names.
			a.path, b.path = b.path, a.path
			a.format, b.format = b.format, a.format
			a.cluster, b.cluster = b.cluster, a.cluster
			a.tampered, b.tampered = b.tampered, a.tampered
			a.copies, b.copies = b.copies, a.copies
			a.sound, b.sound = false, false
			a.mixed, b.mixed = true, true
			return true
		}},
	}
}

// repositoryEvents: checkpoints restored to go on from, and forgotten.
func repositoryEvents() []*event {
	return []*event{
		{name: "restored to go on from the newest checkpoint", weight: 3, renews: true, do: func(l *life, d *lifeDisk) bool {
			return l.goOnFrom(d, len(l.points)-1)
		}},
		{name: "restored to go on from a checkpoint", weight: 4, renews: true, do: func(l *life, d *lifeDisk) bool {
			return l.goOnFrom(d, l.rng.IntN(max(1, len(l.points))))
		}},
		{name: "restored without its bitmap", weight: 2, do: func(l *life, d *lifeDisk) bool {
			p, ok := l.pointOf(d, l.rng.IntN(max(1, len(l.points))))
			if !ok {
				return false
			}
			format := []string{"raw", "qcow2"}[l.rng.IntN(2)]
			path := l.newFile(format)
			l.note("restore %s of %s to %s", d.target, p.name, path)
			l.restoreTo(p.manifest, []restore.Target{{Disk: d.in(p.manifest).Name, Path: path, Format: qcow2.Format(format)}}, restore.Options{})
			rec := d.in(p.manifest)
			d.path, d.format, d.cluster = path, format, clusterOf(rec)
			return true
		}},
		{name: "checkpoint forgotten and its name used again", weight: 2, do: func(l *life, d *lifeDisk) bool {
			if len(l.points) == 0 {
				return false
			}
			i := len(l.points) - 1
			if l.rng.IntN(3) == 0 {
				i = l.rng.IntN(len(l.points))
			}
			name := l.points[i].name
			l.forget(name)
			for _, d := range l.disks {
				d.sound = false
			}
			l.writeSome(d.path, d.format, 2, false)
			a := l.prepare()
			a.req.Checkpoint = name
			a.run()
			return true
		}},
		{name: "checkpoint forgotten", weight: 2, do: func(l *life, d *lifeDisk) bool {
			if len(l.points) < 2 {
				return false
			}
			p := l.points[l.rng.IntN(len(l.points))]
			for _, d := range l.disks {
				// Only what the next backup would build on is missed.
				names, rec := l.oursIn(d), d.in(p.manifest)
				if rec == nil || len(names) > 0 && names[len(names)-1] != rec.Bitmap {
					continue
				}
				d.sound = false
			}
			l.forget(p.name)
			return true
		}},
		{name: "checkpoint's name taken", weight: 1, keeps: true, do: func(l *life, d *lifeDisk) bool {
			names := l.checkpoints()
			if len(names) == 0 {
				return false
			}
			a := l.prepare()
			a.look()
			a.req.Checkpoint = names[l.rng.IntN(len(names))]
			if _, err := backup.Run(context.Background(), l.writer, a.req, backup.Hooks{}); err == nil {
				l.t.Errorf("checkpoint %s was made twice", a.req.Checkpoint)
			}
			a.undone(l.clones) // it may have settled what an earlier one left
			a.nothingLeft()
			return true
		}},
	}
}

// killQemuIO lets qemu-io write, and kills it. What was in its caches may leave
// an image that QEMU itself cannot read; then the image from before is put back.
func killQemuIO(l *life, d *lifeDisk) bool {
	before, err := os.ReadFile(d.path)
	if err != nil {
		l.t.Fatal(err)
	}
	done := killWriter(l, d, l.guestWrites(l.virtualSize(d.path, d.format), 3, false))
	if l.try("qemu-img", "convert", "-f", d.format, "-O", "raw", d.path, l.newFile("try")) != nil {
		l.count.add("accident: QEMU cannot read what its killed program left")
		l.writeFile(d.path, before)
		return false
	}
	return done
}

func killWriter(l *life, d *lifeDisk, commands []string) bool {
	cmd := exec.Command("qemu-io", "-f", d.format, d.path)
	in, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	reader := bufio.NewReader(out)
	prompt := func() bool {
		_, err := reader.ReadString('>')
		return err == nil
	}
	alive := prompt()
	for _, c := range commands {
		l.note("  qemu-io> %s", c)
		if _, err := io.WriteString(in, c+"\n"); err != nil || !alive {
			break
		}
		alive = prompt()
	}
	if l.rng.IntN(2) == 0 && alive {
		io.WriteString(in, "flush\n")
		prompt()
	}
	l.kill(cmd)
	return alive
}

// killQemuNBD kills a qemu-nbd that serves the image, and that nobody uses.
func killQemuNBD(l *life, d *lifeDisk) bool {
	// The path of a socket may not be long.
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		l.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := dir + "/s"
	cmd := exec.Command("qemu-nbd", "-f", d.format, "-k", socket, d.path)
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range 5000 {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			break
		}
		<-tick.C
	}
	l.kill(cmd)
	return true
}

// headerBit sets or clears a bit of the image's header.
func (l *life) headerBit(d *lifeDisk, at int64, bit byte, set bool) bool {
	l.t.Helper()
	f, err := os.OpenFile(d.path, os.O_RDWR, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	var head [104]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		l.t.Fatal(err)
	}
	if head[7] < 3 {
		return false
	}
	was := head[at]
	if set {
		head[at] |= bit
	} else {
		head[at] &^= bit
	}
	if _, err := f.WriteAt(head[at:at+1], at); err != nil {
		l.t.Fatal(err)
	}
	l.note("header byte %d: %#x, was %#x", at, head[at], was)
	return head[at] != was
}

// cutShort makes a backup of an image whose end is missing, and gives it its
// end back. What was cut off is damage, unless nothing refers to it: the backup
// fails, or is right.
func cutShort(l *life, d *lifeDisk) bool {
	data, err := os.ReadFile(d.path)
	if err != nil {
		l.t.Fatal(err)
	}
	a := l.prepare()
	a.look()
	size := int64(len(data)) * int64(40+l.rng.IntN(60)) / 100
	l.note("truncate -s %d %s", size, d.path)
	if err := os.Truncate(d.path, size); err != nil {
		l.t.Fatal(err)
	}
	// QEMU tolerates that the last cluster of data is not whole, and so do we:
	// its rest reads as zeros.
	cut := l.newFile("cut")
	readable := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", d.path, cut).Run() == nil
	result, err := backup.Run(context.Background(), l.writer, a.req, backup.Hooks{})
	l.note("backup of the cut image: %v", err)
	if err != nil {
		l.count.add("backup: failed since the image was cut short")
		if n := len(l.checkpoints()); n != a.points {
			l.t.Errorf("backup of a cut image failed, and there are %d checkpoints instead of %d", n, a.points)
		}
	} else {
		l.count.add("backup: came through although the image was cut short")
		p := &point{name: result.Manifest.Checkpoint, manifest: result.Manifest, want: a.want}
		for _, other := range a.disks {
			rec, _ := result.Manifest.Disk(other.target)
			if other == d && readable && testkit.Sum(l.t, cut) != testkit.Sum(l.t, a.want[d.target]) && rec.Detection != string(backup.ByBitmap) {
				a.want[d.target] = cut
				l.count.add("backup: took a cut image for what QEMU takes it for")
			}
			a.restoreNow(other, rec, p)
		}
		l.points = append(l.points, p)
	}
	a.nothingLeft()
	l.writeFile(d.path, data)
	for _, d := range l.disks {
		d.sound = false
	}
	return true
}

func (l *life) takeCopy(d *lifeDisk) {
	l.t.Helper()
	data, err := os.ReadFile(d.path)
	if err != nil {
		l.t.Fatal(err)
	}
	l.note("(copy of %s taken)", d.path)
	d.copies = append(d.copies, imageCopy{path: d.path, format: d.format, data: data, cluster: d.cluster})
}

// putBack puts an older copy of the image back: over the file, or as a new one.
func (l *life) putBack(d *lifeDisk) {
	l.t.Helper()
	c := d.copies[l.rng.IntN(len(d.copies))]
	d.path, d.format, d.cluster, d.sound = c.path, c.format, c.cluster, false
	if l.rng.IntN(2) == 0 {
		to := l.newFile("back")
		l.writeFile(to, c.data)
		l.note("mv %s %s", to, d.path)
		if err := os.Rename(to, d.path); err != nil {
			l.t.Fatal(err)
		}
		return
	}
	l.writeFile(d.path, c.data)
}

// pointOf returns a checkpoint that holds the disk.
func (l *life) pointOf(d *lifeDisk, i int) (*point, bool) {
	if i < 0 || i >= len(l.points) {
		return nil, false
	}
	p := l.points[i]
	return p, d.in(p.manifest) != nil
}

// clusterOf is the cluster size of a disk restored to qcow2.
func clusterOf(rec *chain.Disk) int64 {
	if rec.ClusterSize == 0 {
		return 64 << 10
	}
	return rec.ClusterSize
}

// goOnFrom replaces the disk by a restored one that carries its checkpoint's
// bitmap. The next backup must be incremental from that checkpoint.
func (l *life) goOnFrom(d *lifeDisk, i int) bool {
	p, ok := l.pointOf(d, i)
	if !ok {
		return false
	}
	rec := d.in(p.manifest)
	if rec.Bitmap == "" {
		return false
	}
	path := l.newFile("qcow2")
	if d.format == "qcow2" && l.rng.IntN(2) == 0 && !d.mixed {
		path = d.path
	}
	l.note("restore %s of %s to %s, to go on", d.target, p.name, path)
	l.restoreTo(p.manifest, []restore.Target{{Disk: rec.Name, Path: path, Format: qcow2.Qcow2}}, restore.Options{Continue: true, Force: true})
	d.path, d.format, d.cluster = path, "qcow2", clusterOf(rec)
	l.writeSome(d.path, d.format, 1+l.rng.IntN(3), false)
	// A restored image has no internal snapshots, and one that lost those that
	// its checkpoint had may have been converted from a snapshot.
	d.sound, d.shrunk = len(rec.Snapshots) == 0, false
	d.flattened = len(rec.Backing) > 0
	return true
}
