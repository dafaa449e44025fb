// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
	"github.com/imgbackup/imgbackup/qcow2"
)

// life is a domain, its repository, and all that has been backed up.
type life struct {
	t            *testing.T
	seed         uint64
	rng          *rand.Rand
	dir          string
	store        objstore.Store
	locked       bool // what is in it can't be removed for good
	repo, writer *chain.Repository
	events       []*event
	count        *tally

	disks  []*lifeDisk
	points []*point
	files  int
	log    []string
	over   bool // nothing more can be expected of it
	// clones: most backups of it are of clones, for which a VM does not wait. copies is where they are made; empty: the
	// kernel makes them.
	clones bool
	copies string
}

// lifeDisk is a disk of the domain. Only the test's own doings are noted here;
// what the disk holds is always asked of qemu-img.
type lifeDisk struct {
	target  string
	path    string // of the active image
	format  string
	cluster int64

	// sound: since the last backup, which added a bitmap, nothing happened
	// that gives an incremental by bitmap a reason not to be taken.
	sound  bool
	shrunk bool // since the last backup
	mixed  bool // it stood under another disk's name once
	// flattened: restored from a checkpoint with backing files, and not backed
	// up since.
	flattened bool
	// tampered: bitmaps of ours that somebody cleared, made anew, or had
	// disabled for a while, so that they may have missed writes.
	tampered map[string]bool
	copies   []imageCopy
}

// in is the disk in a manifest, under whatever name it had then; nil if it is not
// there. A name changes but for its first letter.
func (d *lifeDisk) in(m *chain.Manifest) *chain.Disk {
	i := slices.IndexFunc(m.Disks, func(rec chain.Disk) bool { return rec.Name[1:] == d.target[1:] })
	if i < 0 {
		return nil
	}
	return &m.Disks[i]
}

// rename moves the disk to another bus. That its image is still where the newest
// checkpoint of it found it tells which disk it was.
func (l *life) rename(d *lifeDisk) bool {
	from := d.target
	if d.target = "s" + d.target[1:]; d.target == from {
		d.target = "v" + from[1:]
	}
	l.note("disk %s is %s now", from, d.target)
	for _, p := range slices.Backward(l.points) {
		if rec := d.in(p.manifest); rec != nil {
			d.sound = d.sound && rec.Source.Path == d.path
			return true
		}
	}
	return true
}

// imageCopy is the image as it was once.
type imageCopy struct {
	path, format string
	data         []byte
	cluster      int64
}

// point is a checkpoint and what it must restore to.
type point struct {
	name     string
	manifest *chain.Manifest
	want     map[string]string // by target: file with the raw content
	places   map[string][]place
}

func newLife(t *testing.T, seed uint64, events []*event, count *tally) *life {
	t.Helper()
	l := newLifeIn(t, t.TempDir(), seed, events, count)
	if seed%4 == 1 && os.Getenv("IMGBACKUP_SOAK") != "" { // else TestClonedLives has them
		l.clones, l.copies = true, t.TempDir()
		count.add("with clones")
	}
	return l
}

// newLifeIn is newLife in an empty folder, without clones.
func newLifeIn(t *testing.T, dir string, seed uint64, events []*event, count *tally) *life {
	t.Helper()
	l := &life{t: t, seed: seed, rng: newRand(seed), dir: dir, events: events, count: count}
	l.store = objstore.NewMem()
	if l.rng.IntN(4) == 0 {
		local, err := local.Create(filepath.Join(l.dir, "repository"), local.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { local.Close() })
		l.store = local
	}
	var o chain.InitOptions
	if count.minio != nil {
		l.store, o.Lock = l.bucket(count.minio)
	}
	var keys *chaintest.Keys // of every fourth life
	if seed%4 == 2 {
		keys = chaintest.NewKeys(t)
		count.add("encrypted")
	}
	o.Encrypt = keys.Options().Encrypt
	repo, err := chain.Init(context.Background(), l.store, o)
	if err != nil {
		t.Fatal(err)
	}
	l.repo, l.writer = repo, repo
	if keys != nil && seed%8 == 6 { // a host backs up, which can't read what it stores
		count.add("encrypted by a host")
		if l.writer, err = chaintest.Open(context.Background(), l.store, keys.Host); err != nil {
			t.Fatal(err)
		}
	}
	// One disk's name is the beginning of the other's.
	for _, target := range []string{"vda", "vdaa"}[:1+l.rng.IntN(2)] {
		l.addDisk(target)
	}
	return l
}

// bucket is where a life is led: of some, all of which are encrypted, a bucket, which may have object lock; of the
// others where it is anyhow.
func (l *life) bucket(minio func() *s3test.Server) (objstore.Store, *chain.ObjectLock) {
	l.t.Helper()
	var name string
	var lock *chain.ObjectLock
	switch l.seed % 16 {
	case 6: // by a host, as seed%8 == 6 is
		l.count.add("in a bucket with object lock")
		name, lock = minio().LockedBucket(), &chain.ObjectLock{Mode: objstore.Compliance.String(), Days: 1}
	case 10:
		l.count.add("in a bucket")
		name = minio().Bucket()
	default:
		return l.store, nil
	}
	l.locked = lock != nil
	store, err := s3.Open(minio().Config(name, "lives"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { store.Close() })
	return store, lock
}

func (l *life) addDisk(target string) {
	l.t.Helper()
	d := &lifeDisk{target: target, tampered: make(map[string]bool)}
	l.create(d)
	l.disks = append(l.disks, d)
}

func (l *life) note(format string, args ...any) {
	l.log = append(l.log, strings.ReplaceAll(fmt.Sprintf(format, args...), l.dir, "DIR"))
}

// newFile returns a path that was never used.
func (l *life) newFile(kind string) string {
	l.files++
	return filepath.Join(l.dir, fmt.Sprintf("f%d.%s", l.files, kind))
}

// try runs a program to its end; what it refuses is part of life.
func (l *life) try(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	line := name + " " + strings.Join(args, " ")
	if err != nil {
		line += fmt.Sprintf("   -> %v: %.300s", err, bytes.TrimSpace(out))
	}
	l.note("%s", line)
	return err
}

// must runs a program that cannot fail.
func (l *life) must(name string, args ...string) {
	l.t.Helper()
	if err := l.try(name, args...); err != nil {
		l.t.Fatalf("%s: %v", l.log[len(l.log)-1], err)
	}
}

func (l *life) copyFile(from, to string) {
	l.t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		l.t.Fatal(err)
	}
	l.writeFile(to, data)
}

func (l *life) writeFile(path string, data []byte) {
	l.t.Helper()
	l.note("(write %d bytes to %s)", len(data), path)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// rawCopy is what qemu-img reads out of the disk now.
func (l *life) rawCopy(d *lifeDisk) string {
	l.t.Helper()
	out := l.newFile("want")
	if msg, err := exec.Command("qemu-img", "convert", "-f", d.format, "-O", "raw", d.path, out).CombinedOutput(); err != nil {
		l.t.Fatalf("qemu-img cannot read %s: %v: %s", d.path, err, msg)
	}
	return out
}

// open opens the disk with the project's own reader.
func (l *life) open(d *lifeDisk) *qcow2.Image {
	l.t.Helper()
	c, err := qcow2.Open(d.path, qcow2.Format(d.format), qcow2.OpenOptions{AllowDirs: []string{l.dir, filepath.Dir(d.path)}})
	if err != nil {
		l.t.Fatalf("disk %s: %v", d.target, err)
	}
	return c
}

// size is the disk's virtual size, as its reader sees it.
func (l *life) size(d *lifeDisk) int64 {
	l.t.Helper()
	c := l.open(d)
	defer c.Close()
	return c.Size()
}

// clusterSizes that lives have, and the sizes of disks that go with them: an
// image of small clusters has many tables, and one of large ones needs some
// room for more than one.
var clusterSizes = []struct{ cluster, least, most int64 }{
	{512, 64 << 10, 1 << 20},
	{4 << 10, 512 << 10, 4 << 20},
	{64 << 10, 1 << 20, 8 << 20},
	{64 << 10, 1 << 20, 8 << 20},
	{2 << 20, 5 << 20, 16 << 20},
}

// someSize draws a virtual size; many end inside a cluster.
func (l *life) someSize(least, most int64) int64 {
	size := least + l.rng.Int64N(most-least+1)
	switch l.rng.IntN(3) {
	case 0:
		return max(size>>16<<16, 64<<10)
	case 1:
		return max(size>>12<<12, 4<<10)
	default:
		return max(size>>9<<9, 512)
	}
}

// create makes a disk's first image: raw or qcow2, with or without a backing
// file, and writes something into it.
func (l *life) create(d *lifeDisk) {
	c := clusterSizes[l.rng.IntN(len(clusterSizes))]
	d.cluster = c.cluster
	size := l.someSize(c.least, c.most)
	if l.rng.IntN(6) == 0 {
		d.path, d.format = l.newFile("raw"), "raw"
		size += l.rng.Int64N(512) * l.rng.Int64N(2) // raw files need not end with a sector
		l.writeFile(d.path, nil)
		if err := os.Truncate(d.path, size); err != nil {
			l.t.Fatal(err)
		}
	} else {
		var backing []string
		if l.rng.IntN(3) == 0 {
			backing = l.makeBacking(size)
		}
		l.createQcow2(d, size, backing)
	}
	l.writeSome(d.path, d.format, 2+l.rng.IntN(5), false)
}

// createQcow2 makes a new active image for the disk. backing is empty or the
// options that name a backing file.
func (l *life) createQcow2(d *lifeDisk, size int64, backing []string) {
	path := l.newFile("qcow2")
	options := fmt.Sprintf("cluster_size=%d", d.cluster)
	if d.cluster >= 16<<10 && l.rng.IntN(4) == 0 {
		options += ",extended_l2=on"
	}
	if l.rng.IntN(3) == 0 {
		options += ",compression_type=zstd"
	}
	if l.rng.IntN(6) == 0 {
		options += ",lazy_refcounts=on"
	}
	switch {
	case len(backing) == 0 && l.rng.IntN(12) == 0:
		options += ",data_file=" + l.newFile("data") + ",data_file_raw=" + []string{"off", "on"}[l.rng.IntN(2)]
	case len(backing) == 0 && l.rng.IntN(6) == 0:
		options += ",preallocation=" + []string{"metadata", "falloc", "full"}[l.rng.IntN(3)]
	}
	args := append([]string{"create", "-q", "-f", "qcow2", "-o", options}, backing...)
	l.must("qemu-img", append(args, path, strconv.FormatInt(size, 10))...)
	d.path, d.format = path, "qcow2"
}

// makeBacking makes a backing file with data of about the given size, and
// returns the options of qemu-img create that name it.
func (l *life) makeBacking(size int64) []string {
	size = max(64<<10, (size/2+l.rng.Int64N(size))>>9<<9)
	format := []string{"raw", "qcow2"}[l.rng.IntN(2)]
	path := l.newFile("base." + format)
	args := []string{"create", "-q", "-f", format}
	if format == "qcow2" {
		args = append(args, "-o", fmt.Sprintf("cluster_size=%d", []int64{512, 4 << 10, 64 << 10, 128 << 10}[l.rng.IntN(4)]))
		if l.rng.IntN(4) == 0 {
			args = append(args, l.makeBacking(size)...)
		}
	}
	l.must("qemu-img", append(args, path, strconv.FormatInt(size, 10))...)
	l.writeSome(path, format, 4, true)
	return []string{"-b", path, "-F", format}
}

// becomeQcow2 converts a raw disk, as users do at some time.
func (l *life) becomeQcow2(d *lifeDisk) {
	path := l.newFile("qcow2")
	if d.cluster == 0 {
		d.cluster = 64 << 10
	}
	l.must("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", fmt.Sprintf("cluster_size=%d", d.cluster), d.path, path)
	d.path, d.format, d.sound = path, "qcow2", false
}

// virtualSize asks qemu-img, for images of any kind.
func (l *life) virtualSize(path, format string) int64 {
	l.t.Helper()
	out, err := exec.Command("qemu-img", "info", "-f", format, "--output=json", path).Output()
	if err != nil {
		l.t.Fatalf("qemu-img info %s: %v", path, err)
	}
	_, after, ok := strings.Cut(string(out), `"virtual-size": `)
	digits, _, ok2 := strings.Cut(after, ",")
	size, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
	if !ok || !ok2 || err != nil {
		l.t.Fatalf("qemu-img info %s tells no size: %s", path, out)
	}
	return size
}

// guestWrites returns qemu-io commands that change size bytes at random places.
func (l *life) guestWrites(size int64, count int, dataOnly bool) []string {
	var commands []string
	for range count {
		unit := []int64{512, 4 << 10, 64 << 10}[l.rng.IntN(3)]
		if size < unit {
			unit = 512
		}
		if size < 512 {
			return nil
		}
		length := unit * (1 + l.rng.Int64N(1+min(16, size/unit/8)))
		if l.rng.IntN(8) == 0 {
			length = min(size, max(unit, size/unit/2*unit)) // now and then a large one
		}
		length = min(length, size/unit*unit)
		offset := l.rng.Int64N((size-length)/unit+1) * unit
		if l.rng.IntN(10) == 0 {
			offset = (size - length) >> 9 << 9 // the end of the disk is a place of its own
		}
		at := fmt.Sprintf("%d %d", offset, length)
		kind := l.rng.IntN(12)
		if dataOnly {
			kind = 0
		}
		switch kind {
		case 6:
			commands = append(commands, "write -z "+at)
		case 7:
			commands = append(commands, "write -z -u "+at)
		case 8, 9:
			commands = append(commands, "discard "+at)
		case 10:
			commands = append(commands, "write -P 0 "+at)
		case 11:
			commands = append(commands, "write -c -P "+strconv.Itoa(1+l.rng.IntN(255))+" "+at)
		default:
			commands = append(commands, "write -P "+strconv.Itoa(1+l.rng.IntN(255))+" "+at)
		}
	}
	return commands
}

// writeSome writes into an image as a guest would.
func (l *life) writeSome(path, format string, count int, dataOnly bool) bool {
	commands := l.guestWrites(l.virtualSize(path, format), count, dataOnly)
	if len(commands) == 0 {
		return false
	}
	return l.qemuIO(path, format, commands...)
}

func (l *life) qemuIO(path, format string, commands ...string) bool {
	args := []string{"-f", format}
	if l.rng.IntN(2) == 0 {
		args = append(args, "-d", "unmap")
	}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	// A command that fails (a compressed write that is not aligned) does no
	// harm to the others.
	err := l.try("qemu-io", append(args, path)...)
	return err == nil || len(commands) > 1
}
