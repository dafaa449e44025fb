// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// createCheckpoint makes a checkpoint without data and keeps what QEMU reads.
func (l *lab) createCheckpoint(name string, disks ...backup.DiskRequest) *backup.Result {
	l.t.Helper()
	for _, d := range disks {
		l.remember("vm", name, d)
	}
	result, err := backup.Record(l.t.Context(), l.repo, l.request(name, disks...), backup.Hooks{})
	if err != nil {
		l.t.Fatalf("checkpoint %s: %v", name, err)
	}
	return result
}

// covers demands that every sector that differs lies in the runs.
func (l *lab) covers(what string, runs []bitmapstore.Run, then, now []byte) {
	l.t.Helper()
	const sector = 512
	told := make([]bool, (len(now)+sector-1)/sector)
	for _, r := range runs {
		if r.End > int64(len(now)) {
			l.t.Fatalf("%s: %v is beyond the disk's %d bytes", what, r, len(now))
		}
		for at := r.Start / sector; at*sector < r.End; at++ {
			told[at] = true
		}
	}
	for i := range told {
		from := i * sector
		to := min(len(now), from+sector)
		if !told[i] && (to > len(then) || !bytes.Equal(now[from:to], then[from:to])) {
			l.t.Fatalf("%s: the change at %d is not told", what, from)
		}
	}
}

func (l *lab) oracleOf(name string) []byte {
	l.t.Helper()
	for _, o := range l.taken {
		if o.checkpoint == name {
			data, err := os.ReadFile(o.raw)
			l.must(err)
			return data
		}
	}
	l.t.Fatalf("no oracle of %s", name)
	return nil
}

// TestCheckpointLives plays random lives of a disk with checkpoints with and
// without data. Whatever is told to have changed, since any of them or between
// any two, holds every change; or nothing is told at all.
func TestCheckpointLives(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			checkpointLife(t, rand.New(rand.NewPCG(seed, 7)))
		})
	}
}

func checkpointLife(t *testing.T, random *rand.Rand) {
	l := newLab(t)
	const size = 4 << 20
	l.create("0.qcow2", fmt.Sprint(size), "-o", []string{"cluster_size=64k", "cluster_size=4k", "cluster_size=1M"}[random.IntN(3)])
	image := "0.qcow2"
	var names []string
	told, refused := 0, 0
	for step := range 14 {
		d := l.disk(image)
		name := fmt.Sprintf("k%d", step)
		event := random.IntN(13)
		if step == 0 {
			event = 0
		}
		switch event {
		case 0, 1, 2, 3:
			l.createCheckpoint(name, d)
			names = append(names, name)
		case 4, 5:
			l.backup(name, d)
			names = append(names, name)
		case 6:
			next := fmt.Sprintf("top%d.qcow2", step)
			l.overlay(next, image)
			image = next
		case 7:
			l.img("resize", "-q", "-f", "qcow2", image, "+192K")
		case 12:
			// A checkpoint sees the smaller size: without one nothing could.
			l.img("resize", "-q", "-f", "qcow2", "--shrink", image, fmt.Sprint(3<<20))
			l.createCheckpoint(name, d)
			names = append(names, name)
			l.img("resize", "-q", "-f", "qcow2", image, fmt.Sprint(size+random.IntN(2)*(1<<20)))
		case 8:
			if len(names) > 1 {
				l.deleteCheckpoint(names[random.IntN(len(names))])
			}
		default:
			l.randomWrites(image, random)
		}
		l.randomWrites(image, random)
		if step%5 != 4 {
			continue
		}
		now := filepath.Join(l.oracles, "now.raw")
		l.img("convert", "-f", "qcow2", "-O", "raw", image, now)
		data, err := os.ReadFile(now)
		l.must(err)
		for i, name := range names {
			runs, err := l.changesSince(name, l.disk(image))
			if l.toldOrRefused(err, &told, &refused) {
				l.covers("since "+name, runs, l.oracleOf(name), data)
			}
			for _, later := range names[i+1:] {
				all, err := checkpoint.ChangesBetween(t.Context(), l.repo, "vm", name, later)
				if errors.Is(err, chain.ErrNoCheckpoint) {
					continue
				}
				if !l.toldOrRefused(err, &told, &refused) {
					continue
				}
				runs, err := all[0].Runs.Collect()
				l.must(err)
				l.covers("from "+name+" to "+later, runs, l.oracleOf(name), l.oracleOf(later))
			}
		}
	}
	if told == 0 {
		t.Errorf("nothing was ever told (%d times refused)", refused)
	}
	l.img("check", "-q", image)
	l.taken = slices.DeleteFunc(l.taken, func(o oracle) bool {
		m, err := l.repo.Manifest(t.Context(), o.domain, o.checkpoint)
		return errors.Is(err, chain.ErrNoCheckpoint) || err == nil && m.Kind == chain.KindCheckpoint
	})
	l.restoreAll()
}

// toldOrRefused reports whether err is nil, and fails on what is no refusal.
func (l *lab) toldOrRefused(err error, told, refused *int) bool {
	l.t.Helper()
	var trust *backup.NotTrustedError
	switch {
	case err == nil:
		*told++
	case errors.As(err, &trust):
		*refused++
	default:
		l.t.Fatal(err)
	}
	return err == nil
}

func (l *lab) randomWrites(image string, random *rand.Rand) {
	l.t.Helper()
	var commands []string
	for range 1 + random.IntN(3) {
		at, n := random.IntN(4<<20/512)*512, (1+random.IntN(300))*512
		n = min(n, 4<<20-at)
		commands = append(commands, fmt.Sprintf([]string{"write -P %[3]d %[1]d %[2]d", "write -z -u %[1]d %[2]d", "discard %[1]d %[2]d"}[random.IntN(3)],
			at, n, 1+random.IntN(255)))
	}
	l.write(image, commands...)
}

// delete plans a deletion and carries it out.
func (l *lab) delete(req checkpoint.DeleteRequest) ([]checkpoint.Deleted, error) {
	l.t.Helper()
	p, err := checkpoint.PlanDelete(l.t.Context(), l.repo, req)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return p.Run(l.t.Context(), func(msg string) { l.t.Log(msg) })
}

// deleteCheckpoint deletes a checkpoint, with or without data, if its image can
// still be written to.
func (l *lab) deleteCheckpoint(name string) {
	l.t.Helper()
	m, err := l.repo.Manifest(l.t.Context(), "vm", name)
	if errors.Is(err, chain.ErrNoCheckpoint) {
		return
	}
	l.must(err)
	_, err = l.delete(checkpoint.DeleteRequest{Domain: "vm", Checkpoint: name})
	l.must(err)
	if _, err = l.repo.Manifest(l.t.Context(), "vm", name); (m.Kind == chain.KindCheckpoint) != errors.Is(err, chain.ErrNoCheckpoint) {
		l.t.Errorf("checkpoint %s of kind %s: %v", name, m.Kind, err)
	}
}

// What a disk lost by shrinking is in no bitmap: it is told by the sizes that
// checkpoints saw, or nothing is.
func TestChangesOfARegrownDisk(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "4M")
	l.write("a", "write -P 1 0 4M")
	l.createCheckpoint("k0", l.disk("a"))
	l.img("resize", "-q", "-f", "qcow2", "--shrink", "a", "3M")
	l.createCheckpoint("k1", l.disk("a"))
	l.img("resize", "-q", "-f", "qcow2", "a", "4M")
	l.createCheckpoint("k2", l.disk("a"))
	runs, err := l.changesSince("k0", l.disk("a"))
	l.must(err)
	l.covers("since k0", runs, l.oracleOf("k0"), l.oracleOf("k2"))
	// No checkpoint saw this one: the data that is gone tells.
	l.img("resize", "-q", "-f", "qcow2", "--shrink", "a", "2M")
	l.img("resize", "-q", "-f", "qcow2", "a", "4M")
	var noTrust *backup.NotTrustedError
	if runs, err := l.changesSince("k2", l.disk("a")); !errors.As(err, &noTrust) || noTrust.Code != trust.ReasonMap {
		t.Errorf("since k2: %v, %v", runs, err)
	}
	if _, err := checkpoint.ChangesBetween(t.Context(), l.repo, "vm", "k0", "k2"); !errors.As(err, &noTrust) {
		t.Errorf("from k0 to k2: %v", err)
	}
}

// A raw disk can hold no checkpoint, and nothing is done to the others.
func TestCheckpointOfRawDisk(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "1M")
	l.img("create", "-q", "-f", "raw", "b", "1M")
	b := l.disk("b")
	b.Disk, b.Format = "vdb", "raw"
	_, err := backup.Record(t.Context(), l.repo, l.request("k", l.disk("a"), b), backup.Hooks{})
	if err == nil || !strings.Contains(err.Error(), "vdb") || !strings.Contains(err.Error(), "raw images hold no bitmaps") {
		t.Errorf("got %v", err)
	}
	if info := l.tool("qemu-img", "info", "a"); strings.Contains(info, "bitmaps") {
		t.Errorf("a bitmap was added: %s", info)
	}
	b.NoCheckpoint = true
	r, err := backup.Record(t.Context(), l.repo, l.request("k", l.disk("a"), b), backup.Hooks{})
	l.must(err)
	if len(r.Manifest.Disks) != 1 || r.Manifest.Disks[0].Name != "vda" {
		t.Errorf("the checkpoint is of %+v", r.Manifest.Disks)
	}
}
